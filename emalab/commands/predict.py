"""`emalab predict PHOTO…`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tyro.conf import Positional

from emalab.commands.environment import Device, own_device
from emalab.commands.messages import one_line
from emalab.commands.photographs import VIDEOS, Photograph, find_photographs, require_readable
from emalab.data.required import check_spec
from emalab.shipped import DEFAULT_WEIGHTS, MAX_SIDES, find_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from emalab.data import DatasetSpec
    from emalab.recipes import Recipe
    from emalab.segmenter import Segmenter
    from emalab.video import Frames
    from emalab.views import Views

__all__ = ["run"]

_NAMED_IN_VIDEOS = 32  # classes at most: the legend of a video names all, as a frame does not know what comes later


def run(
    photos: Positional[tuple[str, ...]],
    checkpoint: str = DEFAULT_WEIGHTS,
    data: str | None = None,
    out: Path = Path(),
    max_side: int | None = None,
    scales: tuple[float, ...] = (1.0,),
    flip: bool = True,
    window: tuple[int, int] | None = None,
    overlap: float | None = None,
    output_stride: int | None = None,
    bits: int | None = None,
    confidence: bool = False,
    probabilities: bool = False,
    device: Device = "auto",
    allow_code: tuple[str, ...] = (),
) -> None:
    """Label the pixels of photographs. Writes NAME.mask.png (palette PNG, or 16-bit gray for more than 254 classes) and
    NAME.overlay.png (with a legend).

    Animated images and videos are labeled frame by frame, and a TIFF of several pages page by page: NAME.masks/ and
    NAME.overlay.webp, .mp4 or .tif; videos need PyAV (pip install av). Files that an earlier run wrote (NAME.mask.png
    and so on) are not taken as photographs. A network for other than three channels takes files like those it was
    trained on (.npy, TIFFs of several bands, gray photographs); overlays show the first three channels.

    Args:
        photos: files, folders with all that is below them, or patterns in quotes such as ``"day*/*.jpg"``.
        checkpoint: a .pt or .safetensors file, or the name of a shipped network.
        data: data set whose classes and colors to use; by default the one it was trained on.
        out: folder for the results; those of a folder keep its subfolders.
        max_side: shrink photographs for the network until their longer side has so many pixels; by default 480 for
            the shipped network, and no shrinking for others.
        scales: average over copies enlarged by these factors.
        flip: average with the mirror image; takes twice the time.
        window: height and width of what the network sees at once; by default as its recipe scores it, or else all of
            a photograph up to 1.5 megapixels, and 1024 1024 beyond.
        overlap: part of a window that the next one shares; by default as its recipe scores it.
        output_stride: pixels per position of the feature map; by default as its recipe scores it.
        bits: depth of files of more than 8 bits that do not state it; by default that of the data it was trained on.
        confidence: also write NAME.confidence.png, the probability of each pixel's class from black (0) to white (1).
        probabilities: also write NAME.probabilities.npz, with the probabilities of all classes, float16 (h, w,
            classes), and their names: numpy.load(FILE)["probabilities"] and ["classes"]. The array takes 2 bytes of
            memory for each pixel and class.
        device: where to run.
        allow_code: modules that may be imported where the checkpoint names a context module of somebody's own.
    """
    if not photos:
        raise ValueError("emalab predict needs at least one photograph")
    found = find_photographs(photos)
    for problem in found.problems:
        print(f"emalab: error: {one_line(problem)}", file=sys.stderr)
    if found.results:
        print(f"{found.results} results of earlier runs left out")
    if not found.photographs:
        raise SystemExit(1)
    require_readable(found.photographs)
    find_checkpoint(checkpoint)
    if max_side is None:
        max_side = MAX_SIDES.get(checkpoint)
    elif max_side < 1:
        raise ValueError(f"max_side is {max_side}; it must be at least 1 pixel")
    if data:
        check_spec(data)
    from emalab.commands.evaluate import load_to_score, views_to_score
    from emalab.fusion import fuse_batch_norm
    from emalab.progress import progress_bar

    model, recipe = load_to_score(checkpoint, output_stride, allow_code)
    spec = _spec_of(checkpoint, model, data, recipe)
    views, side = views_to_score(recipe, scales, flip, window, overlap), max_side
    bits = bits or spec.bits
    model = fuse_batch_norm(model).to(own_device(device))
    labeler = _Labeler(model, spec, out, confidence, probabilities, side, views, bits)
    failed = 0
    for photograph in progress_bar(found.photographs, "predicting", unit="file", disable=len(found.photographs) == 1):
        failed += not labeler.label(photograph)
    if failed or found.problems:
        raise SystemExit(1)


def _spec_of(checkpoint: str, model: Segmenter, data: str | None, recipe: Recipe) -> DatasetSpec:
    """Classes and colors of the data set that is asked for, or else of that which the network was trained on."""
    from emalab.checkpoints import read_spec
    from emalab.data import get_spec

    spec = (read_spec(checkpoint) if data is None else None) or get_spec(data or recipe.data.name)
    if model.config.num_classes != spec.num_classes:
        raise ValueError(
            f"{checkpoint} predicts {model.config.num_classes} classes, and {spec.name} has {spec.num_classes}; "
            "name the data set that it was trained on: --data"
        )
    return spec


@dataclass
class _Labeler:
    """One network for all photographs: it is loaded once."""

    model: Segmenter
    spec: DatasetSpec
    out: Path
    confidence: bool
    probabilities: bool
    max_side: int | None
    views: Views
    bits: int | None

    def label(self, photograph: Photograph) -> bool:
        """Write the results of one file; False, with a line on stderr, where it cannot be read."""
        from emalab.data.spec import channels_in_words
        from emalab.video import open_animation, open_video

        try:
            video, frames = photograph.path.suffix.lower() in VIDEOS, None
            if self.model.config.in_channels in (1, 3):
                frames = open_video(photograph.path) if video else open_animation(photograph.path)
            elif video:
                raise ValueError(
                    f"{photograph.path}: is a video in RGB, and the network takes images "
                    f"{channels_in_words(self.model.config.in_channels)}."
                )
            written = self._frames(photograph, frames, video) if frames else self._still(photograph)
        except (OSError, ValueError) as error:
            _print(f"emalab: error: {one_line(error)}", sys.stderr)
            return False
        _print(f"{photograph.path} → {written}", sys.stdout)
        return True

    def _still(self, photograph: Photograph) -> str:
        from emalab.data.bands import decode_image, read_header, viewable
        from emalab.prediction import reading_for
        from emalab.viz import overlay, save_picture

        channels = self.model.config.in_channels
        pixels = decode_image(photograph.path, reading_for(channels, self.bits)).pixels
        stem = self.out / photograph.name
        labels, written = self._label_picture(pixels, stem)
        save_picture(overlay(_picture(viewable(pixels)), labels, self.spec), _with_ending(stem, ".overlay.png"))
        written.insert(1, _with_ending(stem, ".overlay.png"))
        stored = read_header(photograph.path).channels
        part = f" (the first {channels} of its {stored} channels)" if stored > channels == 3 else ""
        names = ", ".join([str(written[0]), *(path.name for path in written[1:])])
        return names + part + self._shrunk(*labels.shape)

    def _frames(self, photograph: Photograph, frames: Frames, video: bool) -> str:
        from emalab.video import write_animation, write_pages, write_video

        stem = self.out / photograph.name
        masks, ending = _with_ending(stem, ".masks"), "mp4" if video else "tif" if frames.are_pages else "webp"
        moving = _with_ending(stem, f".overlay.{ending}")
        overlays = self._overlays(frames, masks, photograph.path.name)
        if frames.are_pages:
            write_pages(moving, overlays)
        else:
            (write_video if video else write_animation)(moving, overlays, frames.rate)
        return f"{masks}/, {moving.name}"

    def _overlays(self, frames: Frames, masks: Path, name: str) -> Iterator[Image.Image]:
        """Label each frame and write its mask, as its picture is asked for."""
        from emalab.progress import progress_bar
        from emalab.viz import overlay

        named = range(self.spec.num_classes) if self.spec.num_classes <= _NAMED_IN_VIDEOS else ()
        unit = "page" if frames.are_pages else "frame"
        bar = progress_bar(frames.images, name, total=frames.count, unit=unit, leave=False)
        for index, image in enumerate(bar):
            labels, _ = self._label_picture(image, masks / f"{index:06d}")
            yield overlay(image, labels, self.spec, named=named)

    def _label_picture(
        self, photo: Image.Image | NDArray[np.uint8], stem: Path
    ) -> tuple[NDArray[np.unsignedinteger], list[Path]]:
        """Write the mask of one picture, and the probabilities that are asked for; the labels, and the files."""
        import numpy as np

        from emalab.prediction import predict_with_confidence
        from emalab.viz import save_confidence, save_labels, save_probabilities

        size = photo.shape[:2] if isinstance(photo, np.ndarray) else photo.size[::-1]
        probabilities = np.empty((*size, self.spec.num_classes), np.float16) if self.probabilities else None
        labels, confidence = predict_with_confidence(
            self.model,
            photo,
            max_side=self.max_side,
            views=self.views,
            bits=self.bits,
            probabilities=probabilities,
        )
        written = [_with_ending(stem, ".mask.png")]
        save_labels(labels, self.spec, written[0])
        if self.confidence:
            written.append(_with_ending(stem, ".confidence.png"))
            save_confidence(confidence, written[-1])
        if probabilities is not None:
            written.append(_with_ending(stem, ".probabilities.npz"))
            save_probabilities(probabilities, self.spec, written[-1])
        return labels, written

    def _shrunk(self, height: int, width: int) -> str:
        """What the user must know of the size at which the network saw the photograph."""
        side = self.max_side
        if not side or side >= max(height, width):
            return ""
        factor = side / max(height, width)
        return f" ({width}×{height} pixels, seen at {round(width * factor)}×{round(height * factor)}; see --max-side)"


def _print(line: str, file: TextIO) -> None:
    """The line, above a bar that is on the screen."""
    from tqdm import tqdm

    with tqdm.external_write_mode(file):
        print(line, file=file)


def _with_ending(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)


def _picture(pixels: Any) -> Image.Image:
    from PIL import Image

    return Image.fromarray(pixels)
