"""Where the time of a compiled training step goes, kernel by kernel, by torch's profiler.

    python book/experiments/h200_step_profile.py

writes ``book/results/h200-step-profile.json``, which the chapter "What attention costs" reads. Takes a GPU and three
minutes. The record that is there was made by an earlier program, which is not kept; this one measures the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from torch.profiler import ProfilerActivity, profile

from emalab.options import RunOptions
from emalab.recipes import Recipe, get_recipe
from emalab.results import find_origin, write_record
from lab.training_step import step_times, tiny, training

STEPS = 2
LONGEST = 60


@dataclass(frozen=True)
class Arguments:
    """What to profile."""

    out: Path = Path("book/results/h200-step-profile.json")
    """The record."""
    recipe: str = "voc-r101"
    """Recipe, by name."""
    tiny: bool = False
    """Eager steps of a tiny network on the CPU: tries the program, measures nothing."""


def kernels(
    recipe: Recipe, options: RunOptions, warm_up: int
) -> list[tuple[str, float, float]]:
    """Name, milliseconds in a step and calls in a step of every kernel (on the CPU, of every operator), longest first."""
    on_gpu = options.accelerator == "cuda"
    with training(recipe, options) as (trainer, images, masks):
        for _ in range(warm_up):
            trainer.step(images, masks)
        activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
        with profile(activities=[activity]) as profiled:
            for _ in range(STEPS):
                trainer.step(images, masks).item()
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    rows = [
        (event.key, getattr(event, field) / 1e3 / STEPS, event.count / STEPS)
        for event in profiled.key_averages()
    ]
    return sorted(rows, key=lambda row: -row[1])


def main(arguments: Arguments) -> None:
    """Profile and time the step, and write the record."""
    options = RunOptions(accelerator="cuda", progress=False)
    recipe = replace(
        get_recipe(arguments.recipe), precision="bf16-mixed", execution="compile"
    )
    warm_up, repeats = 6, 5
    if arguments.tiny:
        options, recipe = (
            replace(options, accelerator="cpu"),
            tiny(get_recipe("shapes-tiny")),
        )
        warm_up = repeats = 1
    found = kernels(recipe, options, warm_up)
    timed = step_times(recipe, options, warm_up, repeats)
    record = {
        "what": f"A training step of {recipe.name}: torch's profiler over {STEPS} steps, milliseconds of a step in each "
        f"kernel and its calls, the {LONGEST} longest; ms by the clock, median of {repeats}, without the profiler.",
        "seeds": "weights: the recipe's; images and labels: uniform random, seeded by their index",
        **find_origin(torch.device("cpu" if arguments.tiny else "cuda")),
        recipe.execution: {
            **timed,
            "kernels_total_ms": sum(ms for _, ms, _ in found),
            "kernels_ms_calls": found[:LONGEST],
        },
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
