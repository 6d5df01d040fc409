"""`emalab predict` and `emalab inspect`: what they write for photographs, folders and videos, and what they refuse."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Capture, fails, message
from PIL import Image
from tiny import tiny_recipe
from tiny_data import save_image, save_pages

from emalab.checkpoints import export_segmenter
from emalab.cli import main
from emalab.data import get_spec
from emalab.prediction import predict_with_confidence
from emalab.segmenter import Segmenter
from emalab.video import write_video


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
