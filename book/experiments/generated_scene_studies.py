"""Studies on generated scenes: all axes, what context modules carry across a scene, and one of seconds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from emalab.recipes import Recipe, get_recipe
from emalab.studies.config import Cell, Study, family
from experiments.study_axes import (
    AT_TEST,
    HEADLINE,
    Axes,
    em_axes,
    head_cells,
)

__all__ = ["GENERATED_SCENES"]


def _shapes() -> Recipe:
    base = get_recipe("shapes-pooled")
    return replace(
        base,
        name="shapes-study",
        summary="EMANet head on generated scenes, pooled evidence",
    )


def _generated() -> list[Study]:
    base = _shapes()
    axes: Axes = {
        "heads": ("the context head", head_cells({"ema": base.optim.lr})),
        **em_axes((2, 4, 8, 16, 32), (0.25, 1.0, 4.0, 16.0), AT_TEST),
    }
    return family("shapes", "all axes on generated scenes, without a GPU", base, axes)


def _evidence() -> Study:
    """What each head can carry across a scene: evidence to be pooled over look-alikes, or one far cue; with noise."""
    base = _shapes()
    base = replace(base, name="shapes-evidence-study")
    heads = {"EMA": "ema", "non-local": "non_local", "no context": "none"}
    scenes = {  # finished runs are called after these strings, which mean the fields of data.scenes
        "pooled": "shapes-pooled",
        "pooled, little noise": "shapes-pooled:spread=10",
        "pooled, much noise": "shapes-pooled:spread=40",
        "far cue": "shapes-far",
        "far cue, closer": "shapes-far:gap=6",
        "far cue, much grain": "shapes-far:grain=24",
    }
    cells = [
        Cell(
            f"{head}, {scene}",
            {"model.context": context, "data.name": name},
            seeds=HEADLINE,
        )
        for scene, name in scenes.items()
        for head, context in heads.items()
    ]
    far, longer = (
        {"data.name": "shapes-far"},
        {"optim.iterations": 4 * base.optim.iterations},
    )
    ema = "model.ema."
    settings: dict[str, dict[str, Any]] = {
        **{f"K={bases}": {ema + "num_bases": bases} for bases in (4, 16, 32)},
        **{f"lambda={scale}": {ema + "scale": scale} for scale in (4.0, 16.0)},
        "gradient last": {ema + "grad": "last"},
        "gradient unrolled": {ema + "grad": "unroll"},
        "gradient unrolled, first conv frozen": {
            ema + "grad": "unroll",
            ema + "freeze_input": True,
        },
        **{f"rate {rate}": {"optim.lr": rate} for rate in (0.001, 0.01)},
        "four times as long": longer,
        "gradient unrolled, four times as long": {ema + "grad": "unroll", **longer},
    }
    cells += [
        Cell(f"EMA, far cue, {label}", {**far, **changes})
        for label, changes in settings.items()
    ]
    cells += [
        Cell(
            "non-local, far cue, four times as long",
            {"model.context": "non_local", **far, **longer},
        ),
        Cell(
            "EMA, pooled, much noise, gradient unrolled",
            {"data.name": scenes["pooled, much noise"], ema + "grad": "unroll"},
        ),
        Cell("EMA, pooled, four times as long", longer),
        Cell(
            "EMA, pooled, gradient unrolled, four times as long",
            {ema + "grad": "unroll", **longer},
        ),
    ]
    return Study(
        "shapes-evidence",
        "what context modules carry across generated scenes",
        base,
        tuple(cells),
        "shapes-evidence",
    )


def _tiny() -> Study:
    base = _shapes()
    base = replace(
        base, name="shapes-tiny-study", optim=replace(base.optim, iterations=60)
    )
    cells = (
        Cell("moving average", evaluations={"T=1": {"model.ema.num_iters": 1}}),
        Cell("frozen", {"model.ema.maintenance": "frozen"}),
    )
    return Study(
        "shapes-tiny",
        "six runs of seconds: bases moved and bases left alone",
        base,
        cells,
        "shapes-tiny",
    )


GENERATED_SCENES: tuple[Study, ...] = (
    _tiny(),
    *_generated(),
    _evidence(),
)
