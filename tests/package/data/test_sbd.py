import numpy as np
import pytest
from PIL import Image
from tiny_data import make_sbd, random_labels, save_mat

from emalab.data import DataError, get_spec, load_dataset
from emalab.data.check import check_dataset
from emalab.data.errors import MissingFileError
from emalab.data.sbd import convert_sbd
from emalab.data.voc import VOC


def test_trainaug_is_vocs_train_and_sbd_without_vocs_val(tmp_path):
    convert_sbd(make_sbd(tmp_path))
    data = load_dataset("voc", "trainaug", tmp_path)
    folders = {sample.name: pair.mask.parent.name for sample, pair in zip(data, data.pairs, strict=True)}
    assert list(folders) == ["s0", "s1", "t0", "t1"]
    assert folders == {
        **{"s0": "SegmentationClassAug", "s1": "SegmentationClassAug"},
        **{"t0": "SegmentationClass", "t1": "SegmentationClass"},
    }


def test_label_maps_are_the_releases(tmp_path):
    convert_sbd(make_sbd(tmp_path))
    folder = tmp_path / "VOCdevkit/VOC2012/SegmentationClassAug"
    assert sorted(path.stem for path in folder.iterdir()) == ["s0", "s1", "t0", "v0"]
    with Image.open(folder / "s1.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), random_labels([0, 8, 15], seed=1))
        assert np.array_equal(np.array(image.getpalette()).reshape(-1, 3)[:21], VOC.palette)


def test_check(tmp_path):
    make_sbd(tmp_path)
    report = check_dataset("voc", tmp_path)
    assert [problem.kind for problem in report.problems] == ["missing"]
    assert "made from SBD and VOC's own lists: `emalab data prepare voc`" in str(report)
    convert_sbd(tmp_path)
    report = check_dataset("voc", tmp_path)
    assert report.ok
    assert report.counts["trainaug"] == 4
    assert "note: trainaug lists 4 images, the published split has 10582" in str(report)


def test_published_sizes():
    voc, camvid = get_spec("voc"), get_spec("camvid")
    assert {split: voc.published_size(split) for split in voc.splits} == {
        **{"train": 1464, "val": 1449, "trainval": 2913, "trainaug": 10582}
    }
    assert [camvid.published_size(split) for split in ("train", "val", "test")] == [367, 101, 233]
    assert get_spec("shapes-far").published_size("train") is None


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("folder", ["benchmark_RELEASE/dataset", "VOCdevkit/VOC2012/ImageSets/Segmentation"])
def test_a_missing_list(tmp_path, folder, split):
    (make_sbd(tmp_path) / folder / f"{split}.txt").unlink()
    with pytest.raises(MissingFileError, match=rf"{folder}/{split}\.txt.*emalab data prepare voc"):
        convert_sbd(tmp_path)
    assert not list(tmp_path.glob("VOCdevkit/VOC2012/SegmentationClassAug/*"))


def test_bad_mat_files_and_then_good_ones(tmp_path):
    folder = make_sbd(tmp_path) / "benchmark_RELEASE/dataset/cls"
    save_mat(folder / "s0.mat", GTcls={"Boundaries": np.eye(2)})
    save_mat(folder / "s1.mat", GTcls={"Segmentation": np.full((24, 32), 21)})
    save_mat(folder / "t0.mat", GTinst=1)
    with pytest.raises(DataError, match="3 of 4 label maps could not be converted") as caught:
        convert_sbd(tmp_path)
    assert "s0.mat: GTcls has no field 'Segmentation'" in str(caught.value)
    assert "s1.mat: label values outside the label set: 21" in str(caught.value)
    assert "t0.mat: holds no 'GTcls'" in str(caught.value)
    assert not (tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").exists()

    make_sbd(tmp_path)
    convert_sbd(tmp_path)
    assert check_dataset("voc", tmp_path).ok


@pytest.mark.real_data
def test_real_labels_survive_the_way_through_sbds_format(real_data_root, tmp_path):
    release = real_data_root("voc2012-sample") / "voc2012-sample"
    sbd, voc = tmp_path / "benchmark_RELEASE/dataset", tmp_path / "VOCdevkit/VOC2012"
    labels = {}
    for path in sorted(release.glob("labels/*.png")):
        with Image.open(path) as image:
            labels[path.stem] = np.asarray(image)
        save_mat(sbd / f"cls/{path.stem}.mat", GTcls={"Segmentation": labels[path.stem]})
    (voc / "ImageSets/Segmentation").mkdir(parents=True)
    (voc / "JPEGImages").symlink_to(release / "images")
    for split in ("train", "val"):
        names = (release / f"lists/{split}.txt").read_text()
        (sbd / f"{split}.txt").write_text(names)
        (voc / f"ImageSets/Segmentation/{split}.txt").write_text(names)
    convert_sbd(tmp_path)
    data = load_dataset("voc", "trainaug", tmp_path)
    assert len(data) == 8
    for sample in data:
        assert np.array_equal(sample.mask, labels[sample.name])
