"""Images and masks of one's own: a folder of them, and a few lines of YAML that define what the masks mean.

The folder holds images of any size, and for each a mask under the same name and of the same size. Images are
photographs, or have any number of channels as `emalab.data.bands` reads them: arrays in .npy files, and TIFFs.

    roofs/classes.yaml
    roofs/images/train/a.jpg    roofs/images/val/b.jpg
    roofs/masks/train/a.png     roofs/masks/val/b.png

Splits are the folders in `images/`, whatever their names; one without a counterpart in `masks/` has no labels, and can
be predicted but not trained on. Without folders a fifth of the images is kept for val, and lists such as
`splits/val.txt` override both (see `emalab.data.folder_files`). `classes.yaml` needs one key, and may have more:

    classes: [ground, roof, solar panel]                  # names, in the order of their labels
    values: [0, 128, [254, 255]]                          # what masks store for them; 0, 1, 2, … by default
    colors: [[52, 58, 72], [165, 65, 55], [20, 110, 105]] # for figures, and for masks that are drawn in RGB
    ignore: 253                                           # neither trains nor counts: values or colors; see below
    orientation: stored                                   # photographs have EXIF turns that masks were drawn without
    channels: 4                                           # of every image; by default that of the first with bands
    bits: 12                                              # depth of images whose files do not state it
    max_megapixels: 200                                   # of the largest file that is opened; 100 by default

Masks in gray (PNG, TIFF, BMP) have 8 or 16 bits. Without `ignore`, the ignored value is 255, or 65535 if a class has a
value above 255, unless that value is a class. Up to 65534 classes are possible. With up to 254, loaded labels are uint8
and ignored pixels 255; with more, labels are int32 and ignored pixels 65535.

Where commands and recipes take the name of a data set, they take `roofs/` or `roofs/classes.yaml`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from emalab.data.bands import read_header
from emalab.data.dataset import FilePair, SegmentationDataset
from emalab.data.errors import DataError, MissingFileError
from emalab.data.folder_files import (
    Layout,
    band_files,
    find_layout,
    find_split,
    labeled_splits,
    listed,
    why_unlabeled,
)
from emalab.data.folder_labels import (
    CLASSES_FILE,
    FolderLabels,
    existing_folder,
    folder_of,
    read_labels,
)
from emalab.data.images import Reading
from emalab.data.spec import DatasetSpec, channels_of
from emalab.data.voc import voc_palette

__all__ = ["CLASSES_FILE", "FolderLabels", "folder_notes", "folder_of", "folder_spec", "load_folder", "read_labels"]


def folder_spec(root: Path | str, labels: FolderLabels | None = None) -> DatasetSpec:
    """The constants of the folder ``root``.

    Args:
        root: the folder, or its `classes.yaml`; the spec's name, as it is given.
        labels: what its masks mean; by default what its `classes.yaml` says.

    Raises:
        DataError: as `read_labels`; or there is no `images/` in it, or no split with labels.
    """
    folder, labels = _open(Path(root), labels)
    layout = find_layout(folder)
    labeled = labeled_splits(folder, layout)
    if not labeled:
        raise MissingFileError(
            f"{folder / 'masks'} has none of the folders {', '.join(layout.splits)} that images/ has, so nothing is "
            "labeled."
            if layout.names is None
            else f"{folder / 'masks'} has no mask of any image, so nothing is labeled.{why_unlabeled(folder)}"
        )
    return DatasetSpec(
        name=str(root),
        title=folder.resolve().name,
        classes=labels.classes,
        palette=labels.colors or voc_palette(len(labels.classes)),
        splits=labeled,
        source=f"images and masks in {folder}",
        ignore_index=labels.ignore_index,
        unlabeled_splits=tuple(split for split in layout.splits if split not in labeled),
        channels=_reading(folder, labels).channels or 3,
        bits=labels.bits,
    )


def load_folder(
    root: Path | str, split: str, labels: FolderLabels | None = None, *, gray: bool = False
) -> SegmentationDataset:
    """The samples of one split, sorted by name.

    That every image has a mask is looked at now; what the files hold, when they are read (`emalab data check` reads
    all). Masks without an image are not used.

    Args:
        root: the folder, or its `classes.yaml`.
        split: a folder in `images/`; where `masks/` has none of this name, only `image(index)` can be asked for.
        labels: what the masks mean; by default what `classes.yaml` says.
        gray: read photographs as gray, in one channel, unless `labels` has `channels`.

    Raises:
        DataError: as `folder_spec`; no such split, no images in it, an image without a mask, or two files of one name.
    """
    spec = folder_spec(root, labels)
    folder, labels = _open(Path(root), labels)
    if split not in (splits := spec.splits + spec.unlabeled_splits):
        raise DataError(f"{folder / 'images'} has no folder {split!r}. There are: {', '.join(splits)}.")
    layout = find_layout(folder)
    files = find_split(folder, layout, split, labeled=split in spec.splits)
    absent = folder / "masks" / ("" if layout.names else split)
    pairs = [FilePair(path, files.masks.get(name, absent / f"{name}.png")) for name, path in files.images.items()]
    reading = _reading(folder, labels)
    if gray and labels.channels is None and reading.channels in (None, 3):
        spec, reading = replace(spec, channels=1), replace(reading, channels=1)
    return SegmentationDataset(
        spec,
        pairs,
        labels.label_of_value,
        labels.label_of_color if labels.colors else None,
        reading,
        list(files.images),
    )


def _reading(folder: Path, labels: FolderLabels) -> Reading:
    """How files become pixels: with the number of channels that is stated, or else that of the first file with bands.

    Three stated channels are RGB; a fourth one of a TIFF is then dropped.
    """
    reading = labels.reading
    if labels.channels is not None:
        channels = None if labels.channels == 3 else labels.channels
        return replace(reading, channels=channels, reason=f"as {CLASSES_FILE} says")
    for path in band_files(folder):
        try:
            header = read_header(path, reading.max_pixels)
        except DataError:
            continue  # reported when its turn comes
        return replace(reading, channels=header.channels, reason=f"as {path} has")
    return reading


def folder_notes(root: Path | str) -> list[str]:
    """What was assumed about the files of a folder, and which of them are not used; one sentence each."""
    folder, labels = _open(Path(root), None)
    layout = find_layout(folder)
    labeled = labeled_splits(folder, layout)
    notes = [*_label_notes(labels), *_channel_notes(folder, labels), *_layout_notes(layout)]
    reported: set[Path] = set()
    for split in layout.splits:
        try:
            files = find_split(folder, layout, split, split in labeled)
        except DataError:
            continue  # a problem, not a note
        if files.ending:
            notes.append(f"masks of {split} are named like their images with {files.ending} behind")
        for paths, what in ((files.unread, "not read, for their endings"), (files.unused, "masks without an image")):
            if new := [path for path in paths if path not in reported]:
                reported.update(new)
                names = listed([path.relative_to(folder).as_posix() for path in new])
                notes.append(f"{len(new)} files of {split} are {what}: {names}")
    return notes


def _label_notes(labels: FolderLabels) -> list[str]:
    notes = []
    if not labels.values and not labels.colors:
        notes.append(f"masks are taken to store 0 to {len(labels.classes) - 1}, as there are no values and no colors")
    if labels.ignore is None:
        notes += [f"{value} is taken for ignored" for value in labels.ignored]
    return notes


def _channel_notes(folder: Path, labels: FolderLabels) -> list[str]:
    reading = _reading(folder, labels)
    if reading.channels in (None, 3):
        return []
    also = reading.channels == 4 and labels.channels is None
    rgb = f"; channels: 3 in {CLASSES_FILE} would drop the fourth" if also else ""
    return [f"images have {channels_of(reading.channels)}, {reading.reason}{rgb}"]


def _layout_notes(layout: Layout) -> list[str]:
    if layout.names is None:
        return []
    if layout.written:
        return ["the splits are those of splits/*.txt"]
    counts = ", ".join(f"{split} {len(names)}" for split, names in layout.names.items())
    return [f"there are no splits: {counts} images, chosen by their names (--write keeps this in splits/)"]


def _open(root: Path, labels: FolderLabels | None) -> tuple[Path, FolderLabels]:
    """The folder and what its masks mean, from the path of either the folder or the file."""
    folder = existing_folder(root)
    file = folder / CLASSES_FILE if folder == root else root
    return folder, read_labels(file) if labels is None else labels
