"""`emalab submit CHECKPOINT`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from emalab.commands.environment import Device, default_data_root, is_first_process, processes
from emalab.commands.evaluate import load_to_score, views_to_score
from emalab.data.required import check_data
from emalab.shipped import find_checkpoint

__all__ = ["run"]


def run(
    checkpoint: Positional[str],
    out: Path,
    data: str | None = None,
    split: str = "test",
    data_root: Path | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = False,
    output_stride: int | None = None,
    window: tuple[int, int] | None = None,
    overlap: float | None = None,
    device: Device = "auto",
    allow_code: tuple[str, ...] = (),
) -> None:
    """Predict a split and write it as the benchmark's server or tools take it. Its labels need not be there.

    VOC: results.tgz for the evaluation server. COCO-Stuff: label maps, and a JSON file for its API. Others: label maps.
    Under torchrun the processes share the images.

    Args:
        checkpoint: a .pt or .safetensors file, or the name of a shipped network.
        out: folder to write to.
        data: data set; by default the one it was trained on.
        split: such as test, val.
        data_root: folder with the unpacked releases; $EMALAB_DATA by default, and data/ here without one.
        scales: scales to average over.
        flip: average over mirror images too.
        output_stride: pixels per position of the feature map; by default as its recipe scores it.
        window: height and width of sliding windows for large images; by default as its recipe scores it.
        overlap: part of a window that the next one shares; by default as its recipe scores it.
        device: where to run.
        allow_code: modules that may be imported where the checkpoint names a context module of somebody's own.
    """
    find_checkpoint(checkpoint)
    if data:
        check_data(data, data_root or default_data_root())
    from emalab.data import load_images
    from emalab.data.loader import num_cores
    from emalab.submission import write_submission

    model, recipe = load_to_score(checkpoint, output_stride, allow_code)
    name, root = data or recipe.data.name, data_root or default_data_root()
    dataset = load_images(name, split, root, gray=model.config.in_channels == 1)
    with processes(device) as own_device:
        handed_in = write_submission(
            model.to(own_device),
            dataset,
            split,
            out,
            views_to_score(recipe, scales, flip, window, overlap),
            num_workers=min(num_cores(), 8),
            progress=True,
        )
    if is_first_process():
        print(f"{len(dataset)} images: {handed_in}")
