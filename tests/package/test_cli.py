"""The command line as its users meet it: help, exit codes, and one clear message for each mistake."""

from __future__ import annotations

import json
import os
import pickle
import re
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import short_train, tiny_recipe, tiny_segmenter
from tiny_data import make_camvid, random_labels, save_image, save_mask, save_pages

from emalab.checkpoints import export_segmenter, load_training_state, read_metadata
from emalab.cli import main
from emalab.commands import evaluate as evaluate_command
from emalab.commands import recipes as recipes_command
from emalab.data import dataset_names, get_spec
from emalab.prediction import predict_with_confidence
from emalab.recipes import EvalConfig, recipe_names
from emalab.segmenter import Segmenter, SegmenterConfig
from emalab.video import write_video
from emalab.views import Views

Capture = pytest.CaptureFixture[str]


def fails(*arguments: str | Path, code: int = 1) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    assert stopped.value.code == code


def message(capsys: Capture) -> str:
    """The one line that a failed command says."""
    error = capsys.readouterr().err
    assert error.startswith("emalab: error: ")
    assert error.count("\n") == 1
    return error


@pytest.fixture(autouse=True)
def _no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EMALAB_DATA", raising=False)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    export_segmenter(tiny_segmenter(), tmp_path / "net.safetensors", tiny_recipe(), {})
    return tmp_path / "net.safetensors"


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    return make_camvid(tmp_path / "data", per_split=2)


COMMANDS = (
    *("study", "evaluate", "submit", "export", "convert official", "convert mmseg", "convert state-dict", "inspect"),
    *("cost", "bench", "predict", "data prepare", "data check", "recipes"),
)


class TestHelp:
    def test_lists_the_commands(self, capsys: Capture) -> None:
        fails("--help", code=0)
        text = capsys.readouterr().out
        for command in ("train", *COMMANDS):
            assert f"\n  {command} " in text

    def test_of_a_group_lists_its_commands(self, capsys: Capture) -> None:
        fails("data", "--help", code=0)
        text = capsys.readouterr().out
        assert "\n  data prepare " in text
        assert "convert" not in text
        assert all(name in text for name in dataset_names())
        fails("convert", code=2)
        assert "\n  convert mmseg " in capsys.readouterr().out

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_a_command(self, command: str, capsys: Capture) -> None:
        fails(*command.split(), "--help", code=0)
        assert f"usage: emalab {command}" in capsys.readouterr().out

    def test_of_training_lists_recipes(self, capsys: Capture) -> None:
        fails("train", "--help", code=0)
        assert "shapes-tiny" in capsys.readouterr().out

    def test_of_a_recipe_shows_every_field_with_its_value(self, capsys: Capture) -> None:
        fails("train", "camvid-lite2", "--help", code=0)
        text = capsys.readouterr().out
        for flag in ("--out", "--resume", "--seed", "--data.crop-size", "--optim.lr", "--model.ema.num-bases"):
            assert flag in text
        assert "352 480" in text

    def test_cost(self, capsys: Capture) -> None:
        main(["cost", "voc-r101"])
        rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()}
        assert list(rows) == ["513×513", "backbone", "reduction", "context", "classifier", "total"]
        assert rows["reduction"][:4] == ["39.872", "G", "9.438", "M"]
        main(["cost", "shapes-tiny", "--size", "32", "48"])
        assert "32×48" in capsys.readouterr().out
        fails("cost", "voc-r100")
        assert "did you mean voc-r101" in message(capsys)

    def test_recipes(self, capsys: Capture) -> None:
        main(["recipes"])
        text = capsys.readouterr().out
        lines = [line.split() for line in text.splitlines()]
        assert {name for name, *_ in filter(None, lines)} >= set(recipe_names())
        assert max(map(len, text.splitlines())) <= 100
        for name, *scores in (("voc-r101", "80.05", "81.32"), ("voc-r50-ablation", "78.52"), ("voc-r152",)):
            at = next(number for number, line in enumerate(lines) if line[:1] == [name])
            end = next(number for number, line in enumerate(lines[at + 1 :], at + 1) if line[0] in recipe_names())
            found = [word for line in lines[at:end] for word in line if re.fullmatch(r"\d\d\.\d+", word)]
            assert found == scores

    def test_version(self, capsys: Capture) -> None:
        main(["--version"])
        assert capsys.readouterr().out[0].isdigit()


class TestWrongCommand:
    def test_none(self, capsys: Capture) -> None:
        fails(code=2)
        assert "usage: emalab COMMAND" in capsys.readouterr().out

    def test_unknown(self, capsys: Capture) -> None:
        fails("trian", "shapes-tiny", code=2)
        assert "emalab: error: no command 'trian'; did you mean 'train'?\n\nusage" in capsys.readouterr().err
        fails("data", "chek", "voc", code=2)
        assert "no command 'data chek'; did you mean 'data check'?\n\nusage" in capsys.readouterr().err
        fails("--hlep", code=2)
        assert "emalab: error: no command '--hlep'\n\nusage" in capsys.readouterr().err

    def test_no_recipe(self, capsys: Capture) -> None:
        fails("train", code=2)
        assert "usage: emalab train RECIPE" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "arguments", [["--optim.rate", "1"], ["--optim.lr", "fast"], ["--precision", "8"]], ids=str
    )
    def test_flag(self, arguments: list[str], capsys: Capture) -> None:
        fails("train", "shapes-tiny", *arguments, code=2)
        assert arguments[0] in capsys.readouterr().err


class TestTrain:
    def test_flags_reach_the_run(self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        flags = "--optim.iterations 2 --optim.batch-size 2 --model.ema.num-bases 3 --seed 5 --accelerator cpu"
        main(["train", "shapes-tiny", *flags.split(), "--no-progress"])
        recipe, state = load_training_state(tmp_path / "runs" / "shapes-tiny-seed5" / "last.pt")
        assert (recipe.optim.iterations, recipe.model.ema.num_bases, recipe.seed) == (2, 3, 5)
        assert state["model"]["context.bases"].shape == (3, 32)
        assert "single scale: mIoU" in capsys.readouterr().out

    def test_help_says_who_published_what_and_what_is_unchecked(self, capsys: Capture) -> None:
        fails("train", "context-59-r101", "--help", code=0)
        text = " ".join(capsys.readouterr().out.split())
        assert "Published: 53.1 mIoU, over 59 or 60 classes (the paper, by secondary sources)." in text
        assert "could not be checked whether the paper's score is over 59 or 60 classes" in text
        assert "--published" not in text

    def test_unknown_recipe(self, capsys: Capture) -> None:
        fails("train", "shape-tiny")
        assert "no recipe 'shape-tiny'; did you mean shapes-tiny" in message(capsys)

    def test_missing_data_root(self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        fails("train", "camvid-lite2", "--out", tmp_path / "run")
        assert "Set --data-root (or EMALAB_DATA) to the folder that contains camvid/" in message(capsys)
        monkeypatch.setenv("EMALAB_DATA", str(tmp_path / "nowhere"))
        fails("train", "camvid-lite2", "--out", tmp_path / "run")
        assert "nowhere is not a folder" in message(capsys)
        assert not (tmp_path / "run").exists()

    def test_leaves_no_folder_of_a_run_that_cannot_be(
        self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for flag, expected in (
            ("--seed=-1", "recipe shapes-tiny: --seed must be at least 0, got -1"),
            ("--data.flip=2", "recipe shapes-tiny: --data.flip must be at most 1, got 2.0"),
            ("--accelerator=tpu", "there is no accelerator 'tpu' here; take auto or cpu"),
            ("--num-workers=-1", "--num-workers is -1; it must be at least 0"),
            ("--log-every=0", "--log-every is 0; it must be at least 1"),
            ("--optim.lr=-1", "recipe shapes-tiny: --optim.lr must be at least 0, got -1.0"),
            ("--optim.loss.hardest=2", "--optim.loss.hardest must be above 0 and at most 1; got 2.0"),
            ("--model.ema.num-iters=0", "--model.ema.num-iters must be 1 to 10000, got 0"),
            ("--model.num-classes=100000", "--model.num-classes must be 1 to 65536, got 100000"),
            ("--model.dropout=3", "--model.dropout must be 0 to 1, got 3.0"),
            ("--optim.batch-size=1", "take at least 2 or set --optim.freeze-batch-norm"),
            ("--model.backbone=resnet5000", "timm has no network 'resnet5000'"),
        ):
            fails("train", "shapes-tiny", flag)
            assert expected in message(capsys)
        assert not list(tmp_path.iterdir())

    def test_several_machines_without_torchrun(self, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        """Fabric would wait half an hour for machines that nobody has started."""
        for name in ("MASTER_ADDR", "SLURM_JOB_ID"):
            monkeypatch.delenv(name, raising=False)
        fails("train", "shapes-tiny", "--num-nodes", "2")
        assert "--num-nodes 2: start the processes of all machines with torchrun or srun" in message(capsys)


class TestEvaluate:
    def test_prints_and_writes_scores(self, release: Path, tmp_path: Path, capsys: Capture) -> None:
        out = tmp_path / "new" / "scores.json"  # a folder that nobody made must not cost a long evaluation
        main(["evaluate", str(release), "--batch-size", "50", "--device", "cpu", "--out", str(out)])
        text = capsys.readouterr().out
        scores = json.loads(out.read_text())
        assert scores["images"] == 200
        assert f"mIoU {100 * scores['miou']:.2f}" in text
        assert f"mean class accuracy {100 * scores['mean_class_accuracy']:.2f}" in text
        assert f"frequency-weighted IoU {100 * scores['frequency_weighted_iou']:.2f}" in text
        assert all(name in text for name in scores["iou"])

    def test_as_the_recipe_scores_unless_told_otherwise(
        self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Trained at stride 16, scored at 8 in windows: what the network is given, seen from inside."""
        model = SegmenterConfig(5, "resnet18", output_stride=16, channels=8, head_channels=8)
        recipe = replace(tiny_recipe(model=model), evaluation=EvalConfig(output_stride=8, window=(32, 32), overlap=0.5))
        export_segmenter(Segmenter(model), tmp_path / "net.safetensors", recipe, {})
        seen: list[tuple[Segmenter, dict[str, Views]]] = []
        monkeypatch.setattr("emalab.evaluation.evaluate", lambda model, *_, **settings: seen.append((model, settings)))
        monkeypatch.setattr(evaluate_command, "_print_scores", print)
        main(["evaluate", str(tmp_path / "net.safetensors")])
        flags = "--output-stride 16 --window 48 64 --overlap 0"
        main(["evaluate", str(tmp_path / "net.safetensors"), *flags.split()])
        assert [model.config.output_stride for model, _ in seen] == [8, 16]
        assert [settings["views"] for _, settings in seen] == [
            Views(window=(32, 32), overlap=0.5),
            Views(window=(48, 64), overlap=0),
        ]

    def test_data_with_other_classes(self, release: Path, camvid: Path, capsys: Capture) -> None:
        fails("evaluate", release, "--data", "camvid", "--split", "test", "--data-root", camvid)
        assert "the network predicts 5 classes, camvid has 11" in message(capsys)

    def test_unknown_split(self, release: Path, capsys: Capture) -> None:
        fails("evaluate", release, "--split", "vall")
        assert "shapes-pooled has no split 'vall'; did you mean 'val'?" in message(capsys)

    def test_no_such_checkpoint(self, capsys: Capture) -> None:
        fails("evaluate", "gone.pt")
        assert "no checkpoint at gone.pt; shipped ones are" in message(capsys)

    def test_pickle(self, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(print, protocol=2))
        fails("evaluate", tmp_path / "evil.pt")
        assert "evil.pt holds more than tensors and plain values" in message(capsys)

    def test_checkpoint_of_another_architecture(self, tmp_path: Path, capsys: Capture) -> None:
        path, recipe = tmp_path / "other.safetensors", tiny_recipe()
        other = replace(recipe, model=replace(recipe.model, channels=64))
        export_segmenter(tiny_segmenter(), path, other, {})
        fails("evaluate", path)
        error = capsys.readouterr().err
        assert f"emalab: error: the weights in {path} do not fit the network of their recipe" in error


class TestExport:
    def test_releases_a_finished_run(self, tmp_path: Path, capsys: Capture) -> None:
        run, out = tmp_path / "run", tmp_path / "net.safetensors"
        result = short_train(tiny_recipe(), run)
        main(["export", str(run), str(out), "--data", "generated scenes"])
        assert "net.safetensors: " in capsys.readouterr().out
        metadata = read_metadata(out)
        assert metadata["recipe"] == tiny_recipe()
        assert metadata["scores"]["single scale"] == result.scores["single scale"].to_dict()
        assert metadata["data"] == "generated scenes"
        main(["export", str(run), str(out), "--dtype", "float32"])
        weights = (torch.load(run / "last.pt")["model"], load_file(out))
        assert all(torch.equal(weights[0][key], value) for key, value in weights[1].items())

    def test_says_which_weights_vanish(self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        short_train(tiny_recipe(), tmp_path)
        monkeypatch.setattr("emalab.checkpoints._vanished", lambda before, after: {"a": (3, 9), "b": (1, 2)})
        main(["export", str(tmp_path), str(tmp_path / "net.safetensors")])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"warning: {tmp_path / 'net.safetensors'}: 4 weights are too small for torch.float16")
        assert line.endswith("as 3 of the 9 of a; keep float32: --dtype float32, or dtype=torch.float32 in Python")

    def test_of_a_run_that_is_not_finished(self, tmp_path: Path, capsys: Capture) -> None:
        fails("export", tmp_path / "gone", tmp_path / "net.safetensors")
        assert "record.json" in message(capsys)
        assert not (tmp_path / "net.safetensors").exists()

    def test_of_a_damaged_record(self, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "record.json").write_text('{"recipe": ')
        fails("export", tmp_path, tmp_path / "net.safetensors")
        assert f"{tmp_path / 'record.json'} is not a result record" in message(capsys)


class TestPredict:
    def test_writes_labels_and_overlay(self, release: Path, tmp_path: Path, capsys: Capture) -> None:
        photo = save_image(tmp_path / "in" / "scene.png", (40, 50))
        main(["predict", str(photo), "--checkpoint", str(release), "--out", str(tmp_path / "out"), "--device", "cpu"])
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"scene.mask.png", "scene.overlay.png"}
        with Image.open(tmp_path / "out" / "scene.mask.png") as labels:
            assert (labels.mode, labels.size) == ("P", (50, 40))
            assert np.asarray(labels).max() < 5
        assert "scene.mask.png" in capsys.readouterr().out

    @pytest.mark.parametrize(("flags", "flip"), [([], True), (["--no-flip"], False)], ids=["default", "no-flip"])
    def test_averages_with_the_mirror_image_unless_told(
        self, release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], flip: bool
    ) -> None:
        asked = []

        def spied(*arguments: Any, **options: Any) -> Any:
            asked.append(options["views"].flip)
            return predict_with_confidence(*arguments, **options)

        monkeypatch.setattr("emalab.prediction.predict_with_confidence", spied)
        photo = save_image(tmp_path / "scene.png", (40, 50))
        main(["predict", str(photo), "--checkpoint", str(release), "--out", str(tmp_path), "--device", "cpu", *flags])
        assert asked == [flip]

    def test_goes_on_after_a_bad_photograph(self, release: Path, tmp_path: Path, capsys: Capture) -> None:
        good = [save_image(tmp_path / f"{name}.jpg", (40, 50)) for name in ("first", "last")]
        (tmp_path / "half.jpg").write_bytes(good[0].read_bytes()[:400])
        paths = [good[0], tmp_path / "half.jpg", tmp_path / "gone.jpg", good[1]]
        fails("predict", *paths, "--checkpoint", release, "--out", tmp_path / "out")
        done = {path.name for path in (tmp_path / "out").iterdir()}
        assert done == {f"{name}.{kind}.png" for name in ("first", "last") for kind in ("mask", "overlay")}
        errors = capsys.readouterr().err.splitlines()
        assert len(errors) == 2
        assert "gone.jpg: no such file" in errors[0]
        assert "half.jpg: cannot be read" in errors[1]

    def test_a_folder_keeps_its_subfolders_and_is_never_labeled_twice(
        self, release: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        names = ("a/cat.png", "b/cat.JPG", "b/c/cat.jpeg", "dog.png")
        for name in names:
            save_image(tmp_path / name, (20, 30))
        (tmp_path / "notes.txt").write_text("no photograph")
        for _ in range(2):
            main(["predict", str(tmp_path), "--checkpoint", str(release), "--out", str(tmp_path)])
        masks = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.mask.png")}
        assert masks == {"a/cat.mask.png", "b/cat.mask.png", "b/c/cat.mask.png", "dog.mask.png"}
        assert len(list(tmp_path.rglob("*.overlay.png"))) == 4
        assert "8 results of earlier runs left out" in capsys.readouterr().out

    def test_photographs_of_one_name_do_not_overwrite_each_other(self, release: Path, tmp_path: Path) -> None:
        paths = [save_image(tmp_path / name, (20, 30)) for name in ("a/cat.png", "b/cat.png", "b/cat.jpg")]
        main(["predict", *map(str, paths), str(paths[0]), "--checkpoint", str(release), "--out", str(tmp_path / "out")])
        masks = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.mask.png")}
        assert masks == {"a/cat.mask.png", "b/cat.png.mask.png", "b/cat.jpg.mask.png"}

    def test_patterns_and_what_they_do_not_match(self, release: Path, tmp_path: Path, capsys: Capture) -> None:
        for name in ("day1/a.png", "day2/b.png", "night/c.png"):
            save_image(tmp_path / name, (20, 30))
        main(["predict", f"{tmp_path}/day*/*.png", "--checkpoint", str(release), "--out", str(tmp_path / "out")])
        assert {path.name for path in (tmp_path / "out").glob("*.mask.png")} == {"a.mask.png", "b.mask.png"}
        capsys.readouterr()
        for argument, expected in (
            (f"{tmp_path}/dawn*", "no file matches this pattern"),
            (tmp_path / "gone.png", "no such file"),
            (tmp_path / "empty", "no photographs in this folder; their names end in .jpg"),
            (tmp_path / "pipe", "is no regular file"),
        ):
            if str(argument).endswith("empty"):
                argument.mkdir()
            if str(argument).endswith("pipe"):
                if not hasattr(os, "mkfifo"):
                    continue
                os.mkfifo(argument)
            fails("predict", argument, "--checkpoint", release)
            assert expected in message(capsys)

    @pytest.mark.parametrize("ending", ["gif", "png", "webp"])
    def test_an_animation_is_labeled_frame_by_frame(self, ending: str, release: Path, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (30, 20), color) for color in ("red", "lime", "navy")]
        frames[0].save(tmp_path / f"moving.{ending}", save_all=True, append_images=frames[1:], duration=40)
        main(["predict", str(tmp_path / f"moving.{ending}"), "--checkpoint", str(release), "--out", str(tmp_path)])
        assert len(list((tmp_path / "moving.masks").glob("*.mask.png"))) == 3
        with Image.open(tmp_path / "moving.overlay.webp") as overlay:
            overlay.load()
            assert (overlay.n_frames, overlay.info.get("duration")) == (3, 40)

    def test_a_tiff_of_several_pages_is_labeled_page_by_page(self, release: Path, tmp_path: Path) -> None:
        """Pages may differ in size and in kind; a thumbnail is none of them."""
        pages = [Image.new("RGB", (30, 20), "red"), Image.new("RGB", (18, 24), "navy"), Image.new("L", (30, 20))]
        save_pages(tmp_path / "stack.tif", pages, [Image.new("RGB", (8, 8))])
        main(["predict", str(tmp_path / "stack.tif"), "--checkpoint", str(release), "--out", str(tmp_path)])
        sizes = []
        for mask in sorted((tmp_path / "stack.masks").glob("*.mask.png")):
            with Image.open(mask) as labels:
                sizes.append(labels.size)
        assert sizes == [(30, 20), (18, 24), (30, 20)]
        with Image.open(tmp_path / "stack.overlay.tif") as overlay:
            assert overlay.n_frames == 3

    def test_a_video(self, release: Path, tmp_path: Path, capsys: Capture) -> None:
        av = pytest.importorskip("av", reason="PyAV, which reads and writes videos, is not installed")
        frames = [Image.new("RGB", (64, 48), color) for color in ("red", "lime", "navy")]
        write_video(tmp_path / "drive.mp4", frames, Fraction(10))
        main(["predict", str(tmp_path / "drive.mp4"), "--checkpoint", str(release), "--out", str(tmp_path / "out")])
        assert len(list((tmp_path / "out" / "drive.masks").glob("*.mask.png"))) == 3
        with av.open(str(tmp_path / "out" / "drive.overlay.mp4")) as video:
            assert (len(list(video.decode(video=0))), video.streams.video[0].average_rate) == (3, 10)
        (tmp_path / "cut.mp4").write_bytes((tmp_path / "drive.mp4").read_bytes()[:300])
        capsys.readouterr()
        fails("predict", tmp_path / "cut.mp4", "--checkpoint", release, "--out", tmp_path / "out")
        assert "cut.mp4: cannot be read as a video" in message(capsys)

    def test_a_video_without_its_library(
        self, release: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "av", None)
        (tmp_path / "drive.mp4").touch()
        fails("predict", tmp_path / "drive.mp4", "--checkpoint", release)
        assert "videos need PyAV: pip install" in message(capsys)

    def test_confidence(self, release: Path, tmp_path: Path) -> None:
        photo = save_image(tmp_path / "scene.png", (40, 50))
        main(["predict", str(photo), "--checkpoint", str(release), "--out", str(tmp_path), "--confidence"])
        expected = predict_with_confidence(Segmenter.from_pretrained(release), photo).confidence
        with Image.open(tmp_path / "scene.confidence.png") as stored:
            assert np.abs(np.asarray(stored) / 255 - expected).max() <= 0.5 / 255 + 1e-6

    @pytest.mark.parametrize("name", ["scene.png", "moving.gif"])
    def test_probabilities(self, name: str, release: Path, tmp_path: Path, capsys: Capture) -> None:
        photo = save_image(tmp_path / name, (40, 50))
        if name == "moving.gif":
            frames = [Image.new("RGB", (30, 20), color) for color in ("red", "navy")]
            frames[0].save(photo, save_all=True, append_images=frames[1:])
        main(["predict", str(photo), "--checkpoint", str(release), "--out", str(tmp_path), "--probabilities"])
        stem = tmp_path / "moving.masks" / "000001" if name == "moving.gif" else tmp_path / "scene"
        with np.load(f"{stem}.probabilities.npz") as stored:
            probabilities, classes = stored["probabilities"], stored["classes"].tolist()
        with Image.open(f"{stem}.mask.png") as mask:
            labels = np.asarray(mask)
        assert (probabilities.dtype, probabilities.shape) == (np.float16, (*labels.shape, 5))
        assert classes == list(get_spec("shapes-pooled").classes)
        half = 2.0**-11  # a float16 in 0…1 is off by as much at most
        assert np.abs(probabilities.sum(-1, dtype=np.float64) - 1).max() <= 5 * half + 1e-6
        given = np.take_along_axis(probabilities, labels[..., None].astype(int), -1)[..., 0]
        assert (given == probabilities.max(-1)).all()
        if name == "scene.png":
            assert "scene.mask.png, scene.overlay.png, scene.probabilities.npz" in capsys.readouterr().out

    def test_says_at_what_size_the_network_saw_it(self, release: Path, tmp_path: Path, capsys: Capture) -> None:
        photo = save_image(tmp_path / "scene.png", (40, 50))
        main(["predict", str(photo), "--checkpoint", str(release), "--out", str(tmp_path)])
        assert "seen at" not in capsys.readouterr().out
        main(["predict", str(photo), "--checkpoint", str(release), "--out", str(tmp_path), "--max-side", "25"])
        assert "(50×40 pixels, seen at 25×20; see --max-side)" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("flag", "value", "expected"),
        [
            ("--max-side", "0", "max_side is 0; it must be at least 1 pixel"),
            ("--scales", "nan", "scales must be positive factors, at least one; got (nan,)"),
            ("--scales", "inf", "scales must be positive factors"),
        ],
    )
    def test_sizes_that_are_none(
        self, flag: str, value: str, expected: str, release: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        """0 was taken for no limit."""
        photo = save_image(tmp_path / "scene.png", (40, 50))
        fails("predict", photo, "--checkpoint", release, "--out", tmp_path, flag, value)
        assert expected in message(capsys)

    def test_no_photograph(self, release: Path, capsys: Capture) -> None:
        fails("predict", "--checkpoint", release)
        assert "needs at least one photograph" in message(capsys)


class TestInspect:
    def test_bases_and_attention(self, release: Path, tmp_path: Path, capsys: Capture) -> None:
        photo = save_image(tmp_path / "scene.png", (40, 50))
        flags = ["--checkpoint", str(release), "--out", str(tmp_path / "out"), "--device", "cpu"]
        main(["inspect", str(photo), *flags])
        assert re.search(r"\d+ bases, \d+ distinct, \d+\.\d in use", capsys.readouterr().out)
        main(["inspect", str(photo), *flags, "--pixel", "49", "0"])
        assert re.search(r"pixel 49 0: .+ \d+%, .+ \d+%", capsys.readouterr().out)
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"scene.bases.png", "scene.attention.png"}
        fails("inspect", photo, *flags, "--pixel", "50", "0")
        assert "there is no pixel 50 0 in a photograph of 50×40 pixels" in message(capsys)

    def test_a_network_without_bases(self, tmp_path: Path, capsys: Capture) -> None:
        recipe = tiny_recipe()
        recipe = replace(recipe, model=replace(recipe.model, context="none"))
        export_segmenter(Segmenter(recipe.model), tmp_path / "net.safetensors", recipe, {})
        photo = save_image(tmp_path / "scene.png", (40, 50))
        fails("inspect", photo, "--checkpoint", tmp_path / "net.safetensors", "--out", tmp_path)
        assert "bases are found in an EMAU; this network's context is Identity" in message(capsys)


class TestConvertStateDict:
    @pytest.mark.parametrize(
        ("prefix", "wrapper"),
        [
            *(("", None), ("module.", None), ("_orig_mod.", "net")),
            *(("module._orig_mod.", "model"), ("model.", "state_dict")),
        ],
    )
    def test_as_people_save_networks(
        self, prefix: str, wrapper: str | None, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tiny_segmenter()
        state: Any = {prefix + key: value for key, value in model.state_dict().items()}
        if wrapper:
            state = {wrapper: state | {"criterion.weight": torch.ones(5)} if prefix else state, "epoch": 3}
        torch.save(state, tmp_path / "mine.pth")
        out = tmp_path / "net.safetensors"
        main(["convert", "state-dict", str(tmp_path / "mine.pth"), str(out), "--recipe", "shapes-tiny"])
        converted = Segmenter.from_pretrained(out).state_dict()
        assert all(torch.equal(value, converted[key]) for key, value in model.state_dict().items())

    def test_what_does_not_fit_is_one_line(self, tmp_path: Path, capsys: Capture) -> None:
        state = tiny_segmenter().state_dict()
        bad = {
            "lack 'context.bases'": {key: value for key, value in state.items() if key != "context.bases"},
            "the network has not, 'extra.weight'": state | {"extra.weight": torch.zeros(1)},
            "'context.bases' is (3, 32) and should be": state | {"context.bases": torch.zeros(3, 32)},
            "values of context.bases are NaN or infinite": state
            | {"context.bases": torch.full_like(state["context.bases"], torch.nan)},
            "two networks are in it": {f"{name}.{key}": value for name in ("a", "b") for key, value in state.items()},
            "it holds 'epoch', and neither tensors": {"epoch": 3},
            "it holds a list": [1],
        }
        for expected, content in bad.items():
            torch.save(content, tmp_path / "mine.pth")
            fails("convert", "state-dict", tmp_path / "mine.pth", tmp_path / "o.safetensors", "--recipe", "shapes-tiny")
            error = message(capsys)
            assert expected in error
            assert "mine.pth" in error
        assert not (tmp_path / "o.safetensors").exists()


def test_control_characters_do_not_reach_the_terminal(capsys: Capture) -> None:
    fails("evaluate", "\x1b[31mred\n.pt")
    assert "no checkpoint at \\x1b[31mred .pt" in message(capsys)


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


def test_a_reader_that_leaves_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """``emalab recipes | head -1``"""

    def closed() -> None:
        raise BrokenPipeError

    monkeypatch.setattr(recipes_command, "run", closed)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr(sys, "stdout", out)
        main(["recipes"])


def test_an_interruption_needs_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recipes_command, "run", interrupted)
    fails("recipes", code=130)
    assert capsys.readouterr().err == "emalab: interrupted\n"


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


class TestContextOfOnesOwn:
    """A class in a file of the reader's, trained, scored and used by commands alone."""

    HEADS = """
from torch import nn

class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weigh = nn.Conv2d(channels, channels, 1)

    def forward(self, features):
        return features * self.weigh(features.mean(dim=(2, 3), keepdim=True)).sigmoid()
"""

    def test_from_training_to_prediction(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
    ) -> None:
        (tmp_path / "own_heads.py").write_text(self.HEADS)
        monkeypatch.syspath_prepend(tmp_path)
        run = tmp_path / "run"
        short = ["--optim.iterations", "2", "--accelerator", "cpu", "--no-progress"]
        main(["train", "shapes-tiny", "--model.context", "own_heads:Gate", *short, "--out", str(run)])
        assert "context.weigh.weight" in load_training_state(run / "last.pt")[1]["model"]
        assert json.loads((run / "record.json").read_text())["recipe"]["model"]["context"] == "own_heads:Gate"
        fails("evaluate", run / "last.pt")
        assert "--allow-code own_heads" in message(capsys)
        main(["evaluate", str(run / "last.pt"), "--allow-code", "own_heads"])
        assert "mIoU" in capsys.readouterr().out

        monkeypatch.delitem(sys.modules, "own_heads")
        (tmp_path / "own_heads.py").unlink()
        fails("evaluate", run / "last.pt", "--allow-code", "own_heads")
        assert "'own_heads:Gate' cannot be imported" in message(capsys)
