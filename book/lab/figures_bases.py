"""Figures of the chapter on what the bases see."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch
from PIL import Image
from torch import Tensor

from emalab.data.spec import DatasetSpec
from emalab.inspection import (
    cosines,
    distinct_bases,
    effective_rank,
    error_up_to_scale,
    rank_errors,
)
from emalab.viz import overlay
from lab.figures_first_training_run import hexadecimal
from lab.style import GRADIENTS, METHODS, MUTED, SERIES, SYMBOLS

__all__ = [
    "draw_classes",
    "draw_colors",
    "draw_compass",
    "draw_cosines",
    "draw_drift",
    "draw_mosaic",
    "draw_rows",
    "draw_spectrum",
    "draw_sweep",
    "draw_use",
    "rebuilt_rows",
]

MAIN = METHODS["EM"]
SCALES = ("#9ebcda", "#6a8fc0", "#7b4fa0", "#4d004b")  # λ, the larger the darker


def _clean(panels: np.ndarray) -> None:
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)


def _picture(picture: Tensor) -> np.ndarray:
    return rearrange(picture, "c h w -> h w c").numpy()


def draw_rows(
    pictures: Mapping[str, Tensor], maps: Mapping[str, Mapping[str, Tensor]]
) -> Figure:
    """A row for each picture: itself, then its maps (h, w) of responsibilities, all from 0 to 1."""
    heads = list(next(iter(maps.values())))
    ratios = [picture.shape[-2] / picture.shape[-1] for picture in pictures.values()]
    figure, panels = plt.subplots(
        len(pictures),
        1 + len(heads),
        figsize=(8, 7 / (1 + len(heads)) * sum(ratios) + 0.4),
        layout="constrained",
        height_ratios=ratios,
        squeeze=False,
    )
    for row, (name, picture) in zip(panels, pictures.items(), strict=True):
        row[0].imshow(_picture(picture))
        for axes, found in zip(row[1:], maps[name].values(), strict=True):
            drawn = axes.imshow(found, vmin=0, vmax=1)
    for axes, title in zip(panels[0], ("image", *heads), strict=True):
        axes.set_title(title, fontsize=9)
    _clean(panels)
    figure.colorbar(drawn, ax=panels, label="√ responsibility", shrink=0.8, pad=0.01)
    return figure


def draw_cosines(matrices: Mapping[str, Tensor], groups: Tensor) -> Figure:
    """Cosines of bases (k, c), ordered by the groups of the stored ones; lines end the three largest."""
    order = groups.argsort(stable=True)
    figure, panels = plt.subplots(1, 3, figsize=(8, 2.9), layout="constrained")
    for axes, (title, bases) in zip(panels, matrices.items(), strict=True):
        drawn = axes.imshow(cosines(bases[order]).numpy(), vmin=-0.2, vmax=1)
        for edge in (groups.bincount().cumsum(0)[:3] - 0.5).tolist():
            axes.axhline(edge, color="white", linewidth=0.7)
            axes.axvline(edge, color="white", linewidth=0.7)
        axes.set_title(title)
    _clean(panels)
    figure.colorbar(drawn, ax=panels, label="cosine")
    return figure


def _number(axes: Axes, places: Tensor) -> None:
    """The number of each group above its place."""
    for group, (x, y) in enumerate(places.tolist()):
        axes.annotate(
            str(group),
            (x, y),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )


def draw_compass(
    mean_direction: Tensor, at_outline: Tensor, sizes: Tensor, everywhere: float
) -> Figure:
    """Mean direction of the outline (groups, 2) where a group claims it, and the share of a group that lies on it."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 3.6), layout="constrained", width_ratios=(1, 1.3)
    )
    kinds = {
        "two crowds": sizes > 10,
        "2 to 4 copies": (sizes > 1) & (sizes <= 10),
        "loners": sizes == 1,
    }
    colors = dict(zip(kinds, (SERIES[2], MUTED, SERIES[0]), strict=True))
    left.add_patch(Circle((0, 0), 1, fill=False, color=MUTED))
    places = torch.arange(len(sizes))
    for kind, members in kinds.items():
        x, y = mean_direction[members].T
        left.scatter(x, y, s=60, color=colors[kind], label=kind)
        right.bar(places[members], at_outline[members], color=colors[kind])
    _number(left, mean_direction)
    left.set(xlim=(-1.1, 1.1), ylim=(1.1, -1.1), aspect="equal")  # down is down
    left.set(
        xlabel="← left        right →",
        ylabel="← down        up →",
        xticks=[],
        yticks=[],
    )
    line = right.axhline(everywhere, color="black", linestyle=":")
    right.set(xlabel="group", ylabel="share on the outline", ylim=(0, 1))
    right.set_xticks(range(len(sizes)))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(
        [*handles, line],
        [*labels, "all positions"],
        loc="outside lower center",
        ncols=4,
    )
    return figure


def draw_mosaic(
    pictures: Mapping[str, Tensor],
    maps: Mapping[str, Mapping[str, Tensor]],
    labels: Mapping[str, Tensor],
    spec: DatasetSpec,
) -> Figure:
    """A column for each picture: itself, its maps from 0 to 1, and its labels (h, w) as a tint."""
    heads = list(next(iter(maps.values())))
    figure, panels = plt.subplots(
        len(heads) + 2,
        len(pictures),
        figsize=(8, 7.6),
        width_ratios=[p.shape[-1] / p.shape[-2] for p in pictures.values()],
        layout="constrained",
    )
    for (name, tensor), column in zip(pictures.items(), panels.T, strict=True):
        picture = _picture(tensor)
        column[0].imshow(picture)
        column[0].set_title(name[:12], fontsize=9)
        for axes, found in zip(column[1:], maps[name].values(), strict=False):
            drawn = axes.imshow(found, vmin=0, vmax=1)
        found = labels[name][None, None].double()
        large = F.interpolate(found, picture.shape[:2], mode="nearest-exact")[0, 0]
        tinted = overlay(Image.fromarray(picture), large.numpy().astype(np.uint8), spec)
        column[-1].imshow(np.asarray(tinted)[: len(picture)])  # without its legend
    for axes, text in zip(panels[:, 0], ["image", *heads, "labels"], strict=True):
        axes.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9)
    _clean(panels)
    figure.colorbar(drawn, ax=panels, label="√ responsibility", shrink=0.5, aspect=40)
    shown = sorted(
        {int(c) for found in labels.values() for c in found.unique() if 0 < c < 255}
    )
    patches = [
        Patch(color=hexadecimal(spec.palette[c]), label=spec.classes[c]) for c in shown
    ]
    figure.legend(
        handles=patches, loc="outside lower center", ncols=6, fontsize=9, title="labels"
    )
    return figure


def draw_use(
    uses: Mapping[str, Sequence[float]], record: Mapping[str, Sequence[float]]
) -> Figure:
    """Bases and groups in use, in the first E-step and after EM: six images, and the images of a record."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(8, 3.2), layout="constrained", sharey=True, width_ratios=(2, 1)
    )
    values, places = np.array(list(uses.values())), np.arange(len(uses))
    labels = (
        "bases, first E-step",
        "groups, first E-step",
        "bases, T = 3",
        "groups, T = 3",
    )
    for column, label in enumerate(labels):
        color, mark = ((MUTED, "o"), (MAIN, "s"))[column % 2]
        face = "white" if column < 2 else color
        left.plot(
            places,
            values[:, column],
            mark,
            color=color,
            markerfacecolor=face,
            label=label,
        )
    left.set_xticks(places, [name[:10] for name in uses], fontsize=9)
    left.set(ylabel="perplexity", ylim=(0, 66))
    for what, color in (("perplexity", MUTED), ("perplexity_of_groups", MAIN)):
        right.hist(
            record[what], np.arange(0, 66, 1), orientation="horizontal", color=color
        )
    right.set(xlabel="images of the record")
    figure.legend(
        *left.get_legend_handles_labels(), loc="outside lower center", ncols=2
    )
    return figure


Pairs = Mapping[
    str, tuple[Tensor, Tensor]
]  # of each image: features and reconstruction, (n, c)


def rebuilt_rows(pairs: Pairs) -> list[dict[str, object]]:
    """Rows of a table: what each reconstruction leaves out, and what the best of some ranks would."""
    rows: list[dict[str, object]] = []
    for name, (x, rebuilt) in pairs.items():
        best, error = rank_errors(x), error_up_to_scale(x, rebuilt)
        as_good = int((best > error).sum())
        rows.append(
            {
                "image": name,
                "error of X̃": f"{error:.0%}",
                "best of rank 15": f"{best[15]:.0%}",
                "best of rank 64": f"{best[64]:.0%}",
                "rank as good": as_good,
                "effective rank": f"{effective_rank(rebuilt):.1f}",
            }
        )
        assert best[64] < 0.12
        assert as_good <= 5
        assert best[15] < 0.6 * error
        assert 0.35 < error < 0.7
    return rows


def draw_spectrum(pairs: Pairs) -> Figure:
    """Least error by rank with the errors of the reconstructions, and the first image's singular values."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    features, result = SYMBOLS["features"], SYMBOLS["result"]
    for x, rebuilt in pairs.values():
        best, error = rank_errors(x), float(error_up_to_scale(x, rebuilt))
        as_good = int((best > error).sum())
        (line,) = left.plot(
            range(65), best[:65], color=features, linewidth=1, alpha=0.7
        )
        (dot,) = left.plot(as_good, error, "o", color=result)
    left.set(xlabel="rank", ylabel="relative error", ylim=(0, 1))
    left.set(xscale="symlog", xlim=(0, 64))
    left.set_xticks((0, 1, 2, 4, 8, 16, 32, 64), (0, 1, 2, 4, 8, 16, 32, 64))
    left.minorticks_off()
    for matrix, color in zip(
        next(iter(pairs.values())), (features, result), strict=True
    ):
        values = torch.linalg.svdvals(matrix.double())
        right.semilogy(range(1, 101), values[:100] / values[0], color=color)
    right.axvline(64, color="black", linewidth=1, linestyle=":")
    right.set(xlabel="index", ylabel="singular value / the largest", ylim=(1e-7, 2))
    labels = (
        *("least error of that rank", "reconstruction"),
        *("singular values of the features", "of the reconstruction", "K = 64"),
    )
    handles = [line, dot, *right.lines]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
    return figure


def _as_colors(x: Tensor, rebuilt: Tensor, height: int) -> list[np.ndarray]:
    """Features, reconstruction and remainder in the colors of the features, (h, w, 3)."""
    factor = (x * rebuilt).sum() / rebuilt.square().sum()
    mean = x.mean(dim=0)
    main = torch.linalg.svd(x - mean, full_matrices=False)[2][:3]
    spread = ((x - mean) @ main.T).std(dim=0)
    shown = (x - mean, factor * rebuilt - mean, x - factor * rebuilt)
    colors = [0.5 + (part @ main.T) / (5 * spread) for part in shown]
    return [
        rearrange(c.clamp(0, 1), "(h w) c -> h w c", h=height).numpy() for c in colors
    ]


def draw_colors(
    pictures: Mapping[str, Tensor], parts: Mapping[str, tuple[Tensor, Tensor, int]]
) -> Figure:
    """Pictures, and their features, reconstruction and remainder as colors."""
    ratios = [picture.shape[-2] / picture.shape[-1] for picture in pictures.values()]
    figure, panels = plt.subplots(
        len(pictures), 4, figsize=(8, 3.8), layout="constrained", height_ratios=ratios
    )
    for (name, picture), row in zip(pictures.items(), panels, strict=True):
        row[0].imshow(_picture(picture))
        for axes, image in zip(row[1:], _as_colors(*parts[name]), strict=True):
            axes.imshow(image)
    for axes, title in zip(
        panels[0], ("image", "features", "reconstruction", "remainder"), strict=True
    ):
        axes.set_title(title)
    _clean(panels)
    return figure


Sweep = Mapping[
    tuple[float, int], tuple[float, float]
]  # λ and K → distinct bases, error


def draw_sweep(here: Sweep, record: Sweep, best: Mapping[int, float]) -> Figure:
    """Distinct bases and error by K, a color for each λ; solid the images here, dashed those of the record."""
    scales, numbers = (sorted({key[i] for key in here}) for i in (0, 1))
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained")
    for scale, color in zip(scales, SCALES, strict=True):
        for what, axes in enumerate(panels):
            solid = [here[scale, int(k)][what] for k in numbers]
            dashed = [record[scale, int(k)][what] for k in numbers]
            axes.plot(numbers, solid, "o-", color=color, label=f"λ = {scale:g}")
            axes.plot(numbers, dashed, "--", color=color, linewidth=1)
    left, right = panels
    (all_of,) = left.plot(numbers, numbers, "k:", linewidth=1)
    (least,) = right.plot(numbers, [best[int(k)] for k in numbers], "k-.", linewidth=1)
    left.set(ylabel="distinct bases", yscale="log")
    left.set_yticks((1, 4, 16, 64, 256), (1, 4, 16, 64, 256))
    right.set(ylabel="relative error, up to scale", ylim=(0, 0.65))
    for axes in panels:
        axes.set(xlabel="K", xscale="log")
        axes.set_xticks(numbers, [f"{int(k)}" for k in numbers])
        axes.minorticks_off()
    handles, labels = left.get_legend_handles_labels()
    more = [
        Line2D([], [], color="black", linestyle=s, linewidth=1) for s in ("-", "--")
    ]
    handles += [*more, all_of, least]
    labels += ["six images", "thirty of the record", "all of K", "best of rank K"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    return figure


def _stack_classes(axes: Axes, table: Tensor, spec: DatasetSpec) -> None:
    """Bars as wide as a group's share of all positions, each stacked by class."""
    background, start = table[:, 0] / table.sum(dim=1), 0.0
    for group in background.argsort(descending=True).tolist():
        width, bottom = (table[group].sum() / table.sum()).item(), 0.0
        for label in table[group].nonzero().flatten().tolist():
            height = (table[group, label] / table[group].sum()).item()
            color = np.array(spec.palette[label]) / 255
            axes.bar(start, height, width, bottom, align="edge", color=color)
            bottom += height
        axes.axvline(start, color="white", linewidth=0.6)
        if width > 0.1:
            axes.text(
                start + width / 2, 1.02, f"group {group}", ha="center", fontsize=9
            )
        start += width
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="share of all positions",
        ylabel="share of the group",
    )
    share = table.sum(dim=0) / table.sum()
    often = share.argsort(descending=True)[:8].tolist()
    patches = [
        Patch(color=hexadecimal(spec.palette[c]), label=spec.classes[c]) for c in often
    ]
    axes.legend(
        handles=patches, title="the eight most frequent classes", loc="upper center",
        bbox_to_anchor=(0.5, -0.2), ncols=4, fontsize=9,
    )  # fmt: skip


def draw_classes(
    table: Tensor,
    spec: DatasetSpec,
    known: Mapping[str, Sequence[float]],
    uncertainty: float,
) -> Figure:
    """Classes of what each group claims (groups, classes), and what is known of the class in two steps, in nats."""
    figure, (above, below) = plt.subplots(2, 1, figsize=(7, 7.4), layout="constrained")
    _stack_classes(above, table, spec)
    values = np.array(list(known.values()))
    places = np.arange(len(known))[::-1]
    below.barh(places, values[:, 1], color=MUTED, label="I(G; O): object or not")
    beyond = values[:, 0] - values[:, 1]
    color = SERIES[2]
    below.barh(
        places, beyond, left=values[:, 1], color=color, label="I(G; Y | O): its class"
    )
    below.axvline(
        uncertainty, color="black", linestyle=":", label="H(Y): all uncertainty"
    )
    below.set_yticks(places, list(known))
    below.set(xlabel="nats", xlim=(0, 1.25))
    below.legend(loc="upper center", bbox_to_anchor=(0.4, -0.18), ncols=3, fontsize=9)
    return figure


def draw_drift(histories: Mapping[tuple[str, int], Tensor]) -> Figure:
    """Cosines of bases (steps, k, c) to where they began and end, and how many are distinct, by gradient and seed."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.3), layout="constrained")
    for (grad, _), history in histories.items():
        color = GRADIENTS[grad]
        for at, line in ((0, "-"), (-1, "--")):
            cosine = F.cosine_similarity(history, history[[at]], dim=-1).mean(dim=1)
            left.plot(cosine, color=color, linewidth=1.2, linestyle=line)
        counts = [int(distinct_bases(bases).max()) + 1 for bases in history]
        right.step(range(len(counts)), counts, color=color, linewidth=1.2)
    left.set(xlabel="iteration", ylabel="mean cosine")
    right.set(xlabel="iteration", ylabel="distinct bases", ylim=(0, 8.5))
    grads: Collection[str] = dict.fromkeys(grad for grad, _ in histories)
    handles = [Line2D([], [], color=GRADIENTS[grad], linewidth=4) for grad in grads]
    handles += [Line2D([], [], color="black", linestyle=line) for line in ("-", "--")]
    labels = [*(f'grad="{grad}"' for grad in grads), "to the start", "to the end"]
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure
