"""Figures and tables of the chapter on cost: whole steps of training, on one GPU and on several."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt

from emalab import get_recipe
from emalab.cost import network_cost
from lab import tables
from lab.style import METHODS, SERIES, SYMBOLS

if TYPE_CHECKING:
    from pandas.io.formats.style import Styler
from lab.cost_records import ceilings, record

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
