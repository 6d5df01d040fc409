"""`emalab evaluate CHECKPOINT`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from emalab.commands.environment import Device, default_data_root, is_first_process, processes
from emalab.data.required import check_data
from emalab.results import write_record
from emalab.shipped import find_checkpoint
from emalab.tables import aligned
from emalab.views import Views

if TYPE_CHECKING:
    from emalab.metrics import SegmentationScores
    from emalab.recipes import Recipe
    from emalab.segmenter import Segmenter

__all__ = ["load_to_score", "run", "views_to_score"]

_LISTED = 254  # classes that are all printed
_ENDS = 10  # of more classes, so many of the highest and of the lowest IoU


def run(
    checkpoint: Positional[str],
    data: str | None = None,
    split: str | None = None,
    data_root: Path | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    output_stride: int | None = None,
    window: tuple[int, int] | None = None,
    overlap: float | None = None,
    batch_size: int = 1,
    device: Device = "auto",
    allow_code: tuple[str, ...] = (),
    out: Path | None = None,
) -> None:
    """Score a checkpoint on a split, class by class. Under torchrun the processes share the images.

    Args:
        checkpoint: a .pt or .safetensors file, or the name of a shipped network.
        data: data set; by default the one it was trained on.
        split: by default the evaluation split of its recipe.
        data_root: folder with the unpacked releases; $EMALAB_DATA by default, and data/ here without one.
        scales: scales to average over.
        flip: average over mirror images too.
        output_stride: pixels per position of the feature map; by default as its recipe scores it.
        window: height and width of sliding windows for large images; by default as its recipe scores it.
        overlap: part of a window that the next one shares; by default as its recipe scores it.
        batch_size: images of one size evaluated together.
        device: where to run.
        allow_code: modules that may be imported where the checkpoint names a context module of somebody's own.
        out: also write the scores to this JSON file.
    """
    find_checkpoint(checkpoint)
    if data:
        check_data(data, data_root or default_data_root())
    from emalab.data import load_dataset
    from emalab.data.loader import num_cores
    from emalab.evaluation import evaluate

    model, recipe = load_to_score(checkpoint, output_stride, allow_code)
    scenes = None if data else recipe.data.scenes
    split, root = split or recipe.data.eval_split, data_root or default_data_root()
    name, gray = data or recipe.data.name, model.config.in_channels == 1
    dataset = load_dataset(name, split, root, scenes, gray=gray)
    with processes(device) as own_device:
        scores = evaluate(
            model.to(own_device),
            dataset,
            views=views_to_score(recipe, scales, flip, window, overlap),
            batch_size=batch_size,
            num_workers=min(num_cores(), 8),
            progress=True,
        )
    if is_first_process():
        _print_scores(scores, out)
        if out:
            write_record(out, scores.to_dict())


def load_to_score(
    checkpoint: str, output_stride: int | None, allow_code: Sequence[str] = ()
) -> tuple[Segmenter, Recipe]:
    """The network at the stride that is asked for, or else at that with which its recipe scores."""
    from emalab.checkpoints import read_recipe
    from emalab.segmenter import Segmenter

    model, recipe = Segmenter.from_pretrained(checkpoint, allow_code), read_recipe(checkpoint)
    stride = output_stride or recipe.evaluation.output_stride or model.config.output_stride
    return model.with_output_stride(stride), recipe


def views_to_score(
    recipe: Recipe, scales: tuple[float, ...], flip: bool, window: tuple[int, int] | None, overlap: float | None
) -> Views:
    """What is asked for; windows that are not asked for are those in which the recipe scores."""
    own = recipe.evaluation
    return Views(scales, flip, window or own.window, own.overlap if overlap is None else overlap)


def _print_scores(scores: SegmentationScores, out: Path | None) -> None:
    print("\n".join(_class_rows(scores.iou, out)))
    accuracy, weighted = 100 * scores.mean_class_accuracy, 100 * scores.frequency_weighted_iou
    print(f"mean class accuracy {accuracy:.2f}, frequency-weighted IoU {weighted:.2f}")
    print(f"{scores}, over {scores.images} image{'s' * (scores.images != 1)}")


def _class_rows(iou: Mapping[str, float], out: Path | None = None) -> list[str]:
    """IoU of every class in percent; of more than 254, the highest and the lowest."""
    rows = [(name, "absent" if value != value else f"{100 * value:.2f}") for name, value in iou.items()]
    if len(rows) <= _LISTED:
        return aligned(rows, right={1})
    there = sorted((name for name in iou if iou[name] == iou[name]), key=lambda name: -iou[name])
    ends = there if len(there) <= 2 * _ENDS else [*there[:_ENDS], *there[-_ENDS:]]
    lines = aligned([(name, f"{100 * iou[name]:.2f}") for name in ends], right={1})
    if between := len(there) - len(ends):
        lines.insert(_ENDS, f"… {between} classes between …")
    whole = f"{out} has all" if out else "--out FILE writes all"
    return [*lines, f"{len(there)} of {len(rows)} classes occur, the others are absent; {whole}"]
