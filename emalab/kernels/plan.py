"""How the kernel is launched: block sizes for the registers and shared memory of a GPU, programs for its processors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

MAX_BASES, MAX_CHANNELS = 256, 1024
ALIGNMENT = 16  # bytes, of every row of features that the copy engine reads

_ACCUMULATORS = 64 * 512  # float32 sums that 8 warps hold in registers, Σ_n z_nk x_nc
_RESERVED = 11 * 1024  # bytes of shared memory that are not for tiles, bases and responsibilities
_REBUILD_STAGES = 3  # tiles of responsibilities on their way while the features are rebuilt

# Features (b, n, c) below which seven launches take the host longer than the GPU: there one launch is up to twice as
# fast. With more of them, ends of launches hold the programs up less than counters do.
_FEW = 2**24

__all__ = [
    "ALIGNMENT",
    "HOPPER",
    "MAX_BASES",
    "MAX_CHANNELS",
    "MINIMUM",
    "Limits",
    "Plan",
    "block",
    "device_limits",
    "make_plan",
    "pays",
    "timed",
]


@dataclass(frozen=True)
class Limits:
    """What a GPU offers to a program.

    Args:
        capability: compute capability; the kernel needs 8.0, and uses the tensor copy engine (TMA) from 9.0 on.
        shared_memory: bytes that a program may ask for.
    """

    capability: tuple[int, int]
    shared_memory: int

    def contain(self, other: Limits) -> bool:
        """Whether this GPU offers no less than the other."""
        return self.capability >= other.capability and self.shared_memory >= other.shared_memory

    def missing(self) -> str | None:
        """What the kernel needs and this GPU lacks; None if it runs here."""
        if self.contain(MINIMUM):
            return None
        return f"it needs {MINIMUM}, and this GPU has {self}"

    def __str__(self) -> str:
        major, minor = self.capability
        return f"compute capability {major}.{minor} and {self.shared_memory // 1024} KB of shared memory for a block"


MINIMUM = Limits((8, 0), 99 * 1024)  # before 8.0, Triton has no matrix instructions
HOPPER = Limits((9, 0), 227 * 1024)


@cache
def device_limits(index: int) -> Limits:
    """The limits of a CUDA device."""
    found = torch.cuda.get_device_properties(index)
    return Limits((found.major, found.minor), found.shared_memory_per_block_optin)


@dataclass(frozen=True)
class Plan:
    """One way to launch the kernel.

    Args:
        programs: that share the positions of an image.
        block_n: positions in a tile.
        block_c: channels in a block; a power of two.
        out_n: positions in a tile of the reconstruction.
        stages: depth of the software pipeline: tiles in shared memory at a time, or on their way to it.
        warps: of a program.
        whole: a tile holds all channels and comes by the copy engine; otherwise the features are read in chunks.
        one_launch: all phases in one launch, whose programs must all be on the device at a time.
    """

    programs: int
    block_n: int
    block_c: int
    out_n: int
    stages: int
    warps: int
    whole: bool
    one_launch: bool

    def constants(self, k: int, c: int) -> dict[str, int]:
        """Sizes that the kernel is compiled for, with k bases of c channels."""
        all_c, share = block(c), -(-k // self.programs)
        block_r = min(1 << (share - 1).bit_length(), max(8192 // all_c, 1))
        return {
            "K": k,
            "C": c,
            "BLOCK_N": self.block_n,
            "BLOCK_K": block(k),
            "BLOCK_C": self.block_c,
            "BLOCK_ALL_C": all_c,
            "BLOCK_P": min(1 << (self.programs - 1).bit_length(), 32768 // (all_c * block_r)),
            "BLOCK_R": block_r,
            "OUT_N": self.out_n,
            "STAGES": self.stages,
        }


def block(size: int) -> int:
    """The power of two, at least 16, that holds ``size``: what a matrix instruction takes."""
    return max(16, 1 << (size - 1).bit_length())


def make_plan(b: int, n: int, k: int, c: int, dtype: torch.dtype, processors: int, limits: Limits = HOPPER) -> Plan:
    """The plan for features (b, n, c) of ``dtype`` and k bases on a GPU with so many multiprocessors.

    One program fills a multiprocessor, so there are never more than fit on the device at a time, unless each has an
    image of its own and need not wait for others.
    """
    blocks = _whole_tiles(n, k, c, dtype, limits) or _chunks(k, c, dtype, limits)
    programs = max(1, min(processors // b, -(-n // blocks["block_n"])))
    return Plan(programs=programs, one_launch=b * n * c <= _FEW, **blocks)


def _whole_tiles(n: int, k: int, c: int, dtype: torch.dtype, limits: Limits) -> dict[str, Any] | None:
    """Blocks for tiles of all channels; None where registers or shared memory do not hold them."""
    all_k, all_c, size = block(k), block(c), dtype.itemsize
    sums = all_k * all_c
    if limits.capability < (9, 0) or size != 2 or n == 0 or c * size % ALIGNMENT:
        return None
    if sums > _ACCUMULATORS or all_k > 64 or all_c > 512:
        return None
    warps = 8 if sums > _ACCUMULATORS // 2 else 4
    block_n = 16 * warps  # a warp's matrix instruction takes 16 positions
    others = (sums + block_n * all_k) * size
    stages = min(3, (limits.shared_memory - _RESERVED - others) // (block_n * all_c * size))
    if stages < 1:
        return None
    return {"block_n": block_n, "block_c": all_c, "out_n": 64, "stages": stages, "warps": warps, "whole": True}


def _chunks(k: int, c: int, dtype: torch.dtype, limits: Limits) -> dict[str, Any]:
    """Blocks for tiles of some channels, as many as the shared memory holds."""
    all_k, all_c, size = block(k), block(c), dtype.itemsize
    if size == 2:
        block_n, block_c, stages, warps = (64, 256, 3, 8) if all_k <= 64 else (64, 128, 2, 8)
    else:
        block_n, block_c, stages, warps = 32, 64, 2, 8 if all_k > 32 else 4
    out_n, block_c, room = block_n, min(block_c, all_c), limits.shared_memory - _RESERVED
    while (stages * (block_n + all_k) * block_c + block_n * all_k) * size > room:
        stages, block_c = (stages - 1, block_c) if stages > 2 else (stages, block_c // 2)
    while (_REBUILD_STAGES * out_n + block_c) * all_k * size > room:
        out_n //= 2
    return {"block_n": block_n, "block_c": block_c, "out_n": out_n, "stages": stages, "warps": warps, "whole": False}


def timed(limits: Limits) -> bool:
    """Whether the timings of `pays` are those of such a GPU: Hopper's generation, with all of its shared memory."""
    return limits.capability[0] == HOPPER.capability[0] and limits.contain(HOPPER)


def pays(k: int, c: int, dtype: torch.dtype) -> bool:
    """Whether the kernel is the faster way, judged by timings on an H200 at 65² positions, replayed from a graph.

    GPUs of other generations were not timed. There the kernel runs on request (``backend="triton"``), and
    ``emalab bench`` shows whether it is faster.

    In half precision it is with up to 64 bases, of 128 channels (0.07 against 0.17 ms) as of 1024 (0.41 against 0.42).
    With 128 it gains nothing (256 channels, 0.26 against 0.25 ms) or loses (512, 0.43 against 0.34), as it does in
    float32 (1.9 against 1.2 ms). The record is book/results/h200-bench.json.
    """
    return dtype.itemsize == 2 and block(k) <= 64 and c <= MAX_CHANNELS
