"""EM on the frames of a clip, with bases carried over from one frame to a later one."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from emalab import em_attention
from emalab.em import log_likelihood

LONG = 50  # iterations after which EM has all but converged


def climb(x: Tensor, bases: Tensor, num_iters: int) -> Tensor:
    """Bases (k, c) after so many iterations of EM on the positions (n, c) of a frame."""
    return em_attention(x[None], bases, num_iters=num_iters).bases[0]


def objective(x: Tensor, bases: Tensor) -> float:
    """What EM climbs, in nats per position."""
    return (log_likelihood(x[None], bases) / len(x)).item()


def carried(
    frames: Sequence[Tensor], stored: Tensor, budget: int, steps: int = 1
) -> list[Tensor]:
    """Final bases of every frame, ``budget`` iterations each, from those of the frame ``steps`` before it.

    The first frames, which have no such frame, start from the stored bases.
    """
    found: list[Tensor] = []
    for index, x in enumerate(frames):
        start = found[index - steps] if index >= steps else stored
        found.append(climb(x, start, budget))
    return found
