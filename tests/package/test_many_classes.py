"""More than 254 classes, from a folder of one's own to predicted masks: 16 bits in files, int32 in memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_recipe, tiny_segmenter
from torch import Tensor

from emalab import evaluate, predict
from emalab.cli import main
from emalab.commands.evaluate import _class_rows
from emalab.data import DataError, DatasetSpec, Sample, get_spec, load_dataset
from emalab.data.check import check_dataset
from emalab.data.folder import FolderLabels, load_folder
from emalab.data.loader import training_loader
from emalab.data.masks import lookup_table, open_mask
from emalab.data.memory import InMemory
from emalab.data.preview import write_preview
from emalab.data.transforms import TrainTransform
from emalab.execution import Execution, TrainingStep
from emalab.inference import predict_probabilities
from emalab.losses import SegmentationLoss
from emalab.metrics import SegmentationScores
from emalab.recipes import LossConfig
from emalab.recipes.from_folder import describe_recipe, recipe_for_folder
from emalab.segmenter import Segmenter
from emalab.trainer import _curves
from emalab.views import MIRRORED, SINGLE_SCALE

CLASSES, SIZE = 300, (40, 56)
IGNORED = 65535
Capture = pytest.CaptureFixture[str]


def stored(seed: int) -> np.ndarray:
    """Blocks of 4×4 pixels, each of a random class, above two ignored rows."""
    blocks = np.random.default_rng(seed).integers(CLASSES, size=(SIZE[0] // 4, SIZE[1] // 4), dtype=np.uint16)
    labels = blocks.repeat(4, axis=0).repeat(4, axis=1)
    labels[-2:] = IGNORED
    return labels


def make(root: Path, count: int = 5, classes: int = CLASSES) -> Path:
    """Images that show their labels: red is the lower byte, green the upper one."""
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    for i in range(count):
        labels = stored(i) if classes == CLASSES else stored(i) % classes
        pixels = np.stack([labels & 255, labels >> 8, np.full_like(labels, 9)], axis=-1).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"images/{i}.png")
        Image.fromarray(labels).save(root / f"masks/{i}.png")
    names = "".join(f"- kind {i}\n" for i in range(classes))
    (root / "classes.yaml").write_text(f"classes:\n{names}")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("data") / "many")


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    """Two steps of the shipped network, as the command takes them."""
    out = folder.parent / "run"
    short = ["--optim.iterations", "2", "--optim.batch-size", "2", "--optim.warmup", "0"]
    main(["train", f"{folder}/", "--accelerator", "cpu", "--no-progress", "--out", str(out), *short])
    return out


def shown(image: Tensor) -> Tensor:
    """The labels that an image of `make` shows."""
    return image[0].int() + 256 * image[1].int()


class TestData:
    def test_spec(self, folder: Path) -> None:
        spec = get_spec(f"{folder}/")
        assert (spec.num_classes, spec.ignore_index) == (CLASSES, IGNORED)
        assert len(set(spec.palette)) == CLASSES

    def test_masks(self, folder: Path) -> None:
        samples = list(load_folder(folder, "train")) + list(load_folder(folder, "val"))
        for sample in samples:
            assert sample.mask.dtype == torch.int32
            assert np.array_equal(sample.mask, stored(int(sample.name)))
        held = InMemory(load_folder(folder, "train"))
        held.fill()
        assert torch.equal(held[0].mask, load_folder(folder, "train")[0].mask)

    def test_254_classes_stay_bytes(self, tmp_path: Path) -> None:
        make(tmp_path / "few", classes=254)
        spec, data = get_spec(f"{tmp_path}/few/"), load_folder(tmp_path / "few", "train")
        assert spec.ignore_index == 255
        assert data[0].mask.dtype == torch.uint8
        assert np.array_equal(data[0].mask, stored(int(data[0].name)) % 254)

    def test_255_classes_in_8_bits(self, tmp_path: Path) -> None:
        """The label files have 8 bits, what is loaded has more."""
        make(tmp_path / "few", classes=255)
        for path in (tmp_path / "few/masks").iterdir():
            labels = np.asarray(Image.open(path)).astype(np.uint8)
            labels[-2:] = 255
            Image.fromarray(labels).save(path)
        mask = load_folder(tmp_path / "few", "train")[0].mask
        assert mask.unique().tolist()[-1] == IGNORED
        assert 254 < len(FolderLabels(tuple(map(str, range(256)))).label_of_value) == 256

    def test_check(self, folder: Path, capsys: Capture) -> None:
        main(["data", "check", f"{folder}/", "--preview", str(folder.parent / "preview.png")])
        lines = capsys.readouterr().out.splitlines()
        assert "note: masks are taken to store 0 to 299, as there are no values and no colors" in lines
        assert "note: 65535 is taken for ignored" in lines
        absent = CLASSES - len(set().union(*(stored(seed)[:-2].ravel().tolist() for seed in range(5))))
        assert f"and 290 classes with fewer pixels, {absent} of them with none" in lines
        assert lines[-3].endswith(" have no pixel")  # which is no mistake where there are many
        assert len(lines) < 30
        report = check_dataset(f"{folder}/", None)
        split = report.pixels["train"]
        expected = sum(
            np.bincount(stored(int(name)).ravel(), minlength=IGNORED + 1)
            for name in load_folder(folder, "train").sample_names()
        )
        assert np.array_equal(split, [*expected[:CLASSES], expected[IGNORED]])

    def test_check_of_masks_without_an_ignored_pixel(self, tmp_path: Path) -> None:
        root = make(tmp_path / "whole", count=2)
        for path in (root / "masks").iterdir():
            Image.fromarray(stored(0)[:-4]).resize(SIZE[::-1], Image.Resampling.NEAREST).save(path)
        report = check_dataset(f"{root}/", None)
        assert report.ok
        assert report.pixels["train"][-1] == 0
        assert report.pixels["train"].sum() == SIZE[0] * SIZE[1]

    def test_preview_shows_the_colors(self, folder: Path, tmp_path: Path) -> None:
        write_preview(load_folder(folder, "val"), tmp_path / "preview.png")
        pixels = np.asarray(Image.open(tmp_path / "preview.png"))[:, 320:]
        (sample,) = load_folder(folder, "val")
        label = sample.mask[0, 0].item()
        assert tuple(pixels[5, 5]) == get_spec(f"{folder}/").palette[label]

    def test_too_many(self) -> None:
        with pytest.raises(
            DataError, match=r"classes has 65535 names; at most 65534 are possible, as a label has 16 b"
        ):
            FolderLabels(tuple(f"kind {i}" for i in range(65535)))
        assert FolderLabels(tuple(f"kind {i}" for i in range(65534))).ignored == (IGNORED,)

    def test_255_is_a_class(self) -> None:
        with pytest.raises(DataError, match=r"^255 in ignore is that of a class, 'kind 255', as masks are taken to st"):
            FolderLabels(tuple(f"kind {i}" for i in range(CLASSES)), ignore=(255,))


class TestTraining:
    @pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
    def test_crops_keep_labels(self, folder: Path, scale: float) -> None:
        """Padding and ignored rows are 65535, everything else is what the image shows."""
        transform = TrainTransform((48, 64), (scale, scale), ignore_index=IGNORED)
        for seed, sample in enumerate(load_folder(folder, "train")):
            torch.manual_seed(seed)
            crop = transform(sample)
            assert crop.mask.dtype == torch.int32
            assert set(crop.mask.unique().tolist()) <= {*sample.mask.unique().tolist(), IGNORED}
            assert (crop.mask != IGNORED).any()
            if scale == 1.0:
                labeled = crop.mask != IGNORED
                assert torch.equal(shown(crop.image)[labeled], crop.mask[labeled])

    def test_turned_crops_keep_labels(self, folder: Path) -> None:
        transform = TrainTransform((48, 64), (0.8, 1.2), ignore_index=IGNORED, rotation=30)
        for seed, sample in enumerate(load_folder(folder, "train")):
            torch.manual_seed(seed)
            mask = transform(sample).mask
            assert mask.dtype == torch.int32
            assert set(mask.unique().tolist()) <= {*sample.mask.unique().tolist(), IGNORED}
            assert ((mask > 255) & (mask < CLASSES)).any()

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_batches(self, folder: Path, num_workers: int) -> None:
        transform = TrainTransform((32, 32), (1.0, 1.0), ignore_index=IGNORED)
        loader = training_loader(
            load_folder(folder, "train"), transform, batch_size=2, num_iterations=2, num_workers=num_workers
        )
        for images, masks in loader:
            assert (masks.dtype, masks.shape) == (torch.int32, (2, 32, 32))
            for image, mask in zip(images, masks, strict=True):
                assert torch.equal(shown(image)[mask != IGNORED], mask[mask != IGNORED])

    @pytest.mark.parametrize("config", [LossConfig(), LossConfig(focal_gamma=2.0, dice_weight=0.5, hardest=0.5)])
    def test_loss_of_labels_above_255(self, config: LossConfig) -> None:
        """Labels below 20 in 8 bits, and the same with 280 classes of no probability before them."""
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 20, 6, 7, generator=generator)
        masks = torch.randint(20, (2, 6, 7), generator=generator, dtype=torch.uint8)
        masks[:, 0] = 255
        wide = masks.int() + 280
        wide[:, 0] = IGNORED
        more = torch.cat([torch.full((2, 280, 6, 7), -1e4), logits], dim=1)
        expected, terms = SegmentationLoss(config, 255)(logits, masks), SegmentationLoss(config, IGNORED)(more, wide)
        torch.testing.assert_close(terms, expected)
        if config == LossConfig():
            assert terms.divisor == (masks != 255).sum()
            torch.testing.assert_close(
                terms.total, F.cross_entropy(logits, masks.long(), ignore_index=255, reduction="sum")
            )

    def test_a_graph_is_recorded_with_the_type_of_the_masks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A replay casts its inputs: 65535 would become 255 without a word."""
        recorded: list[Tensor] = []
        monkeypatch.setattr(Execution, "_record", lambda self, images, masks: recorded.append(masks))
        fabric: Any = SimpleNamespace(device=torch.device("cpu"), world_size=1, setup=lambda *parts: parts)
        optimizer: Any = None
        recipe = tiny_recipe()
        for ignore_index, dtype in ((255, torch.uint8), (IGNORED, torch.int32)):
            step = TrainingStep(tiny_segmenter(), SegmentationLoss(LossConfig(), ignore_index), 0.0)
            execution = Execution(fabric, recipe, step, optimizer)
            execution._to_record = True
            execution.prepare()
            masks = recorded.pop()
            assert (masks.dtype, masks.shape) == (dtype, (recipe.optim.batch_size, *recipe.data.crop_size))

    def test_memory_bounds_what_is_chosen(self, tmp_path: Path) -> None:
        """Logits of 2^27 values at most on a CPU; fewer classes change nothing."""
        recipes = {}
        for classes in (254, 3000):
            root = make(tmp_path / str(classes), classes=classes)
            for path in (root / "images").iterdir():
                Image.new("RGB", (400, 400)).save(path)
                Image.new("I;16", (400, 400)).save(root / "masks" / path.name)
            recipes[classes] = recipe_for_folder(root, "cpu", report=lambda line: None)
        few, many = recipes[254], recipes[3000]
        assert (few.data.crop_size, few.optim.batch_size) == ((192, 192), 8)
        assert (many.data.crop_size, many.optim.batch_size) == ((96, 96), 4)
        assert many.optim.batch_size * 3000 * 96 * 96 <= 2**27
        assert dict(describe_recipe(many))["classes"] == "kind 0, kind 1, kind 2, kind 3, kind 4 and 2995 more"

    def test_curves_are_few(self) -> None:
        iou = {f"kind {i}": i / 100 for i in range(101)} | {f"absent {i}": float("nan") for i in range(300)}
        scores = SegmentationScores(0.5, 0.5, 0.5, 0.5, iou, "mIoU", 1)
        expected = {"iou/percentile 10": 0.1, "iou/percentile 25": 0.25, "iou/percentile 50": 0.5}
        assert _curves(scores) == pytest.approx(
            {**expected, "iou/percentile 75": 0.75, "iou/percentile 90": 0.9}, abs=1e-12
        )
        few = replace(scores, iou={"a": 0.5, "b": 0.25})
        assert _curves(few) == {"iou/a": 0.5, "iou/b": 0.25}


class TestRun:
    def test_what_it_leaves(self, run: Path) -> None:
        scores = json.loads((run / "record.json").read_text())["scores"]["single scale"]
        assert len(scores["iou"]) == CLASSES
        assert {path.name for path in run.iterdir()} >= {"best.pt", "last.pt", "log.jsonl"}

    def test_evaluate(self, run: Path, folder: Path, tmp_path: Path, capsys: Capture) -> None:
        main(["evaluate", str(run / "last.pt"), "--device", "cpu", "--out", str(tmp_path / "scores.json")])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) < 30
        assert any(
            f"of 300 classes occur, the others are absent; {tmp_path}/scores.json has all" in line for line in lines
        )
        assert len(json.loads((tmp_path / "scores.json").read_text())["iou"]) == CLASSES
        recorded = json.loads((run / "record.json").read_text())["scores"]["single scale"]
        assert json.loads((tmp_path / "scores.json").read_text())["miou"] == pytest.approx(recorded["miou"])

    @pytest.mark.parametrize("format", ["pt", "safetensors"])
    def test_predict_writes_16_bits(self, run: Path, folder: Path, tmp_path: Path, format: str) -> None:
        checkpoint = run / "last.pt"
        if format == "safetensors":
            checkpoint = tmp_path / "net.safetensors"
            main(["export", str(run), str(checkpoint), "--dtype", "float32"])
        photo = folder / "images/0.png"
        main(["predict", str(photo), "--checkpoint", str(checkpoint), "--out", str(tmp_path), "--device", "cpu"])
        with Image.open(tmp_path / "0.mask.png") as image:
            assert image.mode == "I;16"
        assert Image.open(tmp_path / "0.overlay.png").height < 40 * SIZE[0]
        table = lookup_table({label: label for label in range(CLASSES)}, IGNORED)
        assert open_mask(tmp_path / "0.mask.png", table).max() < CLASSES

    def test_inspect(self, run: Path, folder: Path, tmp_path: Path, capsys: Capture) -> None:
        command = ["inspect", str(folder / "images/0.png"), "--checkpoint", str(run / "last.pt"), "--device", "cpu"]
        main([*command, "--pixel", "20", "10", "--out", str(tmp_path)])
        assert "pixel 20 10: kind " in capsys.readouterr().out
        assert (tmp_path / "0.attention.png").is_file()


def large_network() -> Segmenter:
    """An untrained one that predicts several classes, all above 255."""
    model = tiny_segmenter(num_classes=CLASSES)
    *_, weight, bias = model.classifier.parameters()
    with torch.no_grad():
        weight.normal_()
        bias[:256] = -1e4
    return model


def test_python_predicts_labels_above_255(folder: Path) -> None:
    model = large_network()
    photo = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    labels = predict(model, photo)
    assert labels.dtype == np.uint16
    assert labels.min() > 255
    assert len(np.unique(labels)) > 1
    with torch.inference_mode():
        expected = predict_probabilities(model, torch.from_numpy(photo).permute(2, 0, 1)[None], MIRRORED).argmax(1)[0]
    assert np.array_equal(labels, expected)
    assert predict(tiny_segmenter(num_classes=254), photo).dtype == np.uint8


def test_python_scores_what_it_predicts(folder: Path) -> None:
    model, data = large_network(), load_dataset(f"{folder}/", "train")
    scores = evaluate(model, data)
    hits = labeled = 0
    for image, mask, _ in data:
        labels = predict(model, image.as_subclass(Tensor), views=SINGLE_SCALE)
        hits += int((labels == np.asarray(mask)).sum())
        labeled += int((mask != IGNORED).sum())
    assert scores.pixel_accuracy == hits / labeled
    assert len(scores.iou) == CLASSES


def test_rows_of_many_classes() -> None:
    iou = {f"kind {i}": i / 1000 for i in range(280)} | {"nothing": float("nan")}
    rows = _class_rows(iou)
    assert rows[0] == "kind 279  27.90"
    assert rows[10] == "… 260 classes between …"
    assert rows[-2] == "kind 0     0.00"
    assert rows[-1] == "280 of 281 classes occur, the others are absent; --out FILE writes all"
    assert _class_rows({"a": 0.5, "b": float("nan")}) == ["a   50.00", "b  absent"]


def test_sample_of_bytes_in_a_wide_benchmark() -> None:
    """A data set of somebody's own may give uint8 as long as its labels fit; the crop is int32 all the same."""
    spec = DatasetSpec("own", "Own", ("a", "b"), ((0, 0, 0), (1, 1, 1)), ("train",), "made up", ignore_index=IGNORED)
    sample = Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.ones(8, 8, dtype=torch.uint8), "a")  # type: ignore[arg-type]
    crop = TrainTransform((16, 16), (1.0, 1.0), ignore_index=spec.ignore_index)(sample)
    assert crop.mask.unique().tolist() == [1, IGNORED]
