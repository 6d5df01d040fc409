"""Weights, images and labels that the reference networks were run with: a function of their names, no files needed."""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

REFERENCE = Path(__file__).parents[2] / "tests" / "reference"
Source = Literal["official", "mmseg"]
KEYS: dict[str, Any] = json.loads(
    (REFERENCE / "keys_official.json").read_text(encoding="utf-8")
)
MMSEG_KEYS: dict[str, Any] = json.loads(
    (REFERENCE / "keys_mmseg.json").read_text(encoding="utf-8")
)

_BASES = ("emau.mu", "decode_head.ema_module.bases")
_BEHIND_EM = (
    "emau.conv2.1.running_var",
    "decode_head.ema_out_conv.bn.running_var",
)  # unit-norm bases are small there


def uniform(name: str, count: int) -> NDArray[np.float64]:
    """``count`` values in [0, 1), by integer arithmetic that is the same everywhere."""
    x = (
        np.arange(count, dtype=np.uint64) * 2654435761 + zlib.crc32(name.encode())
    ) & 0xFFFFFFFF
    for shift, factor in ((16, 2246822507), (13, 3266489909)):
        x = (x ^ (x >> shift)) * factor & 0xFFFFFFFF
    return (x ^ (x >> 16)) / 2.0**32


def tensor(name: str, shape: Sequence[int]) -> Tensor:
    """The tensor called ``name`` in the state dict of the authors or of mmsegmentation, float64."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros(tuple(shape), dtype=torch.int64)
    values = uniform(name, math.prod(shape))
    signed = 2 * values - 1
    if name.endswith("running_var"):
        values = (1 + 0.1 * values) / (512 if name in _BEHIND_EM else 1)
    elif name.endswith(("running_mean", "bias")):
        values = 0.1 * signed
    elif name in _BASES:
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
    labels = np.floor(uniform(name, math.prod(shape)) * (num_classes + 1)).astype(
        np.int64
    )
    return torch.from_numpy(np.where(labels == num_classes, 255, labels)).view(*shape)


def shapes(blocks: Sequence[int], source: Source = "official") -> dict[str, list[int]]:
    """Their names and shapes with ``blocks`` per stage. Within a stage, all blocks but the first are alike."""
    keys, stage = {
        "official": (KEYS, r"(extractor\.)([4-7])\.(\d+)(\..*)"),
        "mmseg": (MMSEG_KEYS, r"(backbone\.layer)([1-4])\.(\d+)(\..*)"),
    }[source]
    found = {}
    for name, shape in keys["r50"].items():
        if not (of_block := re.fullmatch(stage, name)):
            found[name] = shape
            continue
        prefix, digit, number, rest = of_block.groups()
        count = blocks[int(digit) - (4 if source == "official" else 1)]
        numbers = {"0": [0], "1": range(1, count)}.get(number, [])
        found |= {f"{prefix}{digit}.{i}{rest}": shape for i in numbers}
    return found


@lru_cache(maxsize=1)
def state_dict(
    blocks: tuple[int, ...], source: Source = "official"
) -> dict[str, Tensor]:
    return {name: tensor(name, shape) for name, shape in shapes(blocks, source).items()}
