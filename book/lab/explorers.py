"""Figures that readers drive and that need no cell of their own: a roofline, effects of settings, paths of gradients."""

from __future__ import annotations

import json
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from emalab.bench import Size
from lab import verdicts
from lab.interactive import Interactive, interactive
from lab.style import METHODS, MUTED, SYMBOLS

__all__ = ["gradient_paths", "roofline", "settings"]

IMAGES, CHANNELS, ITEMSIZE = 16, 512, 2  # of the record: bfloat16
SIDES = [17, 33, 49, 65, 97, 129]
BASES = [8, 16, 32, 64, 128, 256, 512]
ROUNDS = [1, 2, 3, 4, 6, 8]
MEASURED = {"em-triton": "em", "non-local-sdpa": "nonlocal"}

SETS = {
    "camvid": "street scenes",
    "voc-animals": "photographs of animals",
    "shapes": "generated scenes",
}
_SETTINGS = {  # how a cell's label begins, what readers see
    "T=": "T, iterations",
    "K=": "K, bases",
    "lambda=": "λ, concentration",
}


def roofline() -> Interactive:
    """EM and non-local attention under the roof of one H200, for N, K and T; rings are times of the record."""
    path = verdicts.BOOK / "results" / "h200-bench.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    bandwidth = record["ceilings"]["bandwidth"]
    arithmetic = record["ceilings"]["arithmetic"]["bfloat16"]
    measured = [found for row in record["rows"] if (found := _measured(row))]
    data = {
        "size": {"b": IMAGES, "c": CHANNELS, "itemsize": ITEMSIZE},
        "bandwidth": bandwidth,
        "arithmetic": arithmetic,
        "sliders": {
            "side": {"values": SIDES, "start": 65},
            "k": {"values": BASES, "start": 64},
            "iterations": {"values": ROUNDS, "start": 3},
        },
        "measured": measured,
        "colors": {"em": METHODS["EM"], "nonlocal": METHODS["non-local"]},
    }
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    intensity = np.geomspace(1, 1e5, 100)
    axes.loglog(intensity, np.minimum(bandwidth * intensity, arithmetic), color="black")
    size = Size(IMAGES, 65**2, 64, CHANNELS, 3, "bfloat16")
    for method, name in (("em-triton", "EM"), ("non-local-sdpa", "non-local")):
        moved, operations = size.cost(method)  # type: ignore[arg-type]
        reached = min(arithmetic, bandwidth * operations / moved)
        axes.plot(operations / moved, reached, "o", color=METHODS[name], label=name)
    axes.set(xlabel="operations per byte", ylabel="operations per second")
    axes.legend()
    alt = "A roof that rises with the operations per byte and becomes flat; EM attention and non-local attention under it."
    return interactive("roofline", data, figure, alt)


def _measured(row: dict[str, Any]) -> dict[str, Any] | None:
    size, side = row["size"], round(row["size"]["n"] ** 0.5)
    same = {"b": IMAGES, "c": CHANNELS, "dtype": "bfloat16"}
    if row["method"] not in MEASURED or not row["replayed"] or side**2 != size["n"]:
        return None
    if any(size[name] != value for name, value in same.items()):
        return None
    return {
        "method": MEASURED[row["method"]],
        "side": side,
        "k": size["k"],
        "iterations": size["iterations"],
        "seconds": row["replayed"],
    }


def settings() -> Interactive:
    """Scores of other T, K and λ against the default's, with intervals, on each data set of the studies."""
    data: dict[str, Any] = {"sets": SETS, "settings": {}}
    for prefix, text in _SETTINGS.items():
        cells = {study: _cells(study, prefix) for study in SETS}
        data["settings"][prefix.rstrip("=")] = {"text": text, "cells": cells}
    shown = data["settings"]["T"]["cells"]["camvid"]
    figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for place, cell in enumerate(shown):
        axes.plot([place, place], [cell["low"], cell["high"]], color=MUTED)
        axes.plot(place, cell["mean"], "o", color=MUTED)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(shown)), [cell["value"] for cell in shown])
    axes.set(xlabel="T, iterations", ylabel="mIoU − default / points")
    alt = "Differences from three iterations on street scenes, each with an interval; all include zero."
    return interactive("settings", data, figure, alt)


def _cells(study: str, prefix: str) -> list[dict[str, Any]]:
    """The differences of one hyperparameter's values from the default, in order; the default is among them."""
    model = verdicts.STUDIES[study].recipe(verdicts.STUDIES[study].baseline).model.ema
    own = {"T=": model.num_iters, "K=": model.num_bases, "lambda=": model.scale}[prefix]
    zero = {"mean": 0.0, "low": 0.0, "high": 0.0, "default": True}
    cells = [{"value": f"{own:g}", **zero}]
    judged = verdicts.judged_by(study)
    for row in verdicts.findings(study).rows:
        number = row.label.removeprefix(prefix)
        if number != row.label and "," not in number and row.difference.num_values:
            found = judged[row.label]
            interval = {name: getattr(found, name) for name in ("mean", "low", "high")}
            cells.append({"value": f"{float(number):g}", **interval})
    return sorted(cells, key=lambda cell: float(cell["value"]))


def gradient_paths() -> Interactive:
    """Which of T iterations a gradient passes under each setting of `grad`."""
    color = SYMBOLS["gradient"]
    figure, axes = plt.subplots(figsize=(6, 2), layout="constrained")
    for t in (1, 2, 3):
        axes.text(
            t, 0, f"EM {t}", ha="center", va="center", bbox={"boxstyle": "square"}
        )
    axes.plot([3.3, 3.4], [0, 0], color=color, linewidth=3)
    axes.set(xlim=(0.5, 4), ylim=(-1, 1))
    axes.axis("off")
    alt = "Three iterations of EM; the gradient ends before the last one."
    return interactive("gradient-paths", {"most": 8, "color": color}, figure, alt)
