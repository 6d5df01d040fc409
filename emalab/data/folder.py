"""Images and masks of one's own: a folder of them, and a few lines of YAML that say what the masks mean.

The folder holds photographs of any size, and for each a mask under the same name and of the same size:

    roofs/classes.yaml
    roofs/images/train/a.jpg    roofs/images/val/b.jpg
    roofs/masks/train/a.png     roofs/masks/val/b.png

Splits are the folders in `images/`, whatever their names; one without a counterpart in `masks/` has no labels, and can
be predicted but not trained on. `classes.yaml` needs one key, and may have three more:

    classes: [ground, roof, solar panel]                  # names, in the order of their labels
    values: [0, 128, 255]                                 # what masks store for them; 0, 1, 2, … by default
    colors: [[52, 58, 72], [165, 65, 55], [20, 110, 105]] # for figures, and for masks that are drawn in RGB
    ignore: 254                                           # neither trains nor counts: values or colors; else 255

Where commands and recipes take the name of a data set, they take `roofs/` or `roofs/classes.yaml`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from emalab.data.dataset import FilePair, SegmentationDataset
from emalab.data.errors import DataError, MissingFileError, UnreadableFileError
from emalab.data.masks import UNKNOWN
from emalab.data.spec import Color, DatasetSpec
from emalab.data.voc import voc_palette

__all__ = ["CLASSES_FILE", "FolderLabels", "folder_spec", "load_folder", "read_labels"]

CLASSES_FILE = "classes.yaml"
"""Where a folder says what its masks mean."""

_IGNORED = 255  # after loading, and in masks unless the folder says otherwise
_IMAGES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
_SHOWN = 5  # names that an error lists


@dataclass(frozen=True)
class FolderLabels:
    """What the masks of a folder mean: `classes.yaml`, as a value.

    A mask with one 8-bit channel (grey, or indices of a palette) is read by ``values``, one drawn in RGB, or with a
    palette of these colors alone, by ``colors``.

    Args:
        classes: names; the position is the label after loading.
        values: what masks store for each class, 0–255; empty for 0, 1, 2, …
        colors: RGB (0–255) of each class; empty for VOC's palette, which is for figures alone.
        ignore: values and colors of pixels that neither train nor count; None for the value 255, unless that is a
            class.

    Raises:
        DataError: the fields are of another kind, out of range, repeat, or contradict each other.
    """

    classes: tuple[str, ...]
    values: tuple[int, ...] = ()
    colors: tuple[Color, ...] = ()
    ignore: tuple[int | Color, ...] | None = None

    def __post_init__(self) -> None:
        if not self.classes or len(self.classes) > UNKNOWN:
            raise DataError(f"classes has {len(self.classes)} names; there must be 1 to {UNKNOWN}")
        for i, name in enumerate(self.classes):
            if not isinstance(name, str) or not name:
                raise DataError(f'classes[{i}] is {name!r}, not a name; YAML reads yes, no and 1 as names in "quotes"')
        color = "a color [red, green, blue], each in 0–255"
        self._check("values", self.values, _is_value, "a whole number in 0–255")
        self._check("colors", self.colors, _is_color, color)
        self._check("ignore", self.ignore or (), lambda e: _is_value(e) or _is_color(e), f"a value in 0–255 or {color}")
        for key in ("classes", "values", "colors"):
            if twice := _repeated(getattr(self, key)):
                raise DataError(f"{key} has {_shown(twice[0])} twice; each class needs its own")
        if clash := _repeated([*self.stored_values, *self.colors, *self.ignored]):
            raise DataError(
                f"{_shown(clash[0])} in ignore is that of a class, or there twice; "
                "one color that is ignored is written [[red, green, blue]]"
            )

    def _check(self, key: str, entries: Sequence[Any], valid: Callable[[Any], bool], what: str) -> None:
        if entries and key != "ignore" and len(entries) != len(self.classes):
            raise DataError(f"{key} has {len(entries)} entries for {len(self.classes)} classes; give one for each")
        for i, entry in enumerate(entries):
            if not valid(entry):
                raise DataError(f"{key}[{i}] is {_shown(entry)}; it must be {what}")

    @property
    def stored_values(self) -> tuple[int, ...]:
        """What masks store for each class."""
        return self.values or tuple(range(len(self.classes)))

    @property
    def ignored(self) -> tuple[int | Color, ...]:
        """Values and colors that are ignored."""
        if self.ignore is None:
            return () if _IGNORED in self.stored_values else (_IGNORED,)
        return self.ignore


def read_labels(path: Path) -> FolderLabels:
    """What a `classes.yaml` says.

    Raises:
        DataError: no such file, not YAML, a key that does not exist, or an entry that `FolderLabels` refuses.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MissingFileError(
            f"{path}: no such file. It says what the masks mean; one line will do: classes: [ground, roof]"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UnreadableFileError(f"{path}: cannot be read as YAML ({reason}). Correct it there.") from error
    keys = [field.name for field in fields(FolderLabels)]
    if not isinstance(content, dict) or "classes" not in content:
        raise DataError(f"{path}: has no key classes. It is to begin like this: classes: [ground, roof]")
    for key in content:
        if key not in keys:
            near = get_close_matches(str(key), keys, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise DataError(f"{path}: {key!r} is no key; {hint}There are: {', '.join(keys)}.")
    ignore = content.get("ignore")
    content["ignore"] = [ignore] if isinstance(ignore, int) else ignore
    for key, entries in content.items():
        if not isinstance(entries, list) and not (key != "classes" and entries is None):
            raise DataError(f"{path}: {key} is {entries!r}; it must be a list in [ ]")
    try:
        return FolderLabels(
            classes=tuple(content["classes"]),
            values=tuple(content.get("values") or ()),
            colors=tuple(map(_frozen, content.get("colors") or ())),
            ignore=None if content["ignore"] is None else tuple(map(_frozen, content["ignore"])),
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def folder_spec(root: Path | str, labels: FolderLabels | None = None) -> DatasetSpec:
    """The constants of the folder ``root``.

    Args:
        root: the folder, or its `classes.yaml`; the spec's name, as it is given.
        labels: what its masks mean; by default what its `classes.yaml` says.

    Raises:
        DataError: as `read_labels`; or there is no `images/` in it, or no split with labels.
    """
    folder, labels = _open(Path(root), labels)
    splits = _subfolders(folder / "images")
    if not splits:
        raise MissingFileError(
            f"{folder / 'images'} has no folders. Every split is one: put photographs into images/train and "
            "images/val, and their labels into masks/train and masks/val."
        )
    labeled = [split for split in splits if (folder / "masks" / split).is_dir()]
    if not labeled:
        raise MissingFileError(
            f"{folder / 'masks'} has none of the folders {', '.join(splits)} that images/ has, so nothing is labeled."
        )
    return DatasetSpec(
        name=str(root),
        title=folder.resolve().name,
        classes=labels.classes,
        palette=labels.colors or voc_palette(len(labels.classes)),
        splits=tuple(labeled),
        source=f"images and masks in {folder}",
        ignore_index=_IGNORED,
        unlabeled_splits=tuple(split for split in splits if split not in labeled),
    )


def load_folder(root: Path | str, split: str, labels: FolderLabels | None = None) -> SegmentationDataset:
    """The samples of one split, sorted by name.

    That every image has a mask is looked at now; what the files hold, when they are read (`emalab data check` reads
    all). Masks without an image are not used.

    Args:
        root: the folder, or its `classes.yaml`.
        split: a folder in `images/`; where `masks/` has none of this name, only `image(index)` can be asked for.
        labels: what the masks mean; by default what `classes.yaml` says.

    Raises:
        DataError: as `folder_spec`; no such split, no images in it, an image without a mask, or two files of one name.
    """
    spec = folder_spec(root, labels)
    folder, labels = _open(Path(root), labels)
    if split not in (splits := spec.splits + spec.unlabeled_splits):
        raise DataError(f"{folder / 'images'} has no folder {split!r}. There are: {', '.join(splits)}.")
    images = _by_stem(folder / "images" / split, _IMAGES)
    if not images:
        raise MissingFileError(f"{folder / 'images' / split} has no images; those end in {', '.join(_IMAGES)}.")
    masks = _find_masks(images, folder / "masks" / split) if split in spec.splits else {}
    values = dict(zip(labels.stored_values, range(spec.num_classes), strict=True))
    colors = dict(zip(labels.colors, range(spec.num_classes), strict=False))
    for entry in labels.ignored:
        if isinstance(entry, int):
            values[entry] = _IGNORED
        else:
            colors[entry] = _IGNORED
    absent = folder / "masks" / split
    pairs = [FilePair(path, masks.get(stem, absent / f"{stem}.png")) for stem, path in sorted(images.items())]
    return SegmentationDataset(spec, pairs, values, colors)


def _open(root: Path, labels: FolderLabels | None) -> tuple[Path, FolderLabels]:
    """The folder and what its masks mean, from the path of either the folder or the file."""
    folder, file = (root.parent, root) if root.suffix in (".yaml", ".yml") else (root, root / CLASSES_FILE)
    if not folder.is_dir():
        raise MissingFileError(f"{folder} is not a folder. It is to hold {CLASSES_FILE}, images/ and masks/.")
    return folder, read_labels(file) if labels is None else labels


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder. It is to hold one folder of photographs for each split.")
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _by_stem(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Stem -> file; `DataError` where two files share one. Hidden files, which some systems leave, do not count."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise DataError(
                f"{folder}: {files[path.stem].name} and {path.name} would share the mask {path.stem}.png; rename one."
            )
        files[path.stem] = path
    return files


def _find_masks(images: dict[str, Path], folder: Path) -> dict[str, Path]:
    """The mask of each image, by stem; `MissingFileError` where there are fewer, with what may have been meant."""
    masks = _by_stem(folder, (".png",))
    missing = [stem for stem in images if stem not in masks]
    if not missing:
        return masks
    others = sorted(path.name for path in folder.iterdir() if path.stem not in images and path.name[0] != ".")
    lossy = sorted(path.name for path in folder.iterdir() if path.stem in missing)
    if lossy:
        hint = f"Masks must be PNG, which keeps every value; found {_listed(lossy)}."
    elif others:
        hint = f"A mask is named like its image; without an image: {_listed(others)}."
    else:
        hint = "Add them, or remove the images."
    names = _listed([f"{stem}.png" for stem in missing])
    raise MissingFileError(f"{folder}: no mask for {len(missing)} of {len(images)} images: {names}. {hint}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _is_value(entry: Any) -> bool:
    return isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry <= 255


def _is_color(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 3 and all(map(_is_value, entry))


def _repeated(entries: Sequence[Any]) -> list[Any]:
    return [entry for i, entry in enumerate(entries) if entry in entries[:i]]


def _frozen(entry: Any) -> Any:
    return tuple(entry) if isinstance(entry, list) else entry


def _shown(entry: Any) -> str:
    return repr(list(entry) if isinstance(entry, tuple) else entry)
