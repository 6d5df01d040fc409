"""Figures and tables of the chapter on cost: what limits the fused kernel."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from emalab.kernels.plan import make_plan
from lab import tables

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler
from lab.cost_records import (
    FEATURES,
    PROCESSORS,
    B,
    C,
    K,
    N,
    ceilings,
    measured,
    record,
    textbook_ms,
)
from lab.figures_cost_training import speed_up


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
