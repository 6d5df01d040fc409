"""The trainer, top to bottom: set-up, the loop, and what it leaves on the disk.

Every random draw is a function of (seed, iteration, rank) and of nothing else. So there is no generator state to save,
and a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import math
import signal
import time
import uuid
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from emalab.averaging import WeightAverage
from emalab.channel_statistics import with_statistics
from emalab.checkpoints import CheckpointError, load_training_state, save_training_state, tensors_checksum
from emalab.data import LabeledImages, load_dataset
from emalab.data.augmentation import Augment, OwnAugmentation, augment_name, find_augment
from emalab.data.dataset import data_identity
from emalab.data.loader import num_cores, training_loader, worker_ended
from emalab.data.memory import InMemory
from emalab.data.transforms import TrainTransform
from emalab.divergence import TrainingDivergedError, find_divergence
from emalab.evaluation import evaluate
from emalab.execution import Execution, TrainingStep
from emalab.files import CannotWriteError
from emalab.initial_weights import initial_network
from emalab.interruption import Interrupted, Interruption
from emalab.losses import SegmentationLoss
from emalab.metrics import SegmentationScores
from emalab.optim import make_optimizer, poly_lr
from emalab.options import RunOptions, run_folder
from emalab.processes import hold_gloo_backend, lost_peer, make_fabric, share_buffers
from emalab.progress import progress_bar
from emalab.recipes import Recipe
from emalab.results import find_origin, make_record, write_record
from emalab.resume import refuse_changes
from emalab.run_checks import check_run
from emalab.run_folder import RunFolder
from emalab.runlog import RunLog, Window
from emalab.segmenter import Segmenter
from emalab.views import Views

if TYPE_CHECKING:
    from tqdm.auto import tqdm

__all__ = ["RunOptions", "TrainResult", "Trainer", "TrainingDivergedError", "run_folder", "train"]

_MOST_CURVES = 254  # of classes in TensorBoard


class TrainResult(NamedTuple):
    """What a finished run leaves behind."""

    model: Segmenter  # as trained, or the average of its weights where the recipe asks for it; in evaluation mode
    scores: dict[str, SegmentationScores]  # by protocol: "single scale", and "multi-scale + flip" where asked for
    record: dict[str, Any]  # what record.json holds


def train(
    recipe: Recipe,
    out: Path | str,
    options: RunOptions | None = None,
    *,
    train_data: LabeledImages | None = None,
    eval_data: LabeledImages | None = None,
    augment: Augment | None = None,
) -> TrainResult:
    """Train the network of ``recipe``, score it, and keep everything in the folder ``out``.

    Example:
        >>> from dataclasses import replace
        >>> from tempfile import mkdtemp
        >>> from emalab import RunOptions, get_recipe
        >>> recipe = get_recipe("shapes-tiny")
        >>> short = replace(recipe, optim=replace(recipe.optim, warmup=0, iterations=2, batch_size=2))
        >>> result = train(short, mkdtemp(), RunOptions(accelerator="cpu", progress=False))
        >>> sorted(result.scores)
        ['single scale']

    Args:
        recipe: what to train.
        out: gets ``last.pt``, ``best.pt``, ``record.json``, ``log.jsonl`` and ``tensorboard/``.
        options: where and how; `RunOptions` has the defaults.
        train_data, eval_data: use these rather than the splits that the recipe names.
        augment: a function of your own in place of the recipe's ``data.augment``, which becomes its name;
            `emalab.data.augmentation` has an example.

    Raises:
        DataError: data that are missing or wrong.
        ValueError: a recipe that does not fit its data or these devices, or names an augmentation that is not there.
        FileExistsError: ``out`` holds a run already and ``options.resume`` is off.
        RunBusyError: another process trains in ``out``.
        ChildProcessError: a process that reads images was killed.
        CannotWriteError: a full disk, or a folder that is read-only; the last checkpoint is whole.
        CheckpointError: ``last.pt`` is damaged or belongs to another recipe, or the weights to start from do not fit.
        Interrupted: Ctrl-C, SIGTERM or SIGUSR1; the run has been saved.
        TrainingDivergedError: the loss, a weight, a running statistic or a moment became infinite or NaN.
    """
    return Trainer(recipe, Path(out), options or RunOptions(), train_data, eval_data, augment).fit()


class Trainer:
    """One run of a recipe. `train` is the short way; the parts are here for those who want their own loop.

    Arguments and errors as in `train`. `fit` keeps other processes out of the folder; a loop of your own does not.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        options: RunOptions,
        train_data: LabeledImages | None = None,
        eval_data: LabeledImages | None = None,
        augment: Augment | None = None,
    ) -> None:
        if augment is not None:
            recipe = replace(recipe, data=replace(recipe.data, augment=augment_name(augment)))
        elif recipe.data.augment:
            augment = find_augment(recipe.data.augment)
        self._augment = augment
        self.recipe, self.out, self.options, self.folder = recipe, out, options, RunFolder(out)
        self.last = self.folder.last
        self.fabric = make_fabric(recipe, options)
        self.fabric.launch()
        hold_gloo_backend()
        self.train_data = self._split(recipe.data.train_split) if train_data is None else train_data
        self.eval_data = self._split(recipe.data.eval_split) if eval_data is None else eval_data
        check_run(recipe, self.fabric, self.train_data, self.eval_data)
        self.folder.refuse_another_run(options.resume)
        if self.fabric.is_global_zero:
            self.folder.refuse_if_held()
        report = print if options.progress and self.fabric.is_global_zero else _say_nothing
        recipe = self.recipe = with_statistics(
            recipe, self.train_data, self.last, out.parent, report=report, progress=options.progress
        )
        self._identity = data_identity(self.train_data)
        self.iteration, self.best, self.seconds, self.changes = 0, -math.inf, 0.0, list[str]()
        self._started, self._window = time.perf_counter(), Window(recipe.optim.batch_size)
        # Now: the source may change while a long run goes on, and nothing after the last step may fail.
        self.origin, self.run = find_origin(self.fabric.device, options.commit), uuid.uuid4().hex
        self.model = initial_network(recipe, self.fabric, out.parent, resumed=self.last.exists(), report=report)
        self.out.mkdir(parents=True, exist_ok=True)
        loss = SegmentationLoss(recipe.optim.loss, self.train_data.spec.ignore_index)
        step = TrainingStep(self.model, loss, recipe.optim.auxiliary_weight)
        optimizer = make_optimizer(self.model, recipe.optim, fused=self.fabric.device.type == "cuda")
        self._execution = Execution(self.fabric, recipe, step, optimizer)
        self.optimizer = self._execution.optimizer
        self.average = WeightAverage(self.model, recipe.optim.average) if recipe.optim.average else None
        self.released = self.average.model if self.average else self.model  # what is scored, saved and returned
        self.scored = self.released.with_output_stride(recipe.evaluation.output_stride or recipe.model.output_stride)
        if self.last.exists():
            self._resume()
        self._saved = self.iteration

    # Set-up

    def _split(self, split: str) -> LabeledImages:
        data, gray = self.recipe.data, self.recipe.model.in_channels == 1
        return load_dataset(data.name, split, self.options.data_root, data.scenes, gray=gray)

    def _resume(self) -> None:
        recipe, state = load_training_state(self.last)
        changes = refuse_changes(self.last, recipe, state, self.recipe, self._identity)
        self.model.load_state_dict(state.get("unaveraged", state["model"]))
        if self.average:
            self.average.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if scaler := state.get("scaler"):
            self.fabric.strategy.precision.load_state_dict(scaler)
        self.iteration, self.seconds = state["iteration"], state.get("seconds", 0.0)
        self.run, self.changes = state.get("run", self.run), [*state.get("changes", []), *changes]
        self.best = max(state["best"], self._best_kept())

    def _best_kept(self) -> float:
        """The score of best.pt, if it is this run's: last.pt is older than the final score of a run that goes on."""
        if not self.folder.best.exists():
            return -math.inf
        _, state = load_training_state(self.folder.best)
        return state["best"] if state.get("run") == self.run else -math.inf

    def _loader(self) -> Any:
        data, optim, fabric = self.recipe.data, self.recipe.optim, self.fabric
        transform: nn.Module = TrainTransform(
            data.crop_size,
            data.scale_range,
            data.scale_step,
            data.flip,
            data.photometric,
            self.model.normalize.values[0],
            self.train_data.spec.ignore_index,
            data.rotation,
        )
        if self._augment is not None:
            own = OwnAugmentation(self._augment, self.train_data.spec, data.augment or "")
            transform = nn.Sequential(transform, own)
        return training_loader(
            self.train_data,
            transform,
            batch_size=optim.batch_size // fabric.world_size,
            num_iterations=optim.iterations,
            seed=self.recipe.seed,
            start=self.iteration,
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            num_workers=self._workers(),
            pin_memory=fabric.device.type == "cuda",
        )

    def _workers(self) -> int:
        if self.options.num_workers is not None:
            return self.options.num_workers
        if self.fabric.device.type == "cpu":
            return 0
        return max(num_cores() // self.options.devices, 1)

    def _train_mode(self) -> None:
        self.model.train()
        if self.recipe.optim.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _refuse_progress_of_others(self) -> None:
        """Between set-up and here another process may have trained in this folder."""
        if self.last.exists() and load_training_state(self.last)[1]["iteration"] != self.iteration:
            raise FileExistsError(f"another process has trained in {self.out} meanwhile; start again with --resume")

    def _progress_bar(self) -> tqdm[Any]:
        return progress_bar(
            total=self.recipe.optim.iterations,
            initial=self.iteration,
            desc=self.recipe.name,
            unit="it",
            disable=not (self.options.progress and self.fabric.is_global_zero),
        )

    # The loop

    def fit(self) -> TrainResult:
        """Train from where the run stands to the end, evaluate, and write the record."""
        first = self.fabric.is_global_zero
        with ExitStack() as stack:
            if first:
                stack.enter_context(self.folder.hold())
                self._refuse_progress_of_others()
            self._interruption = stack.enter_context(Interruption(shared=self.fabric.world_size > 1))
            log = stack.enter_context(RunLog(self.out, self.iteration, enabled=first))
            bar = stack.enter_context(self._progress_bar())
            try:
                self._learn(log, bar)
                with self._interruption.at_once():
                    return self._finish(log)
            except Interrupted as interrupted:
                stopped = self._stopped(interrupted.number)
                self._note_rest(log)
                raise stopped from None
            except CannotWriteError as error:
                if error.path != self.last and self.last.exists():
                    error.way_out = f"; {self.last} is whole, go on with --resume"
                raise
            except RuntimeError as error:
                if self.fabric.world_size > 1 and lost_peer(error):
                    raise ConnectionError(self._lost()) from error
                raise (worker_ended(error) or error) from error.__cause__

    def _learn(self, log: RunLog, bar: tqdm[Any]) -> None:
        """Train to the end."""
        total, every = self.recipe.optim.iterations, self.recipe.evaluation.every
        self._started, shared = time.perf_counter(), self.fabric.world_size > 1
        self._train_mode()
        self._execution.prepare()
        self._window.restart()
        for images, masks in self._loader():
            with self._interruption.deferred():
                self._window.add(self.step(images, masks))
            bar.update()
            saves = self.iteration % self.options.checkpoint_every == 0 or self.iteration == total
            evaluates = every > 0 and self.iteration % every == 0 and self.iteration < total
            if saves or evaluates or self.iteration % self.options.log_every == 0:
                self._look(log, bar)
            if saves or (evaluates and shared):  # processes that are stopped during an evaluation cannot save together
                self._checkpoint()
            if evaluates:
                with self._interruption.at_once():
                    scores = self.evaluate()
                self._note(log, miou=scores.miou, pixel_accuracy=scores.pixel_accuracy)
                self._draw(log, scores)
                self._keep_if_best(scores)
                self._window.restart()

    def _look(self, log: RunLog, bar: tqdm[Any]) -> None:
        """Log the loss since the last look; here the processes of a run agree to stop."""
        interruption = self._interruption
        loss, speed, stops = self._window.close(self.fabric, interruption.received > 0)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}")
        lr = poly_lr(self.iteration - 1, self.recipe.optim)
        self._note(log, loss=loss, lr=lr, images_per_second=speed)
        bar.set_postfix({"loss": f"{loss:.3f}", "lr": f"{lr:.1e}", "img/s": f"{speed:.0f}"})
        if stops:
            raise Interrupted(interruption.received or signal.SIGTERM)

    def _note_rest(self, log: RunLog) -> None:
        """The last point of the curves, where a run is stopped between two looks."""
        rest = self._window.rest()
        if rest and math.isfinite(rest[0]):
            lr = poly_lr(self.iteration - 1, self.recipe.optim)
            with suppress(OSError):  # the checkpoint matters more
                log.write(self.iteration, loss=rest[0], lr=lr, images_per_second=rest[1])

    def _draw(self, log: RunLog, scores: SegmentationScores, **more: float) -> None:
        """A point for every class in TensorBoard, or for their spread where they are many."""
        with self._interruption.deferred():
            log.draw(self.iteration, **_curves(scores), **more)

    def _note(self, log: RunLog, **values: float) -> None:
        """Write a whole line: a signal in the middle would leave TensorBoard's thread waiting for two minutes."""
        with self._interruption.deferred():
            log.write(self.iteration, **values)

    def step(self, images: Tensor, masks: Tensor) -> Tensor:
        """One optimizer step on a batch of uint8 images (b, c, h, w) and labels (b, h, w); returns the mean loss."""
        config = self.recipe.optim
        seed = np.random.SeedSequence((self.recipe.seed, self.iteration, self.fabric.global_rank))
        torch.manual_seed(int(seed.generate_state(1)[0]))  # dropout
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr_factor"] * poly_lr(self.iteration, config)
        images = images.to(self.fabric.device, non_blocking=True, memory_format=torch.channels_last)
        masks = masks.to(self.fabric.device, non_blocking=True)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._execution.backward(images, masks)
        if config.clip_norm is not None:
            self.fabric.clip_gradients(
                self._execution.module, self.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.iteration += 1
        if self.average:
            self.average.update(self.iteration)
        return loss

    def evaluate(self, views: Views | None = None) -> SegmentationScores:
        """Score the network as it is now on the recipe's evaluation split, under the recipe's precision and stride.

        Args:
            views: what to average over; by default the images as they are, in the recipe's windows.
        """
        config = self.recipe.evaluation
        self._share_buffers()
        self._refuse_divergence()
        with self.fabric.autocast():
            scores = evaluate(
                self.scored,
                self.eval_data,
                views=views or config.views.single_scale(),
                batch_size=config.batch_size,
                num_workers=0 if isinstance(self.eval_data, InMemory) else min(self._workers(), 8),
                progress=self.options.progress,
            )
        self._train_mode()
        return scores

    def _share_buffers(self) -> None:
        """What is scored is what is saved."""
        share_buffers(self.model)
        if self.average:
            share_buffers(self.average.model)

    def _refuse_divergence(self) -> None:
        """All ranks stop together."""
        if problem := find_divergence(self._learned(), self.fabric):
            raise self._diverged(problem)

    def _diverged(self, problem: str) -> TrainingDivergedError:
        lr = poly_lr(max(self.iteration - 1, 0), self.recipe.optim)
        return TrainingDivergedError.at(problem, self.iteration, lr, self.last)

    # What stays on the disk

    def save(self, path: Path) -> None:
        """Write a checkpoint from which the run can resume; one with NaN or infinite values is never written."""
        self._share_buffers()
        self._refuse_divergence()
        if self.fabric.is_global_zero:
            self._write(path)
        self.fabric.barrier()
        if path == self.last:
            self._saved = self.iteration

    def _checkpoint(self) -> None:
        self._count_seconds()
        self.save(self.last)
        self._window.restart()

    def _write(self, path: Path) -> None:
        state = {
            **self._learned(),
            "scaler": self.fabric.strategy.precision.state_dict(),  # of float16's gradients; else empty
            "iteration": self.iteration,
            "best": self.best,
            "seconds": self.seconds,
            "run": self.run,
            "data": self._identity,
            "spec": asdict(self.train_data.spec),
            "changes": self.changes,
        }
        save_training_state(path, self.recipe, state)

    def _count_seconds(self) -> None:
        now = time.perf_counter()
        self.seconds, self._started = self.seconds + now - self._started, now

    def _finish(self, log: RunLog) -> TrainResult:
        """Score the trained network and write the record."""
        started, views = time.perf_counter(), self.recipe.evaluation.views
        scores = {"single scale": self.evaluate()}
        if views != views.single_scale():
            scores["multi-scale" + " + flip" * views.flip] = self.evaluate(views)
        last = scores["single scale"]
        self._note(log, **{name: found.miou for name, found in scores.items()})
        self._draw(log, last, miou=last.miou, pixel_accuracy=last.pixel_accuracy)
        self._keep_if_best(last)
        record = make_record(
            self.recipe,
            scores,
            origin=self.origin,
            run=self.run,
            weights=tensors_checksum(self.released.state_dict()),
            devices=self.fabric.world_size,
            seconds={"training": self.seconds, "evaluation": time.perf_counter() - started},
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            **({"changes": self.changes} if self.changes else {}),
        )
        if self.fabric.is_global_zero:
            write_record(self.folder.record, record)
        return TrainResult(self.released.eval(), scores, record)

    def _keep_if_best(self, scores: SegmentationScores) -> None:
        if scores.miou > self.best:
            self.best = scores.miou
            self.save(self.folder.best)

    def _learned(self) -> dict[str, Any]:
        """Everything that training changes: weights, running statistics, bases, moments."""
        learned = {"model": self.released.state_dict(), "optimizer": self.optimizer.state_dict()}
        return {**learned, "unaveraged": self.model.state_dict()} if self.average else learned

    def _stopped(self, number: int) -> Interrupted:
        """Save what came after the last checkpoint. The other ranks wait: the end of one makes torchrun end all."""
        total = self.recipe.optim.iterations
        message = f"{self.recipe.name} was stopped at iteration {self.iteration} of {total}"
        if self.iteration > self._saved:
            self._count_seconds()
            try:
                if self.fabric.is_global_zero:
                    self._write(self.last)
            except (CheckpointError, OSError) as error:
                return Interrupted(number, f"{message}, and {error}")
            finally:
                self.fabric.barrier()
        return Interrupted(number, f"{message}; {self.last} is saved, go on with --resume")

    def _lost(self) -> str:
        kept = f"; go on from {self.last} with --resume" if self.last.exists() else ""
        return f"another process of {self.recipe.name} ended at iteration {self.iteration}; its message says why{kept}"


def _say_nothing(line: str) -> None:
    pass


def _curves(scores: SegmentationScores) -> dict[str, float]:
    """IoU of every class, or, as nobody reads more than 254 curves, its percentiles over the classes that occur."""
    if len(scores.iou) <= _MOST_CURVES:
        return {f"iou/{name}": iou for name, iou in scores.iou.items()}
    percents = (10, 25, 50, 75, 90)
    values = np.nanpercentile(list(scores.iou.values()), percents)
    return {f"iou/percentile {percent}": float(value) for percent, value in zip(percents, values, strict=True)}
