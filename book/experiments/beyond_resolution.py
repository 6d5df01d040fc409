"""EM on a part of the positions: how far from EM on all of them, and how much faster.

    python book/experiments/beyond_resolution.py

writes ``book/results/beyond-resolution.json``, which the chapter "Beyond segmentation" reads. It needs no data but the
photographs that come with scikit-image, and takes four minutes and 4 GB on one core.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from skimage import data as photographs
from torch import Tensor
from tqdm import tqdm

from emalab import EMAU, Segmenter, em_attention
from emalab.results import environment, git_commit, write_record
from emalab.segmenter import DEFAULT_WEIGHTS
from lab.subsets import COUNTS, errors, look, sampled_em

OUTPUT_STRIDE = 8
PHOTOGRAPHS: dict[str, Callable[[], NDArray[np.uint8]]] = {
    "astronaut": photographs.astronaut,
    "chelsea": photographs.chelsea,
    "coffee": photographs.coffee,
    "rocket": photographs.rocket,
    "motorcycle": lambda: photographs.stereo_motorcycle()[0],
    "hubble": photographs.hubble_deep_field,
    "retina": photographs.retina,
}
SIDES = (128, 256, 512, 1024)


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    out: Path = Path("book/results/beyond-resolution.json")
    """The record."""
    draws: int = 10
    """Random subsets of each size."""
    repeats: int = 5
    """Of each timing; the median counts."""
    tiny: bool = False
    """One photograph, one subset of each size, one timing of 32² positions: tries the program, measures nothing."""


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call, after one to warm up: what else the machine does hardly counts."""
    work()
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def timings(
    stored: Tensor, count: int, repeats: int, sides: Sequence[int] = SIDES
) -> list[dict[str, float]]:
    """EM on all positions of random features and on ``count`` of them, for larger and larger maps."""
    rows = []
    for side in sides:
        x = torch.randn(side * side, stored.shape[1])
        positions = torch.randperm(len(x))[:count]
        everything = partial(em_attention, x[None], stored)
        some = partial(sampled_em, x, stored, positions)
        rows.append(
            {
                "positions": len(x),
                "all": seconds(everything, repeats),
                "some": seconds(some, repeats),
            }
        )
    return rows


@torch.inference_mode()
def main(arguments: Arguments) -> None:
    """Make the record."""
    torch.set_num_threads(1)
    shown, sides = PHOTOGRAPHS, list(SIDES)
    if arguments.tiny:
        shown, sides = {"rocket": photographs.rocket}, [32]
        arguments = replace(arguments, draws=1, repeats=1)
    model = Segmenter.from_pretrained().with_output_stride(OUTPUT_STRIDE)
    assert isinstance(model.context, EMAU)
    stored = model.context.bases
    generator = torch.Generator().manual_seed(0)
    rows = []
    for name, photograph in tqdm(shown.items()):
        x, size, classify = look(model, photograph())
        row = {
            "photograph": name,
            "size": size,
            "rows": errors(x, size, stored, classify, generator, arguments.draws),
        }
        rows.append(row)
    torch.manual_seed(0)
    record = {
        "what": f"EM, three iterations from the stored bases, on some positions of a photograph at stride {OUTPUT_STRIDE}, and then "
        "one E-step and the reconstruction on all. Relative errors of bases and reconstruction, and the share of "
        "positions whose label in the network changes, against EM on all positions; none: the stored bases as they "
        f"are. Timings: seconds of processor time on one thread, {COUNTS[-1]} positions against all of them, median of {arguments.repeats}.",
        "checkpoint": DEFAULT_WEIGHTS,
        "output_stride": OUTPUT_STRIDE,
        "photographs": rows,
        "timings": timings(stored, COUNTS[-1], arguments.repeats, sides),
        "commit": git_commit(),
        **environment(torch.device("cpu")),
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
