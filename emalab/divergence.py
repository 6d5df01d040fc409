"""How a run that diverges is recognized, and what its message advises."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor

from emalab.checkpoints import CheckpointError, all_finite, named_tensors, require_finite

__all__ = ["TrainingDivergedError", "find_divergence"]


class TrainingDivergedError(FloatingPointError):
    """Loss, weights, running statistics or moments are no longer finite; the message says where, and what to try."""

    @classmethod
    def at(cls, problem: str, iteration: int, lr: float, last: Path) -> TrainingDivergedError:
        """``problem``, when it was seen, and the way out; ``last`` is where a checkpoint from before may lie."""
        kept = f"; {last} holds the last checkpoint before" if last.exists() else ""
        return cls(
            f"{problem} by iteration {iteration}, at learning rate {lr:.2e}; "
            f"lower optim.lr or set optim.clip_norm, and start again in another folder{kept}"
        )


def find_divergence(learned: Mapping[str, Any], fabric: Fabric) -> str | None:
    """What is not finite of all that training changes, in words; on every rank if it is so on one. None if all is.

    A loss may be finite while weights and running statistics are not.
    """
    tensors = dict(named_tensors(learned))
    finite = torch.tensor(float(all_finite(tensors.values())), device=fabric.device)
    everywhere = fabric.all_reduce(finite, reduce_op="sum")
    assert isinstance(everywhere, Tensor)
    if everywhere == fabric.world_size:
        return None
    try:
        require_finite(tensors, "the network diverged")
    except CheckpointError as error:
        return str(error)
    return "the network of another process diverged"
