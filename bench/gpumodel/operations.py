"""The operations of an iteration and of a likelihood check, each with what it moves and executes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gpumodel.caches import Machine, gather
from gpumodel.cost import Cost
from gpumodel.gpus import ISSUES, PASS_BYTES, Gpu, l1_bytes
from gpumodel.machine_code import MachineCode
from gpumodel.matrices import Rows
from gpumodel.sass import Counts
from hpf_gpu.backends.cuda_source import JOIN_STRANDS

#: Launches beside the kernels with names of their own.  In an iteration, for each side: a flag is cleared,
#: allocate_exactly finds nothing to do, and two vectors are computed by CuPy.
_OTHER_OF_ITERATION = 8
#: In a check: a flag is cleared, log_rates_exactly finds nothing to do, a sum over segments, the expected
#: total (2) and copies (2).
_OTHER_OF_CHECK = 7
#: More where it computes the ELBO: the like of these (4), and vectors of gamma_elbo (14).
_OTHER_OF_ELBO = 18
#: Cycles from one instruction of a warp to the next that needs its result, on Volta and later.
_DEPENDENT = 4
_SECTOR = 32  # bytes that L2 moves at least
_L2_BYTES = 64  # a cycle, from L2 to one multiprocessor


@dataclass(frozen=True)
class Model:
    """One shape on one GPU."""

    gpu: Gpu
    code: MachineCode
    users: Rows
    items: Rows

    def costs(self) -> dict[str, Cost]:
        """Every operation by name."""
        sides = (("users", self.users), ("items", self.items))
        found: dict[str, Cost] = {}
        for name, side in sides:
            found[f"allocate {name}"] = self.allocate(side)
            found[f"join_segments {name}"] = self.join_segments(side)
        for name, side in sides:
            found[f"gamma_update {name}"] = self.gamma_update(side.rows)
            found[f"sum_columns {name}"] = self.sum_columns(side.rows)
        found["other kernels"] = self.launches(_OTHER_OF_ITERATION)
        for name, side in sides:
            found[f"mean {name}"] = self.mean(side.rows)
        # By the side that gathers rows of the smaller matrix.
        less = min((self.users, self.items), key=lambda side: side.columns)
        found["log_rate_sums"] = self.log_rate_sums(less)
        found["log_normalizer_sums"] = self.log_normalizer_sums(less)
        for name, side in sides:
            found[f"gamma_entropy {name}"] = self.gamma_entropy(side.rows)
        found["other kernels of a check"] = self.launches(_OTHER_OF_CHECK)
        found["other kernels of the ELBO"] = self.launches(_OTHER_OF_ELBO)
        return found

    # -- operations on nonzeros ------------------------------------------------------------------

    def allocate(self, side: Rows) -> Cost:
        flag = 1
        written = self._real * len(side.segments.size)  # a sum or a part for each segment
        return self._gather("allocate", side, self._stored, written + flag * len(side.segments.size))

    def log_rate_sums(self, side: Rows) -> Cost:
        return self._gather("log_rate_sums", side, self._real, 8 * len(side.segments.size))

    def log_normalizer_sums(self, side: Rows) -> Cost:
        # The scale of each column is a number somewhere in an array that fits into L2.
        return self._gather(
            "log_normalizer_sums", side, self._stored, 8 * len(side.segments.size), scattered=_SECTOR
        )

    def _gather(self, name: str, side: Rows, row_bytes: int, written: int, *, scattered: int = 0) -> Cost:
        """A warp for each segment, which gathers the rows of the other side."""
        gpu, code, segments = self.gpu, self.code, len(side.segments.size)
        loop, blocks = code.executed[name], code.blocks[name]
        l1 = l1_bytes(gpu, blocks, code.kernels[name].shared)
        streamed = 4 + code.variant.real.itemsize  # column number and count
        place = 20  # where a segment begins, its size, row and slot
        own = side.rows * row_bytes / segments  # its row comes from DRAM once, from L2 for every segment
        machine = Machine(
            multiprocessors=gpu.multiprocessors,
            blocks=blocks,
            warps=code.variant.knobs.threads // 32,
            l1_rows=l1 / row_bytes,
            l2_rows=gpu.l2 / row_bytes,
            step=round(loop.things),
            row_bytes=row_bytes,
            nonzero_l2_bytes=streamed + scattered,
            nonzero_dram_bytes=streamed,
            segment_l2_bytes=place + row_bytes + written / segments,
            segment_dram_bytes=place + own + written / segments,
            step_seconds=max(self._units(loop.each_time).values()),
            segment_seconds=max(self._units(loop.once).values()),
            l2_rate=gpu.l2_rate,
            dram_rate=gpu.dram_rate,
            l2_latency=gpu.l2_latency,
            dram_latency=gpu.dram_latency,
        )
        found = gather(machine, side.segments, side.nonzeros)
        nonzeros = side.nonzeros.count
        executed = loop.each_time * (nonzeros / loop.things) + loop.once * segments
        waits = dict(found.waited_for)
        unit = waits.pop("unit")
        waits[self._scarcest(loop.each_time)] = unit
        return self._cost(
            executed,
            dram=nonzeros * (found.dram * row_bytes + streamed) + segments * machine.segment_dram_bytes,
            l2=nonzeros * ((1 - found.l1_hits) * row_bytes + machine.nonzero_l2_bytes)
            + segments * machine.segment_l2_bytes,
            waits=waits,
            rows=(found.dram, found.l1_hits, found.busy),
        )

    # -- operations on matrices ------------------------------------------------------------------

    def join_segments(self, side: Rows) -> Cost:
        if not side.long_rows:
            return self.launches(0)
        width, loop = self.code.variant.width, self.code.executed["join_segments"]
        warps = side.long_rows * -(-width // 32) * JOIN_STRANDS
        moved = (side.slots + side.long_rows) * self._real
        executed = loop.each_time * (side.slots * width / 32 / loop.things) + loop.once * warps
        chain = -(-side.longest // (loop.things * JOIN_STRANDS)) * self.gpu.dram_latency
        return self._cost(executed, dram=moved, l2=moved, waits=self._waits(executed, moved, moved, chain))

    def gamma_update(self, rows: int) -> Cost:
        vectors = 24  # rates in, scales and sums out
        parts = self._row_blocks(rows) * self.code.variant.k * 8
        moved = rows * (2 * self._real + self._stored + vectors) + parts
        return self._of_rows("gamma_update", rows, moved)

    def gamma_entropy(self, rows: int) -> Cost:
        return self._of_rows("gamma_entropy", rows, rows * (self._real + 24))

    def _of_rows(self, name: str, rows: int, moved: float) -> Cost:
        """A group of lanes for one row after the other."""
        code, gpu, loop = self.code, self.gpu, self.code.executed[name]
        blocks, warps = self._row_blocks(rows), self.code.warps(name)
        steps = math.ceil(rows / (blocks * warps * loop.things))
        each_time = loop.each_time
        if name == "gamma_update" and code.variant.real.itemsize == 4:
            # All of it in float64 is the logarithm of a row's scale, which as many rows as lanes share.
            each_time = replace(each_time, float64=each_time.float64 / min(32, steps))
        executed = (each_time * steps + loop.once) * (blocks * warps)
        # The last multiprocessors get as many blocks as the others, or one less.
        uneven = -(-blocks // gpu.multiprocessors) * gpu.multiprocessors / blocks
        waves = -(-blocks // (gpu.multiprocessors * code.blocks[name]))
        step = gpu.dram_latency + loop.each_time.issued * _DEPENDENT / gpu.clock
        waits = self._waits(executed * uneven, moved, moved, waves * steps * step)
        return self._cost(executed, dram=moved, l2=moved, waits=waits)

    def sum_columns(self, rows: int) -> Cost:
        blocks, k, gpu = self._row_blocks(rows), self.code.variant.k, self.gpu
        loop, strands = self.code.executed["sum_columns"], self.code.warps("sum_columns")
        moved, multiprocessors = blocks * k * 8, -(-k // 32)
        executed = (loop.each_time * (blocks / strands / loop.things) + loop.once) * (
            strands * multiprocessors
        )
        chain = math.ceil(blocks / strands / loop.things) * gpu.l2_latency
        chain += moved / multiprocessors / _L2_BYTES / gpu.clock
        waits = self._waits(executed * (gpu.multiprocessors / multiprocessors), 0, moved, chain)
        return self._cost(executed, dram=0, l2=moved, waits=waits)

    def mean(self, rows: int) -> Cost:
        moved = rows * (2 * self._real + 8)
        executed = self.code.executed["mean"].each_time * (rows * self.code.variant.width / 32)
        waits = self._waits(executed, moved, moved, self.gpu.dram_latency)
        return self._cost(executed, dram=moved, l2=moved, waits=waits)

    def launches(self, number: int) -> Cost:
        """Kernels whose work is too little to matter."""
        return Cost(number, waits={"launch": number * self.gpu.launch * 1e3})

    # -- times -----------------------------------------------------------------------------------

    def _row_blocks(self, rows: int) -> int:
        """Blocks of kernels that take whole rows, as in cuda_backend.py, which only imports with CuPy."""
        return min(2048, -(-rows // self.code.variant.gamma_groups))

    @property
    def _stored(self) -> int:
        """Bytes of a row of exp E[ln θ]."""
        return self.code.variant.width * self.code.variant.store.itemsize

    @property
    def _real(self) -> int:
        """Bytes of a row of any other matrix."""
        return self.code.variant.width * self.code.variant.real.itemsize

    def _units(self, executed: Counts) -> dict[str, float]:
        """Seconds for which these instructions keep each unit of one multiprocessor busy."""
        gpu = self.gpu
        cycles = {
            "l1": executed.passes,
            "float64": 32 * executed.float64 / gpu.float64,
            "float32": 32 * executed.float32 / gpu.float32,
            "special": 32 * executed.special / gpu.special,
            "issue": executed.issued / ISSUES,
        }
        return {name: number / gpu.clock for name, number in cycles.items()}

    def _scarcest(self, executed: Counts) -> str:
        units = self._units(executed)
        return max(units, key=units.__getitem__)

    def _waits(self, executed: Counts, dram: float, l2: float, chain: float) -> dict[str, float]:
        """Seconds of what all multiprocessors share evenly, by the scarcest resource."""
        each = executed * (1 / self.gpu.multiprocessors)
        needed = self._units(each) | {
            "dram": dram / self.gpu.dram_rate,
            "l2": l2 / self.gpu.l2_rate,
            "latency": chain,
        }
        scarcest = max(needed, key=needed.__getitem__)
        return {scarcest: needed[scarcest]}

    def _cost(
        self,
        executed: Counts,
        *,
        dram: float,
        l2: float,
        waits: dict[str, float],
        rows: tuple[float, float, float] = (math.nan,) * 3,
    ) -> Cost:
        """One launch."""
        seconds = waits | {"launch": self.gpu.launch}
        return Cost(
            *(1, dram, l2, PASS_BYTES * executed.passes),
            *(executed.float64, executed.issued - executed.float64),
            *rows,
            {name: 1e3 * amount for name, amount in seconds.items()},
        )
