"""How the kernel is launched: block sizes for the registers and shared memory of a GPU, programs for its processors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

MAX_BASES, MAX_CHANNELS = 256, 1024
ALIGNMENT = 16  # bytes, of every row of features that the copy engine reads

_ACCUMULATORS = 64 * 512  # float32 sums that 8 warps hold in registers, Σ_n z_nk x_nc
_SHARED_MEMORY = 216 * 1024  # bytes for tiles, bases and responsibilities, of 227 KB

# Features (b, n, c) below which seven launches take the host longer than the GPU: there one launch is up to twice as
# fast. With more of them, ends of launches hold the programs up less than counters do.
_FEW = 2**24

__all__ = ["ALIGNMENT", "MAX_BASES", "MAX_CHANNELS", "Plan", "block", "make_plan", "pays"]


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


def block(size: int) -> int:
    """The power of two, at least 16, that holds ``size``: what a matrix instruction takes."""
    return max(16, 1 << (size - 1).bit_length())


def make_plan(b: int, n: int, k: int, c: int, dtype: torch.dtype, processors: int) -> Plan:
    """The plan for features (b, n, c) of ``dtype`` and k bases on a GPU with so many multiprocessors.

    One program fills a multiprocessor, so there are never more than fit on the device at a time, unless each has an
    image of its own and need not wait for others.
    """
    all_k, all_c = block(k), block(c)
    sums, half = all_k * all_c, dtype.itemsize == 2
    fits = sums <= _ACCUMULATORS and all_k <= 64 and all_c <= 512
    whole = half and fits and n > 0 and c * dtype.itemsize % ALIGNMENT == 0
    if whole:
        warps = 8 if sums > _ACCUMULATORS // 2 else 4
        block_n, block_c, out_n = 16 * warps, all_c, 64  # a warp's matrix instruction takes 16 positions
        tile, others = block_n * all_c * dtype.itemsize, (sums + block_n * all_k) * dtype.itemsize
        stages = max(1, min(3, (_SHARED_MEMORY - others) // tile))
    elif half:
        block_n, block_c, out_n, stages, warps = (64, 256, 64, 3, 8) if all_k <= 64 else (64, 128, 64, 2, 8)
    else:
        block_n, block_c, out_n, stages, warps = 32, min(all_c, 64), 32, 2, 8 if all_k > 32 else 4
    programs = max(1, min(processors // b, -(-n // block_n)))
    return Plan(programs, block_n, min(block_c, all_c), out_n, stages, warps, whole, one_launch=b * n * c <= _FEW)


def pays(k: int, c: int, dtype: torch.dtype) -> bool:
    """Whether the kernel is the faster way, judged by timings on an H200 at 65² positions, replayed from a graph.

    In half precision it is with up to 64 bases, of 128 channels (0.07 against 0.17 ms) as of 1024 (0.41 against 0.42).
    With 128 it gains nothing (256 channels, 0.26 against 0.25 ms) or loses (512, 0.43 against 0.34), as it does in
    float32 (1.9 against 1.2 ms). The record is book/results/h200-bench.json.
    """
    return dtype.itemsize == 2 and block(k) <= 64 and c <= MAX_CHANNELS
