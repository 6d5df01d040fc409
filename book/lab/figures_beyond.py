"""Figures and tables of the chapter beyond segmentation, from its three records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Markdown
from numpy.typing import NDArray
from torch import Tensor

from emalab.results import load_records
from emalab.studies.statistics import Interval, student_interval
from lab import tables
from lab.frames import LONG
from lab.style import METHODS, MUTED, SERIES

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

Numbers = NDArray[np.float64]

RESULTS = Path(__file__).parents[1] / "results"
BASELINE = "average"  # pooling that all heads are compared with
LABELS = {
    "EM, learned": "EM, bases learned",
    "EMAU": "EMAU (stop)",
    "EMAU, unroll": "EMAU (unroll)",
}
STARTS = {
    "stored": ("stored bases", METHODS["EM"], "o-"),
    "random": ("random bases", MUTED, "v:"),
    "any other frame": ("any other frame", SERIES[1], "s--"),
    "1 before": ("the frame before", SERIES[2], "D-"),
}


@cache
def record(name: str) -> dict[str, Any]:
    """The record of an experiment: classification, video or resolution."""
    (found,) = load_records(RESULTS, f"beyond-{name}.json")
    return found


def origins() -> Styler:
    """Commit, date and device of the three records."""
    rows = []
    for name in ("classification", "video", "resolution"):
        of = record(name)
        rows.append(
            {
                "record": f"beyond-{name}",
                "commit": of["commit"][:7],
                "date": of["date"],
                "device": of["device"],
            }
        )
    return tables.show(rows, "Records of this chapter.")


def told(found: Interval, digits: int = 2) -> str:
    text = (
        f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"
    )
    return text.replace("-", "−")


def short(found: Interval) -> str:
    """Mean and half of the interval."""
    return f"{found.mean:+.2f} ± {found.high - found.mean:.2f}".replace("-", "−")


# Pooling


@cache
def precision() -> dict[str, Numbers]:
    """Mean average precision in percent of each head, one number for each seed."""
    heads = record("classification")["heads"]
    return {
        name: 100 * np.array(row["average_precision"]).mean(axis=1)
        for name, row in heads.items()
    }


def lead(name: str, over: str) -> Interval:
    """Student's interval of a head's lead over another, paired by seed, in points."""
    return student_interval(list(precision()[name] - precision()[over]))


def verdict() -> Markdown:
    """The chapter's result in a box."""
    em, pool = lead("EM", BASELINE), lead("EM", "every position")
    return Markdown(
        ":::{admonition} Verdict\n:class: important\n"
        f"As a pool for classification, EM beats the average by **{told(em)} points** "
        f"of mAP, and a soft maximum over all positions does as well ({told(pool)}). "
        "(95 % intervals over five seeds; VOC animals, frozen features.)\n:::"
    )


def draw_heads() -> None:
    """Lead of each head over the average."""
    names = [name for name in precision() if name != BASELINE]
    figure, axes = plt.subplots(figsize=(6.8, 4), layout="constrained")
    for height, name in enumerate(names):
        ours = lead(name, BASELINE)
        low, high = np.multiply(
            record("classification")["heads"][name]["over_images"], 100
        )
        pairs = precision()[name] - precision()[BASELINE]
        first = height == 0
        axes.plot(
            [low, high],
            [height] * 2,
            color=METHODS["EM"],
            linewidth=0.8,
            label="95 %, over images" if first else None,
        )
        axes.plot(
            [ours.low, ours.high],
            [height] * 2,
            color=METHODS["EM"],
            linewidth=3.5,
            label="95 %, over seeds" if first else None,
        )
        axes.plot(
            pairs,
            [height] * len(pairs),
            "o",
            color="black",
            markersize=2,
            label="one seed" if first else None,
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(names)), [LABELS.get(name, name) for name in names])
    axes.set(xlabel="mAP − average pooling / points", ylim=(len(names) - 0.4, -0.6))
    axes.grid(axis="x", alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3)
    plt.show()


def heads() -> Styler:
    """Every head: score, lead, parameters and cost."""
    rows = []
    for name, row in record("classification")["heads"].items():
        rows.append(
            {
                "head": LABELS.get(name, name)
                + (" *" if row["rate"] == max(map(float, row["rates"])) else ""),
                "mAP / %": precision()[name].mean(),
                "parameters": f"{row['parameters']:,}",
                "multiply-adds / M": row["multiply_adds"] / 1e6,
            }
        )
    of = record("classification")
    caption = f"Heads on frozen features, {len(of['seeds'])} seeds. *: chose the largest learning rate of the grid."
    return tables.show(
        rows, caption, formats={"mAP / %": "{:.1f}", "multiply-adds / M": "{:.2f}"}
    )


QUESTIONS = {
    ("EM", BASELINE): "EM pooling − average",
    ("EM", "every position"): "EM pooling − readout without a pool",
    ("EM", "queries"): "EM pooling − as many learned queries",
    ("EM, 4 × bases", "EM"): "four times the bases − EM",
    ("EM, learned", "EM"): "bases learned through EM − EM",
    ("EMAU", BASELINE): "unit (stop) − average",
    (
        "EMAU",
        "convolutions, first frozen",
    ): "unit (stop) − its layers without attention",
    ("EMAU, unroll", "convolutions"): "unit (unroll) − its layers without attention",
    ("EMAU, unroll", "EMAU"): "unit (unroll) − unit (stop)",
    (
        "convolutions",
        "convolutions, first frozen",
    ): "layers without attention: trained − first frozen",
}


def answers() -> Styler:
    """Pairs of heads that answer a question each; in bold those whose interval excludes zero."""
    found = {pair: lead(*pair) for pair in QUESTIONS}
    rows = [
        {"comparison": QUESTIONS[pair], "points of mAP [95 %]": told(gap)}
        for pair, gap in found.items()
    ]
    clear = [i for i, gap in enumerate(found.values()) if not gap.low < 0 < gap.high]
    return tables.show(
        rows,
        "Pairs of heads, paired by seed. Bold: the interval excludes zero.",
        bold=clear,
    )


def draw_diluted(shares: Sequence[float], left: Mapping[str, Sequence[Tensor]]) -> None:
    """What a probe finds of a person over the person's share of a bag."""
    figure, axes = plt.subplots(figsize=(6.8, 3.4), layout="constrained")
    looks = (
        (MUTED, "-"),
        (METHODS["EM"], "-"),
        (METHODS["EM"], "--"),
        (SERIES[2], "-."),
    )
    for (name, values), (color, line) in zip(left.items(), looks, strict=True):
        mean = [value.mean().item() for value in values]
        axes.plot(shares, mean, "." + line, color=color, linewidth=1.2, label=name)
        axes.fill_between(
            shares,
            [v.min().item() for v in values],
            [v.max().item() for v in values],
            color=color,
            alpha=0.15,
        )
    axes.set(
        xlabel="share of the person in the bag", ylabel="largest answer of the probe"
    )
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right center")
    plt.show()


# Video


def draw_pan(short_of: Mapping[tuple[str, int], Numbers], cut: int) -> None:
    """How far the objective is below that of many iterations, frame by frame."""
    figure, axes = plt.subplots(figsize=(6.8, 3.3), layout="constrained")
    for (way, budget), values in short_of.items():
        color = {"stored": METHODS["EM"], "carried": SERIES[2]}[way]
        label = f"{way} bases, {budget} iteration{'s' if budget > 1 else ''}"
        axes.plot(
            values, {1: "--", 3: "-"}[budget], color=color, linewidth=1.3, label=label
        )
    axes.axvline(cut - 0.5, color="black", linewidth=0.8, linestyle=":", label="cut")
    axes.set(
        xlabel="frame",
        ylabel=f"below {LONG} iterations / nats per position",
        ylim=(0, None),
    )
    axes.set_xticks(range(0, len(values), 2))
    axes.grid(alpha=0.25)
    figure.legend(loc="outside right center")
    plt.show()


def gains(network: str, start: str, budget: int, fast: bool | None = None) -> Numbers:
    """Objective after so many iterations less that of three from the stored bases, for every block of the clips."""
    differences = [
        np.subtract(clip["starts"][start][str(budget)], clip["starts"]["stored"]["3"])
        for clip in record("video")["clips"][network]
        if start in clip["starts"] and fast in (None, clip["seconds"] < 0.5)
    ]
    return np.concatenate(differences)


def draw_video() -> None:
    """Objective over the number of iterations, for two networks and two frame rates."""
    budgets, clips = record("video")["budgets"], record("video")["clips"]
    figure, panels = plt.subplots(
        2, 2, figsize=(8.6, 5.4), sharex=True, sharey="row", layout="constrained"
    )
    for row, network in zip(panels, clips, strict=True):
        for axes, fast in zip(row, (True, False), strict=True):
            for start, (label, color, marks) in STARTS.items():
                found = [
                    student_interval(list(gains(network, start, budget, fast)))
                    for budget in budgets
                ]
                axes.plot(
                    budgets,
                    [gap.mean for gap in found],
                    marks,
                    color=color,
                    markersize=3.5,
                    linewidth=1.2,
                    label=label,
                )
                axes.fill_between(
                    budgets,
                    [gap.low for gap in found],
                    [gap.high for gap in found],
                    color=color,
                    alpha=0.2,
                )
            axes.axhline(0, color="black", linewidth=0.8)
            axes.set_title(
                f"{network}, {'15 frames' if fast else '1 frame'} per second",
                fontsize=10,
            )
            axes.set_xscale("log")
            axes.set_xticks(budgets, budgets)
            axes.minorticks_off()
            axes.grid(alpha=0.25)
        row[0].set_ylabel("nats per position")
    for axes in panels[1]:
        axes.set_xlabel("iterations per frame, T")
    figure.legend(
        *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4
    )
    plt.show()


def clips() -> Styler:
    """The clips of the record."""
    rows = [
        {
            "clip": clip["clip"],
            "frames": clip["frames"],
            "seconds per frame": clip["seconds"],
            "positions": clip["positions"],
            "blocks": len(clip["starts"]["stored"]["3"]),
        }
        for clip in record("video")["clips"]["shipped network"]
    ]
    return tables.show(rows, "CamVid's clips.", formats={"seconds per frame": "{:.2g}"})


def one_iteration() -> Styler:
    """One iteration from each start against three from the stored bases."""
    rows = []
    for network in record("video")["clips"]:
        for start, (label, _, _) in STARTS.items():
            row: dict[str, object] = {"features": network, "start": label}
            for fast, head in (
                (True, "15 per second"),
                (False, "1 per second"),
            ):
                row[head] = short(
                    student_interval(list(gains(network, start, 1, fast)))
                )
            rows.append(row)
    caption = "One iteration, less three from the stored bases, in nats per position; ± half of the 95 % interval."
    return tables.show(rows, caption, bold=[3, 7])


@cache
def lead_over_any() -> dict[tuple[str, float], Interval]:
    """One iteration from an earlier frame less one from any other frame, by network and seconds between."""
    by_gap: dict[tuple[str, float], list[float]] = {}
    for network, of_network in record("video")["clips"].items():
        for clip in of_network:
            for start, rows in clip["starts"].items():
                if start.endswith("before"):
                    gap = round(int(start.split()[0]) * clip["seconds"], 2)
                    nearer = np.subtract(
                        rows["1"], clip["starts"]["any other frame"]["1"]
                    )
                    by_gap.setdefault((network, gap), []).extend(nearer)
    return {key: student_interval(values) for key, values in sorted(by_gap.items())}


def earlier_or_any() -> Styler:
    """The lead of an earlier frame over any other, by the time between."""
    networks = list(record("video")["clips"])
    rows = [
        {"seconds before": gap}
        | {
            f"{network} [95 %]": told(lead_over_any()[network, gap], 3)
            for network in networks
        }
        for gap in sorted({gap for _, gap in lead_over_any()})
    ]
    return tables.show(
        rows,
        "One iteration from an earlier frame, less one from any other frame, in nats per position.",
    )


def after_three(what: str) -> dict[str, dict[str, float]]:
    """Means over the blocks by network and start: ``distinct`` bases, or the share of ``settled`` positions."""
    return {
        network: {
            start: float(
                np.concatenate(
                    [clip["starts"][start][what] for clip in of_network]
                ).mean()
            )
            for start in STARTS
        }
        for network, of_network in record("video")["clips"].items()
    }


def bases_after_three() -> Styler:
    """Distinct bases and settled positions after three iterations from each start."""
    distinct, settled = after_three("distinct"), after_three("settled")
    rows = [
        {
            "features": network,
            "start": STARTS[start][0],
            "distinct bases": number,
            "settled positions / %": 100 * settled[network][start],
        }
        for network, starts in distinct.items()
        for start, number in starts.items()
    ]
    caption = "After three iterations. Settled: positions that keep their strongest base from then on."
    return tables.show(
        rows,
        caption,
        formats={"distinct bases": "{:.1f}", "settled positions / %": "{:.0f}"},
    )


# High resolution


def mean_error(
    rows: Sequence[Mapping[str, Any]], way: str, what: str
) -> dict[int, float]:
    """Mean over the subsets of each size."""
    counts = sorted({row["count"] for row in rows if row["way"] == way})
    return {
        n: float(np.mean([r[what] for r in rows if (r["way"], r["count"]) == (way, n)]))
        for n in counts
    }


@cache
def fitted_power() -> Interval:
    """Exponent p of error ∝ (1/n − 1/N)^p over the photographs, one fit for each."""
    slopes = []
    for photo in record("resolution")["photographs"]:
        found = mean_error(photo["rows"], "random", "bases")
        n, total = np.array(list(found)), math.prod(photo["size"])
        slopes.append(
            np.polyfit(np.log(1 / n - 1 / total), np.log(list(found.values())), 1)[0]
        )
    return student_interval(slopes)


def draw_sampled() -> None:
    """Error over the positions that take part, and time over all positions."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.4, 4.2), layout="constrained")
    photographs = record("resolution")["photographs"]
    looks = product(("-", "--"), SERIES)
    for photo, (dashes, color) in zip(photographs, looks, strict=False):
        found = mean_error(photo["rows"], "random", "bases")
        label = f"{photo['photograph']}, N = {math.prod(photo['size']):,}"
        left.plot(
            list(found),
            list(found.values()),
            "." + dashes,
            color=color,
            linewidth=1,
            label=label,
        )
        on_grid = mean_error(photo["rows"], "grid", "bases")
        left.plot(list(on_grid), list(on_grid.values()), "x", color=color, markersize=5)
    n = np.array([64, 16384])
    left.plot(n, 2 / np.sqrt(n), "k--", linewidth=0.8, label="proportional to 1/√n")
    left.plot([], [], "kx", markersize=5, label="an even grid")
    left.set(
        xscale="log",
        yscale="log",
        xlabel="positions that take part, n",
        ylabel="relative error of the bases",
    )
    timings = record("resolution")["timings"]
    of_all = [row["positions"] for row in timings]
    right.plot(
        of_all,
        [row["all"] for row in timings],
        "s--",
        color=METHODS["EM"],
        label="time: all positions",
    )
    right.plot(
        of_all,
        [row["some"] for row in timings],
        "o-",
        color=METHODS["EM"],
        label=f"time: {n[1]:,} positions, then all once",
    )
    right.set(xscale="log", yscale="log", xlabel="positions, N", ylabel="time / s")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=3)
    plt.show()


def without_em() -> list[float]:
    """Mean errors of bases, reconstruction and labels if EM does not run at all."""
    photographs = record("resolution")["photographs"]
    return [
        float(np.mean([photo["rows"][-1][what] for photo in photographs]))
        for what in ("bases", "reconstruction", "labels")
    ]


def samples() -> Styler:
    """Errors by the number of positions, mean of the photographs."""
    rows: list[dict[str, object]] = []
    heads = ("bases / %", "reconstruction / %", "labels changed / %")
    for count in (64, 256, 1024, 4096, 16384):
        of = [
            photo["rows"]
            for photo in record("resolution")["photographs"]
            if math.prod(photo["size"]) > count
        ]
        means = [
            np.mean([mean_error(rows_of, "random", what)[count] for rows_of in of])
            for what in ("bases", "reconstruction", "labels")
        ]
        rows.append(
            {"n": f"{count:,}", "photographs": len(of)}
            | dict(zip(heads, (100 * float(m) for m in means), strict=True))
        )
    none = dict(zip(heads, (100 * share for share in without_em()), strict=True))
    rows.append(
        {"n": "0 (no EM)", "photographs": len(record("resolution")["photographs"])}
        | none
    )
    digits = {
        "bases / %": "{:.1f}",
        "reconstruction / %": "{:.1f}",
        "labels changed / %": "{:.2f}",
    }
    return tables.show(
        rows,
        "Relative errors against EM on all positions, mean of the photographs.",
        formats=digits,
        bold=[2],
    )


def grid_cases() -> tuple[int, int]:
    """Cases in which an even grid is nearer than the mean of the random subsets, and all cases."""
    cases = []
    for photo in record("resolution")["photographs"]:
        on_grid, at_random = (
            mean_error(photo["rows"], way, "bases").values()
            for way in ("grid", "random")
        )
        cases += [a < b for a, b in zip(on_grid, at_random, strict=True)]
    return sum(cases), len(cases)
