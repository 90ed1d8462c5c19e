"""``hpf-gpu doctor``; imports nothing that may be broken."""

from __future__ import annotations

from hpf_gpu.app.terminal import FINE, NEGATIVE, write


def doctor() -> int:
    """Test every backend, and show how to fix those that do not work.

    The exit status is 0 if a backend works that is faster than NumPy, else 1.
    """
    from hpf_gpu.app import doctor as examiner

    report = examiner.examine()
    write("".join(f"{line}\n" for line in report.lines()))
    return FINE if report.compiled_works else NEGATIVE
