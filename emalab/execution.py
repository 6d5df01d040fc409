"""How a training step runs: eagerly, compiled, or replayed from a CUDA graph; whole or in micro-batches."""

from __future__ import annotations

import atexit
import gc
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from emalab.accumulation import one_update_of_bases
from emalab.data.tensors import label_dtype
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

    def compile_forward(self) -> None:
        """Compile the step before it is wrapped or recorded."""
        self.forward = torch.compile(self.forward)  # type: ignore[method-assign]

    def record(self, images: Tensor, masks: Tensor) -> None:
        """Replace forward and backward by a CUDA graph for batches of this shape, in training mode."""
        if hasattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch"):  # from torch 2.10 on
            # A replay leaves gradients on another stream than the parameters were first used on; that is meant so.
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
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
    """Runs the forward and backward passes of a step in the way that the recipe names.

    Attributes:
        module: the step as Fabric wraps it.
        optimizer: likewise.
    """

    def __init__(self, fabric: Fabric, recipe: Recipe, step: TrainingStep, optimizer: torch.optim.Optimizer) -> None:
        self._fabric, self._recipe, self._step = fabric, recipe, step
        self._parts = recipe.optim.accumulate_grad_batches
        on_gpu = fabric.device.type == "cuda"
        records = on_gpu and self._parts == 1  # gradients of one replay would not survive the next
        wrapped: Any = step
        self._to_record = on_gpu and recipe.execution == "cuda_graph"
        if recipe.execution == "compile" and fabric.world_size == 1:
            # CUDA graphs, because the host cannot keep up with such short kernels.
            wrapped = torch.compile(step, options={"triton.cudagraphs": records})
        elif recipe.execution == "compile":  # without DDP's wrapper, in which graphs break; recorded as a whole
            step.compile_forward()
            self._to_record = records
        self.module, self.optimizer = fabric.setup(wrapped, optimizer)

    def prepare(self) -> None:
        """Record the graph, where there is to be one, before a loader's thread that calls CUDA could spoil it."""
        if self._to_record:
            size = (
                self._recipe.optim.batch_size // self._fabric.world_size,
                self._recipe.model.in_channels,
                *self._recipe.data.crop_size,
            )
            images = torch.zeros(size, dtype=torch.uint8, device=self._fabric.device)
            labels = label_dtype(self._step.loss.ignore_index)  # a replay casts masks to what was recorded
            masks = torch.zeros((size[0], *size[2:]), dtype=labels, device=self._fabric.device)
            self._record(images.contiguous(memory_format=torch.channels_last), masks)

    def backward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Add up gradients of the mean loss of a batch that lies on the device, and return that loss.

        The batch is divided into as many micro-batches as the recipe says. The divisor of the loss and the update of
        the bases are those of the whole batch; batch norm normalizes each micro-batch separately.
        """
        if self._to_record:
            self._record(images, masks)
        if self._parts == 1:
            return self._backward(images, masks, len(images), None)
        divisor, losses = self._divisor_of(masks), []
        with one_update_of_bases(self._step.model):
            for part, batch in enumerate(zip(images.chunk(self._parts), masks.chunk(self._parts), strict=True), 1):
                with self._fabric.no_backward_sync(self.module, enabled=part < self._parts):
                    losses.append(self._backward(*batch, len(images), divisor))
        return torch.stack(losses).sum()

    def _divisor_of(self, masks: Tensor) -> Tensor | None:
        """What all micro-batches of a batch divide by, from its labels (b, h, w); None if that is their size."""
        if self._recipe.optim.loss_average == "all":
            return None
        return self._mean_over_ranks(self._step.loss.divisor(masks))

    def _backward(self, images: Tensor, masks: Tensor, whole: int, divisor: Tensor | None) -> Tensor:
        """Gradients of what a micro-batch adds to the mean loss of a batch of ``whole`` images; and that part."""
        total, own, per_image = self.module(images, masks)
        if self._recipe.optim.loss_average == "all":
            loss = total / (masks[0].numel() * whole) + per_image * (len(images) / whole)
        else:
            divisor = self._mean_over_ranks(own) if divisor is None else divisor
            loss = total / divisor.where(divisor > 0, 1) + per_image * (len(images) / whole)
        self._fabric.backward(loss)
        return loss.detach()

    def _mean_over_ranks(self, divisor: Tensor) -> Tensor:
        """The same divisor on every rank, so that DDP's mean of gradients is that of the whole batch."""
        mean: Any = self._fabric.all_reduce(divisor.float(), reduce_op="mean")
        return mean

    def _record(self, images: Tensor, masks: Tensor) -> None:
        with self._uncached_autocast():
            self.module.module.record(images, masks)
        self._to_record = False

    def _uncached_autocast(self) -> AbstractContextManager[Any]:
        """The recipe's precision without autocast's cache of casted weights, which a CUDA graph must not meet."""
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self._recipe.precision)
        return torch.autocast("cuda", dtype, cache_enabled=False) if dtype else nullcontext()
