"""PASCAL VOC 2012 segmentation, with the additional labels of SBD where they are unpacked beside it.

M. Everingham et al., "The PASCAL Visual Object Classes challenge: a retrospective", IJCV 2015;
B. Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011 (SBD).
"""

from dataclasses import replace
from pathlib import Path

from emalab.data.dataset import FilePair, SegmentationDataset
from emalab.data.lists import files_by_name, read_names, require_root
from emalab.data.spec import Color, DatasetSpec


def voc_palette(num_colors: int = 256) -> tuple[Color, ...]:
    """The colors of VOC's label files: the three lowest bits of a label are the top bits of R, G and B, and so on.

    Bit 3j + c of the label (c = 0, 1, 2 for R, G, B) becomes bit 7 − j of channel c. Label 255 is (224, 224, 192).
    """

    def channel(label: int, c: int) -> int:
        return sum((label >> (3 * j + c) & 1) << (7 - j) for j in range(8))

    return tuple((channel(label, 0), channel(label, 1), channel(label, 2)) for label in range(num_colors))


_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)

VOC = DatasetSpec(
    name="voc",
    title="PASCAL VOC 2012",
    classes=_CLASSES,
    palette=voc_palette(len(_CLASSES)),
    splits=("train", "val", "trainval", "trainaug"),
    source="PASCAL VOC 2012 (1464 train, 1449 val) and SBD (10582 trainaug); the images are under Flickr's terms",
    split_sizes=(1464, 1449, 2913, 10582),
    unlabeled_splits=("test",),
)

# Most vehicles and furniture are missing in the animals subset, so its score averages over the classes that are there.
VOC_ANIMALS = replace(
    VOC,
    name="voc-animals",
    title="PASCAL VOC 2012, images with animals",
    source="subset of PASCAL VOC 2012 and SBD with animals or near them (3131 trainaug, 297 val), 320 px on the longer "
    "side; the images are under Flickr's terms",
    report_name="VOC-animals-7",
    report_classes=("background", "cat", "cow", "dog", "horse", "person", "sheep"),
    split_sizes=(437, 297, 734, 3131),
    unlabeled_splits=(),
)


def load_voc(spec: DatasetSpec, split: str, root: Path | None) -> SegmentationDataset:
    """The devkit's layout under `root`: `VOCdevkit/VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}`.

    The images of `split` are those of `ImageSets/Segmentation/SPLIT.txt`. Labels come from VOC's own folder
    `SegmentationClass` where it holds the image, else from `SegmentationClassAug`. `trainaug` is not part of the
    devkit: it is VOC's train images plus those images of SBD that are not in VOC's val; its list (`trainaug.txt`
    or `train_aug.txt`) and `SegmentationClassAug` are made by `emalab.data.sbd.convert_sbd`. SBD's label maps have no
    ignored border around objects, VOC's own have.

    Raises:
        DataError: there is no such root, or it has no list of the split.
    """
    root = require_root(root, spec.name)
    lists = [f"VOCdevkit/VOC2012/ImageSets/Segmentation/{split}.txt"]
    advice = None
    if split == "trainaug":
        lists.append("VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt")
        advice = "It is made from SBD and VOC's own lists: `emalab data prepare voc`."
    elif split == "test":
        advice = "Its images come from the evaluation server, after registration: unpack VOC2012test.tar there."
    names = read_names(root, *lists, advice=advice)
    voc = root / "VOCdevkit/VOC2012"
    # VOC's own labels come last and win: some copies of the other folder have SBD's for VOC's images, borders lost.
    masks = files_by_name(voc / "SegmentationClassAug", ".png") | files_by_name(voc / "SegmentationClass", ".png")
    absent = voc / ("SegmentationClassAug" if split == "trainaug" else "SegmentationClass")
    return SegmentationDataset(
        spec,
        [FilePair(voc / f"JPEGImages/{name}.jpg", masks.get(name, absent / f"{name}.png")) for name in names],
    )
