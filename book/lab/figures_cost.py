"""Figures and tables of the chapter on cost: one call of attention at the paper's size, and by its settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown

from emalab.bench import Ceilings, Row, Size
from emalab.kernels.plan import make_plan, pays
from lab import tables
from lab.style import METHODS, SYMBOLS
from lab.traffic import BASES, Move, large_bytes

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler
from lab.cost_records import (
    FEATURES,
    MARKS,
    NAMES,
    PAPER,
    PROCESSORS,
    ROUNDS,
    B,
    C,
    K,
    N,
    T,
    benched,
    ceilings,
    measured,
    rounds,
    textbook_ms,
)


def verdict() -> Markdown:
    """The chapter's result in a box."""
    ways = [
        rounds(name)["replayed"]
        for name in ("em-fused", "non-local-flash", "em-public")
    ]
    kernel, flash, loop = (float(np.median(way)) for way in ways)
    apart = max(float(np.ptp(way) / np.median(way)) for way in ways)
    return Markdown(
        ":::{admonition} Verdict\n:class: important\n"
        "For 16 images of 65² positions, the fused kernel computes EM attention "
        f"**{flash / kernel:.1f} times as fast** as FlashAttention computes non-local "
        f"attention: {kernel:.3f} against {flash:.3f} ms. The textbook loop takes "
        f"{loop:.3f} ms. (One H200, bfloat16, forward, replayed from a CUDA graph; "
        f"medians of five rounds, whose extremes are at most {apart:.0%} apart.)\n:::"
    )


def prices() -> Styler:
    """Least times of EM and non-local attention at the paper's size."""
    bandwidth, arithmetic = ceilings()
    rows = []
    for method, name in (
        ("em-torch", "EM, K = 64, T = 3"),
        ("non-local-sdpa", "non-local"),
    ):
        moved, operations = PAPER.cost(method)  # type: ignore[arg-type]
        rows.append(
            {
                "attention": name,
                "operations / G": operations / 1e9,
                "bytes / M": moved / 1e6,
                "operations per byte": operations / moved,
                "by memory / ms": 1e3 * moved / bandwidth,
                "by arithmetic / ms": 1e3 * operations / arithmetic,
            }
        )
    caption = "The least that attention over 16 × 65² positions costs on an H200; the larger of the two times binds."
    digits = {
        "operations / G": "{:.0f}",
        "bytes / M": "{:.0f}",
        "operations per byte": "{:.0f}",
    }
    return tables.show(rows, caption, formats=digits)


def operations_of(moves: Sequence[Move]) -> Styler:
    """The operations of the textbook loop's first iteration."""
    rows: list[dict[str, object]] = []
    step: Counter[str] = Counter()
    for name, way, kind, size in moves:
        step[way] += size
        if way == "written":
            rows.append(
                {
                    "operation": name,
                    "read / MB": step["read"] / 1e6,
                    "written / MB": step["written"] / 1e6,
                }
            )
            step.clear()
            if name == "div" and kind == BASES:
                break
    digits = {"read / MB": "{:.1f}", "written / MB": "{:.1f}"}
    return tables.show(
        rows,
        "First iteration of the textbook loop, 16 × 65² positions, bfloat16.",
        formats=digits,
    )


def loops(moved: Mapping[str, Sequence[Move]]) -> Styler:
    """Passes, least time and time of three loops at two sizes."""
    passes = {name: large_bytes(moves) / FEATURES for name, moves in moved.items()}
    rows = []
    for n in (65**2, 129**2):
        took = (
            ("textbook, channels first", "textbook loop", textbook_ms()[n]),
            (
                "package's, channels first",
                "package's loop",
                textbook_ms("em_bcn_ms")[n],
            ),
            (
                "package's, channels last",
                "package's loop",
                1e3 * measured("em-torch", n=n)["seconds"],
            ),
        )
        for name, counted, ms in took:
            least = 1e3 * passes[counted] * B * n * C * 2 / ceilings()[0]
            rows.append(
                {
                    "loop": name,
                    "N": f"{round(n**0.5)}²",
                    "passes": passes[counted],
                    "least / ms": least,
                    "called / ms": ms,
                    "bandwidth used": f"{least / ms:.0%}",
                }
            )
    caption = "Three loops called from Python, batch 16, bfloat16, H200: passes over X, the time for these bytes, the time taken."
    digits = {"passes": "{:.1f}", "least / ms": "{:.3f}", "called / ms": "{:.3f}"}
    return tables.show(rows, caption, formats=digits, bold=[2, 5])


PARTS = {
    ("read", "features"): ("features read", SYMBOLS["features"], ""),
    ("written", "features"): ("result written", SYMBOLS["result"], ""),
    ("read", "responsibilities"): (
        "responsibilities read",
        SYMBOLS["responsibilities"],
        "",
    ),
    ("written", "responsibilities"): (
        "responsibilities written",
        SYMBOLS["responsibilities"],
        "///",
    ),
}


def draw_traffic(moved: Mapping[str, Sequence[Move]]) -> None:
    """Stacked bars: passes over the features, for each way to compute them."""
    small = (BASES, "#c9ced3", "")
    _figure, axes = plt.subplots(figsize=(8, 2.6), layout="constrained")
    for place, (_name, moves) in enumerate(moved.items()):
        bar: Counter[str] = Counter()
        for move in moves:
            bar[PARTS.get((move.way, move.kind), small)[0]] += move.size
        left = 0.0
        for label, color, hatch in (*PARTS.values(), small):
            width = bar[label] / FEATURES
            kwargs: dict[str, Any] = {
                "color": color,
                "hatch": hatch,
                "edgecolor": "white",
                "linewidth": 0,
            }
            axes.barh(place, width, left=left, label=None if place else label, **kwargs)
            left += width
        passes = large_bytes(moves) / FEATURES
        axes.text(left + 0.1, place, f"{passes:.1f} + {left - passes:.1f}", va="center")
    axes.axvline(T + 1, color="black", linewidth=1, linestyle=":", label="the least")
    axes.set_yticks(range(len(moved)), list(moved))
    axes.invert_yaxis()
    axes.set(xlabel="bytes moved / passes over the features", xlim=(0, 12))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


def draw_roofline(points: Mapping[str, tuple[float, float]]) -> None:
    """Methods below the roofs: (bytes, seconds) of each, at the paper's size."""
    bandwidth, arithmetic = ceilings()
    _figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    reach = np.geomspace(20, 8000, 200)
    axes.loglog(
        reach,
        np.minimum(arithmetic, reach * bandwidth) / 1e12,
        "k-",
        linewidth=1.5,
        label="measured roofs",
    )
    axes.text(30, 38 * bandwidth / 1e12, f"{bandwidth / 1e12:.1f} TB/s", rotation=38)
    axes.text(
        1.3 * arithmetic / bandwidth,
        1.1 * arithmetic / 1e12,
        f"{arithmetic / 1e12:.0f} TFLOP/s",
    )
    for (name, (size, seconds)), marker in zip(points.items(), "^soDv", strict=True):
        is_em = name.startswith("EM")
        operations = PAPER.cost("em-torch" if is_em else "non-local-sdpa")[1]
        across, upward = operations / size, operations / seconds
        color = METHODS["EM" if is_em else "non-local"]
        axes.plot(across, upward / 1e12, marker, color=color, markersize=8, label=name)
        roof = min(arithmetic, across * bandwidth) / 1e12
        axes.vlines(
            across, upward / 1e12, roof, color=color, linestyle=":", linewidth=1
        )
    axes.set(
        xlabel="operations for each byte moved",
        ylabel="TFLOP/s",
        ylim=(8, 1600),
        xlim=(20, 8000),
    )
    axes.grid(alpha=0.25, which="both")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    plt.show()


def methods() -> Styler:
    """All ways at the four sizes of `bench-cards-h200.json`."""

    def text(times: np.ndarray[Any, Any]) -> str:
        low, middle, high = (f"{time:#.2g}" for time in np.quantile(times, (0, 0.5, 1)))
        return f"{middle}\N{NO-BREAK SPACE}({low}\N{EN DASH}\N{WORD JOINER}{high})"

    rows: list[dict[str, object]] = []
    fastest = []
    for b, side in ((B, 33), (B, 65), (B, 129), (1, 65)):
        of = {method: rounds(method, b, side**2) for method in ROUNDS}
        least = min(of, key=lambda method: float(np.median(of[method]["replayed"])))
        fastest.append(len(rows) + list(of).index(least))
        for method, found in of.items():
            row: dict[str, object] = {
                "images × N": f"{b} × {side}²".replace(" ", "\N{NO-BREAK SPACE}"),
                "method": ROUNDS[method],
            }
            middle = float(np.median(found["replayed"]))
            row["called / ms"] = text(found["called"])
            row["replayed / ms"] = middle
            row["apart / %"] = 100 * float(np.ptp(found["replayed"])) / middle
            floor = float(found["floor"])
            row["floor / ms"] = floor
            row["reached"] = f"{floor / middle:.0%}"
            rows.append(row)
    caption = (
        "C = 512, bfloat16, one H200: medians of five rounds. Called: with the lowest and the highest; replayed: how far "
        "these are apart. Bold: the fastest when replayed. Reached: floor over replayed time."
    )
    digits = {"replayed / ms": "{:#.3g}", "apart / %": "{:.1f}", "floor / ms": "{:.3f}"}
    return tables.show(rows, caption, formats=digits, bold=fastest)


def calls() -> Styler:
    """How much longer a call of the kernel takes than its replay."""
    rows: list[dict[str, object]] = []
    for b, side in ((B, 33), (B, 65), (B, 129), (1, 65)):
        found = rounds("em-fused", b, side**2)
        middle = {key: float(np.median(times)) for key, times in found.items()}
        plan = make_plan(b, side**2, K, C, torch.bfloat16, PROCESSORS)
        rows.append(
            {
                "images × N": f"{b} × {side}²".replace(" ", "\N{NO-BREAK SPACE}"),
                "launches": 1 if plan.one_launch else 2 * T + 1,
                "host / ms": middle["host"],
                "called / ms": middle["called"],
                "replayed / ms": middle["replayed"],
                "called / replayed": middle["called"] / middle["replayed"],
            }
        )
    caption = "The fused kernel, called and replayed; medians of five rounds. Host: until a call returns, the GPU idle."
    return tables.show(
        rows,
        caption,
        formats=dict.fromkeys(list(rows[0])[2:5], "{:.3f}")
        | {"called / replayed": "{:.2f}"},
    )


def _with(name: str, value: int) -> Size:
    """The paper's size with another number for one of its letters."""
    changes: dict[str, Any] = {name: value}
    return replace(PAPER, **changes)


SWEEPS: dict[str, tuple[str, tuple[int, ...]]] = {
    "k": ("bases K", (16, 32, 64, 128, 256)),
    "c": ("channels C", (128, 256, 512, 1024)),
    "b": ("images B", (1, 2, 4, 8, 16, 32, 64)),
}


def draw_sweeps() -> None:
    """Time over bases, channels and images."""
    figure, panels = plt.subplots(
        1, 3, figsize=(10, 3.2), layout="constrained", sharey=True
    )
    for axes, (axis, (name, values)) in zip(panels, SWEEPS.items(), strict=True):
        rows: dict[int, dict[str, Any]] = {}
        for method in ("em-torch", "em-triton"):
            color, marker, line = MARKS[method]
            sizes = {value: _with(axis, value) for value in values}
            rows = {
                value: benched()[method, size]
                for value, size in sizes.items()
                if (method, size) in benched()
            }
            times = [1e3 * row["time"] for row in rows.values()]
            axes.loglog(
                list(rows), times, marker + line, color=color, label=NAMES[method]
            )
        axes.loglog(
            list(rows),
            [1e3 * row["floor"] for row in rows.values()],
            "k:",
            label="floor",
        )
        axes.set_xticks(list(rows), [str(value) for value in rows])
        axes.minorticks_off()
        axes.set_xlabel(name)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("replayed / ms")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=3
    )
    plt.show()


def exceptions() -> Styler:
    """The sizes of the record at which the package's loop is faster than the kernel."""
    rows = []
    for (method, size), kernel in benched().items():
        loop = benched().get(("em-torch", size))
        if method != "em-triton" or loop is None:
            continue
        faster = kernel["time"] < loop["time"]
        assert faster == pays(size.k, size.c, getattr(torch, size.dtype)), size
        if not faster:
            row = {
                "type": size.dtype,
                "N": f"{round(size.n**0.5)}²",
                "K": size.k,
                "C": size.c,
            }
            rows.append(
                row
                | {"kernel / ms": 1e3 * kernel["time"], "loop / ms": 1e3 * loop["time"]}
            )
    return tables.show(
        rows,
        "The only sizes of the record at which the package's loop is faster; batch 16, T = 3, replayed.",
    )


def tiles() -> Styler:
    """Fewer bases leave room for more tiles."""
    rows = []
    for k in (16, 32, 64):
        row, plan = (
            measured("em-triton", k=k),
            make_plan(B, N, k, C, torch.bfloat16, PROCESSORS),
        )
        reached = f"{row['floor'] / row['time']:.0%}"
        rows.append(
            {
                "K": k,
                "replayed / ms": 1e3 * row["time"],
                "floor reached": reached,
                "tiles at a time": plan.stages,
            }
        )
    return tables.show(
        rows,
        "Fewer bases leave room for more tiles, and the kernel comes closer to its floor.",
    )


def on_cpu(rows: Sequence[Row], here: Ceilings) -> Styler:
    """Rows of a benchmark on one core."""
    lines = []
    for row in rows:
        assert row.seconds is not None
        lines.append(
            {
                "N": f"{round(row.size.n**0.5)}²",
                "method": NAMES[row.method],
                "time / ms": 1e3 * row.seconds,
                "floor / ms": 1e3 * row.floor,
                "reached": f"{row.floor / row.seconds:.0%}",
            }
        )
    ridge = here.arithmetic["float32"] / here.bandwidth
    caption = f"One core of the machine that built this page, one image, C = 256, float32. Arithmetic binds above {ridge:.0f} operations per byte."
    return tables.show(lines, caption)
