"""COCO-Stuff, things and stuff in 171 classes: 10 000 images, or all of COCO 2017; and COCO 2017 with VOC's classes.

H. Caesar, J. Uijlings, V. Ferrari, "COCO-Stuff: Thing and stuff classes in context", CVPR 2018. Ids are COCO's: 1–91
are things, 92–182 stuff, 0 is unlabeled. Eleven of the things were never labeled, so 171 classes are left, in the order
of their ids. The two releases store ids differently: the .mat files of the 10k release as they are, the PNG files of
the 164k release (`stuffthingmaps`) less 1, with 255 for unlabeled. Converted files here are like the latter.
"""

from pathlib import Path

import numpy as np

from emalab.data.conversion import make_label_files, read_mat, run_all, translate, value_table, write_names
from emalab.data.dataset import FilePair, SegmentationDataset
from emalab.data.errors import DataError, MissingFileError
from emalab.data.lists import files_by_name, read_names, require_root
from emalab.data.masks import UNKNOWN, lookup_table, open_mask
from emalab.data.spec import DatasetSpec
from emalab.data.voc import VOC, voc_palette

FOLDER_10K = Path("cocostuff-10k-v1.1")  # images/, annotations/, imageLists/ of the archive of this name
FOLDER_2017 = Path("coco")  # train2017/, val2017/ of COCO, and stuffthingmaps/{train2017,val2017}/

_NAMES = (  # of the ids 1–182
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "street sign", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep"),
    *("cow", "elephant", "bear", "zebra", "giraffe", "hat", "backpack", "umbrella", "shoe", "eye glasses", "handbag"),
    *("tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove"),
    *("skateboard", "surfboard", "tennis racket", "bottle", "plate", "wine glass", "cup", "fork", "knife", "spoon"),
    *("bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake"),
    *("chair", "couch", "potted plant", "bed", "mirror", "dining table", "window", "desk", "toilet", "door", "tv"),
    *("laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink", "refrigerator"),
    *("blender", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush", "hair brush"),
    *("banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage", "cardboard", "carpet"),
    *("ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds", "counter", "cupboard", "curtain", "desk-stuff"),
    *("dirt", "door-stuff", "fence", "floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood"),
    *("flower", "fog", "food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house"),
    *("leaves", "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper"),
    *("pavement", "pillow", "plant-other", "plastic", "platform", "playingfield", "railing", "railroad", "river"),
    *("road", "rock", "roof", "rug", "salad", "sand", "sea", "shelf", "sky-other", "skyscraper", "snow"),
    *("solid-other", "stairs", "stone", "straw", "structural-other", "table", "tent", "textile-other", "towel"),
    *("tree", "vegetable", "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile"),
    *("wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood"),
)
_NEVER_LABELED = {
    *("street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender"),
    "hair brush",
}
IDS = {name: coco_id for coco_id, name in enumerate(_NAMES, start=1) if name not in _NEVER_LABELED}
_UNLABELED = 255

# VOC's classes under COCO's names; the rest of COCO is background.
_VOC_NAMES = {name: name for name in VOC.classes[1:]} | {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}

COCO_STUFF_10K = DatasetSpec(
    name="coco-stuff-10k",
    title="COCO-Stuff 10k",
    classes=tuple(IDS),
    palette=voc_palette()[1 : len(IDS) + 1],  # the release has no fixed colors
    splits=("train", "test"),
    source="COCO-Stuff 10k v1.1 (9000 train, 1000 test); labels under CC BY 4.0, images under Flickr's terms",
    split_sizes=(9000, 1000),
)
COCO_STUFF_164K = DatasetSpec(
    name="coco-stuff-164k",
    title="COCO-Stuff 164k",
    classes=COCO_STUFF_10K.classes,
    palette=COCO_STUFF_10K.palette,
    splits=("train", "val"),
    source="COCO-Stuff on COCO 2017 (118287 train, 5000 val); labels under CC BY 4.0, images under Flickr's terms",
    split_sizes=(118287, 5000),
)
COCO_VOC = DatasetSpec(
    name="coco-voc",
    title="COCO 2017, classes of PASCAL VOC",
    classes=VOC.classes,
    palette=VOC.palette,
    splits=("train", "val"),
    source="COCO-Stuff on COCO 2017, its images with classes of PASCAL VOC; labels under CC BY 4.0, images under "
    "Flickr's terms",
)

# What a PNG file stores -> class index.
_STUFF_LABELS = {coco_id - 1: k for k, coco_id in enumerate(IDS.values())} | {_UNLABELED: 255}
_VOC_LABELS = (
    dict.fromkeys((coco_id - 1 for coco_id in IDS.values()), 0)
    | {IDS[_VOC_NAMES[name]] - 1: k for k, name in enumerate(VOC.classes[1:], start=1)}
    | {_UNLABELED: 255}
)
# What a .mat file stores -> what a PNG file stores.
_MAT_VALUES = value_table({0: _UNLABELED} | {coco_id: coco_id - 1 for coco_id in IDS.values()}, len(_NAMES) + 1)


def load_coco_stuff_10k(split: str, root: Path | None) -> SegmentationDataset:
    """`cocostuff-10k-v1.1/{images,labels,imageLists}` under `root`, the labels made by `convert_coco_stuff_10k`.

    Raises:
        DataError: there is no such root, it has no list of the split, or the labels have not all been converted.
    """
    root = require_root(root, COCO_STUFF_10K.name)
    names = read_names(root, f"{FOLDER_10K}/imageLists/{split}.txt")
    release, masks = root / FOLDER_10K, files_by_name(root / FOLDER_10K / "labels", ".png")
    unconverted = files_by_name(release / "annotations", ".mat").keys() & set(names) - masks.keys()
    if unconverted:
        raise MissingFileError(
            f"{release}: {len(unconverted)} of the {len(names)} label maps of {split} are still .mat files. "
            "They must be converted first: `emalab data prepare coco-stuff-10k`."
        )
    return SegmentationDataset(
        COCO_STUFF_10K,
        [FilePair(release / f"images/{name}.jpg", release / f"labels/{name}.png") for name in names],
        _STUFF_LABELS,
    )


def load_coco_stuff_164k(split: str, root: Path | None) -> SegmentationDataset:
    """`coco/{train2017,val2017}` with the labels `coco/stuffthingmaps/{train2017,val2017}` under `root`, as released.

    There are no lists: the images of a split are those with labels in its folder.

    Raises:
        DataError: there is no such root, or it has no labels of the split.
    """
    root = require_root(root, COCO_STUFF_164K.name)
    return SegmentationDataset(COCO_STUFF_164K, _pairs_2017(root, split, _names_2017(root, split)), _STUFF_LABELS)


def load_coco_voc(split: str, root: Path | None) -> SegmentationDataset:
    """The files of `load_coco_stuff_164k` with VOC's 20 classes; every other class is background.

    The images are those that hold a class of VOC, as `convert_coco_voc` listed them.

    Raises:
        DataError: there is no such root, or the list has not been made.
    """
    root = require_root(root, COCO_VOC.name)
    advice = "It is made from the labels: `emalab data prepare coco-voc`."
    names = read_names(root, f"{FOLDER_2017}/voc/{split}.txt", advice=advice)
    return SegmentationDataset(COCO_VOC, _pairs_2017(root, split, names), _VOC_LABELS)


def convert_coco_stuff_10k(root: Path, *, num_threads: int | None = None, progress: bool = False) -> None:
    """Make `cocostuff-10k-v1.1/labels/NAME.png` from the release's `annotations/NAME.mat` (variable `S`).

    Raises:
        DataError: a list is missing, a label map is missing, damaged, of another size than its image, or holds ids
            that COCO-Stuff does not use, or the release is 1.0, which numbered the classes otherwise.
    """
    release = root / FOLDER_10K
    make_label_files(
        release / "labels",
        [name for split in COCO_STUFF_10K.splits for name in read_names(root, f"{FOLDER_10K}/imageLists/{split}.txt")],
        lambda name: _read_mat(release / f"annotations/{name}.mat"),
        images=release / "images",
        palette=voc_palette(),
        num_threads=num_threads,
        progress=progress,
    )


def convert_coco_voc(root: Path, *, num_threads: int | None = None, progress: bool = False) -> None:
    """Make `coco/voc/{train,val}.txt`, the images of COCO 2017 with at least one pixel of a class of VOC.

    Every label map is read, which takes some minutes; a list that is there is kept.

    Raises:
        DataError: labels are missing, cannot be read, or hold values that COCO-Stuff does not use.
    """
    table = lookup_table(_VOC_LABELS)
    for split in COCO_VOC.splits:
        target = root / FOLDER_2017 / f"voc/{split}.txt"
        if target.is_file():
            continue
        pairs = _pairs_2017(root, split, _names_2017(root, split))

        def shows_voc(pair: FilePair) -> bool:
            labels = open_mask(pair.mask, table)
            return bool(((labels > 0) & (labels < UNKNOWN)).any())

        kept = run_all(shows_voc, pairs, f"reading {split}", num_threads, progress)
        write_names(target, (pair.mask.stem for pair, keep in zip(pairs, kept, strict=True) if keep))


def _names_2017(root: Path, split: str) -> list[str]:
    labels = root / FOLDER_2017 / f"stuffthingmaps/{split}2017"
    if not (names := sorted(files_by_name(labels, ".png"))):
        raise MissingFileError(
            f"{labels} has no label maps. `emalab data prepare coco-stuff-164k` unpacks the release into "
            f"{FOLDER_2017}/ under the data root (--data-root or EMALAB_DATA)."
        )
    return names


def _pairs_2017(root: Path, split: str, names: list[str]) -> list[FilePair]:
    coco = root / FOLDER_2017
    return [
        FilePair(coco / f"{split}2017/{name}.jpg", coco / f"stuffthingmaps/{split}2017/{name}.png") for name in names
    ]


def _read_mat(path: Path) -> np.ndarray:
    content = read_mat(path, "S", "names")
    if "names" in content and np.size(content["names"]) != len(_NAMES):
        raise DataError(
            f"{path}: names {np.size(content['names'])} classes, expected the {len(_NAMES)} of COCO-Stuff 10k v1.1. "
            "Release 1.0 numbered them otherwise; take cocostuff-10k-v1.1.zip."
        )
    return translate(path, content["S"], _MAT_VALUES)
