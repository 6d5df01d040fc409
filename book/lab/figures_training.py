"""Figures of the chapter on training: samples, curves, classes, confusions, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from einops import rearrange
from matplotlib.axes import Axes
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from emalab.data import Sample
from emalab.data.spec import DatasetSpec
from emalab.viz import colorize
from lab.style import METHODS, MUTED, SERIES

__all__ = [
    "bars",
    "confusion",
    "curves",
    "grid",
    "photograph",
    "samples",
    "sorted_bars",
    "tail",
]

BENCHMARKS = ("voc", "context-59", "context-60", "coco-stuff-10k")
COLORS = dict(zip(BENCHMARKS, SERIES, strict=True))
Log = Sequence[Mapping[str, Any]]


def photograph(sample: Sample) -> NDArray[np.uint8]:
    """The image of a sample as (h, w, 3)."""
    return rearrange(np.asarray(sample.image), "c h w -> h w c")


def samples(chosen: Mapping[str, tuple[DatasetSpec, Sequence[Sample]]]) -> None:
    """Images above their labels, side by side for each benchmark, by its title."""
    columns = [
        (title if i == 0 else "", spec, sample)
        for title, (spec, some) in chosen.items()
        for i, sample in enumerate(some)
    ]
    _, panels = plt.subplots(2, len(columns), figsize=(9, 2.7), layout="constrained")
    for (title, spec, sample), (above, below) in zip(columns, panels.T, strict=True):
        above.imshow(photograph(sample))
        above.set_title(title, loc="left", fontsize=10)
        below.imshow(colorize(np.asarray(sample.mask), spec))
        for axes in (above, below):
            _frame(axes)
    panels[0, 0].set_ylabel("image")
    panels[1, 0].set_ylabel("labels")
    plt.show()


def curves(logs: Mapping[str, Log], spec: DatasetSpec) -> None:
    """Loss, learning rate and, while training, mIoU of runs on the same benchmark or its variants."""
    scored = {
        name: [line for line in log if "miou" in line or "single scale" in line]
        for name, log in logs.items()
    }
    _, panels = plt.subplots(1, 3, figsize=(9, 2.5), layout="constrained")
    for (name, log), marks in zip(logs.items(), ("-", "--"), strict=False):
        training = [line for line in log if "loss" in line]
        steps = [line["iteration"] for line in training]
        look = {"color": COLORS[name], "linestyle": marks, "label": name}
        panels[0].plot(steps, [line["loss"] for line in training], **look)
        panels[1].plot(steps, [line["lr"] for line in training], **look)
        at = [line["iteration"] for line in scored[name]]
        values = [
            100 * line.get("miou", line.get("single scale", 0)) for line in scored[name]
        ]
        panels[2].plot(at, values, marker="o", **look)
    _nothing_learned(panels[0], spec)
    panels[0].set(ylabel="loss / nats per pixel")
    panels[1].set(ylabel="learning rate")
    panels[2].set(ylabel="mIoU / %")
    for axes in panels:
        axes.set(xlabel="iteration", ylim=(0, None))
    if len(logs) > 1:
        panels[1].legend()
    plt.show()


def _nothing_learned(axes: Axes, spec: DatasetSpec) -> None:
    """A line at the loss of equal probabilities."""
    level = np.log(spec.num_classes)
    axes.axhline(level, color=MUTED, linestyle=":")
    axes.annotate(
        f"ln {spec.num_classes}",
        (1, level),
        xycoords=("axes fraction", "data"),
        xytext=(0, -2),
        textcoords="offset points",
        ha="right",
        va="top",
        color=MUTED,
    )


def bars(iou: Mapping[str, float], shares: Mapping[str, float], mean: float) -> None:
    """IoU of the classes, sorted, beside their shares of the training pixels."""
    names = sorted(iou, key=lambda name: iou[name])
    _, (left, right) = plt.subplots(
        1, 2, figsize=(8, 0.8 + 0.22 * len(names)), layout="constrained", sharey=True
    )
    left.barh(names, [100 * iou[name] for name in names], color=METHODS["EM"])
    left.axvline(100 * mean, color="black", linestyle=":", label="their mean")
    left.set(xlabel="IoU / %", xlim=(0, 100))
    left.legend(loc="lower right")
    right.barh(names, [100 * shares[name] for name in names], color=MUTED)
    right.set(xlabel="share of the labeled training pixels / %", xscale="log")
    plt.show()


def confusion(matrix: Tensor, spec: DatasetSpec) -> None:
    """Shares of each label's pixels, for the labels that occur and the classes that are predicted or labeled."""
    rows = [k for k in range(spec.num_classes) if matrix[k].sum() > 0]
    columns = [k for k in range(spec.num_classes) if k in rows or matrix[:, k].sum()]
    shares = (matrix / matrix.sum(dim=1, keepdim=True))[rows][:, columns]
    size = (3 + 0.3 * len(columns), 1.6 + 0.24 * len(rows))
    _, axes = plt.subplots(figsize=size, layout="constrained")
    drawn = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set(xlabel="predicted", ylabel="labeled")
    axes.set_xticks(
        range(len(columns)),
        [spec.classes[k] for k in columns],
        rotation=50,
        ha="right",
        rotation_mode="anchor",
    )
    axes.set_yticks(range(len(rows)), [spec.classes[k] for k in rows])
    plt.gcf().colorbar(drawn, label="% of the label's pixels")
    plt.show()


def tail(groups: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> None:
    """IoU against the share of training pixels, both in percent, for groups of classes."""
    _, axes = plt.subplots(figsize=(6.4, 3), layout="constrained")
    looks = zip(("o", "s"), SERIES[:2], strict=True)
    for (label, (x, y)), (marker, color) in zip(groups.items(), looks, strict=True):
        axes.plot(x, y, marker, color=color, label=label, alpha=0.8)
    axes.set(
        xscale="log",
        xlabel="share of the labeled training pixels / %",
        ylabel="IoU / %",
    )
    axes.set_ylim(-3, 100)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


def grid(rows: Sequence[Mapping[str, NDArray[np.uint8]]]) -> None:
    """Rows of pictures, whose titles stand above the first row, or above each where they differ."""
    _, panels = plt.subplots(
        len(rows), len(rows[0]), figsize=(8.4, 1.62 * len(rows)), layout="constrained"
    )
    for i, row in enumerate(rows):
        for axes, (title, picture) in zip(panels[i], row.items(), strict=True):
            axes.imshow(picture)
            _frame(axes)
            if i == 0 or title not in rows[0]:
                axes.set_title(title, fontsize=10)
    plt.show()


def _frame(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def sorted_bars(groups: Mapping[str, Mapping[str, float]]) -> None:
    """IoU of all classes, sorted, in a color for each group."""
    colors = dict(zip(groups, SERIES[:2], strict=True))
    every = {name: (label, v) for label, g in groups.items() for name, v in g.items()}
    names = sorted(every, key=lambda name: -every[name][1])
    _, axes = plt.subplots(figsize=(9, 2.8), layout="constrained")
    for label, color in colors.items():
        places = [i for i, name in enumerate(names) if every[name][0] == label]
        heights = [100 * every[names[i]][1] for i in places]
        axes.bar(places, heights, color=color, label=label)
    axes.set_xticks(
        range(len(names)), names, rotation=50, ha="right", rotation_mode="anchor"
    )
    axes.set(ylabel="IoU / %", ylim=(0, 100))
    axes.legend(loc="upper right")
    plt.show()
