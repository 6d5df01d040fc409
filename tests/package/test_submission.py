"""What is handed in: the files that a server or an evaluation tool opens, and nothing of the labels."""

from __future__ import annotations

import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import TWO_RANKS, run_module
from tiny import scenes, tiny_recipe, tiny_segmenter
from tiny_data import SIZE, make_voc, save_image, save_mask, write_list

from emalab.checkpoints import export_segmenter
from emalab.cli import main
from emalab.data import DataError, load_dataset, load_images
from emalab.data.coco_stuff import COCO_STUFF_164K, IDS
from emalab.inference import predict_labels
from emalab.segmenter import Segmenter
from emalab.submission import coco_stuff_results, write_submission
from emalab.views import Views

FOLDER = Path("results/VOC2012/Segmentation/comp6_test_cls")


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A devkit with three images for the test server, of two sizes and without labels."""
    root = make_voc(tmp_path / "data")
    names = ["2008_000006", "2008_000011", "2010_000002"]
    write_list(root / "VOCdevkit/VOC2012/ImageSets/Segmentation/test.txt", names)
    for seed, (name, size) in enumerate(zip(names, (SIZE, (30, 21), SIZE), strict=True)):
        save_image(root / f"VOCdevkit/VOC2012/JPEGImages/{name}.jpg", size, seed)
    return root


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """The validation images of COCO 2017, two of them, of which one has no readable label map."""
    root = tmp_path / "data"
    for seed, name in enumerate(("000000000139", "000000000285")):
        save_image(root / f"coco/val2017/{name}.jpg", seed=seed)
        save_mask(root / f"coco/stuffthingmaps/val2017/{name}.png", np.zeros(SIZE))
    (root / "coco/stuffthingmaps/val2017/000000000285.png").write_bytes(b"not read")
    return root


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return tiny_segmenter(num_classes=21)


class TestVOC:
    def test_archive_for_the_server(self, model: Segmenter, voc: Path, tmp_path: Path) -> None:
        archive = write_submission(model, load_images("voc", "test", voc), "test", tmp_path / "out")
        assert archive == tmp_path / "out/results.tgz"
        with tarfile.open(archive) as tar:
            names = tar.getnames()
            tar.extractall(tmp_path / "server", filter="data")
        assert names == [(FOLDER / f"{name}.png").as_posix() for name in ("2008_000006", "2008_000011", "2010_000002")]
        images = load_images("voc", "test", voc)
        for index, name in enumerate(names):
            with Image.open(tmp_path / "server" / name) as png:
                assert png.mode == "P"
                assert png.getpalette()[3:6] == [128, 0, 0]  # aeroplane, as in VOC's own label files
                labels = np.asarray(png)
            expected = predict_labels(model, images.image(index)[0][None])[0].numpy()
            np.testing.assert_array_equal(labels, expected)

    def test_split_with_labels_that_are_not_read(self, model: Segmenter, voc: Path, tmp_path: Path) -> None:
        for mask in (voc / "VOCdevkit/VOC2012/SegmentationClass").iterdir():
            mask.write_bytes(b"not read")
        write_submission(model, load_images("voc", "val", voc), "val", tmp_path)
        with tarfile.open(tmp_path / "results.tgz") as tar:
            assert tar.getnames() == ["results/VOC2012/Segmentation/comp6_val_cls/v0.png"]

    def test_how_to_predict_is_asked_for(self, model: Segmenter, voc: Path, tmp_path: Path) -> None:
        data, views = load_images("voc", "test", voc), Views((0.5, 1.0), flip=True, window=(16, 16))
        write_submission(model, data, "test", tmp_path, views)
        with Image.open(tmp_path / FOLDER / "2008_000011.png") as png:
            expected = predict_labels(model, data.image(1)[0][None], views)[0].numpy()
            np.testing.assert_array_equal(np.asarray(png), expected)

    def test_the_test_split_cannot_be_scored(self, voc: Path) -> None:
        with pytest.raises(DataError, match=r"the labels of voc's test are not published; `emalab submit`"):
            load_dataset("voc", "test", voc)
        with pytest.raises(DataError, match="voc has no split 'tset'; did you mean 'test'"):
            load_images("voc", "tset", voc)

    def test_damaged_image_leaves_no_archive(self, model: Segmenter, voc: Path, tmp_path: Path) -> None:
        (voc / "VOCdevkit/VOC2012/JPEGImages/2010_000002.jpg").write_bytes(b"half")
        with pytest.raises(DataError, match=r"2010_000002\.jpg: not an image"):
            write_submission(model, load_images("voc", "test", voc), "test", tmp_path / "out")
        assert not (tmp_path / "out/results.tgz").exists()


class TestCOCOStuff:
    def test_label_maps_and_results_of_the_api(self, coco: Path, tmp_path: Path) -> None:
        masks = pytest.importorskip("pycocotools.mask")
        model = tiny_segmenter(num_classes=171)
        out = write_submission(model, load_images("coco-stuff-164k", "val", coco), "val", tmp_path)
        assert out == tmp_path / "stuff_val_results.json"
        results = json.loads(out.read_text())
        data = load_images("coco-stuff-164k", "val", coco)
        for index, number in enumerate((139, 285)):
            predicted = predict_labels(model, data.image(index)[0][None])[0].numpy()
            ids = np.array([IDS[COCO_STUFF_164K.classes[label]] for label in range(171)])[predicted]
            with Image.open(tmp_path / f"labels/000000000{number}.png") as png:
                assert png.mode == "L"
                np.testing.assert_array_equal(np.asarray(png) + 1, ids)
            mine = [result for result in results if result["image_id"] == number]
            assert [result["category_id"] for result in mine] == sorted({i if i >= 92 else 183 for i in ids.flat})
            covered = np.zeros(SIZE, int)
            for result in mine:
                mask = masks.decode(result["segmentation"]).astype(bool)
                expected = ids < 92 if result["category_id"] == 183 else ids == result["category_id"]
                np.testing.assert_array_equal(mask, expected)
                covered += mask
            assert (covered == 1).all()

    def test_things_are_one_category(self) -> None:
        pytest.importorskip("pycocotools")
        values = np.array([[0, 89], [91, 181]], np.uint8)  # person, toothbrush, banner, wood
        assert [result["category_id"] for result in coco_stuff_results(values, 1)] == [92, 182, 183]

    def test_image_that_is_not_of_coco(self, coco: Path, tmp_path: Path) -> None:
        pytest.importorskip("pycocotools")
        save_image(coco / "coco/val2017/cat.jpg")
        save_mask(coco / "coco/stuffthingmaps/val2017/cat.png", np.zeros(SIZE))
        with pytest.raises(DataError, match="cat is not an image of COCO: its name should end in the image's number"):
            write_submission(
                tiny_segmenter(num_classes=171), load_images("coco-stuff-164k", "val", coco), "val", tmp_path
            )

    def test_without_pycocotools_nothing_is_predicted(
        self, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pycocotools", None)
        with pytest.raises(DataError, match="pip install pycocotools"):
            write_submission(
                tiny_segmenter(num_classes=171), load_images("coco-stuff-164k", "val", coco), "val", tmp_path / "out"
            )
        assert not (tmp_path / "out").exists()


def test_others_get_label_maps(tmp_path: Path) -> None:
    model = tiny_segmenter().train()
    folder = write_submission(model, scenes(2), "val", tmp_path)
    assert folder == tmp_path / "labels"
    assert {path.stem for path in folder.iterdir()} == {scenes(2).image(index)[1] for index in range(2)}
    assert model.training


def test_another_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the network predicts 3 classes, shapes-pooled has 5"):
        write_submission(tiny_segmenter(num_classes=3), scenes(), "val", tmp_path)


def test_two_processes_share_the_images_of_the_command(model: Segmenter, voc: Path, tmp_path: Path) -> None:
    """Three images for two: each predicted once, packed once, said once, the same bytes as from one process."""
    export_segmenter(model, tmp_path / "net.safetensors", tiny_recipe(model=model.config), {}, torch.float32)
    arguments = ["submit", str(tmp_path / "net.safetensors"), "--data", "voc", "--data-root", str(voc)]
    main([*arguments, "--out", str(tmp_path / "one"), "--device", "cpu"])
    printed = run_module(*TWO_RANKS, "-m", "emalab", *arguments, "--out", str(tmp_path / "two"), "--device", "cpu")
    assert printed.count("3 images: ") == 1
    for path in (tmp_path / "one" / FOLDER).iterdir():
        assert (tmp_path / "two" / FOLDER / path.name).read_bytes() == path.read_bytes()
    with tarfile.open(tmp_path / "two/results.tgz") as tar:
        assert len(tar.getnames()) == 3
