"""How a training step runs: eagerly, compiled, or replayed from a CUDA graph."""

from __future__ import annotations

import atexit
import gc
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from emalab.losses import SegmentationLoss
from emalab.recipes import Recipe
from emalab.segmenter import Segmenter

__all__ = ["Execution", "TrainingStep"]


class TrainingStep(nn.Module):
    """Network and loss as one module: what DDP wraps, torch.compile fuses and a CUDA graph records."""

    def __init__(self, model: Segmenter, loss: SegmentationLoss, auxiliary_weight: float) -> None:
        super().__init__()
        self.model, self.loss, self.auxiliary_weight = model, loss, auxiliary_weight

    def forward(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The terms of the loss (`emalab.losses.LossTerms`), those of an auxiliary head weighted and added."""
        logits, *auxiliary = self.model.training_logits(images)
        total, divisor, per_image = self.loss(logits, masks)
        for extra in auxiliary:
            added = self.loss(extra, masks)
            total = total + self.auxiliary_weight * added.total
            per_image = per_image + self.auxiliary_weight * added.per_image
        return total, divisor, per_image

    def record(self, images: Tensor, masks: Tensor) -> None:
        """Replace forward and backward by a CUDA graph for batches of this shape, in training mode."""
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        # The graph keeps its inputs and writes every later batch into them: they must not be the caller's.
        torch.cuda.make_graphed_callables(self, (images.clone(), masks.clone()))
        for name, buffer in self.named_buffers():  # undo what the warm-up did to running statistics and bases
            buffer.copy_(buffers[name])
        if torch.distributed.is_initialized():
            # NCCL's group ends at exit and would wait indefinitely for a graph that holds its kernels; this is first.
            atexit.register(_forget_graph, weakref.ref(self))


def _forget_graph(step: weakref.ref[TrainingStep]) -> None:
    if (module := step()) is not None:
        del module.forward
    gc.collect()


class Execution:
    """Runs the forward pass of a step in the way that the recipe names.

    Attributes:
        module: the step as Fabric wraps it.
        optimizer: likewise.
    """

    def __init__(self, fabric: Fabric, recipe: Recipe, step: TrainingStep, optimizer: torch.optim.Optimizer) -> None:
        self._fabric, self._recipe = fabric, recipe
        on_gpu = fabric.device.type == "cuda"
        wrapped: Any = step
        if recipe.execution == "compile":
            # In graphs, because the host falls behind kernels so short; not with what other ranks must answer.
            wrapped = torch.compile(step, options={"triton.cudagraphs": on_gpu and fabric.world_size == 1})
        self.module, self.optimizer = fabric.setup(wrapped, optimizer)
        self._to_record = recipe.execution == "cuda_graph" and on_gpu

    def prepare(self) -> None:
        """Record the graph, where there is to be one, before a loader's thread that calls CUDA could spoil it."""
        if self._to_record:
            size = (self._recipe.optim.batch_size // self._fabric.world_size, 3, *self._recipe.data.crop_size)
            images = torch.zeros(size, dtype=torch.uint8, device=self._fabric.device)
            self._record(images.contiguous(memory_format=torch.channels_last), images[:, 0].clone())

    def __call__(self, images: Tensor, masks: Tensor) -> Tensor:
        """The loss of a batch that lies on the device, averaged over pixels as the recipe says."""
        if self._to_record:
            self._record(images, masks)
        total, divisor, per_image = self.module(images, masks)
        if self._recipe.optim.loss_average == "all":
            return total / masks.numel() + per_image
        # The same divisor on every rank, so that DDP's mean of gradients is that of the whole batch.
        mean: Any = self._fabric.all_reduce(divisor.float(), reduce_op="mean")
        return total / mean.where(mean > 0, 1) + per_image

    def _record(self, images: Tensor, masks: Tensor) -> None:
        with self._uncached_autocast():
            self.module.module.record(images, masks)
        self._to_record = False

    def _uncached_autocast(self) -> AbstractContextManager[Any]:
        """The recipe's precision without autocast's cache of casted weights, which a CUDA graph must not meet."""
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self._recipe.precision)
        return torch.autocast("cuda", dtype, cache_enabled=False) if dtype else nullcontext()
