"""`emalab bench`."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Literal

from emalab.choices import Method
from emalab.commands.environment import Device, own_device
from emalab.progress import progress_bar
from emalab.results import write_record

Dtype = Literal["bfloat16", "float16", "float32"]

__all__ = ["run"]

_ON_CPU: tuple[Method, ...] = ("em-torch", "non-local-explicit", "non-local-sdpa")
_ON_GPU: tuple[Method, ...] = ("em-triton", "em-torch", "em-compiled", "non-local-explicit", "non-local-sdpa")


def run(
    positions: tuple[int, ...] = (),
    bases: tuple[int, ...] = (64,),
    channels: tuple[int, ...] = (512,),
    iterations: tuple[int, ...] = (3,),
    batch: tuple[int, ...] = (),
    dtypes: tuple[Dtype, ...] = (),
    methods: tuple[Method, ...] = (),
    seconds: float = 0.1,
    device: Device = "auto",
    out: Path | None = None,
) -> None:
    """Time EM attention and non-local attention, beside the least that moving the data and computing must take.

    Every method is first checked against float64. On a GPU the times are medians of CUDA events with an empty cache,
    called from Python and replayed from a CUDA graph, which shows what the host costs; on a CPU, of its clock.
    "reached" is the part of the floor, from a copy and a matrix product measured here; the book's chapter "What
    attention costs" derives it.

    Args:
        positions: N, pixels of the feature map; by default 1089 4225 16641 on a GPU, and 289 1089 elsewhere.
        bases: K.
        channels: C; non-local attention has half as many inside.
        iterations: T.
        batch: images at a time; by default 16 on a GPU and 1 elsewhere.
        dtypes: by default bfloat16 on a GPU and float32 elsewhere.
        methods: by default all on a GPU, and those that need no compiler elsewhere.
        seconds: how long to repeat each.
        device: where to run.
        out: also write everything to this JSON file, with device and versions.
    """
    from emalab.bench import Size, benchmark, format_table, measure_ceilings, to_record

    where = own_device(device)
    gpu = where.type == "cuda"
    sizes = [
        Size(b, n, k, c, steps, dtype)
        for dtype, b, k, c, steps, n in product(
            dtypes or (("bfloat16",) if gpu else ("float32",)),
            batch or ((16,) if gpu else (1,)),
            bases,
            channels,
            iterations,
            positions or ((1089, 4225, 16641) if gpu else (289, 1089)),
        )
    ]
    chosen = methods or (_ON_GPU if gpu else _ON_CPU)
    ceilings = measure_ceilings(where, sorted({size.dtype for size in sizes}))
    rows = benchmark(sizes, chosen, where, seconds, ceilings)
    done = list(progress_bar(rows, "timing", total=len(sizes) * len(chosen), unit="row"))
    print(format_table(done, ceilings))
    if out:
        write_record(out, to_record(done, ceilings, where))
