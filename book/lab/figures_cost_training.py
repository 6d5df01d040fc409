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


EXECUTIONS = {"eager": "eager", "cuda_graph": "CUDA graph", "compile": "compiled"}


@cache
def scaling() -> dict[tuple[int, str, str, str], dict[str, Any]]:
    """Rows of `h200-scaling.json`, by number of GPUs, recipe, execution, and whose images batch norm sees."""
    return {
        (row["gpus"], row["recipe"], row["execution"], row["batch_norm"]): row
        for row in record("h200-scaling")["rows"]
    }


def step_ms(gpus: int, execution: str, batch_norm: str = "all") -> float:
    """Milliseconds of a training step of voc-r101 on so many GPUs; on one, batch norm sees all images."""
    key = (gpus, "voc-r101", execution, batch_norm if gpus > 1 else "all")
    return float(scaling()[key]["ms"])


def several_gpus() -> Styler:
    """Measured steps on one and two GPUs."""
    rows = []
    for execution, name in EXECUTIONS.items():
        for batch_norm in ("all", "each"):
            if (2, "voc-r101", execution, batch_norm) not in scaling():
                continue
            alone, both = (step_ms(gpus, execution, batch_norm) for gpus in (1, 2))
            rows.append(
                {
                    "execution": name,
                    "batch norm over": {"all": "all images", "each": "each GPU"}[
                        batch_norm
                    ],
                    "1 GPU / ms": alone,
                    "2 GPUs / ms": both,
                    "images/s on 2": 2 * 16 / both * 1e3,
                    "speed-up": f"{2 * alone / both:.2f}×",
                }
            )
    caption = "A training step of voc-r101 at stride 8, 16 images per GPU, bfloat16, H200. Speed-up: images per second."
    return tables.show(
        rows,
        caption,
        formats=dict.fromkeys(("1 GPU / ms", "2 GPUs / ms"), "{:.1f}")
        | {"images/s on 2": "{:.0f}"},
        bold=[len(rows) - 1],
    )


def speed_up(gpus: int, growth_of_loss: float, execution: str = "cuda_graph") -> float:
    """Images per second on so many GPUs over those of one, if the loss on two GPUs grows by a factor."""
    one, two = step_ms(1, execution), step_ms(2, execution)
    return gpus * one / (one + growth_of_loss * (two - one))


def expected() -> Styler:
    """Speed-ups: measured on two GPUs, and the bracket for four."""
    rows = [
        {
            "execution": EXECUTIONS[execution],
            "2 GPUs, measured": f"{speed_up(2, 1, execution):.2f}×",
            "4 GPUs, expected": f"{speed_up(4, 3, execution):.1f} to {speed_up(4, 1, execution):.1f}×",
        }
        for execution in ("cuda_graph", "compile")
    ]
    return tables.show(
        rows, "Images per second, relative to one GPU; batch norm over all images."
    )
