"""What the book's studies vary: the cells of every axis that studies on several data sets share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from emalab.recipes import get_recipe
from emalab.studies.config import Cell

__all__ = [
    "AT_TEST",
    "HEADLINE",
    "Axes",
    "cells_by_value",
    "em_axes",
    "head_cells",
    "maintenance_cells",
    "stride_cells",
    "tuned_rates",
]

_ITERATIONS = (1, 2, 3, 4, 6, 8)
AT_TEST = (*_ITERATIONS, 16)  # T of further evaluations
HEADLINE = 5  # seeds of the rows that conclusions hang on

Axes = dict[str, tuple[str, Sequence[Cell]]]


def cells_by_value(
    path: str, label: str, values: Sequence[Any], **extra: Any
) -> list[Cell]:
    """A cell for every value of one field, labeled LABEL=VALUE."""
    return [Cell(f"{label}={value}", {path: value}, **extra) for value in values]


def maintenance_cells() -> list[Cell]:
    """Every way in which the initial bases live from batch to batch."""
    ema = "model.ema."
    average = [
        Cell(
            f"alpha={value}",
            {ema + "momentum": value},
            seeds=HEADLINE if value == 0.9 else 3,
        )
        for value in (0.0, 0.5, 0.9, 0.99)
    ]
    return [
        *average,
        Cell(
            "learned",
            {ema + "maintenance": "learned", ema + "grad": "unroll"},
            seeds=HEADLINE,
        ),
        Cell("frozen", {ema + "maintenance": "frozen"}, seeds=HEADLINE),
        Cell("per image", {ema + "maintenance": "per_image"}, seeds=HEADLINE),
        Cell("batch mean normalized", {ema + "renormalize": "batch_mean"}),
        Cell("normalized after mixing", {ema + "renormalize": "after_mixing"}),
    ]


def _iterations(at_test: Sequence[int]) -> list[Cell]:
    """Every number of iterations in training, scored with further ones at test."""
    path = "model.ema.num_iters"
    return cells_by_value(
        path,
        "T",
        _ITERATIONS,
        evaluations={f"T={count}": {path: count} for count in at_test},
    )


def _gradient() -> list[Cell]:
    ema = "model.ema."
    return [
        Cell("stop", {ema + "grad": "stop"}, seeds=HEADLINE),
        Cell("last", {ema + "grad": "last"}, seeds=HEADLINE),
        Cell("unroll", {ema + "grad": "unroll"}, seeds=HEADLINE),
        Cell(
            "last, first conv frozen",
            {ema + "grad": "last", ema + "freeze_input": True},
        ),
        Cell(
            "unroll, first conv frozen",
            {ema + "grad": "unroll", ema + "freeze_input": True},
        ),
    ]


def em_axes(
    bases: Sequence[int], scales: Sequence[float], at_test: Sequence[int]
) -> Axes:
    """The axes of EM itself, which need no particular data; ``at_test`` are further T of the trained networks."""
    learned = {"model.ema.learn_scale": True, "model.ema.grad": "last"}
    return {
        "maintenance": (
            "how the initial bases live from batch to batch",
            maintenance_cells(),
        ),
        "norm": (
            "how bases are normalized within EM",
            cells_by_value("model.ema.norm", "norm", ("l2", "layer", "none")),
        ),
        "iterations": (
            "T in training and, with the same weights, T at test",
            _iterations(at_test),
        ),
        "bases": (
            "the number of bases K",
            cells_by_value("model.ema.num_bases", "K", bases),
        ),
        "scale": (
            "λ, fixed or learned",
            [  # the gradient that learning needs goes through the last iteration; so a cell with that gradient alone
                *cells_by_value("model.ema.scale", "lambda", scales),
                Cell("lambda=1, gradient last", {"model.ema.grad": "last"}),
                Cell("lambda learned", learned),
            ],
        ),
        "gradient": (
            "where the gradient goes, and whether the unit's first convolution learns",
            _gradient(),
        ),
    }


def head_cells(rates: Mapping[str, float]) -> list[Cell]:
    """Every head at its own rate, or at that of EMANet."""
    heads = {
        "none": "plain FCN",
        "non_local": "non-local",
        "ema": "EMA",
        "deeplab_v3": "DeepLabV3",
        "psp": "PSP",
    }
    return [
        Cell(
            label,
            {"model.context": head, "optim.lr": rates.get(head, rates["ema"])},
            seeds=HEADLINE,
        )
        for head, label in heads.items()
    ]


def tuned_rates(recipe: str) -> dict[str, float]:
    """The rates of the named recipes, head by head; nobody tuned those of DeepLabV3 and PSPNet."""
    suffixes = {
        "ema": "",
        "none": "-fcn",
        "non_local": "-non-local",
        "deeplab_v3": "-deeplab-v3",
        "psp": "-psp",
    }
    return {
        head: get_recipe(recipe + suffix).optim.lr for head, suffix in suffixes.items()
    }


def stride_cells() -> list[Cell]:
    """Output strides 16 and 8 in training, each scored with both at test."""
    at_test = {
        f"stride {stride}": {"evaluation.output_stride": stride} for stride in (16, 8)
    }
    return [
        Cell(
            f"trained at stride {stride}",
            {"model.output_stride": stride},
            evaluations=at_test,
        )
        for stride in (16, 8)
    ]
