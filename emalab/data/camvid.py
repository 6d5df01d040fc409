"""CamVid: road scenes from a driving car, in the 11-class, 480×360 release of the SegNet authors.

G. J. Brostow, J. Fauqueur, R. Cipolla, "Semantic object classes in video: a high-definition ground truth database",
Pattern Recognition Letters 2009; classes and split of V. Badrinarayanan, A. Kendall, R. Cipolla, "SegNet", 2017.
"""

from pathlib import Path

from emalab.data.dataset import FilePair, SegmentationDataset
from emalab.data.lists import files_by_name, read_names, require_root
from emalab.data.spec import Color, DatasetSpec

_CLASSES: dict[str, Color] = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
_VOID = 11

CAMVID = DatasetSpec(
    name="camvid",
    title="CamVid 480×360, 11 classes",
    classes=tuple(_CLASSES),
    palette=tuple(_CLASSES.values()),
    splits=("train", "val", "test", "trainval"),
    source="CamVid in the SegNet tutorial's release (367 train, 101 val, 233 test); non-commercial research use",
    split_sizes=(367, 101, 233, 468),
)

_LABELS = {label: label for label in range(CAMVID.num_classes)} | {_VOID: CAMVID.ignore_index}


def load_camvid(split: str, root: Path | None) -> SegmentationDataset:
    """CamVid under `root`, in either of two layouts.

    - `camvid/{images,labels}/NAME.*` with the names in `camvid/lists/{train,val,test}.txt`;
    - the SegNet tutorial's `CamVid/{train,val,test}/NAME.png`, `CamVid/{train,val,test}annot/NAME.png`, listed in
      `CamVid/{train,val,test}.txt`.

    `trainval` is train followed by val.

    Raises:
        DataError: there is no such root, or the list of the split is in neither place.
    """
    root = require_root(root, CAMVID.name)
    parts = ("train", "val") if split == "trainval" else (split,)
    return SegmentationDataset(CAMVID, [pair for part in parts for pair in _pairs(root, part)], _LABELS)


def _pairs(root: Path, split: str) -> list[FilePair]:
    names = read_names(root, f"camvid/lists/{split}.txt", f"CamVid/{split}.txt")
    if (root / "camvid/lists").is_dir():
        images, masks = root / "camvid/images", root / "camvid/labels"
    else:
        images, masks = root / f"CamVid/{split}", root / f"CamVid/{split}annot"
    files = files_by_name(images, ".png", ".jpg")
    return [FilePair(files.get(name, images / f"{name}.png"), masks / f"{name}.png") for name in names]
