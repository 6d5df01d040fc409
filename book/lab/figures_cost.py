"""Figures and tables of the chapter on cost, from the records of `book/results`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Markdown

from emalab import get_recipe
from emalab.bench import Ceilings, Row, Size
from emalab.cost import network_cost
from emalab.kernels.plan import make_plan, pays
from emalab.results import load_records
from lab import tables
from lab.style import METHODS, MUTED, SERIES, SYMBOLS
from lab.traffic import BASES, Move, large_bytes

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler

RESULTS = Path(__file__).parents[1] / "results"
PAPER = Size(b=16, n=65**2, k=64, c=512, iterations=3, dtype="bfloat16")
B, N, K, C, T = PAPER.b, PAPER.n, PAPER.k, PAPER.c, PAPER.iterations
PROCESSORS = 132  # multiprocessors of an H200
FEATURES = B * N * C * 2  # bytes of the features in bfloat16
NAMES = {
    "em-triton": "EM, fused kernel",
    "em-torch": "EM, package's loop",
    "em-compiled": "EM, package's loop, compiled",
    "non-local-sdpa": "non-local, Flash",
    "non-local-explicit": "non-local, explicit",
}
MARKS = {
    "em-triton": (METHODS["EM"], "o", "-"),
    "em-torch": (METHODS["EM"], "s", "--"),
    "non-local-sdpa": (METHODS["non-local"], "D", "-"),
    "non-local-explicit": (METHODS["non-local"], "v", "--"),
}


@cache
def record(name: str) -> dict[str, Any]:
    """The record of that name in `book/results`."""
    (found,) = load_records(RESULTS, f"{name}.json")
    return found


def origin(of: Mapping[str, Any]) -> str:
    return f"{of['device']}, torch {of['versions']['torch']}, commit {of['commit'][:7]}, {of['date']}"


@cache
def benched() -> dict[tuple[str, Size], dict[str, Any]]:
    """Rows of `h200-bench.json` by method and size; ``time`` is that of the device: replayed where it was recorded."""
    found: dict[tuple[str, Size], dict[str, Any]] = {}
    for row in record("h200-bench")["rows"]:
        timed = row | {"time": row["replayed"] or row["seconds"]}
        found.setdefault((row["method"], Size(**row["size"])), timed)
    return found


def measured(method: str, **changes: Any) -> dict[str, Any]:
    """The row of a method at the paper's size, but for the changes."""
    return benched()[method, replace(PAPER, **changes)]


def ceilings() -> tuple[float, float]:
    """Bytes and bfloat16 operations per second that the H200 reached."""
    found = record("h200-bench")["ceilings"]
    return found["bandwidth"], found["arithmetic"]["bfloat16"]


def textbook_ms(key: str = "plain_bcn_ms") -> dict[int, float]:
    """Milliseconds of a loop by positions, called from Python: `h200-speed.json`, batch 16, bfloat16.

    Args:
        key: ``plain_bcn_ms``, the textbook loop; ``em_bcn_ms`` and ``em_bnc_ms``, the package's of that commit with the
            channels first and last.
    """
    rows = record("h200-speed")["em_attention"]["rows"]
    return {r["positions"]: r[key] for r in rows if r["dtype"] == "bfloat16"}


ROUNDS = {  # ways of `bench-cards-h200.json`
    "em-fused": NAMES["em-triton"],
    "em-torch": NAMES["em-torch"],
    "em-compiled": NAMES["em-compiled"],
    "em-public": "EM, textbook loop",
    "non-local-flash": NAMES["non-local-sdpa"],
}


@cache
def rounds(method: str, b: int = B, n: int = N) -> dict[str, np.ndarray[Any, Any]]:
    """Milliseconds of `bench-cards-h200.json`, one in each round: ``called``, ``replayed``, ``host``; ``floor``."""
    (row,) = (
        row
        for row in record("bench-cards-h200")["rows"]
        if (row["method"], row["size"]["b"], row["size"]["n"]) == (method, b, n)
    )
    return {
        key: 1e3 * np.array(row[key]) for key in ("called", "replayed", "host", "floor")
    }


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


def leads() -> Styler:
    """Replayed times of the kernel's plan, and of ways that were to make it faster: `h200-kernel-leads.json`."""
    names = {
        "float32 sums, a launch for each phase": "as the package launches it at 65²",
        "means in bfloat16, a launch for each phase": "means in bfloat16",
        "means in bfloat16, tiles of 64, two stages, a launch for each phase": "means; two tiles of 64",
        "means in bfloat16, one launch": "means; one launch",
        "means in bfloat16, one launch, two groups of images": "means; one launch for each half of the images",
    }
    found = {
        (row["way"], row["n"]): 1e3 * float(np.median(row["replayed"]))
        for row in record("h200-kernel-leads")["rows"]
        if row["b"] == B
    }
    rows = [
        {"way": name} | {f"{side}² / ms": found[way, side**2] for side in (33, 65, 129)}
        for way, name in names.items()
    ]
    first = next(iter(names))
    for side in (33, 65, 129):
        assert min(found[way, side**2] for way in names) == found[first, side**2]
    caption = "Five ways to run the kernel, batch 16, bfloat16, H200, replayed; medians of three."
    return tables.show(rows, caption, bold=[0])


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


def growth() -> dict[str, list[dict[str, Any]]]:
    """Rows of each method for one image of 32² to 1024² positions."""
    sizes = [replace(PAPER, b=1, n=2**i) for i in range(10, 21)]
    return {
        method: [
            benched()[method, size] for size in sizes if (method, size) in benched()
        ]
        for method in MARKS
    }


def draw_million() -> None:
    """Time and memory over the positions of one image."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for method, rows in growth().items():
        color, marker, line = MARKS[method]
        done = [row for row in rows if row["time"]]
        n = np.array([row["size"]["n"] for row in done])
        look: dict[str, Any] = {"color": color, "markersize": 4}
        left.loglog(
            n, [row["time"] for row in done], marker + line, label=NAMES[method], **look
        )
        left.loglog(n, [row["floor"] for row in done], ":", color=color, linewidth=1)
        memory = [row["memory"] / 2**20 for row in done]
        right.loglog(n, memory, marker + line, **look)
        if any(row["failure"] for row in rows):
            right.annotate(
                "the next does not fit",
                (n[-1], memory[-1]),
                (0, 9),
                textcoords="offset points",
                ha="right",
                color=color,
            )
    n = np.array([row["size"]["n"] for row in growth()["em-triton"]])
    right.loglog(
        n,
        2 * (n * C + n * K + K * C) / 2**20,
        "k:",
        linewidth=1,
        label="NC + NK + KC numbers",
    )
    few = n[n < 5e5].astype(float)
    right.loglog(
        few,
        2 * few**2 / 2**20,
        color=MUTED,
        linestyle="-.",
        linewidth=1,
        label="N² numbers",
    )
    left.plot([], [], "k:", linewidth=1, label="floor")
    left.set(xlabel="positions N", ylabel="time / s")
    right.set(
        xlabel="positions N", ylabel="memory beyond the inputs / MiB", ylim=(None, 1e6)
    )
    for axes in (left, right):
        ticks = [2**i for i in range(10, 21, 2)]
        axes.set_xticks(ticks, [f"{round(t**0.5)}²" for t in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=4)
    plt.show()


def crossing_of(slow: str, fast: str) -> float:
    """Positions from which the second is faster, between two measured sizes (log-log)."""
    pairs = [
        (a["size"]["n"], math.log(a["time"] / b["time"]))
        for a in growth()[slow]
        for b in growth()[fast]
        if a["size"]["n"] == b["size"]["n"] and a["time"] and b["time"]
    ]
    return next(
        math.exp(math.log(n0) - y0 / (y1 - y0) * math.log(n1 / n0))
        for (n0, y0), (n1, y1) in pairwise(pairs)
        if y0 < 0 <= y1
    )


def crossings() -> Styler:
    """From which size EM attention is faster, for one image."""
    rows = []
    for fast in ("em-triton", "em-torch"):
        of = {
            slow: f"{crossing_of(slow, fast) ** 0.5:.0f}²"
            for slow in ("non-local-sdpa", "non-local-explicit")
        }
        rows.append(
            {
                NAMES[fast].split(",")[0]: NAMES[fast],
                "faster than Flash from": of["non-local-sdpa"],
                "than explicit from": of["non-local-explicit"],
            }
        )
    return tables.show(
        rows,
        "Positions of one image from which EM attention is faster, between measured sizes (replayed).",
    )


def capacity() -> Styler:
    """Where each method fills the memory of the GPU, and how long it would take there."""
    (failed,) = (
        row["failure"] for row in growth()["non-local-explicit"] if row["failure"]
    )
    found = re.search(r"capacity of ([\d.]+) GiB", failed)
    assert found
    room = float(found[1]) * 2**30
    explicit = (-C + math.sqrt(C**2 + room)) / 2  # 4 N² + 4 N C = room
    ends = {
        "em-triton": (room / (2 * (2 * C + K)), 1),
        "non-local-sdpa": (room / (4 * C), 2),
        "non-local-explicit": (explicit, 2),
    }
    rows = []
    for method, (n, power) in ends.items():
        last = max(
            (row for row in growth()[method] if row["time"]),
            key=lambda row: row["size"]["n"],
        )
        seconds = last["time"] * (n / last["size"]["n"]) ** power
        rows.append(
            {
                "method": NAMES[method],
                "largest N": f"{n**0.5:,.0f}²",
                "image side / pixels": f"{8 * n**0.5:,.0f}",
                "time / s": float(f"{seconds:.2g}"),
            }
        )
    caption = f"One image that fills {room / 2**30:.0f} GiB, computed: inputs, result, and responsibilities or matrix. Time extrapolated by N or N²."
    return tables.show(rows, caption, formats={"time / s": "{:g}"})


def kernel_memory() -> Styler:
    """Memory of the kernel beyond input and result: measured and counted."""
    rows = []
    for n, images in ((33**2, B), (65**2, B), (129**2, B), (2**20, 1)):
        beyond = measured("em-triton", b=images, n=n)["memory"] - 2 * images * n * C
        plan = make_plan(images, n, K, C, torch.bfloat16, PROCESSORS)
        counted = images * (2 * n * K + 2 * K * C + 4 * plan.programs * K * (C + 1))
        assert math.isclose(beyond, counted, rel_tol=0.02)
        rows.append(
            {
                "positions": f"{images} × {round(n**0.5)}²",
                "measured / MiB": beyond / 2**20,
                "counted / MiB": counted / 2**20,
            }
        )
    return tables.show(
        rows,
        "Memory of the kernel beyond input and result. Counted: NK + KC and the partial sums.",
    )


def iterations() -> list[int]:
    """Numbers of iterations that were timed at the paper's size."""
    return sorted(
        size.iterations
        for method, size in benched()
        if method == "em-triton" and size == replace(PAPER, iterations=size.iterations)
    )


def line_of(method: str) -> tuple[float, float]:
    """Milliseconds of each iteration, and of a call without any."""
    slope, start = np.polyfit(
        iterations(),
        [1e3 * measured(method, iterations=t)["time"] for t in iterations()],
        1,
    )
    return float(slope), float(start)


def draw_iterations() -> None:
    """Time over the number of iterations."""
    reading = 1e3 * FEATURES / ceilings()[0]
    _figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
    for method in ("em-torch", "em-triton"):
        color, marker, line = MARKS[method]
        times = [1e3 * measured(method, iterations=t)["time"] for t in iterations()]
        label = f"{NAMES[method]}: {line_of(method)[0]:.3f} ms each"
        axes.plot(iterations(), times, marker + line, color=color, label=label)
    axes.plot(
        iterations(),
        [(t + 1) * reading for t in iterations()],
        "k:",
        label=f"floor: {reading:.3f} ms each",
    )
    axes.set(xlabel="iterations T", ylabel="replayed / ms", ylim=(0, None))
    axes.set_xticks(iterations())
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left")
    plt.show()


GROUPS = {  # the first that fits a kernel's name, and its color
    "EM attention": (r"em_kernel", METHODS["EM"]),
    "batch norm, ReLU, additions": (
        r"triton_.*(batch_norm|relu|threshold|add)",
        SYMBOLS["responsibilities"],
    ),
    "convolutions, matrix products": (
        r"^(?!triton).*(fprop|dgrad|wgrad|gemm|nvjet|conv|cutlass|cask)",
        SERIES[3],
    ),
    "other kernels": (r"", SYMBOLS["bases"]),
}


def step_shares() -> dict[str, float]:
    """Milliseconds of a compiled training step of voc-r101 by what its kernels do."""
    step = record("h200-step-profile")["compile"]
    share: Counter[str] = Counter()
    for name, ms, _ in step["kernels_ms_calls"]:
        if "#" not in name:  # not a kernel but a range that the profiler was given
            share[
                next(
                    group
                    for group, (pattern, _) in GROUPS.items()
                    if re.search(pattern, name)
                )
            ] += ms
    listed = sum(ms for _, ms, _ in step["kernels_ms_calls"])
    rest = {
        "kernels not listed": step["kernels_total_ms"] - listed,
        "no kernel": max(step["ms"] - step["kernels_total_ms"], 0),
    }
    return dict(share.most_common()) | rest


def draw_step() -> None:
    """One training step as a bar."""
    config = get_recipe("voc-r101").model
    forward = (
        2 * 16 * network_cost(config, 513).multiply_adds
    )  # operations of the batch
    floor = 1e3 * 3 * forward / ceilings()[1]
    colors = {name: color for name, (_, color) in GROUPS.items()} | {
        "kernels not listed": "#9aa1a8",
        "no kernel": "#c9ced3",
    }
    figure, axes = plt.subplots(figsize=(8, 2.3), layout="constrained")
    left = 0.0
    for name, ms in step_shares().items():
        axes.barh(
            0,
            ms,
            left=left,
            color=colors[name],
            edgecolor="white",
            label=f"{name}, {ms:.1f} ms",
        )
        left += ms
    axes.axvline(
        floor,
        color="black",
        linestyle=":",
        linewidth=2,
        label=f"floor of the products, {floor:.1f} ms",
    )
    axes.set(xlabel="time of one step / ms", yticks=[], xlim=(0, left))
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside lower center", ncols=2)
    plt.show()


def speeds() -> Styler:
    """Images per second of a training step, the authors' code beside the package."""
    speed = record("h200-training-speed")
    rows = []
    for row in speed["rows"]:
        network = f"{row['recipe']}, stride {row['output_stride']}"
        theirs = (
            speed["official_images_per_second"][network].get(row["execution"])
            if row["precision"] == "bf16-mixed"
            else None
        )
        rows.append(
            {
                "recipe": network,
                "execution": row["execution"],
                "precision": row["precision"],
                "images/s": row["images_per_second"],
                "authors' code": theirs,
                "memory / GB": row["peak_memory_gb"],
            }
        )
    digits = {"images/s": "{:.0f}", "memory / GB": "{:.1f}"}
    best = [i for i, row in enumerate(rows) if row["execution"] == "compile"]
    return tables.show(
        rows,
        "Training steps on one H200, batch 16 of 513 × 513 pixels. Bold: compiled.",
        formats=digits,
        bold=best,
    )


@cache
def scaling() -> dict[int, dict[str, Any]]:
    """Rows of `h200-scaling.json` by number of GPUs."""
    return {row["gpus"]: row for row in record("h200-scaling")["rows"]}


def several_gpus() -> Styler:
    """Measured steps on one and two GPUs."""
    one, two = scaling()[1], scaling()[2]
    rows = []
    for execution, prefix in (("CUDA graph", ""), ("eager", "eager_")):
        for statistics, suffix in (
            ("all images", ""),
            ("each GPU", "_without_sync_bn"),
        ):
            alone, both = one[f"{prefix}ms"], two[f"{prefix}ms{suffix}"]
            rows.append(
                {
                    "execution": execution,
                    "batch norm over": statistics,
                    "1 GPU / ms": alone,
                    "2 GPUs / ms": both,
                    "speed-up": f"{2 * alone / both:.2f}×",
                }
            )
    caption = "A training step of voc-r101 at stride 8, 16 images per GPU, bfloat16, H200. Speed-up: images per second."
    return tables.show(
        rows,
        caption,
        formats={"1 GPU / ms": "{:.1f}", "2 GPUs / ms": "{:.1f}"},
        bold=[0],
    )


def speed_up(gpus: int, growth_of_loss: float) -> float:
    """Images per second on so many GPUs over those of one, if the loss on two GPUs grows by a factor."""
    one, two = scaling()[1]["ms"], scaling()[2]["ms"]
    return float(gpus * one / (one + growth_of_loss * (two - one)))


def expected() -> Styler:
    """Speed-ups: measured, and the bracket for four GPUs."""
    rows = []
    for gpus in (2, 4):
        if gpus in scaling():
            text = f"{gpus * scaling()[1]['ms'] / scaling()[gpus]['ms']:.2f}×"
        else:
            text = f"{speed_up(gpus, gpus - 1):.1f} to {speed_up(gpus, 1):.1f}×"
        rows.append(
            {
                "GPUs": gpus,
                "speed-up": text,
                "how": "measured" if gpus in scaling() else "expected",
            }
        )
    return tables.show(
        rows,
        "Images per second, relative to one GPU; CUDA graph, batch norm over all images.",
    )


def goals() -> Styler:
    """What was to be reached, and what was."""
    small, large = measured("em-triton"), measured("em-triton", n=129**2)
    flash, kernel = (
        1e3 * measured(name)["time"] for name in ("non-local-sdpa", "em-triton")
    )
    speed, files = record("h200-training-speed"), record("h200-speed")["pipeline"]
    ours = {
        row["recipe"]: row["images_per_second"]
        for row in speed["rows"]
        if row["execution"] == "compile"
    }
    theirs = {
        step.split(",")[0]: of["compile"]
        for step, of in speed["official_images_per_second"].items()
        if step != "source"
    }
    fed = files["real_images_per_second"] / files["random_tensors_images_per_second"]
    loop, least = textbook_ms(), 1e3 * small["floor"]
    listed: list[tuple[str, str, float, float, float | None]] = [
        ("forward, 16 × 65², ms", "≤", 0.13, kernel, loop[N]),
        ("forward, 16 × 129², ms", "≤", 0.45, 1e3 * large["time"], loop[129**2]),
        ("times its floor, 65²", "≤", 2, kernel / least, loop[N] / least),
        ("times as fast as Flash, 65²", "≥", 4, flash / kernel, flash / loop[N]),
        (
            "voc-r101, stride 8, images/s",
            "≥",
            215,
            ours["voc-r101"],
            theirs["voc-r101"],
        ),
        ("voc-r50, stride 16, images/s", "≥", 490, ours["voc-r50"], theirs["voc-r50"]),
        ("files against random tensors", "≥", 0.95, fed, None),
        ("2 GPUs, times as fast as 1", "≥", 1.9, speed_up(2, 1), None),
    ]
    rows, missed = [], []
    for place, (what, sign, goal, found, before) in enumerate(listed):
        reached = (found <= goal) == (sign == "≤")
        missed += [] if reached else [place]
        rows.append(
            {
                "what": what,
                "goal": f"{sign} {goal}",
                "measured": found,
                "": "reached" if reached else "missed",
                "before": before,
            }
        )
    assert len(missed) == 4  # the text speaks of them
    caption = "Goals set before the kernel was written, H200. Before: the textbook loop, and the authors' code, compiled."
    return tables.show(rows, caption, bold=missed)


COUNTERS = {  # of the profiler, and their heads
    "microseconds": "time / µs",
    "dram_percent": "memory / %",
    "tensor_percent": "tensor / %",
    "issuing_percent": "issuing / %",
}


@cache
def profiled() -> dict[int, dict[str, Any]]:
    """Rows of `h200-kernel-profile.json` by positions."""
    return {row["n"]: row for row in record("h200-kernel-profile")["rows"]}


def counters() -> Styler:
    """Counters of each phase at three sizes."""
    rows: list[dict[str, object]] = []
    for n in (33**2, 65**2, 129**2):
        for launch in [*profiled()[n]["several"][-3:], profiled()[n]["one"]]:
            row: dict[str, object] = {
                "N": f"{round(n**0.5)}²",
                "phase": launch["phase"],
            }
            row |= {head: float(launch[name]) for name, head in COUNTERS.items()}
            for name, head in (
                ("long_scoreboard", "data / %"),
                ("barrier", "others / %"),
            ):
                row[head] = (
                    100 * launch["waits"][name] if name in launch["waits"] else None
                )
            rows.append(row)
    digits = {head: "{:.0f}" for head in rows[0] if head not in ("N", "phase")}
    caption = "Counters of the kernel's phases, 16 images, bfloat16, H200."
    return tables.show(rows, caption, formats=digits)


def spent() -> dict[str, float]:
    """Microseconds of one iteration at 65², by what they are for: fitted over three sizes of image."""

    def mean_us(n: int, phase: str) -> float:
        times = [
            row["microseconds"]
            for row in profiled()[n]["several"]
            if row["phase"] == phase
        ]
        return float(np.mean(times))

    plan = make_plan(B, N, K, C, torch.bfloat16, PROCESSORS)
    counts = {
        n: math.ceil(math.ceil(n / plan.block_n) / plan.programs) for n in profiled()
    }
    per_tile, start = np.polyfit(
        list(counts.values()), [mean_us(n, "accumulate") for n in counts], 1
    )
    return {
        "features, tile by tile": float(per_tile) * counts[N],
        "start, bases, writing the sums": float(start),
        "adding up, normalizing": mean_us(N, "finish"),
    }


def iteration_parts() -> Styler:
    """Where the time of one iteration goes at 65²."""
    parts = spent()
    whole = sum(parts.values())
    rows: list[dict[str, object]] = [
        {"part": name, "time / µs": us, "share": f"{us / whole:.0%}"}
        for name, us in parts.items()
    ]
    rows.append({"part": "all", "time / µs": whole, "share": "100%"})
    rows.append(
        {
            "part": "floor: one reading of X",
            "time / µs": 1e6 * FEATURES / ceilings()[0],
            "share": None,
        }
    )
    return tables.show(
        rows,
        "One iteration of the kernel, 16 × 65² positions, by the profiler.",
        formats={"time / µs": "{:.1f}"},
        bold=[3],
    )
