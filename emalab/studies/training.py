"""One run of a study: train, score in every way that is asked for, and leave one record."""

from __future__ import annotations

import gc
import logging
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from emalab.data import load_dataset
from emalab.data.memory import InMemory
from emalab.data.scene_settings import SceneSettings
from emalab.evaluation import evaluate
from emalab.metrics import SegmentationScores
from emalab.recipes import DataConfig, EvalConfig, Recipe
from emalab.results import make_record, write_record
from emalab.runlog import read_log
from emalab.segmenter import SegmenterConfig
from emalab.studies.config import Changes, Run, override
from emalab.studies.folder import StudyFolder
from emalab.studies.job import StudyOptions
from emalab.trainer import RunOptions, Trainer, TrainingDivergedError

__all__ = ["Datasets", "Trainings", "score_further"]

_LOG_LINES = 20  # in the curve that a record keeps
_TIMED_STEPS = 20


@dataclass
class Datasets:
    """Splits held in memory, loaded when first asked for and kept from run to run.

    Args:
        root: folder with the unpacked releases.
        threads: decode a whole split at once with so many, so that forked loaders share it; 0 decodes sample by sample.
    """

    root: Path | None
    threads: int = 0

    def __post_init__(self) -> None:
        self._splits: dict[tuple[str, str, SceneSettings], InMemory] = {}

    def load(self, data: DataConfig, split: str) -> InMemory:
        """The samples of one split; errors as in `load_dataset` and on access to its files."""
        key = (data.name, split, data.scenes)
        if key not in self._splits:
            self._splits[key] = InMemory(load_dataset(data.name, split, self.root, data.scenes))
            if self.threads:
                self._splits[key].fill(self.threads)
        return self._splits[key]


class Trainings:
    """Trains and scores runs that this process has claimed, and writes their records; keeps the data in memory.

    Args:
        folder: of the study.
        options: where and how.
    """

    def __init__(self, folder: StudyFolder, options: StudyOptions) -> None:
        self.folder, self.options = folder, options
        self.datasets = Datasets(options.data_root)
        for part in ("lightning.fabric", "lightning_fabric"):  # whose log would repeat the precision for every run
            logging.getLogger(part).setLevel(logging.WARNING)

    def __call__(self, run: Run, cores: int | None = None) -> dict[str, Any]:
        """Make the record of a run.

        A run that diverges is a result like any other, with a record that says so. Nothing of the run remains in
        memory.

        Args:
            run: what to train.
            cores: of the CPU, for torch or, beside a GPU, for the loader too; None leaves them as they are.

        Raises:
            Whatever `emalab.train` raises but for divergence, and `OSError` where the record cannot be written; then
            there is no record.
        """
        if cores is not None:
            torch.set_num_threads(cores)
        loaders = (cores or 1) if self.options.gpus else 0
        self.datasets.threads = loaders
        settings = RunOptions(
            self.options.data_root,
            accelerator=self.options.accelerator,
            num_workers=loaders,
            commit=self.options.commit,
        )
        try:
            with self.folder.workspace(run) as workspace:
                record = _train(run, workspace, settings, self.datasets)
                if self.options.keep_weights and "diverged" not in record:
                    self.folder.weights(run).parent.mkdir(exist_ok=True)
                    (workspace / "last.pt").replace(self.folder.weights(run))
            write_record(self.folder.record(run), record)
        finally:
            gc.collect()  # a recorded CUDA graph and its module refer to each other
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        self.folder.clear_failure(run)
        return record


def _train(run: Run, workspace: Path, options: RunOptions, datasets: Datasets) -> dict[str, Any]:
    """The record of a run."""
    started = time.perf_counter()
    recipe = run.recipe
    data = recipe.data
    iterations = recipe.optim.iterations
    options = replace(
        options, checkpoint_every=iterations, log_every=max(iterations // _LOG_LINES, 1), resume=False, progress=False
    )
    # Runs before this one may have left workspaces of cuBLAS behind, 64 MiB for each captured graph.
    held = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    trainer = Trainer(
        recipe,
        workspace,
        options,
        datasets.load(data, data.train_split),
        datasets.load(data, data.eval_split),
    )
    device = trainer.fabric.device
    origin = {"study": run.study, "cell": run.cell.label, "changes": dict(run.cell.changes)}
    if run.question or run.test:
        origin["preregistered"] = {"question": run.question, "test": run.test, "seeds": run.cell.seeds}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def seconds(**parts: float) -> dict[str, float]:
        return {**parts, "run": time.perf_counter() - started}

    try:
        result = trainer.fit()
    except TrainingDivergedError as error:
        return make_record(
            recipe,
            {},
            origin=trainer.origin,
            **origin,
            diverged=str(error),
            seconds=seconds(),
            log=read_log(workspace),
        )
    memory = torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else None
    evaluations = score_further(trainer, run.cell.evaluations, result.scores["single scale"])
    return {
        **result.record,
        **origin,
        "evaluations": {label: scores.to_dict() for label, scores in evaluations.items()},
        "peak_memory_bytes": memory,
        "milliseconds_per_step": _time_steps(trainer),
        "log": read_log(workspace),
        "seconds": seconds(**result.record["seconds"]),
    }


def score_further(
    trainer: Trainer, evaluations: Mapping[str, Changes], scores: SegmentationScores
) -> dict[str, SegmentationScores]:
    """The trained network under other settings: label → changes of the recipe, to label → scores.

    Args:
        trainer: after training.
        evaluations: changes of ``model`` that keep the tensors, such as ``model.ema.num_iters``, and of ``evaluation``.
        scores: those of the recipe itself, for labels that change nothing.
    """
    own = _as_scored(trainer.recipe)
    results: dict[str, SegmentationScores] = {}
    for label, changes in evaluations.items():
        model, config = wanted = _as_scored(override(trainer.recipe, changes))
        if wanted == own and config.views == config.views.single_scale():
            results[label] = scores
            continue
        with trainer.fabric.autocast():
            results[label] = evaluate(
                trainer.released.with_config(model),
                trainer.eval_data,
                views=config.views,
                batch_size=config.batch_size,
            )
    return results


def _as_scored(recipe: Recipe) -> tuple[SegmenterConfig, EvalConfig]:
    """The network as it is scored, and how."""
    stride = recipe.evaluation.output_stride or recipe.model.output_stride
    return replace(recipe.model, output_stride=stride), replace(recipe.evaluation, output_stride=None)


def _time_steps(trainer: Trainer) -> float:
    """Median duration of a training step on data that lie on the device; spoils the network, which has been scored."""
    size = (trainer.recipe.optim.batch_size, trainer.recipe.model.in_channels, *trainer.recipe.data.crop_size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, size, generator=generator, dtype=torch.uint8).to(trainer.fabric.device)
    images = images.contiguous(memory_format=torch.channels_last)
    masks = torch.zeros_like(images[:, 0])
    trainer.iteration = 0  # the schedule of the learning rate ends where training ended
    trainer.model.train()
    durations = []
    for _ in range(_TIMED_STEPS if images.is_cuda else 3):
        started = time.perf_counter()
        trainer.step(images, masks).item()  # waits for the device
        durations.append(time.perf_counter() - started)
        trainer.iteration = 0
    return 1000 * statistics.median(durations)
