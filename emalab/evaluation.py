"""Score a network on a split: single scale, or averaged over scales and mirror images, whole or in windows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Subset

from emalab.data import LabeledImages, Sample
from emalab.data.loader import ReadingLoader
from emalab.data.names import is_folder_name
from emalab.data.spec import channels_of
from emalab.inference import predict_labels
from emalab.metrics import SegmentationMetric, SegmentationScores
from emalab.progress import progress_bar
from emalab.segmenter import Segmenter
from emalab.views import Views

__all__ = ["check_channels", "check_classes", "evaluate", "share_of_rank"]


@torch.inference_mode()
def evaluate(
    model: Segmenter,
    dataset: LabeledImages,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    *,
    views: Views | None = None,
    batch_size: int = 1,
    num_workers: int = 0,
    progress: bool = False,
) -> SegmentationScores:
    """Score ``model`` on every image of ``dataset`` at its own size.

    Under a process group each rank takes every world-size-th image, so each is counted exactly once. Memory does not
    grow with the number of classes times the size of the images: see `emalab.inference`.

    Example:
        >>> from emalab import build_segmenter, get_recipe, load_dataset
        >>> model = build_segmenter(get_recipe("shapes-tiny").model)
        >>> scores = evaluate(model, load_dataset("shapes-pooled", "val"), batch_size=50)
        >>> 0 <= scores.miou <= 1
        True

    Args:
        model: evaluated on the device that its weights are on, in evaluation mode whatever mode it is in (restored
            afterwards). Autocast, if wanted, is the caller's; `Segmenter.with_output_stride` is the way to another
            stride than that of training.
        dataset: a split of a benchmark with the network's numbers of classes and channels.
        scales: factors of an image's size to average over; ``(1.0,)`` is single scale.
        flip: average over mirrored images too.
        views: instead of ``scales`` and ``flip``, all that `Views` can say: sliding windows for large images as well.
        batch_size: how many images of one size to evaluate together; changes the speed, not the scores.
        num_workers: processes that decode images.
        progress: show a bar, or lines where standard error is no terminal.

    Raises:
        ValueError: another number of classes or channels, a batch size below 1, an empty split, or ``views`` beside
            ``scales`` or ``flip``.
    """
    check_classes(model.config.num_classes, dataset)
    check_channels(model.config.in_channels, dataset)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if views is not None and (tuple(scales) != (1.0,) or flip):
        raise ValueError(f"evaluate got scales {tuple(scales)} and flip {flip} beside {views}; put them into the views")
    views = views or Views(tuple(scales), flip)
    device = model.normalize.mean.device
    metric = SegmentationMetric(dataset.spec, device)
    was_training = model.training
    model.eval()
    try:
        for images, masks in _batches_of_one_size(dataset, batch_size, num_workers, progress):
            images = images.to(device, non_blocking=True)
            labels = predict_labels(model, images, views)
            metric.update(labels, masks.to(device, non_blocking=True))
    finally:
        model.train(was_training)
    return metric.compute()


def check_classes(num_classes: int, dataset: LabeledImages) -> None:
    """Refuse, with a `ValueError`, data of another number of classes than the network's, or no data."""
    if num_classes != dataset.spec.num_classes:
        raise ValueError(
            f"the network predicts {num_classes} classes, {dataset.spec.name} has {dataset.spec.num_classes}; "
            "set model.num_classes, or take other data"
        )
    if len(dataset) == 0:
        raise ValueError(f"the split of {dataset.spec.name} has no images")


def check_channels(in_channels: int, dataset: LabeledImages) -> None:
    """Refuse, with a `ValueError`, images of another number of channels than the network takes."""
    found, name = dataset.spec.channels, dataset.spec.name
    if in_channels == found:
        return
    way_out = f"set model.in_channels to {found}, or take other data"
    if is_folder_name(name) and (in_channels, found) in ((3, 4), (1, 3)):
        way_out += f"; channels: {in_channels} in its classes.yaml reads it with {in_channels}"
    raise ValueError(
        f"the network takes images with {channels_of(in_channels)}, those of {name} have {found}; {way_out}"
    )


def share_of_rank(length: int) -> range:
    """Every world-size-th of ``length`` indices, from this rank's on; all of them without a process group."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return range(rank, length, world_size)


def _batches_of_one_size(
    dataset: LabeledImages, batch_size: int, num_workers: int, progress: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's images and masks, (b, c, h, w) and (b, h, w), gathered by size as they arrive."""
    share = share_of_rank(len(dataset))
    loader = ReadingLoader(Subset(dataset, share), num_workers, batch_size=None)
    waiting: dict[torch.Size, list[Sample]] = defaultdict(list)

    def batch(samples: list[Sample]) -> tuple[Tensor, Tensor]:
        return torch.stack([s.image for s in samples]), torch.stack([s.mask for s in samples])

    for sample in progress_bar(loader, "evaluating", unit="img", disable=not progress or share.start > 0, leave=False):
        group = waiting[sample.mask.shape]
        group.append(sample)
        if len(group) == batch_size:
            yield batch(waiting.pop(sample.mask.shape))
    for group in waiting.values():
        yield batch(group)
