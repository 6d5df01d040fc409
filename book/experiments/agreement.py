"""Bases that the ranks agree on, and bases that follow the first rank's share of every batch alone.

    python book/experiments/agreement.py
    python book/experiments/agreement.py --study camvid --ranks 16 --momenta 0.9 --accelerator cuda

write ``book/results/STUDY-agreement.json``, which the chapter "How should the bases be kept?" reads. The first trains on
generated scenes, without a GPU, for ten minutes on one core; the second takes a GPU.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from emalab import EMAU
from emalab.bases import MovingAverage
from emalab.commands.environment import default_data_root
from emalab.data.loader import num_cores
from emalab.recipes import Recipe
from emalab.results import environment, git_commit, write_record
from emalab.studies.training import Datasets
from emalab.trainer import RunOptions, Trainer
from experiments.studies import STUDIES


@dataclass(frozen=True)
class FirstShare(MovingAverage):
    """The moving average if nobody adds up the means of the ranks.

    Every rank then moves its own bases, and before the next step DDP hands the buffers of the first rank to all: what
    remains is the average over the first rank's images. So one process can play all ranks, exactly so where batch
    normalization is shared.
    """

    ranks: int = 1

    def update(self, bases: Tensor, batch_bases: Tensor) -> Tensor:
        """(k, c), (b, k, c) → (k, c); ``ranks`` must divide b.

        Raises:
            ValueError: it does not.
        """
        if len(batch_bases) % self.ranks:
            raise ValueError(
                f"{self.ranks} ranks cannot share a batch of {len(batch_bases)} images evenly"
            )
        return super().update(bases, batch_bases[: len(batch_bases) // self.ranks])


@dataclass(frozen=True)
class Arguments:
    """What to train."""

    study: str = "shapes"
    """Family whose base is trained, as `emalab study --list` has it."""
    out: Path | None = None
    """The record; book/results/STUDY-agreement.json by default."""
    ranks: tuple[int, ...] = (1, 4, 16)
    """Ranks that share a batch; with one there is nothing to agree on."""
    momenta: tuple[float, ...] = (0.9, 0.0)
    """α, the weight of the old bases."""
    seeds: int = 5
    """Runs of each."""
    accelerator: Literal["cpu", "cuda"] = "cpu"
    """Hardware to run on."""
    data_root: Path | None = None
    """Folder with the unpacked releases; $EMALAB_DATA by default, and data/ here without one."""
    commit: str | None = None
    """Commit to record; by default that of the running source."""
    tiny: bool = False
    """One run of two iterations with one rank and one with two: tries the program, measures nothing."""


def score(
    recipe: Recipe, strategy: MovingAverage, options: RunOptions, datasets: Datasets
) -> float:
    """Mean IoU, in percent, of a network trained with these bases."""
    data = recipe.data
    options = replace(options, checkpoint_every=recipe.optim.iterations)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            recipe,
            Path(folder) / "run",
            options,
            datasets.load(data, data.train_split),
            datasets.load(data, data.eval_split),
        )
        unit = trainer.model.context
        assert isinstance(unit, EMAU)
        unit.maintenance = strategy
        return 100 * trainer.fit().scores["single scale"].miou


def main(arguments: Arguments) -> None:
    """Train all, and write the record."""
    torch.set_num_threads(1)
    study = STUDIES[arguments.study]
    if arguments.tiny:
        arguments = replace(arguments, ranks=(1, 2), momenta=(0.9,), seeds=1)
        optim = replace(study.base.optim, iterations=2, batch_size=4, warmup=1)
        study = replace(study, base=replace(study.base, optim=optim))
    commit = arguments.commit or git_commit()
    root = arguments.data_root or default_data_root()
    options = RunOptions(
        accelerator=arguments.accelerator, progress=False, data_root=root
    )
    datasets = Datasets(root, num_cores())
    runs = [
        (momentum, ranks, seed)
        for seed in range(arguments.seeds)
        for momentum in arguments.momenta
        for ranks in arguments.ranks
    ]
    rows = []
    for momentum, ranks, seed in tqdm(runs):
        recipe = study.recipe(study.baseline, seed)
        miou = score(recipe, FirstShare(momentum, ranks=ranks), options, datasets)
        rows.append({"momentum": momentum, "ranks": ranks, "seed": seed, "miou": miou})
    record = {
        "what": "mean IoU in percent if bases follow the first rank's share of every batch",
        "recipe": study.recipe(study.baseline).name,
        "batch_size": study.base.optim.batch_size,
        "commit": commit,
        **environment(torch.device(arguments.accelerator)),
        "rows": rows,
    }
    out = arguments.out or Path(f"book/results/{arguments.study}-agreement.json")
    write_record(out, record)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
