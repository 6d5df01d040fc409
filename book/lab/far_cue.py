"""One cue and many listeners: what EM attention carries from the key of a far-cue scene to its stones."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange, repeat
from torch import Tensor

from emalab import EMAU, Segmenter, em_attention
from emalab.data.shapes import FAR, FarScenes, Scene, ShapesDataset
from emalab.inspection import labels_at_positions, look_inside

__all__ = [
    "FACTORS",
    "Transfer",
    "error_reach",
    "find_positions",
    "measure_transfer",
    "read_colors",
    "with_gradient",
]

COLORS = np.array(FAR.palette[1:])  # of the four keys
FACTORS = (1, 2, 4, 8)  # that multiply the key's features before EM


def find_positions(scene: Scene, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which positions of a feature map (h, w) are stones, and which the key's: bool (n,), (n,)."""
    kinds = labels_at_positions(torch.from_numpy(scene.kinds.astype(np.int64)), size)
    return kinds.flatten() == 0, kinds.flatten() == 1


def class_of(scene: Scene) -> int:
    """The class of the key, and so of all stones."""
    return int(scene.mask[(scene.kinds == 1) & (scene.mask != FAR.ignore_index)][0])


def with_gradient(model: Segmenter, grad: str) -> Segmenter:
    """The same weights, and so the same outputs, with another backward path: a value of `EMAU`'s ``grad``."""
    twin = copy.deepcopy(model)
    assert isinstance(twin.context, EMAU)
    twin.context.grad = grad  # type: ignore[assignment]
    twin.context.conv_in.requires_grad_(grad != "stop")
    return twin


def error_reach(model: Segmenter, scenes: Sequence[Scene]) -> Tensor:
    """How far the errors on the first scene's stones reach: length of the gradient of their loss at the features of all
    positions of all scenes, (scenes, n)."""
    images = np.stack([scene.image for scene in scenes])
    batch = rearrange(torch.from_numpy(images), "b h w c -> b c h w")
    features = model.features(batch).detach().requires_grad_()
    logits = model.classifier(model.context(features))[0]
    size = (features.shape[-2], features.shape[-1])
    stones, _ = find_positions(scenes[0], size)
    labels = torch.full((int(stones.sum()),), class_of(scenes[0]))
    F.cross_entropy(rearrange(logits, "c h w -> (h w) c")[stones], labels).backward()
    assert features.grad is not None
    return features.grad.norm(dim=1).flatten(1)


class Transfer(NamedTuple):
    """What the key does, on average over scenes."""

    weight: float
    """Of the key, per stone, over the weight in a plain mean."""
    ceiling: float
    """What this weight can be at most."""
    volume: float
    """How much the key's features change with its color, over the length of a stone's features."""
    heard: dict[int, Tensor]
    """Factor of the key's features → mean reconstruction of the stones, (scenes, 4 colors, c)."""


@torch.inference_mode()
def measure_transfer(model: Segmenter, scenes: FarScenes, count: int = 100) -> Transfer:
    """Repaint the key of ``count`` scenes in all four colors and look at what arrives at the stones."""
    assert isinstance(model.context, EMAU)
    drawn, rows = ShapesDataset(scenes, "val"), []
    heard: dict[int, list[Tensor]] = {factor: [] for factor in FACTORS}
    for index in range(count):
        scene = drawn.scene(index)
        inside = look_inside(model, _repainted(scene))
        stones, key = find_positions(scene, inside.size)
        x, z = inside.x, inside.attended.responsibilities
        spent = z[:, key] / z.sum(dim=1, keepdim=True)
        weight = einsum(z[:, stones], spent, "b s k, b m k -> b s m").mean().item()
        spoken, length = x[:, key].mean(dim=1), x[:, stones].norm(dim=-1).mean()
        changes = (spoken - spoken.mean(dim=0)).norm(dim=-1).mean()
        positions = len(stones)
        rows.append(
            (positions * weight, positions / int(stones.sum()), float(changes / length))
        )
        for factor in FACTORS:
            louder = torch.where(key[:, None], factor * x, x)
            rebuilt = em_attention(louder, model.context.bases).reconstruction
            heard[factor].append(rebuilt[:, stones].mean(dim=1))
    weight, ceiling, volume = np.mean(rows, axis=0).tolist()
    stacked = {factor: torch.stack(found) for factor, found in heard.items()}
    return Transfer(weight, ceiling, volume, stacked)


def read_colors(heard: Tensor) -> float:
    """Share of the colors that a linear reader gets right.

    The reader is fitted by least squares on the first half of the scenes (scenes, 4, c), and scored on the second.
    """
    x = rearrange(heard.double(), "s k c -> (s k) c")
    y = F.one_hot(torch.arange(len(x)) % len(COLORS)).double()
    half = heard.shape[0] // 2 * len(COLORS)
    x = (x - x[:half].mean(dim=0)) / (x[:half].std(dim=0) + 1e-12)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
    gram = x[:half].T @ x[:half] + 0.01 * torch.eye(x.shape[1], dtype=x.dtype)
    guess = x[half:] @ torch.linalg.solve(gram, x[:half].T @ y[:half])
    right = guess.argmax(dim=1) == y[half:].argmax(dim=1)
    return right.double().mean().item()


def _repainted(scene: Scene) -> Tensor:
    """The scene with each key: uint8 (4, 3, h, w)."""
    key = scene.kinds == 1
    color = COLORS[class_of(scene) - 1]
    images = repeat(scene.image.astype(int), "h w c -> k h w c", k=len(COLORS)).copy()
    images[:, key] += (COLORS - color)[:, None]
    painted = torch.from_numpy(images.clip(0, 255).astype(np.uint8))
    return rearrange(painted, "k h w c -> k c h w")
