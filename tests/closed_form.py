"""Weights, images and labels that the reference networks were run with: a function of their names, no files needed."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

REFERENCE = Path(__file__).parent / "reference"
KEYS: dict[str, Any] = json.loads((REFERENCE / "keys_official.json").read_text())


def uniform(name: str, count: int) -> NDArray[np.float64]:
    """``count`` values in [0, 1), by integer arithmetic that is the same everywhere."""
    x = (np.arange(count, dtype=np.uint64) * 2654435761 + zlib.crc32(name.encode())) & 0xFFFFFFFF
    for shift, factor in ((16, 2246822507), (13, 3266489909)):
        x = (x ^ (x >> shift)) * factor & 0xFFFFFFFF
    return (x ^ (x >> 16)) / 2.0**32


def tensor(name: str, shape: Sequence[int]) -> Tensor:
    """The tensor called ``name`` in the authors' state dict, float64."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(tuple(shape), dtype=torch.int64)
    values = uniform(name, math.prod(shape))
    signed = 2 * values - 1
    if name.endswith("running_var"):
        values = (1 + 0.1 * values) / (512 if name == "emau.conv2.1.running_var" else 1)
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * signed
    elif name == "emau.mu":
        values = math.sqrt(3 / shape[1]) * signed
    elif len(shape) == 4:
        values = math.sqrt(6 / math.prod(shape[1:])) * signed
    else:
        values = (0.3 if name.endswith("bn3.weight") else 1) * (1 + 0.1 * signed)
    return torch.from_numpy(values).view(*shape)


def image(name: str, shape: Sequence[int]) -> Tensor:
    return torch.from_numpy(2 * (2 * uniform(name, math.prod(shape)) - 1)).view(*shape)


def label(name: str, shape: Sequence[int], num_classes: int = 21) -> Tensor:
    """Labels, with one in ``num_classes + 1`` pixels ignored."""
    labels = np.floor(uniform(name, math.prod(shape)) * (num_classes + 1)).astype(np.int64)
    return torch.from_numpy(np.where(labels == num_classes, 255, labels)).view(*shape)


def shapes(blocks: Sequence[int]) -> dict[str, list[int]]:
    """The authors' names and shapes with ``blocks`` per stage. Within a stage, all blocks but the first are alike."""
    found = {}
    for name, shape in KEYS["r50"].items():
        stage, _, block = name.removeprefix("extractor.").partition(".")
        if not (name.startswith("extractor.") and int(stage) >= 4):
            found[name] = shape
            continue
        number, _, rest = block.partition(".")
        numbers = {"0": [0], "1": range(1, blocks[int(stage) - 4])}.get(number, [])
        found |= {f"extractor.{stage}.{i}.{rest}": shape for i in numbers}
    return found


@lru_cache(maxsize=1)
def state_dict(blocks: tuple[int, ...]) -> dict[str, Tensor]:
    return {name: tensor(name, shape) for name, shape in shapes(blocks).items()}
