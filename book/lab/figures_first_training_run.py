"""Figures of the chapter on the first training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

from emalab import Segmenter
from emalab.data import Sample, load_dataset
from emalab.data.shapes import ShapesDataset, labeled_shapes
from emalab.data.spec import DatasetSpec
from emalab.studies.summary import CellSummary
from emalab.viz import colorize
from lab.style import METHODS
from lab.verdicts import findings

__all__ = [
    "accuracy_on_shapes",
    "accuracy_table",
    "draw_accuracy",
    "draw_evidence",
    "draw_losses",
    "draw_maps",
    "draw_predictions",
    "draw_samples",
    "hexadecimal",
    "labels_of",
    "recorded",
]

COLORS = {
    "FCN": METHODS["FCN"],
    "EM attention": METHODS["EM"],
    "non-local": METHODS["non-local"],
}
KINDS = {"shapes-pooled": "pooled evidence", "shapes-far": "far cue"}
SEED: dict[str, Any] = {"color": "black", "markerfacecolor": "white", "markersize": 5}
WINDOW = 19  # pixels a side that a pixel's logits depend on, without a context module


def hexadecimal(color: Sequence[int]) -> str:
    """A color of a palette (red, green, blue from 0 to 255) as matplotlib takes it."""
    return f"#{bytes(color).hex()}"


def recorded(benchmark: str) -> dict[str, CellSummary]:
    """Runs of the whole recipes, from their records: a head's mean IoU on validation scenes by seed, in percent."""
    found = findings("shapes-evidence")
    evidence = {"shapes-pooled": "pooled", "shapes-far": "far cue"}[benchmark]
    cells = {"FCN": "no context", "EM attention": "EMA", "non-local": "non-local"}
    return {head: found.row(f"{cell}, {evidence}") for head, cell in cells.items()}


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _show(axes: Axes, image: Tensor) -> None:
    axes.imshow(rearrange(image.numpy(), "c h w -> h w c"))
    _bare(axes)


def draw_evidence() -> Figure:
    """A scene of each kind with the window of one pixel, and the recorded scores of the three heads."""
    figure, panels = plt.subplots(
        2, 2, figsize=(6.4, 3.7), layout="constrained", width_ratios=(1, 1.9)
    )
    for (benchmark, kind), (left, right) in zip(KINDS.items(), panels, strict=True):
        scenes = load_dataset(benchmark, "val")
        assert isinstance(scenes, ShapesDataset)
        _show(left, scenes[0].image.as_subclass(Tensor))
        _mark_window(left, scenes)
        left.set_ylabel(kind, fontsize=11)
        rows = recorded(benchmark)
        for place, (head, row) in enumerate(reversed(rows.items())):
            right.barh(place, row.mean.mean, color=COLORS[head], height=0.6)
            seeds = list(row.scores.values())
            marks = right.plot(seeds, [place] * len(seeds), "o", **SEED)
        right.set_yticks(range(3), list(reversed(rows)))
        right.set(xlim=(0, 100))
    panels[1, 1].set_xlabel("mean IoU on validation scenes (%)")
    panels[0, 1].legend(marks, ["one seed"], loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def _mark_window(axes: Axes, scenes: ShapesDataset) -> None:
    """The pixel of a shape nearest to the middle, and the window around it."""
    scene = scenes.scene(0)
    rows, columns = np.nonzero(labeled_shapes(scene) & (scene.kinds == 0))
    nearest = np.hypot(rows - 36, columns - 36).argmin()
    y, x = rows[nearest], columns[nearest]
    corner = x - WINDOW / 2, y - WINDOW / 2
    frame = Rectangle(corner, WINDOW, WINDOW, fill=False, color="white", linewidth=1.5)
    axes.add_patch(frame)
    axes.plot(x, y, "x", color="white", markersize=6, markeredgewidth=1.5)


def draw_samples(images: Tensor, masks: Tensor, spec: DatasetSpec) -> Figure:
    """Samples above their labels, with a legend of the classes."""
    figure, panels = plt.subplots(2, 6, figsize=(8, 3.2), layout="constrained")
    for image, mask, (above, below) in zip(images, masks, panels.T, strict=False):
        _show(above, image)
        below.imshow(colorize(mask.numpy(), spec))
        _bare(below)
    panels[0, 0].set_ylabel("image")
    panels[1, 0].set_ylabel("labels")
    handles = [Patch(color=hexadecimal(color)) for color in spec.palette]
    figure.legend(
        handles,
        spec.classes,
        loc="outside lower center",
        ncols=min(len(handles), 6),
        fontsize=9,
    )
    return figure


def draw_losses(logs: Mapping[tuple[str, str], list[Mapping[str, float]]]) -> Figure:
    """Training loss by iteration: a panel for each benchmark, a line for each head."""
    benchmarks = list(dict.fromkeys(benchmark for benchmark, _ in logs))
    figure, panels = plt.subplots(
        1, len(benchmarks), figsize=(8, 2.9), layout="constrained", squeeze=False
    )
    for benchmark, axes in zip(benchmarks, panels[0], strict=True):
        for (of, head), log in logs.items():
            if of == benchmark:
                curve = [(line["iteration"], line["loss"]) for line in log]
                axes.plot(*zip(*curve, strict=True), color=COLORS[head], label=head)
        axes.set(title=KINDS.get(benchmark, benchmark), ylim=(0, None))
        axes.set_xlabel("iteration")
    panels[0, 0].set_ylabel("training loss (nats per pixel)")
    handles = panels[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=3)
    return figure


@torch.inference_mode()
def labels_of(model: Segmenter, image: Tensor) -> np.ndarray:
    """Predicted labels (h, w) of one uint8 image (3, h, w)."""
    logits = model.eval()(image.as_subclass(Tensor)[None])
    return logits[0].argmax(dim=0).numpy()


def accuracy_on_shapes(
    model: Segmenter, scenes: ShapesDataset, count: int = 40
) -> float:
    """Share of the labeled pixels of shapes that get their label, in percent."""
    hits = []
    for i in range(count):
        right = labels_of(model, scenes[i].image) == scenes[i].mask.numpy()
        hits.append(right[labeled_shapes(scenes.scene(i))])
    return 100 * float(np.concatenate(hits).mean())


def best_accuracy(scenes: ShapesDataset, window: int | None, count: int = 40) -> float:
    """The best that is possible from a window of that side, or from the whole scene, in percent."""
    drawn = scenes.scenes
    found = [drawn.bayes_accuracy(scenes.scene(i), window) for i in range(count)]
    return 100 * float(np.mean(found))


def accuracy_table(
    models: Mapping[tuple[str, str], Segmenter],
) -> dict[str, dict[str, float]]:
    """For each kind of scenes: accuracy of the heads, and the two bounds, in percent."""
    table: dict[str, dict[str, float]] = {}
    for (benchmark, head), model in models.items():
        scenes = load_dataset(benchmark, "val")
        assert isinstance(scenes, ShapesDataset)
        if benchmark not in table:
            table[benchmark] = {
                "window": best_accuracy(scenes, WINDOW),
                "scene": best_accuracy(scenes, None),
            }
        table[benchmark][head] = accuracy_on_shapes(model, scenes)
    return table


def draw_accuracy(table: Mapping[str, Mapping[str, float]]) -> Figure:
    """Bars of `accuracy_table`, with its bounds as lines."""
    figure, panels = plt.subplots(
        1, 2, figsize=(8, 3.2), layout="constrained", sharey=True
    )
    for (benchmark, row), axes in zip(table.items(), panels, strict=True):
        heads = [head for head in COLORS if head in row]
        colors = [COLORS[head] for head in heads]
        bars = axes.bar(heads, [row[head] for head in heads], color=colors, width=0.6)
        axes.bar_label(bars, fmt="%.0f", label_type="center", color="white")
        for name, line in (("window", ":"), ("scene", "--")):
            view = {"window": "a window of 19 × 19 pixels", "scene": "the whole scene"}
            label = f"best possible from {view[name]}"
            axes.axhline(row[name], color="black", linestyle=line, label=label)
        axes.set(title=KINDS[benchmark], ylim=(0, 105))
    panels[0].set_ylabel("accuracy on shapes (%)")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=2)
    return figure


def draw_predictions(
    models: Mapping[tuple[str, str], Segmenter],
    samples: Mapping[str, tuple[Sample, DatasetSpec]],
) -> Figure:
    """One image of each benchmark, its labels, and what each head predicts."""
    heads = list(dict.fromkeys(head for _, head in models))
    figure, panels = plt.subplots(
        len(samples),
        2 + len(heads),
        figsize=(8, 1.9 * len(samples)),
        layout="constrained",
        squeeze=False,
    )
    for row, (benchmark, (sample, spec)) in zip(panels, samples.items(), strict=True):
        _show(row[0], sample.image.as_subclass(Tensor))
        pictures = [colorize(sample.mask.numpy(), spec)]
        for head in heads:
            predicted = labels_of(models[benchmark, head], sample.image)
            pictures.append(colorize(predicted, spec))
        for axes, picture in zip(row[1:], pictures, strict=True):
            axes.imshow(picture)
            _bare(axes)
        row[0].set_ylabel(KINDS.get(benchmark, benchmark))
    for axes, title in zip(panels[0], ("image", "labels", *heads), strict=True):
        axes.set_title(title)
    return figure


def draw_maps(image: Tensor, maps: Tensor) -> Figure:
    """A scene and the responsibilities (k, h, w) of eight bases, all on the scale from 0 to 1."""
    figure, panels = plt.subplots(2, 5, figsize=(8, 3.2), layout="constrained")
    places = [axes for axes in panels.flat if axes is not panels[1, 0]]
    panels[1, 0].axis("off")
    _show(places[0], image)
    places[0].set_title("scene")
    for axes, base in zip(places[1:], range(len(maps)), strict=False):
        drawn = axes.imshow(maps[base], cmap="magma", vmin=0, vmax=1)
        _bare(axes)
        axes.set_title(f"base {base + 1}")
    figure.colorbar(drawn, ax=panels[:, -1], label="responsibility")
    return figure
