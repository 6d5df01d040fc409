"""`emalab inspect PHOTO…`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from emalab.commands.environment import Device, own_device
from emalab.commands.messages import one_line
from emalab.commands.photographs import find_photographs, require_readable
from emalab.shipped import DEFAULT_WEIGHTS, find_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image
    from torch import Tensor

    from emalab.data import DatasetSpec
    from emalab.inspection import Inside
    from emalab.segmenter import Segmenter

__all__ = ["run"]

_TILES = 12  # groups of bases that the picture shows, those in use most
_COLUMNS = 4


def run(
    photos: Positional[tuple[str, ...]],
    checkpoint: str = DEFAULT_WEIGHTS,
    pixel: tuple[int, int] | None = None,
    out: Path = Path(),
    max_side: int = 480,
    device: Device = "auto",
) -> None:
    """Show what EM attention does with photographs, as pictures and in words.

    Without --pixel: NAME.bases.png, where each base lies in the photograph, similar bases joined, the busiest first.
    With it: NAME.attention.png, from where that pixel gets its context, and the classes that it could be.

    Args:
        photos: files, folders, or patterns in quotes.
        checkpoint: a .pt or .safetensors file, or the name of a shipped network.
        pixel: X and Y of a pixel, counted from 0 at the upper left corner.
        out: folder for the pictures.
        max_side: the network sees photographs with their longer side shrunk to so many pixels.
        device: where to run.
    """
    if not photos:
        raise ValueError("emalab inspect needs at least one photograph")
    if max_side < 1:
        raise ValueError(f"max_side is {max_side}; it must be at least 1 pixel")
    found = find_photographs(photos)
    for problem in found.problems:
        print(f"emalab: error: {one_line(problem)}", file=sys.stderr)
    if not found.photographs:
        raise SystemExit(1)
    require_readable(found.photographs)
    find_checkpoint(checkpoint)
    from emalab.checkpoints import read_recipe, read_spec
    from emalab.data import get_spec
    from emalab.data.bands import decode_image, viewable
    from emalab.prediction import reading_for
    from emalab.segmenter import Segmenter
    from emalab.viz import save_picture

    model = Segmenter.from_pretrained(checkpoint).to(own_device(device))
    spec = read_spec(checkpoint) or get_spec(read_recipe(checkpoint).data.name)
    failed = bool(found.problems)
    for photograph in found.photographs:
        try:
            pixels = decode_image(photograph.path, reading_for(model.config.in_channels, spec.bits)).pixels
            photo = _picture(viewable(pixels))
            small, inside = _look(model, pixels, max_side)
            picture = _bases(small, inside) if pixel is None else _attention(photo, small, inside, pixel, spec)
        except ValueError as error:
            failed = True
            print(f"emalab: error: {one_line(error)}", file=sys.stderr)
            continue
        target = out / photograph.name.with_name(
            f"{photograph.name.name}.{'bases' if pixel is None else 'attention'}.png"
        )
        save_picture(picture, target)
        print(f"{photograph.path} → {target}")
    if failed:
        raise SystemExit(1)


def _look(model: Segmenter, pixels: NDArray[np.uint8], max_side: int) -> tuple[Image.Image, Inside]:
    """The photograph (h, w, c) as the network sees it, and what the unit makes of it."""
    import numpy as np
    import torch

    from emalab.data.bands import viewable
    from emalab.inspection import look_inside

    channels = [_picture(np.ascontiguousarray(channel)) for channel in np.moveaxis(pixels, -1, 0)]
    for channel in channels:
        channel.thumbnail((max_side, max_side))
    small = np.stack([np.asarray(channel) for channel in channels], axis=-1)
    images = torch.from_numpy(small).permute(2, 0, 1)[None]
    return _picture(viewable(small)), look_inside(model, images.to(model.normalize.mean.device))


def _bases(small: Image.Image, inside: Inside) -> Image.Image:
    """A grid of the photograph, lit where each group of similar bases is responsible; says how many there are."""
    from PIL import Image

    from emalab.inspection import distinct_bases, merge, perplexity

    groups = distinct_bases(inside.attended.bases[0])
    maps = merge(inside.attended.responsibilities[0], groups)
    usage = maps.mean(dim=0)
    print(f"{len(groups)} bases, {int(groups.max()) + 1} distinct, {perplexity(usage).item():.1f} in use")
    shown = usage.argsort(descending=True)[:_TILES].tolist()
    rows = -(-len(shown) // _COLUMNS)
    sheet = Image.new("RGB", (min(len(shown), _COLUMNS) * small.width, rows * small.height), "white")
    for place, group in enumerate(shown):
        tile = _lit(small, maps[:, group], inside.size, f"{100 * usage[group]:.1f} %")
        sheet.paste(tile, (place % _COLUMNS * small.width, place // _COLUMNS * small.height))
    return sheet


def _attention(
    photo: Image.Image, small: Image.Image, inside: Inside, pixel: tuple[int, int], spec: DatasetSpec
) -> Image.Image:
    """The photograph, lit where the pixel gets its context from; says what the pixel could be."""
    from PIL import ImageDraw

    from emalab.inspection import attention_of_position

    x, y = pixel
    if not (0 <= x < photo.width and 0 <= y < photo.height):
        raise ValueError(f"there is no pixel {x} {y} in a photograph of {photo.width}×{photo.height} pixels")
    rows, columns = inside.size
    row, column = y * rows // photo.height, x * columns // photo.width
    probabilities = inside.logits[0, :, row, column].softmax(dim=0)
    best = probabilities.topk(min(3, len(probabilities)))
    names = [f"{spec.classes[i]} {p:.0%}" for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    print(f"pixel {x} {y}: {', '.join(names)}")
    weights = attention_of_position(inside.attended.responsibilities[0], row * columns + column)
    picture = _lit(small, weights, inside.size)
    center = ((x + 0.5) * small.width / photo.width, (y + 0.5) * small.height / photo.height)
    ImageDraw.Draw(picture).circle(center, max(small.width // 80, 3), outline="red", width=2)
    return picture


def _lit(small: Image.Image, weights: Tensor, size: tuple[int, int], text: str = "") -> Image.Image:
    """The photograph, darkened where weights (n,) are small beside their largest."""
    import numpy as np
    from PIL import Image, ImageDraw

    share = (weights / weights.max().clamp(min=1e-12)).reshape(size).float().cpu().numpy()
    mask = _picture((255 * (0.1 + 0.9 * share)).astype(np.uint8)).resize(small.size, Image.Resampling.BILINEAR)
    lit = Image.composite(small, Image.new("RGB", small.size), mask)
    if text:
        ImageDraw.Draw(lit).text((4, 2), text, fill="white", stroke_width=1, stroke_fill="black")
    return lit


def _picture(pixels: NDArray[np.uint8]) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels)
