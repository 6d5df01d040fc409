"""EM on a part of the positions: bases found there, every position rebuilt from them, and how far off both are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from emalab import EMAU, Segmenter, em_attention
from emalab.data import open_image
from emalab.em import e_step, reconstruct

COUNTS = tuple(4**power for power in range(3, 8))  # positions that take part


def look(
    model: Segmenter, photograph: NDArray[np.uint8]
) -> tuple[Tensor, tuple[int, int], Callable[[Tensor], Tensor]]:
    """What enters EM, (n, c); h and w; and what turns a reconstruction (n, c) into labels (n,)."""
    image = open_image(Image.fromarray(photograph)).as_subclass(Tensor)
    features = model.features(image[None])
    height, width = features.shape[-2:]
    unit = model.context
    assert isinstance(unit, EMAU)

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
