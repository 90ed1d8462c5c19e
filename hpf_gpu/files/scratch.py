"""Temporary folders for data that memory does not hold, removed even if their process was killed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .whole_file import lock, path_of

_PREFIX = "hpf_gpu-counts-"
_LOCKED = "in-use"  # the file of a folder on which its process holds a lock


@contextlib.contextmanager
def scratch_folder(parent: Any = None) -> Iterator[Path]:
    """A new folder in ``parent``, by default that of temporary files, with all that is in it until the end.

    Folders there whose processes were killed are removed first: as in :mod:`hpf_gpu.files.whole_file`, the
    system has released their locks.

    Raises
    ------
    OSError
        If the folder cannot be written.  An error because the disk is full says how large the folder is.
    """
    where = Path(tempfile.gettempdir()) if parent is None else path_of("scratch", parent)
    if not where.is_dir():
        raise FileNotFoundError(f"scratch={str(where)!r} is not an existing folder")
    _remove_leftovers(where)
    folder, file = _new_folder(where)
    try:
        yield folder
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise _full(folder) from error
        raise
    finally:
        _remove(folder)
        file.close()


def _new_folder(where: Path) -> tuple[Path, BinaryIO]:
    """A new folder, and the file in it that is locked until it is closed."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=where))
        with contextlib.suppress(FileNotFoundError):
            file = open(folder / _LOCKED, "wb")  # noqa: SIM115
            # Before it was locked, another process may have removed it as a leftover.
            if lock(file) is not False and folder.exists():
                return folder, file
            file.close()


def _remove_leftovers(where: Path) -> None:
    for folder in where.glob(f"{_PREFIX}*"):
        # What cannot be opened belongs to somebody else.
        with contextlib.suppress(OSError), open(folder / _LOCKED, "r+b") as file:
            if lock(file):
                _remove(folder)
        # Its process was killed before it made the file, or after it removed it; or is just making it.
        with contextlib.suppress(OSError):
            folder.rmdir()


def _remove(folder: Path) -> None:
    """Delete a folder, the file with the lock last: if this is killed, the next process removes the rest."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name != _LOCKED:
                path.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _full(folder: Path) -> OSError:
    size = sum(entry.stat().st_size for entry in os.scandir(folder))
    return OSError(
        errno.ENOSPC,
        f"the disk is full: {size / 1e9:,.1f} GB of counts were written to {folder.parent}; name a folder on "
        "a larger disk, fit(..., scratch=...)",
    )
