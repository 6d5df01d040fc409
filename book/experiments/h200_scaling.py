"""Time training steps on several GPUs of one machine, and NCCL's all-reduce by itself.

    torchrun --nproc-per-node 4 book/experiments/h200_scaling.py
    torchrun --nproc-per-node 4 book/experiments/h200_scaling.py --recipes voc-r50 --executions cuda_graph compile
    torchrun --nproc-per-node 4 book/experiments/h200_scaling.py --batch-per-gpu 4 --batch-norms all

Each adds its rows to ``book/results/h200-scaling.json``, which the chapter "What attention costs" reads, or replaces
those of the same step. Compiling takes two to four minutes for each recipe, any other step ten seconds.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.distributed as dist
import tyro
from torch.utils.benchmark import Timer

from emalab import initial_weights
from emalab.options import RunOptions
from emalab.recipes import Recipe, get_recipe
from emalab.recipes.config import Execution
from emalab.results import find_origin, git_commit, read_record, write_record
from lab.training_step import step_times, tiny

SIZES = (4_000, 130_000, 1_000_000, 8_000_000, 25_000_000, 64_000_000, 214_000_000)
SAME_STEP = ("gpus", "recipe", "batch_per_gpu", "execution", "batch_norm")
BatchNorm = Literal["all", "each"]


@dataclass(frozen=True)
class Arguments:
    """What to time."""

    out: Path = Path("book/results/h200-scaling.json")
    """The record; rows of other steps stay in it."""
    recipes: tuple[str, ...] = ("voc-r101",)
    """Recipes, by name."""
    batch_per_gpu: int = 16
    """Images of each GPU."""
    executions: tuple[Execution, ...] = ("eager", "cuda_graph", "compile")
    """How a step is run."""
    batch_norms: tuple[BatchNorm, ...] = ("all", "each")
    """Batch norm over the images of all GPUs, as the trainer has it, or of each alone; on one GPU they are the same."""
    commit: str | None = None
    """Commit to record; by default that of the running source."""
    tiny: bool = False
    """An eager step of a tiny network on the CPU: tries the program, measures nothing."""


def all_reduce_ms(size: int, device: torch.device) -> float:
    """Milliseconds of adding up so many bytes over all ranks."""
    values = torch.zeros(size // 4, device=device)
    timer = Timer(
        "reduce(values)", globals={"reduce": dist.all_reduce, "values": values}
    )
    return 1e3 * timer.timeit(20).mean


@contextmanager
def batch_norm_over(images: BatchNorm) -> Iterator[None]:
    """Let trainers keep batch norms that see the images of one GPU alone, if ``images`` is "each"."""
    if images == "all":
        yield
    else:
        with patch.object(initial_weights, "_shared", lambda model, *_: model):
            yield


def steps(arguments: Arguments, ranks: int) -> Iterator[tuple[Recipe, BatchNorm]]:
    """The recipes of all steps to time, and how each normalizes."""
    if arguments.tiny:
        yield tiny(get_recipe("shapes-tiny")), "all"
        return
    for name in arguments.recipes:
        recipe = replace(get_recipe(name), precision="bf16-mixed")
        batch = ranks * arguments.batch_per_gpu
        recipe = replace(recipe, optim=replace(recipe.optim, batch_size=batch))
        for execution in arguments.executions:
            for images in arguments.batch_norms if ranks > 1 else ("all",):
                yield replace(recipe, execution=execution), images


def add(row: dict[str, Any], arguments: Arguments, device: torch.device) -> None:
    """Write the record with ``row`` in the place of one of the same step."""
    key = [row[name] for name in SAME_STEP]
    earlier = read_record(arguments.out)["rows"] if arguments.out.exists() else []
    record = {
        "what": "Training steps of 513 × 513 pixels on several GPUs of one machine, bases over the images of all of them, "
        "batch norm over those of all or of each: median, least and most of four measurements, each the mean of five "
        "steps, after six. allreduce: bytes and milliseconds by itself.",
        "seeds": "weights: the recipe's; images and labels: uniform random, seeded by their index",
        **find_origin(device, commit=arguments.commit),
        "rows": [r for r in earlier if [r[name] for name in SAME_STEP] != key] + [row],
    }
    write_record(arguments.out, record)


def main(arguments: Arguments) -> None:
    """Time the steps on the GPUs of this run, and add each to the record as soon as it is timed."""
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    accelerator = "cpu" if arguments.tiny else "cuda"
    options = RunOptions(accelerator=accelerator, devices=ranks, progress=False)
    device = torch.device(accelerator)
    for number, (recipe, images) in enumerate(steps(arguments, ranks)):
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with batch_norm_over(images):
            repeats = (1, 1) if arguments.tiny else (6, 4)
            row = {**step_times(recipe, options, *repeats), "batch_norm": images}
        row["commit"] = arguments.commit or git_commit()  # rows may be of several
        if dist.is_initialized() and number == 0:
            sizes = SIZES[:2] if arguments.tiny else SIZES
            row["allreduce"] = [[size, all_reduce_ms(size, device)] for size in sizes]
        if int(os.environ.get("RANK", 0)) == 0:
            add(row, arguments, device)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
