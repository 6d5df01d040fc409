"""EM on a part of the positions: how far from EM on all of them, and how much faster.

    python book/experiments/beyond_resolution.py

writes ``book/results/beyond-resolution.json``, which the chapter "Beyond segmentation" reads. It needs no data but the
photographs that come with scikit-image, and takes four minutes and 4 GB on one core.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from skimage import data as photographs
from torch import Tensor
from tqdm import tqdm

from emalab import Segmenter, em_attention
from emalab.data import open_image
from emalab.em import e_step, reconstruct
from emalab.results import environment, git_commit, write_record
from emalab.segmenter import DEFAULT_WEIGHTS

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
COUNTS = tuple(4**power for power in range(3, 8))
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


def look(
    model: Segmenter, photograph: NDArray[np.uint8]
) -> tuple[Tensor, tuple[int, int], Callable[[Tensor], Tensor]]:
    """What enters EM, (n, c); h and w; and what turns a reconstruction (n, c) into labels (n,)."""
    image = open_image(Image.fromarray(photograph)).as_subclass(Tensor)
    features = model.features(image[None])
    height, width = features.shape[-2:]
    unit = model.context

    def classify(rebuilt: Tensor) -> Tensor:
        context = rearrange(rebuilt.relu(), "(h w) c -> 1 c h w", h=height)
        attended = torch.relu(features + unit.conv_out(context))
        return model.classifier(attended).argmax(dim=1).flatten()

    x = rearrange(unit.conv_in(features), "1 c h w -> (h w) c")
    return x, (height, width), classify


def sampled_em(
    x: Tensor, bases: Tensor, positions: Tensor, num_iters: int = 3
) -> tuple[Tensor, Tensor]:
    """EM on some positions of (n, c); then every position is rebuilt from its bases: (n, c), (k, c)."""
    found = em_attention(x[positions][None], bases, num_iters=num_iters).bases
    return reconstruct(e_step(x[None], found), found)[0], found[0]


def grid(height: int, width: int, count: int) -> Tensor:
    """About so many positions on an even grid over a map."""
    step = max(math.sqrt(height * width / count), 1)
    rows, columns = (
        torch.arange(step / 2, side, step).long() for side in (height, width)
    )
    return (rows[:, None] * width + columns).flatten()


def relative(approximation: Tensor, exact: Tensor) -> float:
    """‖approximation − exact‖ / ‖exact‖."""
    return ((approximation - exact).norm() / exact.norm()).item()


def errors(
    x: Tensor,
    size: tuple[int, int],
    stored: Tensor,
    classify: Callable[[Tensor], Tensor],
    generator: torch.Generator,
    draws: int,
) -> list[dict[str, Any]]:
    """How far from EM on all positions of one photograph: bases, reconstruction, and the network's labels.

    Args:
        x: features that enter EM, (n, c).
        size: h, w.
        stored: bases that EM starts from, (k, c).
        classify: reconstruction (n, c) → labels (n,).
        generator: of the random subsets.
        draws: random subsets of each size.

    Returns:
        A row for each subset, and a last one for no EM at all: the stored bases as they are.
    """
    exact, bases = sampled_em(x, stored, torch.arange(len(x)))
    labels = classify(exact)

    def row(way: str, count: int, rebuilt: Tensor, found: Tensor) -> dict[str, Any]:
        return {
            "way": way,
            "count": count,
            "bases": relative(found, bases),
            "reconstruction": relative(rebuilt, exact),
            "labels": (classify(rebuilt) != labels).double().mean().item(),
        }

    rows = []
    for count in (count for count in COUNTS if count < len(x)):
        subsets = [("grid", grid(*size, count))]
        for _ in range(draws):
            positions = torch.randperm(len(x), generator=generator)[:count]
            subsets.append(("random", positions))
        for way, positions in subsets:
            rows.append(row(way, len(positions), *sampled_em(x, stored, positions)))
    unmoved = F.normalize(stored, dim=1)
    rebuilt = reconstruct(e_step(x[None], unmoved[None]), unmoved[None])[0]
    return [*rows, row("none", 0, rebuilt, unmoved)]


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Median processor time of a call, after one to warm up: what else the machine does hardly counts."""
    work()
    times = []
    for _ in range(repeats):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return statistics.median(times)


def timings(stored: Tensor, count: int, repeats: int) -> list[dict[str, float]]:
    """EM on all positions of random features and on ``count`` of them, for larger and larger maps."""
    rows = []
    for side in SIDES:
        x = torch.randn(side * side, stored.shape[1])
        positions = torch.randperm(len(x))[:count]
        rows.append(
            {
                "positions": len(x),
                "all": seconds(lambda x=x: em_attention(x[None], stored), repeats),
                "some": seconds(
                    lambda x=x, p=positions: sampled_em(x, stored, p), repeats
                ),
            }
        )
    return rows


@torch.inference_mode()
def main(arguments: Arguments) -> None:
    """Make the record."""
    torch.set_num_threads(1)
    model = Segmenter.from_pretrained().with_output_stride(OUTPUT_STRIDE)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for name, photograph in tqdm(PHOTOGRAPHS.items()):
        x, size, classify = look(model, photograph())
        row = {
            "photograph": name,
            "size": size,
            "rows": errors(
                x, size, model.context.bases, classify, generator, arguments.draws
            ),
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
        "timings": timings(model.context.bases, COUNTS[-1], arguments.repeats),
        "commit": git_commit(),
        **environment(torch.device("cpu")),
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
