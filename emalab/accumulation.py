"""Gradient accumulation: one update of the bases for a step that passes in several micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from emalab.bases import Maintenance
from emalab.modules import EMAU

__all__ = ["one_update_of_bases"]


class _Gathered(Maintenance):
    """Wraps a strategy: batches start from its bases, and the bases they end with are collected for one update."""

    def __init__(self, strategy: Maintenance) -> None:
        self.strategy, self.learnable = strategy, strategy.learnable
        self.found: list[Tensor] = []

    def start(self, bases: Tensor, x: Tensor) -> Tensor:
        """As the strategy does."""
        return self.strategy.start(bases, x)

    @torch.compiler.disable  # each length of the list would be compiled anew
    def update(self, bases: Tensor, batch_bases: Tensor) -> None:
        """Keep (b, k, c); the stored bases stay."""
        self.found.append(batch_bases)


@contextmanager
def one_update_of_bases(network: nn.Module) -> Iterator[None]:
    """In this context, forward passes in training mode count as one batch: they share the bases, updated at its end.

    The paper (§3.3) averages the bases over a mini-batch, the images of one step of SGD, and mixes the mean in with
    1 − α. If each of N micro-batches were mixed in, the old bases would keep α^N per step, and N would change what α
    means. Here N changes nothing: the update is that of one batch of all images, over every rank.

    Example:
        >>> unit = EMAU(channels=16, num_bases=4)
        >>> with one_update_of_bases(unit):
        ...     for features in torch.rand(8, 16, 9, 9).chunk(4):
        ...         unit(features).mean().backward()

    Args:
        network: every `EMAU` in it takes part. An exception within the context leaves the bases as they were.
    """
    units = [module for module in network.modules() if isinstance(module, EMAU)]
    strategies = [unit.maintenance for unit in units]
    gathered = [_Gathered(strategy) for strategy in strategies]
    try:
        for unit, waiting in zip(units, gathered, strict=True):
            unit.maintenance = waiting
        yield
    finally:
        for unit, strategy in zip(units, strategies, strict=True):
            unit.maintenance = strategy
    for unit, waiting in zip(units, gathered, strict=True):
        if waiting.found:
            unit.maintain(torch.cat(waiting.found))
