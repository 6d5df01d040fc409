"""`emalab predict PHOTO…`."""

from __future__ import annotations

import sys
from pathlib import Path

from tyro.conf import Positional

from emalab.commands.environment import Device, own_device
from emalab.data.names import check_name
from emalab.shipped import DEFAULT_WEIGHTS, find_checkpoint

__all__ = ["run"]


def run(
    images: Positional[tuple[Path, ...]],
    checkpoint: str = DEFAULT_WEIGHTS,
    data: str | None = None,
    out: Path = Path(),
    max_side: int = 480,
    flip: bool = True,
    device: Device = "auto",
) -> None:
    """Label the pixels of photographs. Writes STEM.mask.png (palette PNG) and STEM.overlay.png (with a legend).

    Args:
        images: photographs, in any format that Pillow reads.
        checkpoint: a .pt or .safetensors file, or the name of a shipped network.
        data: data set whose classes and colors to use; by default the one it was trained on.
        out: folder for the results.
        max_side: the network sees photographs with their longer side shrunk to this many pixels.
        flip: average with the mirror image; takes twice the time.
        device: where to run.
    """
    if not images:
        raise ValueError("emalab predict needs at least one photograph")
    stems = [path.stem for path in images]
    if twice := {stem for stem in stems if stems.count(stem) > 1}:
        raise ValueError(f"several photographs are called {sorted(twice)[0]!r}; give them separate --out folders")
    if not any(path.exists() for path in images):
        raise FileNotFoundError(f"{images[0]}: no such file.")
    find_checkpoint(checkpoint)
    if data:
        check_name(data)
    from emalab.checkpoints import load_segmenter, read_recipe
    from emalab.data import get_spec
    from emalab.prediction import predict
    from emalab.viz import overlay, save_labels, save_picture

    model, spec = load_segmenter(checkpoint).to(own_device(device)), get_spec(data or read_recipe(checkpoint).data.name)
    if model.config.num_classes != spec.num_classes:
        raise ValueError(f"{checkpoint} tells {model.config.num_classes} classes apart, {spec.name} {spec.num_classes}")
    failed = 0
    for path in images:
        try:
            labels = predict(model, path, max_side=max_side, flip=flip)
            picture = overlay(path, labels, spec)
        except (OSError, ValueError) as error:
            failed += 1
            print(f"emalab: error: {error}", file=sys.stderr)
            continue
        save_labels(labels, spec, out / f"{path.stem}.mask.png")
        save_picture(picture, out / f"{path.stem}.overlay.png")
        print(f"{path} → {out / path.stem}.mask.png, {path.stem}.overlay.png")
    if failed:
        raise SystemExit(1)
