"""The trainer, top to bottom: network, data, optimizer, the loop, and what it leaves on the disk.

Every random draw is a function of (seed, iteration, rank) and of nothing else. So there is no generator state to save,
and a resumed run equals an uninterrupted one.
"""

from __future__ import annotations

import atexit
import gc
import json
import math
import os
import shutil
import sys
import time
import weakref
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.fabric import Fabric
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from tqdm.auto import tqdm

from emalab.checkpoints import (
    CheckpointError,
    all_finite,
    load_initial_weights,
    load_training_state,
    named_tensors,
    require_finite,
    save_training_state,
)
from emalab.data import LabeledImages, load_dataset
from emalab.data.dataset import data_identity
from emalab.data.loader import num_cores, training_loader
from emalab.data.memory import InMemory
from emalab.data.names import is_folder_name
from emalab.data.transforms import TrainTransform
from emalab.evaluation import evaluate
from emalab.metrics import SegmentationScores
from emalab.optim import cross_entropy, parameter_groups, poly_lr
from emalab.options import RunOptions, run_folder
from emalab.recipes import Recipe, recipe_from_dict, recipe_names, recipe_to_dict
from emalab.results import find_origin, make_record, write_record
from emalab.runlog import RunLog
from emalab.segmenter import Segmenter, build_segmenter

__all__ = [
    "RunOptions",
    "TrainResult",
    "Trainer",
    "TrainingDivergedError",
    "run_folder",
    "train",
]


class TrainingDivergedError(FloatingPointError):
    """Loss, weights, running statistics or moments are no longer finite; the message says where, and what to try."""


class TrainResult(NamedTuple):
    """What a finished run leaves behind."""

    model: Segmenter  # as trained, in evaluation mode
    scores: dict[str, SegmentationScores]  # by protocol: "single scale", and "multi-scale + flip" where asked for
    record: dict[str, Any]  # what record.json holds


def train(
    recipe: Recipe,
    out: Path | str,
    options: RunOptions | None = None,
    *,
    train_data: LabeledImages | None = None,
    eval_data: LabeledImages | None = None,
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

    Raises:
        DataError: data that are missing or wrong.
        ValueError: a recipe that does not fit its data or these devices.
        FileExistsError: ``out`` holds a run already and ``options.resume`` is off.
        CheckpointError: ``last.pt`` is damaged or belongs to another recipe, or the weights to start from do not fit.
        TrainingDivergedError: the loss, a weight, a running statistic or a moment became infinite or NaN.
    """
    return Trainer(recipe, Path(out), options or RunOptions(), train_data, eval_data).fit()


class _TrainingStep(nn.Module):
    """Network and loss as one module: what DDP wraps, torch.compile fuses and a CUDA graph records."""

    def __init__(self, model: Segmenter, ignore_index: int, auxiliary_weight: float) -> None:
        super().__init__()
        self.model, self.ignore_index, self.auxiliary_weight = model, ignore_index, auxiliary_weight

    def forward(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over labeled pixels, that of an auxiliary head weighted and added; their number."""
        logits, *auxiliary = self.model.training_logits(images)
        loss, labeled = cross_entropy(logits, masks, self.ignore_index)
        for extra in auxiliary:
            loss = loss + self.auxiliary_weight * cross_entropy(extra, masks, self.ignore_index)[0]
        return loss, labeled

    def record(self, images: Tensor, masks: Tensor) -> None:
        """Replace forward and backward by a CUDA graph for batches of this shape, in training mode."""
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        # The graph keeps its inputs and writes every later batch into them: they must not be the caller's.
        torch.cuda.make_graphed_callables(self, (images.clone(), masks.clone()))
        for name, buffer in self.named_buffers():  # undo what the warm-up did to running statistics and bases
            buffer.copy_(buffers[name])
        if torch.distributed.is_initialized():
            # NCCL's group ends at exit and would wait for ever for a graph that holds its kernels; this comes before.
            atexit.register(_forget_graph, weakref.ref(self))


def _forget_graph(step: weakref.ref[_TrainingStep]) -> None:
    if (module := step()) is not None:
        del module.forward
    gc.collect()


class Trainer:
    """One run of a recipe. `train` is the short way; the parts are here for those who want their own loop.

    Arguments and errors as in `train`.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        options: RunOptions,
        train_data: LabeledImages | None = None,
        eval_data: LabeledImages | None = None,
    ) -> None:
        self.recipe, self.out, self.options = recipe, out, options
        try:
            self.fabric = Fabric(
                accelerator=options.accelerator,
                devices=options.devices,
                num_nodes=options.num_nodes,
                precision=recipe.precision,
            )
        except (RuntimeError, ImportError) as error:  # Fabric's answers to hardware that is not there
            raise ValueError(f"there is no accelerator {options.accelerator!r} here; take auto or cpu") from error
        self.fabric.launch()
        name, root = recipe.data.name, options.data_root
        self.train_data = load_dataset(name, recipe.data.train_split, root) if train_data is None else train_data
        self.eval_data = load_dataset(name, recipe.data.eval_split, root) if eval_data is None else eval_data
        self._check()
        self.iteration, self.best, self.seconds = 0, -math.inf, 0.0
        # Now: the source may change while a long run goes on, and nothing after the last step may fail.
        self.origin = find_origin(self.fabric.device, options.commit)
        self.model = self._build_model()
        self.out.mkdir(parents=True, exist_ok=True)
        self._step, self.optimizer = self._set_up()
        self.scored = self.model.with_output_stride(recipe.evaluation.output_stride or recipe.model.output_stride)
        self._record_graph = recipe.execution == "cuda_graph" and self.fabric.device.type == "cuda"
        if self.last.exists():
            self._resume()

    @property
    def last(self) -> Path:
        """The checkpoint to resume from."""
        return self.out / "last.pt"

    def fit(self) -> TrainResult:
        """Train from where the run stands to the end, evaluate, and write the record."""
        started = time.perf_counter()
        total, every = self.recipe.optim.iterations, self.recipe.evaluation.every
        with ExitStack() as stack:
            log = stack.enter_context(RunLog(self.out, self.iteration, enabled=self.fabric.is_global_zero))
            bar = stack.enter_context(self._progress_bar())
            window = _Window(self.recipe.optim.batch_size)
            self._train_mode()
            if self._record_graph:  # now: a loader's thread that calls CUDA meanwhile would spoil the recording
                self._record(*self._blank_batch())
            for images, masks in self._loader():
                window.add(self.step(images, masks))
                bar.update()
                saves = self.iteration % self.options.checkpoint_every == 0 or self.iteration == total
                evaluates = every > 0 and self.iteration % every == 0 and self.iteration < total
                # What is saved or scored has been looked at: no diverged network is kept.
                if saves or evaluates or self.iteration % self.options.log_every == 0:
                    loss, speed = window.close(self.fabric)
                    lr = poly_lr(self.iteration - 1, self.recipe.optim)
                    self._stop_if_diverged(loss)
                    log.write(self.iteration, loss=loss, lr=lr, images_per_second=speed)
                    bar.set_postfix(loss=f"{loss:.3f}", lr=f"{lr:.1e}", img_s=f"{speed:.0f}")
                if evaluates:
                    scores = self.evaluate()
                    log.write(self.iteration, miou=scores.miou, pixel_accuracy=scores.pixel_accuracy)
                    self._keep_if_best(scores)
                    window.restart()
                if saves:
                    self.seconds, started = self.seconds + time.perf_counter() - started, time.perf_counter()
                    self.save(self.last)
                    window.restart()
            trained = time.perf_counter()
            scores_by_protocol = self._final_scores()
            log.write(self.iteration, **{name: scores.miou for name, scores in scores_by_protocol.items()})
        self._keep_if_best(scores_by_protocol["single scale"])
        record = make_record(
            self.recipe,
            scores_by_protocol,
            origin=self.origin,
            devices=self.fabric.world_size,
            seconds={"training": self.seconds, "evaluation": time.perf_counter() - trained},
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
        )
        if self.fabric.is_global_zero:
            write_record(self.out / "record.json", record)
        return TrainResult(self.model.eval(), scores_by_protocol, record)

    def step(self, images: Tensor, masks: Tensor) -> Tensor:
        """One optimizer step on a batch of uint8 images (b, 3, h, w) and labels (b, h, w); returns the mean loss."""
        config = self.recipe.optim
        seed = np.random.SeedSequence((self.recipe.seed, self.iteration, self.fabric.global_rank))
        torch.manual_seed(int(seed.generate_state(1)[0]))  # dropout
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr_factor"] * poly_lr(self.iteration, config)
        images = images.to(self.fabric.device, non_blocking=True, memory_format=torch.channels_last)
        masks = masks.to(self.fabric.device, non_blocking=True)
        if self._record_graph:
            self._record(images, masks)
        total, labeled = self._step(images, masks)
        loss = total / self._divisor(labeled, masks)
        self.optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        if config.clip_norm is not None:
            self.fabric.clip_gradients(self._step, self.optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
        self.optimizer.step()
        self.iteration += 1
        return loss.detach()

    def _record(self, images: Tensor, masks: Tensor) -> None:
        with self._uncached_autocast():
            self._step.module.record(images, masks)
        self._record_graph = False

    def _blank_batch(self) -> tuple[Tensor, Tensor]:
        size = (self.recipe.optim.batch_size // self.fabric.world_size, 3, *self.recipe.data.crop_size)
        images = torch.zeros(size, dtype=torch.uint8, device=self.fabric.device)
        return images.contiguous(memory_format=torch.channels_last), images[:, 0].clone()

    def _uncached_autocast(self) -> AbstractContextManager[Any]:
        """The recipe's precision without autocast's cache of casted weights, which a CUDA graph must not meet."""
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.recipe.precision)
        return torch.autocast("cuda", dtype, cache_enabled=False) if dtype else nullcontext()

    def _divisor(self, labeled: Tensor, masks: Tensor) -> Tensor | int:
        if self.recipe.optim.loss_average == "all":
            return masks.numel()
        # The same on every rank, so that DDP's mean of gradients is that of the whole batch.
        mean = self.fabric.all_reduce(labeled.float(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean.clamp(min=1)

    def evaluate(self, scales: tuple[float, ...] = (1.0,), flip: bool = False) -> SegmentationScores:
        """Score the network as it is now on the recipe's evaluation split, under the recipe's precision and stride."""
        config = self.recipe.evaluation
        self._stop_unless_finite()
        with self.fabric.autocast():
            scores = evaluate(
                self.scored,
                self.eval_data,
                scales,
                flip,
                window=config.window,
                overlap=config.overlap,
                batch_size=config.batch_size,
                num_workers=0 if isinstance(self.eval_data, InMemory) else min(self._workers(), 8),
                progress=self.options.progress,
            )
        self._train_mode()
        return scores

    def save(self, path: Path) -> None:
        """Write a checkpoint from which the run can resume; one with NaN or infinite values is never written."""
        self._stop_unless_finite()
        if self.fabric.is_global_zero:
            state = {
                **self._learned(),
                "scaler": self.fabric.strategy.precision.state_dict(),  # of float16's gradients; else empty
                "iteration": self.iteration,
                "best": self.best,
                "seconds": self.seconds,
                "data": data_identity(self.train_data),
            }
            save_training_state(path, self.recipe, state)
        self.fabric.barrier()

    def _check(self) -> None:
        """What can be known to fail later fails now."""
        recipe, ranks = self.recipe, self.fabric.world_size
        recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe))))  # as every checkpoint will hold it
        for data in (self.train_data, self.eval_data):
            if recipe.model.num_classes != data.spec.num_classes:
                raise ValueError(
                    f"the network of {recipe.name} tells {recipe.model.num_classes} classes apart, {data.spec.name} "
                    f"has {data.spec.num_classes}; set model.num_classes"
                )
            if len(data) == 0:
                raise ValueError(f"a split of {data.spec.name} has no images; {recipe.name} needs some")
            if not _has_labels(data):
                raise ValueError(f"every pixel of a split of {data.spec.name} is ignored; there is nothing to learn")
        if recipe.execution == "compile":
            _require_compiler()
        if recipe.optim.batch_size % ranks:
            raise ValueError(
                f"optim.batch_size {recipe.optim.batch_size} cannot be shared equally by {ranks} processes"
            )
        if self.last.exists() and not self.options.resume:
            raise FileExistsError(
                f"{self.out} holds a run already; go on with it (--resume), or choose another folder for this one"
            )

    def _build_model(self) -> Segmenter:
        config, start = self.recipe.model, self.recipe.init_from
        torch.manual_seed(self.recipe.seed)
        model = build_segmenter(replace(config, backbone_weights=None) if start else config)
        model.config = config
        if start and not self.last.exists():
            load_initial_weights(model, self._finished(start) if start in recipe_names() else start)
        model = model.to(memory_format=torch.channels_last)
        if self.recipe.precision == "64-true":
            model = model.double()
        if self.fabric.world_size > 1 and self.fabric.device.type == "cuda":
            model = convert_sync_batchnorm(model)
        return model

    def _finished(self, name: str) -> Path:
        """The weights at the end of the run of another recipe, beside this one."""
        path = self.out.parent / run_folder(name, self.recipe.seed) / "last.pt"
        if not path.is_file():
            raise FileNotFoundError(
                f"{self.recipe.name} starts from the weights of {name}, and there is no {path}; train that first "
                f"(emalab train {name} --seed {self.recipe.seed}), or name a checkpoint with --init-from"
            )
        recipe, state = load_training_state(path)
        if state["iteration"] < recipe.optim.iterations:
            raise CheckpointError(
                f"{path} is at iteration {state['iteration']} of {recipe.optim.iterations}; go on with it (--resume) "
                f"before {self.recipe.name} starts from its weights"
            )
        return path

    def _set_up(self) -> tuple[Any, Any]:
        """The module and the optimizer of a step, as Fabric wraps them for this device and precision."""
        config, fused = self.recipe.optim, self.fabric.device.type == "cuda"
        groups = parameter_groups(self.model, config)
        optimizer: torch.optim.Optimizer
        if config.optimizer == "sgd":
            optimizer = torch.optim.SGD(groups, lr=config.lr, momentum=0.9, fused=fused)
        else:
            optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=fused)
        step: Any = _TrainingStep(self.model, self.train_data.spec.ignore_index, config.auxiliary_weight)
        if self.recipe.execution == "compile":
            # In graphs, because the host falls behind kernels so short; not with what other ranks must answer.
            step = torch.compile(step, options={"triton.cudagraphs": fused and self.fabric.world_size == 1})
        return self.fabric.setup(step, optimizer)

    def _resume(self) -> None:
        recipe, state = load_training_state(self.last)
        ours, theirs = recipe_to_dict(self.recipe), recipe_to_dict(recipe)
        if is_folder_name(self.recipe.data.name) and "data" in state:
            if state["data"] != data_identity(self.train_data):
                raise CheckpointError(
                    f"{self.last} was trained on other images or classes than {self.recipe.data.name} has now; "
                    "restore them, or choose another folder for the run"
                )
            theirs["data"]["name"] = ours["data"]["name"]  # a folder may be moved or renamed
        # How to score may still change, and what is said of a recipe decides nothing.
        fixed = ours.keys() - {"evaluation", "summary", "notes", "published"}
        if changed := ", ".join(key for key in ours if key in fixed and ours[key] != theirs[key]):
            raise CheckpointError(
                f"{self.last} was trained with another recipe (it differs in: {changed}); "
                "resume with the recipe it was started with, or choose another folder"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if scaler := state.get("scaler"):
            self.fabric.strategy.precision.load_state_dict(scaler)
        self.iteration, self.best, self.seconds = state["iteration"], state["best"], state.get("seconds", 0.0)

    def _loader(self) -> Any:
        data, optim, fabric = self.recipe.data, self.recipe.optim, self.fabric
        transform = TrainTransform(
            data.crop_size,
            data.scale_range,
            data.scale_step,
            data.flip,
            data.photometric,
            self.model.backbone.mean,
            self.train_data.spec.ignore_index,
        )
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

    def _final_scores(self) -> dict[str, SegmentationScores]:
        config = self.recipe.evaluation
        scores = {"single scale": self.evaluate()}
        if config.scales != (1.0,) or config.flip:
            scores["multi-scale" + " + flip" * config.flip] = self.evaluate(config.scales, config.flip)
        return scores

    def _keep_if_best(self, scores: SegmentationScores) -> None:
        if scores.miou > self.best:
            self.best = scores.miou
            self.save(self.out / "best.pt")

    def _learned(self) -> dict[str, Any]:
        """Everything that training changes: weights, running statistics, bases, moments."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def _stop_if_diverged(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise self._diverged(f"the loss became {loss}")

    def _stop_unless_finite(self) -> None:
        """A loss may be finite while weights and running statistics are not; all ranks stop together."""
        tensors = dict(named_tensors(self._learned()))
        finite = torch.tensor(float(all_finite(tensors.values())), device=self.fabric.device)
        everywhere = self.fabric.all_reduce(finite, reduce_op="sum")
        assert isinstance(everywhere, Tensor)
        if everywhere < self.fabric.world_size:
            try:
                require_finite(tensors, "the network diverged")
            except CheckpointError as error:
                raise self._diverged(str(error)) from None
            raise self._diverged("the network of another process diverged")

    def _diverged(self, what: str) -> TrainingDivergedError:
        lr = poly_lr(max(self.iteration - 1, 0), self.recipe.optim)
        kept = f"; {self.last} holds the last checkpoint before" if self.last.exists() else ""
        return TrainingDivergedError(
            f"{what} by iteration {self.iteration}, at learning rate {lr:.2e}; "
            f"lower optim.lr or set optim.clip_norm, and start again in another folder{kept}"
        )

    def _progress_bar(self) -> tqdm[Any]:
        return tqdm(
            total=self.recipe.optim.iterations,
            initial=self.iteration,
            desc=self.recipe.name,
            unit="it",
            disable=not (self.options.progress and self.fabric.is_global_zero),
        )


def _require_compiler() -> None:
    """torch.compile would say it in a traceback of many lines, after the data are loaded."""
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"execution 'compile' needs a C++ compiler, and there is no {compiler} on PATH; "
            "install one, name another in the variable CXX, or train with --execution eager"
        )


def _has_labels(data: LabeledImages) -> bool:
    """Whether a pixel has a label; mostly the first image decides."""
    return any(bool((data[index].mask != data.spec.ignore_index).any()) for index in range(len(data)))


class _Window:
    """Mean loss and speed since the last look, without waiting for the device in between."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.restart()

    def restart(self) -> None:
        self.losses: list[Tensor] = []
        self.since = time.perf_counter()

    def add(self, loss: Tensor) -> None:
        self.losses.append(loss)

    def close(self, fabric: Fabric) -> tuple[float, float]:
        """Mean loss over all ranks, so that they stop together, and images per second; starts the next window."""
        mean = fabric.all_reduce(torch.stack(self.losses).mean(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        loss = mean.item()
        speed = len(self.losses) * self.batch_size / (time.perf_counter() - self.since)
        self.restart()
        return loss, speed
