"""`emalab train`: flags, mistakes, and a context module of the reader's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command_line import Capture, fails, message

from emalab.checkpoints import load_training_state
from emalab.cli import main

pytestmark = pytest.mark.usefixtures("no_data_root")


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
