"""The contract's cases, by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contract.cases import CASES, IN_FLOAT32_ALONE, Case, make_case


@pytest.fixture(scope="session", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest, dtype: np.dtype[Any]) -> Case:
    if request.param in IN_FLOAT32_ALONE and dtype == np.float64:
        pytest.skip("in float64 other K stand for this one, as each takes a simulator seconds to compile")
    return make_case(request.param)
