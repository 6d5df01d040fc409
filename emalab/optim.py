"""The optimizer: learning rate schedule, loss and parameter groups."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emalab.recipes import OptimConfig
from emalab.segmenter import Segmenter

__all__ = ["cross_entropy", "make_optimizer", "parameter_groups", "poly_lr"]


def poly_lr(iteration: int, config: OptimConfig) -> float:
    """Learning rate of iteration 0 … I−1: lr · (1 − i/(I−1))^power after a linear warm-up; 0 at the last. DeepLab.

    With ``lr_hold`` = h > 1 it changes every h iterations, counted from 1 as the authors do: i/(I−1) becomes
    h⌊(i+1)/h⌋/I.
    """
    if config.lr_hold > 1:
        remaining = 1 - (iteration + 1) // config.lr_hold * config.lr_hold / config.iterations
    else:
        remaining = 1 - iteration / max(config.iterations - 1, 1)
    warm = min((iteration + 1) / config.warmup, 1.0) if config.warmup else 1.0
    return config.lr * warm * remaining**config.power


def cross_entropy(logits: Tensor, masks: Tensor, ignore_index: int = 255) -> tuple[Tensor, Tensor]:
    """Cross-entropy summed over labeled pixels, and how many there are; what to divide by is the recipe's choice.

    Args:
        logits: (b, classes, h, w).
        masks: labels (b, h, w), any integer type.
        ignore_index: label that does not count.
    """
    masks = masks.long()
    loss = F.cross_entropy(logits, masks, ignore_index=ignore_index, reduction="sum")
    return loss, (masks != ignore_index).sum()


def parameter_groups(model: Segmenter, config: OptimConfig) -> list[dict[str, Any]]:
    """Groups for the optimizer: backbone and head, each with and without weight decay.

    Decay acts on convolution weights only. ``lr_factor`` is each group's multiple of the schedule; biases, those of
    batch norm included, are groups of their own where they learn at another. Parameters that no gradient can reach are
    left out.
    """
    in_head = {id(parameter) for parameter in model.head.parameters()}
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            head = id(parameter) in in_head
            factor = config.head_lr_factor if head else 1.0
            if name.endswith(".bias"):
                factor *= config.bias_lr_factor
            groups.setdefault((head, parameter.ndim == 4, factor), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": config.weight_decay if decayed else 0.0, "lr_factor": factor}
        for (_, decayed, factor), parameters in groups.items()
    ]


def make_optimizer(model: Segmenter, config: OptimConfig, fused: bool = False) -> torch.optim.Optimizer:
    """The optimizer that ``config`` names, over `parameter_groups`.

    Args:
        model: what to train.
        config: how.
        fused: update all parameters in one kernel, as CUDA can.
    """
    groups = parameter_groups(model, config)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)
