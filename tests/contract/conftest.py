"""The contract's cases, by name."""

from __future__ import annotations

import pytest

from contract.cases import CASES, Case, make_case


@pytest.fixture(scope="session", params=CASES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param)
