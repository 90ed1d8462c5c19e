"""What is measured, as cases.toml has it: data sets, and what is done with them."""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import synthetic
from scipy import sparse

_FILE = Path(__file__).with_name("cases.toml")


@dataclass(frozen=True)
class Data:
    """A data set: its size, and which function makes it."""

    name: str
    make: str
    users: int
    items: int
    nnz: int

    def frame(self) -> pd.DataFrame:
        """The counts as UserId, ItemId and Count, the same every time."""
        if self.make == "online_retail":
            from hpf_gpu.datasets import load_online_retail  # matrices are made without the package

            return load_online_retail().purchases[["UserId", "ItemId", "Count"]]
        if self.make == "power_law_csr":
            coo = self.csr().tocoo()
            return pd.DataFrame({"UserId": coo.row, "ItemId": coo.col, "Count": coo.data})
        return synthetic.power_law_counts(self.users, self.items, self.nnz)

    def csr(self) -> sparse.csr_array:
        """The counts as a canonical matrix (users, items) in float32."""
        if self.make == "power_law_csr":
            return synthetic.power_law_csr(self.users, self.items, self.nnz)
        return Input(self.frame()).csr


@dataclass(frozen=True)
class Input:
    """Counts in the forms that libraries take: made before the clock starts."""

    frame: pd.DataFrame

    @cached_property
    def _codes(self) -> list[tuple[np.ndarray, Any]]:
        return [pd.factorize(self.frame[column]) for column in ("UserId", "ItemId")]

    @property
    def ids(self) -> tuple[Any, Any]:
        """The user of each row of :attr:`csr` (N,), and the item of each column (M,)."""
        return self._codes[0][1], self._codes[1][1]

    @cached_property
    def csr(self) -> sparse.csr_array:
        (rows, users), (columns, items) = self._codes
        counts = self.frame["Count"].to_numpy(np.float32)
        places = rows.astype(np.int32), columns.astype(np.int32)
        csr = sparse.coo_array((counts, places), shape=(len(users), len(items))).tocsr()
        csr.sort_indices()
        return csr


class Job(NamedTuple):
    """One process: a case with one of its competitors, numbers of factors and numbers of threads."""

    case: Case
    who: str
    k: int
    threads: int

    @property
    def lengths(self) -> list[int]:
        """Iterations of the fits, ascending."""
        return self.case.lengths.get(self.who, self.case.lengths.get("all", []))


@dataclass(frozen=True)
class Case:
    """What `python bench/run.py NAME` measures."""

    name: str
    measure: str  # one of those in measures.py
    data: str
    who: tuple[str, ...]  # of competitors.py
    k: tuple[int, ...] = (30,)
    threads: tuple[int, ...] = (2,)
    dtype: str = "float32"
    lengths: dict[str, list[int]] = field(default_factory=dict, hash=False)
    likelihood: bool = False  # hold a tenth out, and judge every fit
    rounds: int = 3
    limit: float = 120  # seconds of a job

    def jobs(self) -> Iterator[Job]:
        return (Job(self, *values) for values in itertools.product(self.who, self.k, self.threads))

    def small(self) -> Case:
        """The same on little data and once, to see that it works."""
        lengths = {who: sorted({min(length, 4) for length in given}) for who, given in self.lengths.items()}
        quick = {"rounds": 1, "limit": 300.0, "k": self.k[:2], "lengths": lengths}
        return replace(self, name=f"{self.name}-small", data="small", **quick)


def _read() -> tuple[dict[str, Data], dict[str, Case]]:
    given = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    cases = {}
    for name, fields in given["case"].items():
        lists = {key: tuple(fields.pop(key)) for key in ("who", "k", "threads") if key in fields}
        cases[name] = Case(name, **fields, **lists)
    return {name: Data(name, **fields) for name, fields in given["data"].items()}, cases


DATA, CASES = _read()
