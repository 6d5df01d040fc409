"""Score a network on a split: single scale, or probabilities averaged over scales and mirror images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

from emalab.data import LabeledImages, Sample
from emalab.metrics import SegmentationMetric, SegmentationScores
from emalab.segmenter import Segmenter

__all__ = ["evaluate", "predict_probabilities"]


def predict_probabilities(
    model: Segmenter, images: Tensor, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Tensor:
    """Class probabilities of whole images, averaged over scales and, with ``flip``, mirror images.

    Each image is resized, padded with the mean color to a multiple of the output stride (plus one with
    ``align_corners``, as the authors do), and its logits are cropped and resized back before the softmax.

    Args:
        model: in evaluation mode.
        images: uint8 RGB (b, 3, h, w).
        scales: factors of the image's size.
        flip: average over left-right mirrored images too.

    Returns:
        float32 (b, classes, h, w), summing to 1 over the classes.
    """
    if not scales or min(scales) <= 0:
        raise ValueError(f"scales must be positive factors, at least one; got {tuple(scales)}")
    total = images.new_zeros((), dtype=torch.float32)
    for scale in scales:
        for mirrored in (False, True) if flip else (False,):
            view = images.flip(-1) if mirrored else images
            probabilities = _logits_at(model, view, scale).float().softmax(dim=1)
            total = total + (probabilities.flip(-1) if mirrored else probabilities)
    return total / (len(scales) * (1 + flip))


def _logits_at(model: Segmenter, images: Tensor, scale: float) -> Tensor:
    height, width = images.shape[-2:]
    align = model.config.align_corners
    scaled = [max(round(side * scale), 1) for side in (height, width)]
    resize = partial(F.interpolate, mode="bilinear", align_corners=align)
    x = model.normalize(images)
    if scaled != [height, width]:
        x = resize(x, scaled)
    stride, extra = model.config.output_stride, int(align)
    bottom, right = (-(side - extra) % stride for side in scaled)
    logits = model(F.pad(x, (0, right, 0, bottom)).contiguous(memory_format=torch.channels_last))
    logits = logits[..., : scaled[0], : scaled[1]]
    return logits if scaled == [height, width] else resize(logits, [height, width])


@torch.inference_mode()
def evaluate(
    model: Segmenter,
    dataset: LabeledImages,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    progress: bool = False,
) -> SegmentationScores:
    """Score ``model`` on every image of ``dataset``, whole and at its own size.

    Under a process group each rank takes every world-size-th image, so each is counted exactly once.

    Args:
        model: evaluated on the device that its weights are on, in evaluation mode whatever mode it is in (restored
            afterwards). Autocast, if wanted, is the caller's.
        dataset: a split of a benchmark with the network's number of classes.
        scales: as in `predict_probabilities`; ``(1.0,)`` is single scale.
        flip: average over mirrored images too.
        batch_size: how many images of one size to evaluate together; changes the speed, not the scores.
        num_workers: processes that decode images.
        progress: show a bar.

    Raises:
        ValueError: another number of classes, a batch size below 1, or an empty split.
    """
    if model.config.num_classes != dataset.spec.num_classes:
        raise ValueError(
            f"the network tells {model.config.num_classes} classes apart, "
            f"{dataset.spec.name} has {dataset.spec.num_classes}"
        )
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if len(dataset) == 0:
        raise ValueError(f"the split of {dataset.spec.name} has no images")
    device = model.normalize.mean.device
    metric = SegmentationMetric(dataset.spec, device)
    was_training = model.training
    model.eval()
    try:
        for images, masks in _batches_of_one_size(dataset, batch_size, num_workers, progress):
            probabilities = predict_probabilities(model, images.to(device, non_blocking=True), scales, flip)
            metric.update(probabilities, masks.to(device, non_blocking=True))
    finally:
        model.train(was_training)
    return metric.compute()


def _batches_of_one_size(
    dataset: LabeledImages, batch_size: int, num_workers: int, progress: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's images and masks, (b, 3, h, w) and (b, h, w), gathered by size as they arrive."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    share = Subset(dataset, range(rank, len(dataset), world_size))
    loader: DataLoader[Sample] = DataLoader(share, batch_size=None, num_workers=num_workers)
    waiting: dict[torch.Size, list[Sample]] = defaultdict(list)

    def batch(samples: list[Sample]) -> tuple[Tensor, Tensor]:
        return torch.stack([s.image for s in samples]), torch.stack([s.mask for s in samples])

    for sample in tqdm(loader, "evaluating", unit="img", disable=not progress or rank > 0, leave=False):
        group = waiting[sample.mask.shape]
        group.append(sample)
        if len(group) == batch_size:
            yield batch(waiting.pop(sample.mask.shape))
    for group in waiting.values():
        yield batch(group)
