"""The contract of hpf_gpu.backends.protocol: every operation × backend × dtype against dense formulas."""

import pytest

pytest.register_assert_rewrite("contract.checks", "contract.tolerances")
