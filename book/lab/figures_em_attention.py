"""Figures of the chapter on EM attention: points in the colors of the centers that they belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from lab.style import MUTED, SERIES

SHADES = SERIES[:3]  # of centers

__all__ = ["SHADES", "circle", "k_means", "mixed", "one_iteration", "shares"]


def mixed(responsibilities: Tensor) -> Tensor:
    """The color of each point, mixed from those of its centers: (n, k) → (n, 3)."""
    shades = torch.tensor([to_rgb(shade) for shade in SHADES]).double()
    colors = responsibilities.double() @ shades[: responsibilities.shape[1]]
    return colors.clamp(0, 1)


def one_iteration(x: Tensor, before: Tensor, z: Tensor, after: Tensor) -> None:
    """E-step and M-step for a few named points in the plane: x (n, 2), bases (k, 2), z (n, k)."""
    _, panels = plt.subplots(
        1, 2, figsize=(6.4, 3.1), layout="constrained", sharey=True
    )
    for axes, title, old, new in (
        (panels[0], "E-step", None, before),
        (panels[1], "M-step", before, after),
    ):
        _arcs(axes)
        axes.scatter(*x.T.numpy(), s=70, c=mixed(z).numpy(), zorder=3)
        for index, point in enumerate(x.tolist(), 1):
            at = (1.17 * point[0], 1.17 * point[1])
            axes.annotate(f"$x_{index}$", at, ha="center", va="center")
        _arrows(axes, new, old, names=True)
        axes.set(title=title, aspect="equal", xlim=(-0.95, 1.35), ylim=(-0.15, 1.35))
        axes.set_xlabel("first channel")
    panels[0].set_ylabel("second channel")
    plt.show()


def _arcs(axes: Axes) -> None:
    angles = torch.linspace(-0.15, 0.75 * math.pi, 100)
    axes.plot(angles.cos(), angles.sin(), color=MUTED, linewidth=0.8, zorder=1)


def _arrows(
    axes: Axes, new: Tensor, old: Tensor | None, *, names: bool = False
) -> None:
    """Bases as arrows from the origin, and where they were before as dotted lines: (k, 2)."""
    for index, (base, shade) in enumerate(zip(new.tolist(), SHADES, strict=False)):
        if old is not None:
            before = old[index].tolist()
            axes.plot([0, before[0]], [0, before[1]], ":", color=shade, linewidth=1.5)
        arrow = {
            "arrowstyle": "-|>",
            "color": shade,
            "linewidth": 2,
            "shrinkA": 0,
            "shrinkB": 5,
        }
        axes.annotate("", base, (0, 0), arrowprops=arrow)
        if names:
            side = (0.09, -0.09) if base[0] > base[1] else (-0.12, 0.0)
            at = (0.55 * base[0] + side[0], 0.55 * base[1] + side[1])
            axes.annotate(rf"$\mu_{index + 1}$", at, color=shade, ha="center")


def k_means(
    points: Tensor, steps: Mapping[int, tuple[Tensor, Tensor, Tensor, float]]
) -> None:
    """Points (n, 2) by iteration: labels (n,), centers before and after (k, 2), and the cost."""
    figure, panels = plt.subplots(
        1, len(steps), figsize=(10, 3.2), layout="constrained", sharey=True
    )
    for axes, (iteration, (labels, before, after, cost)) in zip(
        panels, steps.items(), strict=True
    ):
        axes.scatter(
            *points.T.numpy(), s=5, c=[SHADES[label] for label in labels], alpha=0.6
        )
        for old, new, shade in zip(
            before.tolist(), after.tolist(), SHADES, strict=True
        ):
            axes.annotate("", new, old, arrowprops={"arrowstyle": "->"})
            axes.plot(*old, "o", color=shade, markeredgecolor="black", markersize=8)
        axes.set(title=f"iteration {iteration}: cost {cost:.0f}", aspect="equal")
        axes.set_xlabel("first coordinate")
    panels[0].set_ylabel("second coordinate")
    _legend(figure, "center, before the step", "where it goes", "point, by its center")
    plt.show()


def _legend(figure: Figure, center: str, arrow: str, point: str) -> None:
    marks = [
        Line2D(
            [],
            [],
            marker="o",
            linestyle="",
            color=SHADES[0],
            markeredgecolor="black",
            label=center,
        ),
        Line2D(
            [],
            [],
            marker=r"$\rightarrow$",
            linestyle="",
            color="black",
            label=arrow,
            markersize=12,
        ),
        Line2D([], [], marker=".", linestyle="", color=SHADES[0], label=point),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3)


def circle(
    x: Tensor, steps: Sequence[tuple[int, Tensor, Tensor, Tensor, float]]
) -> None:
    """Points on the circle (n, 2) after some iterations: number, z (n, k), bases before and after (k, 2), objective."""
    figure, panels = plt.subplots(
        1, len(steps), figsize=(10, 3.2), layout="constrained", sharey=True
    )
    for axes, (iteration, z, before, after, value) in zip(panels, steps, strict=True):
        axes.scatter(*x.T.numpy(), s=8, c=mixed(z).numpy())
        _arrows(axes, after, before)
        axes.set(title=f"iteration {iteration}: L = {value:.0f}", aspect="equal")
        axes.set_xlabel("first channel")
    panels[0].set_ylabel("second channel")
    marks = [
        Line2D([], [], linestyle=":", color=MUTED, label="base before the iteration"),
        Line2D([], [], color=MUTED, linewidth=2, label="base after it"),
        Line2D(
            [],
            [],
            marker=".",
            linestyle="",
            color=MUTED,
            label="position, in the mixed colors of its bases",
        ),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=3)
    plt.show()


def shares(degrees: Tensor, results: Mapping[float, Tensor], positions: Tensor) -> None:
    """Responsibilities (n, k) at each angle (n,), a panel for each λ, and the angles of the image's positions."""
    figure, panels = plt.subplots(
        1, len(results), figsize=(9, 2.7), layout="constrained", sharey=True
    )
    styles = ("-", "--", ":")  # where curves coincide, both are seen
    for axes, (scale, z) in zip(panels, results.items(), strict=True):
        for index, (shade, style) in enumerate(zip(SHADES, styles, strict=True)):
            label = f"base {index + 1}"
            axes.plot(degrees, z[:, index], style, color=shade, label=label)
        axes.plot(
            positions,
            torch.full_like(positions, -0.06),
            "|",
            color=MUTED,
            markersize=5,
            label="positions",
        )
        axes.set(title=f"λ = {scale:g}", xlabel="angle / degrees")
        axes.set_xticks([0, 120, 240, 360])
    panels[0].set_ylabel("responsibility")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    plt.show()
