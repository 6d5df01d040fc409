"""Which files of a folder are photographs, which their masks, and which belong to which split.

    images/train/a.jpg  masks/train/a.png      a folder for each split, or
    images/a.jpg        masks/a.png            no splits: a fifth of the images is kept for val, or
    splits/train.txt    splits/val.txt         lists of names, one a line, which say more than folders

Names are compared without their endings, in Unicode's composed form (macOS stores ä as a and two dots), and with the
folders that they lie in: images/train/north/a.jpg belongs to masks/train/north/a.png.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emalab.data.errors import DataError, MissingFileError, UnreadableFileError
from emalab.data.images import IMAGE_SUFFIXES
from emalab.data.masks import MASK_SUFFIXES
from emalab.data.names import RESULTS
from emalab.files import write_atomically

__all__ = [
    "Layout",
    "SplitFiles",
    "band_files",
    "find_layout",
    "find_split",
    "labeled_splits",
    "listed",
    "why_unlabeled",
    "write_splits",
]

SPLITS_FOLDER = "splits"
VAL_PART = 0.2  # of images without splits
_MASK_ENDINGS = ("_mask", "-mask", "_masks", "_label", "-label", "_labels", "_gt", "_seg", "_segmentation")
_BAND_SUFFIXES = (".npy", ".tif", ".tiff")
_SHOWN = 5  # names that a message lists


@dataclass(frozen=True)
class Layout:
    """How a folder is divided: by folders (`names` is None), or by the names of each split.

    `written` says whether the names come from `splits/*.txt` or were chosen here.
    """

    splits: tuple[str, ...]
    names: dict[str, tuple[str, ...]] | None = None
    written: bool = True


@dataclass
class SplitFiles:
    """Photographs and masks of a split, by name, and what is only worth knowing."""

    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)
    unread: list[Path] = field(default_factory=list)
    unused: list[Path] = field(default_factory=list)
    ending: str = ""


def find_layout(folder: Path) -> Layout:
    """The splits of a folder.

    Raises:
        DataError: there is no `images/`, or nothing in it.
    """
    images = folder / "images"
    if not images.is_dir():
        raise MissingFileError(f"{images}: no such folder. It is to hold the photographs, or a folder for each split.")
    if lists := sorted((folder / SPLITS_FOLDER).glob("*.txt")):
        return Layout(tuple(path.stem for path in lists), {path.stem: _read_list(path) for path in lists})
    if any(_is_image(path) for path in images.iterdir()):
        return _chosen_splits(folder)
    splits = sorted(path.name for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not splits:
        raise MissingFileError(
            f"{images} has no folders and no images. Put photographs into images/train and images/val, and their "
            "labels into masks/train and masks/val; or all into images/ and masks/."
        )
    return Layout(tuple(splits))


def _chosen_splits(folder: Path) -> Layout:
    """A fifth of the images for val, chosen by the hash of their names: the same on every machine."""
    names = list(_by_name(folder / "images", IMAGE_SUFFIXES)[0])
    if len(names) < 2:
        raise MissingFileError(f"{folder / 'images'} has {len(names)} image; at least one to train and one for val.")
    ordered = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
    val = max(round(VAL_PART * len(names)), 1)
    chosen = {"train": tuple(sorted(ordered[val:])), "val": tuple(sorted(ordered[:val]))}
    return Layout(tuple(chosen), chosen, written=False)


def write_splits(folder: Path, layout: Layout) -> list[Path]:
    """Write down the splits that were chosen, so that they stay when images are added; the files."""
    paths = []
    for split, names in (layout.names or {}).items():
        paths.append(folder / SPLITS_FOLDER / f"{split}.txt")
        text = "".join(f"{name}\n" for name in names)
        write_atomically(paths[-1], lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))  # type: ignore[misc]
    return paths


def _read_list(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableFileError(f"{path}: not a list of names in UTF-8 ({error}).") from error
    names = [_without_ending(line.strip()) for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path}: lists no images. Write one name a line, or remove the file.")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise DataError(f"{path}: lists {name} {count} times. Every image of a split must be listed once.")
    return tuple(sorted(names))


def _without_ending(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return _composed(stem if dot and f".{ending.lower()}" in IMAGE_SUFFIXES else name)


def labeled_splits(folder: Path, layout: Layout) -> tuple[str, ...]:
    """Splits with masks: those with a folder in `masks/`, or for whose names there is at least one."""
    if layout.names is None:
        return tuple(split for split in layout.splits if (folder / "masks" / split).is_dir())
    masks = _by_name(folder / "masks", MASK_SUFFIXES)[0] if (folder / "masks").is_dir() else {}
    return tuple(
        split
        for split, names in layout.names.items()
        if any(f"{name}{ending}" in masks for ending in ("", *_MASK_ENDINGS) for name in names)
    )


def why_unlabeled(folder: Path) -> str:
    """Of a folder without a mask of any image: the files in `masks/` that were perhaps meant, as a sentence, or ""."""
    found = _by_name(folder / "masks", MASK_SUFFIXES)[1] if (folder / "masks").is_dir() else []
    lossy = [path.name for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
    return f" Masks must be PNG, TIFF or BMP, which keep every value; found {listed(lossy)}." if lossy else ""


def find_split(folder: Path, layout: Layout, split: str, labeled: bool) -> SplitFiles:
    """The files of one split, sorted by name.

    Args:
        folder: the folder.
        layout: what `find_layout` found.
        split: one of its splits.
        labeled: whether every image must have a mask.

    Raises:
        DataError: no images, two of one name, an image that a list has and the disk does not, or one without a mask.
    """
    below = "" if layout.names else split
    images, unread = _by_name(folder / "images" / below, IMAGE_SUFFIXES)
    if layout.names:
        lost = [name for name in layout.names[split] if name not in images]
        if lost:
            path = folder / SPLITS_FOLDER / f"{split}.txt"
            raise MissingFileError(f"{path} lists {listed(lost)}, not in {folder / 'images'}; correct the list.")
        everything, images = images, {name: images[name] for name in layout.names[split]}
    else:
        everything = images
    if not images:
        hint = f" It has {listed([path.name for path in unread])}." if unread else ""
        raise MissingFileError(
            f"{folder / 'images' / below} has no images; those end in {', '.join(IMAGE_SUFFIXES)}.{hint}"
        )
    files = SplitFiles(images, unread=unread)
    if labeled:
        _find_masks(files, folder / "masks" / below, everything)
    return files


def _find_masks(files: SplitFiles, folder: Path, everything: dict[str, Path]) -> None:
    """The mask of each image, by name; `MissingFileError` where there are fewer, with what may have been meant."""
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder. It is to hold a mask for each photograph, under its name.")
    masks, unread = _by_name(folder, MASK_SUFFIXES)
    endings = ["", *(ending for ending in _MASK_ENDINGS if any(name.endswith(ending) for name in masks))]
    files.ending = next((e for e in endings if all(f"{name}{e}" in masks for name in files.images)), "")
    files.unread += unread
    files.masks = {name: masks[f"{name}{files.ending}"] for name in files.images if f"{name}{files.ending}" in masks}
    belonging = {f"{name}{files.ending}" for name in everything}
    files.unused = [path for name, path in masks.items() if name not in belonging]
    if missing := [name for name in files.images if name not in files.masks]:
        raise _missing_masks(folder, missing, len(files.images), files.unused, unread)


def _missing_masks(
    folder: Path, missing: list[str], count: int, unused: list[Path], unread: list[Path]
) -> MissingFileError:
    lossy = [path.name for path in unread if _name_below(folder, path) in missing]
    if lossy:
        hint = f"Masks must be PNG, TIFF or BMP, which keep every value; found {listed(lossy)}."
    elif unused:
        hint = f"A mask is named like its image; without an image: {listed([path.name for path in unused])}."
    else:
        hint = "Add them, or remove the images."
    names = listed([f"{name}.png" for name in missing])
    return MissingFileError(f"{folder}: no mask for {len(missing)} of {count} images: {names}. {hint}")


def _by_name(folder: Path, suffixes: Sequence[str]) -> tuple[dict[str, Path], list[Path]]:
    """Name -> file below `folder`, sorted, and the files with other endings; `DataError` where two share a name.

    Hidden files, which some systems leave, do not count, and predictions are no photographs.
    """
    files: dict[str, Path] = {}
    others = []
    for path in _walk(folder):
        if path.suffix.lower() not in suffixes or (suffixes is IMAGE_SUFFIXES and _is_result(path)):
            others.append(path)
            continue
        name = _name_below(folder, path)
        if name in files:
            raise DataError(
                f"{folder}: {files[name].name} and {path.name} would share the mask {name}.png; rename one."
            )
        files[name] = path
    return dict(sorted(files.items())), others


def band_files(folder: Path) -> list[Path]:
    """The images of a folder that may have bands, by their endings, sorted."""
    return [path for path in _walk(folder / "images") if path.suffix.lower() in _BAND_SUFFIXES and _is_image(path)]


def _walk(folder: Path) -> list[Path]:
    """Every file below a folder, sorted; links to folders are followed, but not in circles."""
    found, seen = [], set()
    for where, folders, files in os.walk(folder, followlinks=True):
        status = Path(where).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in files if not name.startswith(".")]
    return sorted(found)


def _name_below(folder: Path, path: Path) -> str:
    return _composed(path.relative_to(folder).with_suffix("").as_posix())


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _is_image(path: Path) -> bool:
    is_photograph = path.suffix.lower() in IMAGE_SUFFIXES and not _is_result(path)
    return is_photograph and not path.name.startswith(".") and path.is_file()


def _is_result(path: Path) -> bool:
    return path.name.lower().endswith(RESULTS)


def listed(names: Sequence[str]) -> str:
    """The first few of many names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
