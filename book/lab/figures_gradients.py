"""Figures of the chapter on where the gradients go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from lab.style import GRADIENTS, METHODS, MUTED

__all__ = [
    "draw_cosines",
    "draw_finite",
    "draw_implicit",
    "draw_radius",
    "draw_training",
]

MAIN = METHODS["EM"]


def draw_cosines(before: Tensor, after: Tensor) -> Figure:
    """Cosines of pairs of features before and after a random convolution."""
    figure, axes = plt.subplots(figsize=(3.8, 3.6), layout="constrained")
    axes.plot(before, after, ".", color=MAIN, markersize=2, alpha=0.4, rasterized=True)
    axes.plot([0, 1], [0, 1], "k--", linewidth=1, label="equal")
    axes.legend(loc="lower right")
    axes.set(xlabel="cosine of two features", ylabel="cosine after the convolution")
    axes.set_aspect("equal")
    return figure


def draw_finite(
    steps: np.ndarray, errors: Mapping[str, np.ndarray], guide: np.ndarray
) -> Figure:
    """Relative error of each gradient against central differences, by the step."""
    figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for (grad, error), marks in zip(errors.items(), ("s-", "^-", "o-"), strict=True):
        color = GRADIENTS[grad]
        label = f'grad="{grad}"'
        axes.loglog(steps, error, marks, color=color, markersize=3, label=label)
    late = steps > 1e-4
    axes.loglog(steps[late], guide[late], "k:", label="∝ h²")
    axes.set(xlabel="step h", ylabel="relative error")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


def draw_training(scores: Mapping[str, Mapping[int, float]]) -> Figure:
    """Scores of settings by seed: points, joined within a seed, and means."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    names = list(scores)
    seeds = sorted({seed for found in scores.values() for seed in found})
    for seed in seeds:
        row = [scores[name].get(seed, np.nan) for name in names]
        (line,) = axes.plot(row, "-", color="lightgray", linewidth=1, zorder=0)
    for place, name in enumerate(names):
        values = list(scores[name].values())
        color = GRADIENTS[name.partition(",")[0]]
        (points,) = axes.plot([place] * len(values), values, "o", color=MUTED, ms=5)
        points.set(color=color, alpha=0.8)
        mean = float(np.mean(values))
        bar = axes.hlines(mean, place - 0.2, place + 0.2, color="black", linewidth=2)
        axes.annotate(f"{mean:.1f}", (place + 0.24, mean), va="center", fontsize=9)
    axes.set_xticks(range(len(names)), [name.replace(", ", ",\n") for name in names])
    axes.set(xlabel="gradient through EM, first convolution", ylabel="mean IoU (%)")
    axes.set_xlim(-0.4, len(names) - 0.4)
    labels = ["a run", "same seed", "mean"]
    figure.legend([points, line, bar], labels, loc="outside right center")
    return figure


def draw_radius(
    radii: Mapping[float, float], distances: np.ndarray, scale: float
) -> Figure:
    """Spectral radius by λ, and the way to the fixed point for one of them."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
    left.plot(list(radii), list(radii.values()), "o-", color=MAIN)
    left.set(xscale="log", xlabel="λ", ylabel="spectral radius of J", ylim=(0, 1.03))
    left.set_xticks(list(radii), [f"{value:g}" for value in radii])
    left.minorticks_off()
    left.axhline(1, color="black", linewidth=1, linestyle=":")
    right.semilogy(distances, color=MAIN, label="distance to the fixed point")
    rate = radii[scale] ** np.arange(len(distances))
    guide = distances[-1] * rate / rate[-1]
    right.semilogy(guide, "k:", label=f"∝ {radii[scale]:.3f}ᵗ")
    right.axvline(3, color=MUTED, linewidth=1, label="T = 3")
    right.set(xlabel="iterations", ylabel=f"relative distance, λ = {scale:g}")
    handles = right.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    return figure


def draw_implicit(
    terms: Sequence[int], missing: Sequence[float], radius: float
) -> Figure:
    """Missing share of the gradient of a fixed point, by unrolled iterations."""
    figure, axes = plt.subplots(figsize=(6.4, 3), layout="constrained")
    label = "unrolled, from the fixed point"
    axes.semilogy(terms, missing, "o-", color=GRADIENTS["unroll"], label=label)
    guide = missing[-1] * radius ** (np.array(terms) - terms[-1])
    axes.semilogy(terms, guide, "k:", label=f"∝ {radius:.3f}ᵗ")
    color = GRADIENTS["last"]
    axes.plot(1, missing[0], "^", color=color, markersize=9, label='grad="last"')
    axes.set(xlabel="unrolled iterations T", ylabel="missing share of the gradient")
    axes.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure
