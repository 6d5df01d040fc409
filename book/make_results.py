"""Make the records of trained networks in book/results: several recipes, several seeds, one process per GPU.

    python book/make_results.py camvid-lite2 camvid-lite2-fcn --seeds 0 1 2 --data-root DATA

Seeds come first, so that a plan cut short still compares all recipes. A run whose record exists is not made again, and
a run that was interrupted resumes. With ``--shard I N`` this process takes every N-th run, for N GPUs or machines.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from emalab.recipes import get_recipe
from emalab.results import write_record
from emalab.runlog import read_log
from emalab.trainer import RunOptions, TrainingDivergedError, train


@dataclass(frozen=True)
class Arguments:
    """What to run and where."""

    recipes: tyro.conf.Positional[tuple[str, ...]]
    """Names of recipes."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each recipe runs once with each."""
    shard: tuple[int, int] = (0, 1)
    """This process's index, and the number of processes that share the plan."""
    out: Path = Path("book/results")
    """Folder for RECIPE-seedN.json."""
    runs: Path = Path("runs")
    """Folder for checkpoints and logs."""
    stop_after: float | None = None
    """Start no run that would not end within so many seconds, judged by the longest one so far."""
    run: Annotated[RunOptions, tyro.conf.arg(name="")] = field(
        default_factory=lambda: RunOptions(progress=False, resume=True)
    )
    """How each run goes."""


def main(arguments: Arguments) -> None:
    """Make the runs that are missing, and say what remains."""
    index, shards = arguments.shard
    plan = [(seed, name) for seed in arguments.seeds for name in arguments.recipes][
        index::shards
    ]
    started, longest = time.monotonic(), 0.0
    for seed, name in plan:
        record = arguments.out / f"{name}-seed{seed}.json"
        if record.exists():
            continue
        begun = time.monotonic()
        if (
            arguments.stop_after is not None
            and begun - started + longest > arguments.stop_after
        ):
            print(f"{name} seed {seed}: no time left", flush=True)
            continue
        try:
            make_run(name, seed, record, arguments)
        except (
            TrainingDivergedError
        ) as error:  # a result too, but not one to stop the others
            print(f"{name} seed {seed}: {error}", flush=True)
        longest = max(longest, time.monotonic() - begun)


def make_run(name: str, seed: int, record: Path, arguments: Arguments) -> None:
    """Train, then keep the record with its log."""
    folder = arguments.runs / f"{name}-seed{seed}"
    result = train(replace(get_recipe(name), seed=seed), folder, arguments.run)
    write_record(record, {**result.record, "log": read_log(folder)})
    scores = "; ".join(
        f"{protocol}: {scores}" for protocol, scores in result.scores.items()
    )
    print(f"{name} seed {seed}: {scores}", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
