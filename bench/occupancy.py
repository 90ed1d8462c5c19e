"""How many warps of a kernel a multiprocessor holds at once."""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32


@dataclass(frozen=True)
class Multiprocessor:
    """What one multiprocessor can hold."""

    warps: int
    blocks: int
    shared: int  # KiB


#: By compute capability.  CUDA Programming Guide, "Compute Capabilities", table "Technical
#: Specifications per Compute Capability".
MULTIPROCESSORS = {
    75: Multiprocessor(warps=32, blocks=16, shared=64),
    80: Multiprocessor(warps=64, blocks=32, shared=164),
    86: Multiprocessor(warps=48, blocks=16, shared=100),
    89: Multiprocessor(warps=48, blocks=24, shared=100),
    90: Multiprocessor(warps=64, blocks=32, shared=228),
    100: Multiprocessor(warps=64, blocks=32, shared=228),
    120: Multiprocessor(warps=48, blocks=24, shared=100),
}

_REGISTERS = 65536
_PARTITIONS = 4  # each with its part of the registers, and warps of its own
_REGISTER_UNIT = 256  # registers are handed out to a warp in multiples of this


def resident_warps(sm: int, threads: int, registers: int, shared: int) -> int:
    """Warps on one multiprocessor, for blocks of ``threads`` that take ``shared`` bytes each.

    ``registers`` are those of a thread.
    """
    multiprocessor = MULTIPROCESSORS[sm]
    warps = -(-threads // WARP)
    warps_of_partition = _REGISTERS // _PARTITIONS // _round_up(registers * WARP, _REGISTER_UNIT)
    # From compute capability 8.0 on, the driver keeps 1 KiB of each block for itself.
    unit, reserved = (256, 0) if sm < 80 else (128, 1024)
    taken = _round_up(shared + reserved, unit)
    blocks = min(
        multiprocessor.blocks,
        multiprocessor.warps // warps,
        warps_of_partition * _PARTITIONS // warps,
        multiprocessor.shared * 1024 // taken if taken else multiprocessor.blocks,
    )
    return blocks * warps


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
