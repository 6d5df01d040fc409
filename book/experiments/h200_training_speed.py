"""Time one training step of the paper's recipes: eager, compiled and recorded into a CUDA graph, by precision.

    python book/experiments/h200_training_speed.py

writes ``book/results/h200-training-speed.json``, which the chapters "What attention costs" and "What was measured"
read. Takes a GPU and ten minutes. The record that is there was made by an earlier program, which is not kept; this one
measures the same steps in the same units.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import torch
import tyro

from emalab.options import RunOptions
from emalab.recipes import get_recipe
from emalab.recipes.config import Execution, Precision
from emalab.results import find_origin, write_record
from lab.training_step import step_times, tiny


@dataclass(frozen=True)
class Arguments:
    """What to time."""

    out: Path = Path("book/results/h200-training-speed.json")
    """The record."""
    recipes: tuple[str, ...] = ("voc-r50", "voc-r101")
    """Recipes, by name."""
    executions: tuple[Execution, ...] = get_args(Execution)
    """How a step is run."""
    precisions: tuple[Precision, ...] = ("bf16-mixed", "32-true")
    """Of the arithmetic; 32-true lets convolutions use TF32 where torch allows it."""
    tiny: bool = False
    """One eager step of a tiny network on the CPU: tries the program, measures nothing."""


def main(arguments: Arguments) -> None:
    """Time all combinations, and write the record."""
    options = RunOptions(accelerator="cuda", progress=False)
    warm_up, repeats = 8, 5
    if arguments.tiny:
        arguments = replace(
            arguments,
            recipes=("shapes-tiny",),
            executions=("eager",),
            precisions=("32-true",),
        )
        options, warm_up, repeats = replace(options, accelerator="cpu"), 1, 1
    rows = []
    for name in arguments.recipes:
        for precision in arguments.precisions:
            for execution in arguments.executions:
                recipe = replace(
                    get_recipe(name), precision=precision, execution=execution
                )
                recipe = tiny(recipe) if arguments.tiny else recipe
                rows.append(step_times(recipe, options, warm_up, repeats))
                print(f"{name}, {precision}, {execution}: {rows[-1]['ms']:.1f} ms")
    record = {
        "what": "One training step, forward, backward and optimizer, on random images and labels that are already on "
        f"the device: median of {repeats} measurements of five steps each, after {warm_up} steps for warming up.",
        "seeds": "weights: the recipe's; images and labels: uniform random, seeded by their index",
        **find_origin(torch.device("cpu" if arguments.tiny else "cuda")),
        "rows": rows,
    }
    write_record(arguments.out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
