"""PASCAL Context: every pixel of VOC 2010's training images labeled, things and stuff, in 59 classes.

R. Mottaghi et al., "The role of context for object detection and semantic segmentation in the wild", CVPR 2014. The
release names 459 categories; the benchmark is the 59 most frequent. Pixels of the other 400 are ignored in
`context-59` and are the class background in `context-60`, two benchmarks whose scores differ by several points.

The order of the classes is that of their ids in the release, which is alphabetical: the order of the detail API's
users and of mmsegmentation's `PascalContextDataset59`. The release's `59_labels.txt` has another order (VOC's classes
first) and spells three names otherwise (`_SPELLINGS`); it is not read. The split is VOC 2010's own.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from emalab.data.conversion import make_label_files, read_mat, translate, value_table, write_names
from emalab.data.dataset import FilePair, SegmentationDataset
from emalab.data.errors import (
    DataError,
    MissingFileError,
    SizeMismatchError,
    UnreadableFileError,
)
from emalab.data.lists import read_names, require_root
from emalab.data.spec import DatasetSpec
from emalab.data.voc import voc_palette

FOLDER = Path("VOCdevkit/VOC2010")
_NUM_CATEGORIES = 459

# Class -> id of its category in the release. On the disk class k of these is stored as k + 1, and the rest as 0.
CATEGORIES = {
    **{"aeroplane": 2, "bag": 9, "bed": 18, "bedclothes": 19, "bench": 22, "bicycle": 23, "bird": 25, "boat": 31},
    **{"book": 33, "bottle": 34, "building": 44, "bus": 45, "cabinet": 46, "car": 59, "cat": 65, "ceiling": 68},
    **{"chair": 72, "cloth": 80, "computer": 85, "cow": 98, "cup": 104, "curtain": 105, "dog": 113, "door": 115},
    **{"fence": 144, "floor": 158, "flower": 159, "food": 162, "grass": 187, "ground": 189, "horse": 207},
    **{"keyboard": 220, "light": 232, "motorbike": 258, "mountain": 259, "mouse": 260, "person": 284, "plate": 295},
    **{"platform": 296, "pottedplant": 308, "road": 324, "rock": 326, "sheep": 347, "shelves": 349, "sidewalk": 354},
    **{"sign": 355, "sky": 360, "snow": 366, "sofa": 368, "table": 397, "track": 415, "train": 416, "tree": 420},
    **{"truck": 424, "tvmonitor": 427, "wall": 440, "water": 445, "window": 454, "wood": 458},
}
_SPELLINGS = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}  # 59_labels.txt -> labels.txt

CONTEXT_59 = DatasetSpec(
    name="context-59",
    title="PASCAL Context, 59 classes",
    classes=tuple(CATEGORIES),
    palette=voc_palette()[1 : len(CATEGORIES) + 1],  # the release has no colors of its own
    splits=("train", "val"),
    source="PASCAL Context labels of VOC 2010 (4998 train, 5105 val); the images are under Flickr's terms",
    split_sizes=(4998, 5105),
)
CONTEXT_60 = DatasetSpec(
    name="context-60",
    title="PASCAL Context, 59 classes and background",
    classes=("background", *CATEGORIES),
    palette=voc_palette(len(CATEGORIES) + 1),
    splits=CONTEXT_59.splits,
    source=CONTEXT_59.source,
    split_sizes=CONTEXT_59.split_sizes,
)

_VALUES = value_table(
    dict.fromkeys(range(_NUM_CATEGORIES + 1), 0) | {c: k for k, c in enumerate(CATEGORIES.values(), start=1)},
    _NUM_CATEGORIES + 1,
)


def load_context(spec: DatasetSpec, split: str, root: Path | None) -> SegmentationDataset:
    """What `convert_context` made under `root`, with the images of VOC 2010.

    `VOCdevkit/VOC2010/{JPEGImages,SegmentationClassContext}` and `ImageSets/SegmentationContext/{train,val}.txt`, the
    files that mmsegmentation keeps too. Both data sets read the same labels: 0 for background, 1–59 for the classes.

    Raises:
        DataError: there is no such root, or the label maps have not been converted.
    """
    root = require_root(root, spec.name)
    advice = f"The labels of the release must be converted first: `emalab data prepare {spec.name}`."
    names = read_names(root, f"{FOLDER.as_posix()}/ImageSets/SegmentationContext/{split}.txt", advice=advice)
    images, masks = root / FOLDER / "JPEGImages", root / FOLDER / "SegmentationClassContext"
    offset = CONTEXT_60.num_classes - spec.num_classes  # 1 where background is no class
    labels = {0: spec.ignore_index} | {stored: stored - offset for stored in range(offset, CONTEXT_60.num_classes)}
    return SegmentationDataset(
        spec, [FilePair(images / f"{name}.jpg", masks / f"{name}.png") for name in names], labels
    )


def convert_context(
    root: Path,
    source: Literal["mat", "json"] | None = None,
    *,
    num_threads: int | None = None,
    progress: bool = False,
) -> None:
    """Make `SegmentationClassContext` and its lists from either form in which the labels are published.

    - `"mat"`, the release: `VOCdevkit/VOC2010/trainval/NAME.mat` (`LabelMap`, 459 categories) and `labels.txt`, with
      VOC 2010's lists `ImageSets/Main/{train,val}.txt`;
    - `"json"`, the file of the detail API: `VOCdevkit/VOC2010/trainval_merged.json`, which is read whole.

    The same labels give the same files from both. The labels that are published in the two forms are not quite the
    same, though (mmsegmentation's pull request 474 found masks that differ): a score should say which it is of.
    Label files that exist are kept: delete `SegmentationClassContext` to change from one to the other.

    Args:
        root: the data root.
        source: which one; by default the .mat files where they are unpacked, else the json.
        num_threads: files made at a time; by default one for each processor.
        progress: show a progress bar.

    Raises:
        DataError: neither form is there, a split is missing, or a label map is missing, damaged, of another size than
            its image, or holds ids above 459.
    """
    voc = root / FOLDER
    mats, merged = voc / "trainval", voc / "trainval_merged.json"
    if not (mats.is_dir() or merged.is_file()):
        raise MissingFileError(
            f"{voc} has neither trainval/*.mat (the release of PASCAL Context) nor trainval_merged.json (the file of "
            "the detail API). Unpack one of them there: `emalab data prepare context-59`."
        )
    if source == "mat" or (source is None and mats.is_dir()):
        _check_categories(voc / "labels.txt")
        lists = f"{FOLDER.as_posix()}/ImageSets/Main"
        names = {split: read_names(root, f"{lists}/{split}.txt") for split in ("train", "val")}
        read: Callable[[str], np.ndarray] = partial(_read_mat, mats)
    else:
        names, read = _read_json(merged)
    make_label_files(
        voc / "SegmentationClassContext",
        [*names["train"], *names["val"]],
        read,
        images=voc / "JPEGImages",
        palette=CONTEXT_60.palette,
        num_threads=num_threads,
        progress=progress,
    )
    for split in ("train", "val"):
        write_names(voc / f"ImageSets/SegmentationContext/{split}.txt", names[split])


def _check_categories(path: Path) -> None:
    """Refuse a release that numbers its categories otherwise; `labels.txt` has lines such as "2: aeroplane".

    Raises:
        DataError: an id has another name than here, or the file is not such a list.
    """
    if not path.is_file():  # the label maps can be had without it
        return
    text = path.read_text(encoding="utf-8", errors="replace")
    pairs = [line.split(":", 1) for line in text.splitlines() if line.strip()]
    if not all(len(pair) == 2 and pair[0].strip().isdecimal() for pair in pairs):
        raise UnreadableFileError(f"{path}: not a list of categories, one 'id: name' a line.")
    named = {int(category): name.replace(" ", "") for category, name in pairs}
    for name, category in CATEGORIES.items():
        found = named.get(category, "nothing")
        if _SPELLINGS.get(found, found) != name:
            raise DataError(f"{path}: category {category} is {found}, expected {name}. Is it of another release?")


def _read_mat(folder: Path, name: str) -> np.ndarray:
    path = folder / f"{name}.mat"
    return translate(path, read_mat(path, "LabelMap")["LabelMap"], _VALUES)


def _read_json(path: Path) -> tuple[dict[str, list[str]], Callable[[str], np.ndarray]]:
    """The names of each split, and the function from a name to its labels."""
    try:
        with path.open(encoding="utf-8") as file:
            content = json.load(file, object_hook=_needed)
        images = {image["image_id"]: image for image in content["images"]}
        by_name = {Path(image["file_name"]).stem: image for image in images.values()}
        names: dict[str, list[str]] = {
            split: [name for name, image in by_name.items() if image["phase"] == split] for split in ("train", "val")
        }
        segments = defaultdict(list)  # by image, in the order of the file: later ones lie on top
        for segment in content["annos_segmentation"]:
            segments[segment["image_id"]].append((segment["category_id"], segment["segmentation"]))
    except (OSError, ValueError) as error:
        raise UnreadableFileError(f"{path}: not readable as JSON ({error}); it may be cut short.") from error
    except (KeyError, TypeError) as error:
        raise UnreadableFileError(f"{path}: not a file of the detail API, it lacks {error}.") from error
    if absent := [split for split, listed in names.items() if not listed]:
        raise MissingFileError(f"{path}: lists no image of the split {absent[0]!r}. Is it the file of another phase?")

    def read(name: str) -> np.ndarray:
        image = by_name[name]
        categories = np.zeros((image["height"], image["width"]), dtype=np.int64)
        for category, segmentation in segments[image["image_id"]]:
            try:
                mask = decode_mask(segmentation)
                category = int(category)
            except (ValueError, TypeError, KeyError) as error:
                raise UnreadableFileError(f"{path}: {name}: a mask cannot be decoded ({error}).") from error
            if mask.shape != categories.shape:
                raise SizeMismatchError(f"{path}: {name}: a mask is {mask.shape}, the image {categories.shape}.")
            categories[mask] = category
        return translate(f"{path}: {name}", categories, _VALUES)

    return names, read


_KEYS = {
    *("images", "image_id", "file_name", "phase", "height", "width"),
    *("annos_segmentation", "category_id", "segmentation", "size", "counts"),
}


def _needed(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop boundaries, occlusions, parts and key points while parsing: they are most of the file."""
    return {key: entry[key] for key in entry.keys() & _KEYS}


def decode_mask(segmentation: Mapping[str, Any]) -> np.ndarray:
    """COCO's compressed run-length code as a mask, bool (h, w).

    The runs go down the columns, alternately outside and inside. Each is written in base 32, least digit first, six
    bits a character from "0" on, of which the highest says that more follow; from the fourth run on, what is written is
    the difference from the run before last. (pycocotools decodes the same, and reads past the end of a damaged code.)

    Raises:
        ValueError: no such code, or runs that do not add up to ``segmentation["size"]``.
        KeyError, TypeError: no ``size`` or ``counts``, or of other types.
    """
    height, width = map(int, segmentation["size"])
    code = np.frombuffer(segmentation["counts"].encode("ascii"), np.uint8).astype(np.int64) - ord("0")
    if not code.size or code.min() < 0 or code.max() > 63 or code[-1] & 32:
        raise ValueError("its run-length code is cut short, or has strange characters")
    ends = np.flatnonzero(code & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > 6:
        raise ValueError("its run-length code has a run beyond all images")
    place = np.arange(code.size) - np.repeat(starts, digits)
    runs = np.add.reduceat((code & 31) << 5 * place, starts)
    runs -= np.where(code[ends] & 16, 1 << 5 * digits, 0)  # two's complement
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(f"its run-length code adds up to {runs.sum()} pixels, not to {height} × {width}")
    return np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(width, height).T
