"""SBD, the additional labels of PASCAL VOC 2012's training images: the trainaug split.

B. Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011. SBD labels 11355 images of VOC, among them
images of VOC's val split; which images may be trained on follows from VOC's lists.
"""

from pathlib import Path

import numpy as np

from emalab.data.conversion import make_label_files, read_mat, translate, value_table, write_names
from emalab.data.errors import UnreadableFileError
from emalab.data.lists import read_names
from emalab.data.voc import VOC

SBD = Path("benchmark_RELEASE/dataset")  # where SBD's benchmark.tgz unpacks to
_VOC = Path("VOCdevkit/VOC2012")
_VALUES = value_table({label: label for label in (*range(VOC.num_classes), VOC.ignore_index)}, 256)


def convert_sbd(root: Path, *, num_threads: int | None = None, progress: bool = False) -> None:
    """Make `SegmentationClassAug` and the list `trainaug.txt`, where `emalab.data.voc.load_voc` looks for them.

    `benchmark_RELEASE/dataset/{cls/NAME.mat,train.txt,val.txt}` and VOC's lists under `root` become
    `VOCdevkit/VOC2012/SegmentationClassAug/NAME.png`, for every image of SBD, and
    `VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt`: VOC's train images and all of SBD's, without VOC's val
    (10582 images in the published releases). The images themselves are those of VOC 2012's `JPEGImages`.

    Raises:
        DataError: a list is missing, or a label map is missing, damaged, of another size than its image, or holds
            labels that VOC does not have.
    """
    sbd_names = [*_names(root, SBD, "train"), *_names(root, SBD, "val")]
    voc_train, voc_val = (_names(root, _VOC / "ImageSets/Segmentation", split) for split in ("train", "val"))
    make_label_files(
        root / _VOC / "SegmentationClassAug",
        sbd_names,
        lambda name: _read_labels(root / SBD / f"cls/{name}.mat"),
        images=root / _VOC / "JPEGImages",
        palette=VOC.palette,
        num_threads=num_threads,
        progress=progress,
    )
    write_names(root / _VOC / "ImageSets/Segmentation/trainaug.txt", {*voc_train, *sbd_names} - {*voc_val})


def _names(root: Path, folder: Path, split: str) -> list[str]:
    advice = "`emalab data prepare voc` unpacks the releases."
    return read_names(root, f"{folder.as_posix()}/{split}.txt", advice=advice)


def _read_labels(path: Path) -> np.ndarray:
    struct = read_mat(path, "GTcls")["GTcls"]
    if not hasattr(struct, "Segmentation"):
        raise UnreadableFileError(f"{path}: GTcls has no field 'Segmentation'. Is it a file of SBD's cls folder?")
    return translate(path, struct.Segmentation, _VALUES)
