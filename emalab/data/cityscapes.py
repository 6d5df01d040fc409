"""Cityscapes: street scenes of 50 cities, 2048×1024, 19 classes; and a copy of its scenes at 256×256.

M. Cordts et al., "The Cityscapes dataset for semantic urban scene understanding", CVPR 2016. The whole release is here
for the networks of mmsegmentation, which were trained on it; the copy, for the book's studies. Its images are those of
pix2pix (P. Isola et al., CVPR 2017). Its labels were decoded from colors in JPEG files, so that a fifth of the pixels,
at boundaries above all, is ignored: scores on it are comparable with each other alone.
"""

from dataclasses import replace
from pathlib import Path

from emalab.data.dataset import FilePair, SegmentationDataset
from emalab.data.errors import MissingFileError
from emalab.data.lists import files_by_name, require_root
from emalab.data.spec import Color, DatasetSpec

_CLASSES: dict[str, tuple[int, Color]] = {  # name -> value in *_labelIds.png, color
    "road": (7, (128, 64, 128)),
    "sidewalk": (8, (244, 35, 232)),
    "building": (11, (70, 70, 70)),
    "wall": (12, (102, 102, 156)),
    "fence": (13, (190, 153, 153)),
    "pole": (17, (153, 153, 153)),
    "traffic light": (19, (250, 170, 30)),
    "traffic sign": (20, (220, 220, 0)),
    "vegetation": (21, (107, 142, 35)),
    "terrain": (22, (152, 251, 152)),
    "sky": (23, (70, 130, 180)),
    "person": (24, (220, 20, 60)),
    "rider": (25, (255, 0, 0)),
    "car": (26, (0, 0, 142)),
    "truck": (27, (0, 0, 70)),
    "bus": (28, (0, 60, 100)),
    "train": (31, (0, 80, 100)),
    "motorcycle": (32, (0, 0, 230)),
    "bicycle": (33, (119, 11, 32)),
}

CITYSCAPES = DatasetSpec(
    name="cityscapes",
    title="Cityscapes",
    classes=tuple(_CLASSES),
    palette=tuple(color for _, color in _CLASSES.values()),
    splits=("train", "val"),
    source="Cityscapes, fine annotations (2975 train, 500 val); non-commercial use, after registration",
    split_sizes=(2975, 500),
)

_RARE = ("traffic light", "rider", "train", "motorcycle")  # below 0.15 % of the labeled pixels each

CITYSCAPES_256 = replace(
    CITYSCAPES,
    name="cityscapes-256",
    title="Cityscapes 256×256",
    source="Cityscapes in pix2pix's release (2975 train, 500 val); non-commercial research use",
    report_name="cityscapes-256-15",
    report_classes=tuple(name for name in _CLASSES if name not in _RARE),
)

_STORED = range(34)
_LABELS = dict.fromkeys(_STORED, CITYSCAPES.ignore_index) | {
    value: label for label, (value, _) in enumerate(_CLASSES.values())
}


def load_cityscapes(split: str, root: Path | None) -> SegmentationDataset:
    """The packages ``leftImg8bit_trainvaltest`` and ``gtFine_trainvaltest`` as they unpack, under `cityscapes/`.

    Images are `leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png`, labels `gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png`.

    Raises:
        DataError: there is no such root, or no image of the split.
    """
    root = require_root(root, CITYSCAPES.name)
    folder, labels = (root / "cityscapes" / package / split for package in ("leftImg8bit", "gtFine"))
    images = sorted(folder.glob("*/*_leftImg8bit.png"))
    if not images:
        raise MissingFileError(
            f"{folder} has no images CITY/*_leftImg8bit.png. Unpack leftImg8bit_trainvaltest.zip and "
            f"gtFine_trainvaltest.zip into {root / 'cityscapes'}."
        )
    names = [(path.parent.name, path.name.removesuffix("_leftImg8bit.png")) for path in images]
    masks = [labels / city / f"{name}_gtFine_labelIds.png" for city, name in names]
    return SegmentationDataset(CITYSCAPES, map(FilePair, images, masks), _LABELS)


def load_cityscapes_256(split: str, root: Path | None) -> SegmentationDataset:
    """`cityscapes-256/{images,masks}/{train,val}/NAME.*` under `root`, with labels 0–18 and 255 for ignored pixels.

    Raises:
        DataError: there is no such root, or no image of the split.
    """
    root = require_root(root, CITYSCAPES_256.name)
    images, masks = (root / CITYSCAPES_256.name / kind / split for kind in ("images", "masks"))
    files = files_by_name(images, ".png", ".jpg")
    if not files:
        raise MissingFileError(f"{images} has no images; it should have NAME.jpg, and {masks} NAME.png for each.")
    pairs = [FilePair(files[name], masks / f"{name}.png") for name in sorted(files)]
    return SegmentationDataset(CITYSCAPES_256, pairs)
