"""Figures and tables of the chapter on cost: time and memory by the number of positions and of iterations."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from emalab.kernels.plan import make_plan
from lab import tables
from lab.style import MUTED

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler
from lab.cost_records import (
    FEATURES,
    MARKS,
    NAMES,
    PAPER,
    PROCESSORS,
    B,
    C,
    K,
    benched,
    ceilings,
    measured,
)


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
