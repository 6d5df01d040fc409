"""The commands that score, release and convert weights: `evaluate`, `export`, `convert state-dict`."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Capture, fails, message
from safetensors.torch import load_file
from tiny import short_train, tiny_recipe, tiny_segmenter

from emalab.checkpoints import export_segmenter, read_metadata
from emalab.cli import main
from emalab.commands import evaluate as evaluate_command
from emalab.recipes import EvalConfig
from emalab.segmenter import Segmenter, SegmenterConfig
from emalab.views import Views

pytestmark = pytest.mark.usefixtures("no_data_root")


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
