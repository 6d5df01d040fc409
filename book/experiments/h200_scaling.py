"""Time training steps on several GPUs of one machine, and NCCL's all-reduce by itself.

    torchrun --nproc-per-node 1 book/experiments/h200_scaling.py
    torchrun --nproc-per-node 2 book/experiments/h200_scaling.py

each adds the rows of its number of GPUs to ``book/results/h200-scaling.json``, which the chapter "What attention costs"
reads. Takes two minutes on each number. The record that is there was made by an earlier program, which is not kept;
this one measures the same steps.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import tyro
from torch.utils.benchmark import Timer

from emalab.options import RunOptions
from emalab.recipes import get_recipe
from emalab.recipes.config import Execution
from emalab.results import find_origin, read_record, write_record
from lab.training_step import step_times, tiny

SIZES = (4_000, 130_000, 1_000_000, 8_000_000, 25_000_000, 64_000_000, 214_000_000)


@dataclass(frozen=True)
class Arguments:
    """What to time."""

    out: Path = Path("book/results/h200-scaling.json")
    """The record; rows of other numbers of GPUs stay in it."""
    recipe: str = "voc-r101"
    """Recipe, by name."""
    batch_per_gpu: int = 16
    """Images of each GPU."""
    executions: tuple[Execution, ...] = ("eager", "cuda_graph")
    """How a step is run."""
    tiny: bool = False
    """An eager step of a tiny network on the CPU: tries the program, measures nothing."""


def all_reduce_ms(size: int, device: torch.device) -> float:
    """Milliseconds of adding up so many bytes over all ranks."""
    values = torch.zeros(size // 4, device=device)
    timer = Timer(
        "reduce(values)", globals={"reduce": dist.all_reduce, "values": values}
    )
    return 1e3 * timer.timeit(20).mean


def main(arguments: Arguments) -> None:
    """Time eager and recorded steps on the GPUs of this run, and add them to the record."""
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    options = RunOptions(
        accelerator="cpu" if arguments.tiny else "cuda", devices=ranks, progress=False
    )
    recipe = replace(get_recipe(arguments.recipe), precision="bf16-mixed")
    recipe = tiny(get_recipe("shapes-tiny")) if arguments.tiny else recipe
    batch = 2 if arguments.tiny else arguments.batch_per_gpu
    recipe = replace(recipe, optim=replace(recipe.optim, batch_size=batch * ranks))
    warm_up, repeats = (1, 1) if arguments.tiny else (6, 4)
    rows: list[dict[str, Any]] = []
    for execution in arguments.executions[: 1 if arguments.tiny else None]:
        changed = replace(recipe, execution=execution)
        rows.append(step_times(changed, options, warm_up, repeats))
    device = torch.device("cpu" if arguments.tiny else "cuda")
    if dist.is_initialized():
        sizes = SIZES[:2] if arguments.tiny else SIZES
        rows[-1]["allreduce"] = [[size, all_reduce_ms(size, device)] for size in sizes]
    if int(os.environ.get("RANK", 0)) == 0:
        earlier = read_record(arguments.out)["rows"] if arguments.out.exists() else []
        record = {
            "what": f"Training steps, {batch} images a GPU, batch norm and bases over all GPUs of one machine: median of "
            f"{repeats} measurements of five steps each, after {warm_up}. allreduce: bytes and milliseconds by itself.",
            "seeds": "weights: the recipe's; images and labels: uniform random, seeded by their index",
            **find_origin(device),
            "rows": [row for row in earlier if row["gpus"] != ranks] + rows,
        }
        write_record(arguments.out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
