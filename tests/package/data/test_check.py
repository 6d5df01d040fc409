import dataclasses
from pathlib import Path

import numpy as np
import pytest
from command_line import Capture, fails, message
from PIL import Image
from tiny_data import SIZE, make_camvid, make_voc, random_labels, save_image, save_mask, save_pages

from emalab.cli import main
from emalab.data import DATASETS, DataError, DatasetEntry
from emalab.data.camvid import CAMVID, load_camvid
from emalab.data.check import CheckReport, Problem, check_dataset


@pytest.mark.parametrize(
    ("name", "make", "counts"),
    [
        ("camvid", make_camvid, {"train": 3, "val": 3, "test": 3, "trainval": 6}),
        ("voc", make_voc, {"train": 2, "val": 1, "trainval": 3, "trainaug": 3}),
    ],
)
def test_all_is_well(tmp_path, name, make, counts):
    report = check_dataset(name, make(tmp_path))
    assert report.ok
    assert report.counts == counts
    assert "everything is in order" in str(report)


def test_every_kind_of_damage_is_found_file_by_file(tmp_path):
    folder = make_camvid(tmp_path, per_split=4) / "camvid"
    (folder / "images/train_0.jpg").unlink()
    (folder / "labels/train_0.png").unlink()
    truncated = folder / "images/train_1.jpg"
    truncated.write_bytes(truncated.read_bytes()[:-200])
    save_mask(folder / "labels/train_2.png", random_labels([0, 12, 99]))
    save_mask(folder / "labels/train_3.png", np.zeros((5, 5)))
    Image.new("RGB", SIZE[::-1], "red").save(folder / "labels/val_0.png")

    report = check_dataset("camvid", tmp_path, ["train", "val"], num_threads=2)
    assert not report.ok
    assert {(problem.file.stem, problem.file.parent.name, problem.kind) for problem in report.problems} == {
        ("train_0", "images", "missing"),
        ("train_0", "labels", "missing"),
        ("train_1", "images", "unreadable"),
        ("train_2", "labels", "unknown label"),
        ("train_3", "labels", "size mismatch"),
        ("val_0", "labels", "unknown label"),
    }
    assert report.counts == {"train": 4, "val": 4}
    assert all(str(problem.file) in str(report) for problem in report.problems)
    assert "problems: 6" in str(report)


def test_files_of_several_pages_are_problems(tmp_path):
    for name in ("a", "b"):
        save_image(tmp_path / "images" / f"{name}.tif")
        save_mask(tmp_path / "masks" / f"{name}.tif", random_labels([0, 1]))
    (tmp_path / "classes.yaml").write_text("classes: [wall, roof]")
    pages = [Image.new("L", SIZE[::-1])] * 3
    save_pages(tmp_path / "images" / "a.tif", pages[:2])
    save_pages(tmp_path / "masks" / "b.tif", pages)
    report = str(check_dataset(str(tmp_path), None))
    assert "problems: 2" in report
    assert f"{tmp_path / 'images' / 'a.tif'}: has 2 pages; save each" in report
    assert f"{tmp_path / 'masks' / 'b.tif'}: has 3 pages; save each" in report


def test_a_file_in_two_splits_is_reported_once(tmp_path):
    (make_camvid(tmp_path) / "camvid/images/train_0.jpg").unlink()
    assert len(check_dataset("camvid", tmp_path).problems) == 1


def test_only_a_split_of_another_size_than_published_is_noted(tmp_path, monkeypatch):
    make_camvid(tmp_path)
    spec = dataclasses.replace(CAMVID, split_sizes=(3, 101, 3, 6))
    monkeypatch.setitem(DATASETS, "camvid", DatasetEntry(spec, load_camvid))
    report = check_dataset("camvid", tmp_path)
    assert report.ok
    assert report.notes == ["val lists 3 images, the published split has 101"]
    assert "\nnote: val lists 3 images, the published split has 101\n" in str(report)
    assert str(report).endswith("everything is in order")


def test_a_missing_list_is_a_problem_and_the_other_splits_are_still_read(tmp_path):
    (make_voc(tmp_path) / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt").unlink()
    report = check_dataset("voc", tmp_path)
    assert [problem.kind for problem in report.problems] == ["missing"]
    assert report.counts == {"train": 2, "val": 1, "trainval": 3}
    assert check_dataset("voc", tmp_path, ["train", "val"]).ok


@pytest.mark.parametrize("root", [None, "nowhere"])
def test_a_missing_root_is_one_problem(tmp_path, root):
    report = check_dataset("camvid", root and tmp_path / root)
    assert len(report.problems) == 1
    assert "EMALAB_DATA" in str(report)


def test_unknown_names_are_errors(tmp_path):
    with pytest.raises(DataError, match="did you mean 'camvid'"):
        check_dataset("camvit", tmp_path)
    with pytest.raises(DataError, match="did you mean 'val'"):
        check_dataset("camvid", make_camvid(tmp_path), ["vall"])


def test_long_lists_are_cut_with_a_count(tmp_path):
    problems = [Problem(tmp_path / f"{i}.jpg", "missing", f"{i}.jpg: no such file") for i in range(25)]
    text = str(CheckReport("toy", {"train": 25}, problems))
    assert "missing: 25" in text
    assert "… and 15 more" in text
    assert len(text.splitlines()) < 20


@pytest.mark.real_data
@pytest.mark.parametrize(("name", "archive"), [("camvid", "camvid-480x360"), ("voc-animals", "voc2012-animals-320px")])
def test_real_archives_are_in_order(real_data_root, name, archive):
    report = check_dataset(name, real_data_root(archive), ["train", "val"])
    assert report.ok, str(report)
    assert report.notes == []


@pytest.mark.usefixtures("no_data_root")
class TestDataCheck:
    def test_in_order(self, camvid: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("EMALAB_DATA", str(camvid))
        main(["data", "check", "camvid"])
        assert "everything is in order" in capsys.readouterr().out

    def test_names_every_problem(self, camvid: Path, capsys: Capture) -> None:
        truncated = camvid / "camvid/images/train_0.jpg"
        truncated.write_bytes(truncated.read_bytes()[:500])
        save_mask(camvid / "camvid/labels/val_0.png", random_labels([0, 1], (10, 12)))
        save_mask(camvid / "camvid/labels/test_0.png", random_labels([0, 77]))
        (camvid / "camvid/labels/test_1.png").unlink()
        fails("data", "check", "camvid", "--data-root", camvid)
        text = capsys.readouterr().out
        assert "train_0.jpg: cannot be read" in text
        assert "val_0.png: labels are 12×10 but the image" in text
        assert "test_0.png: label values outside the label set: 77" in text
        assert "test_1.png: no such file" in text
        assert "problems: 4" in text

    def test_twice_listed_name(self, camvid: Path, capsys: Capture) -> None:
        (camvid / "camvid/lists/val.txt").write_text("val_0\nval_0\n")
        fails("data", "check", "camvid", "--data-root", camvid)
        assert "lists val_0 2 times" in capsys.readouterr().out

    def test_unknown_data_set(self, capsys: Capture) -> None:
        fails("data", "check", "camvit")
        assert "there is no data set 'camvit'; did you mean 'camvid'?" in message(capsys)


@pytest.mark.usefixtures("no_data_root")
def test_data_lies_in_the_folder_data_unless_said_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """What `emalab data prepare` makes, the other commands find: two commands from the release to the run."""
    make_camvid(tmp_path / "data", per_split=2)
    monkeypatch.chdir(tmp_path)
    main(["data", "check", "camvid"])
    assert "everything is in order" in capsys.readouterr().out
    monkeypatch.setattr("emalab.data.prepare.prepare_dataset", lambda name, root, *_, **__: print(f"{name} to {root}"))
    main(["data", "prepare", "camvid"])
    monkeypatch.chdir(tmp_path / "data")
    main(["data", "prepare", "camvid"])
    monkeypatch.setenv("EMALAB_DATA", "elsewhere")
    main(["data", "prepare", "camvid"])
    assert capsys.readouterr().out.splitlines() == ["camvid to data", "camvid to data", "camvid to elsewhere"]
