"""Runs that are killed, stopped or finished, and resumed: equal to a run that was left alone."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import processes
import pytest
import torch
from PIL import Image
from tiny import CPU, short_train, tiny_recipe, with_auxiliary_head
from torch import Tensor
from trained import assert_same, losses, train_to_first_checkpoint
from waiting import wait_until

from emalab import checkpoints
from emalab.checkpoints import CheckpointError, load_training_state
from emalab.cli import main
from emalab.recipes import EvalConfig
from emalab.results import load_records
from emalab.resume import refuse_changes
from emalab.runlog import RunLog, read_log
from emalab.segmenter import Segmenter
from emalab.trainer import Trainer, TrainResult, train


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As in the processes that a test starts: sums in another order would be other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wait_before_step_50() -> None:
    """The training goes no further: however late a kill comes, it comes in time."""
    step = Trainer.step

    def held(trainer: Trainer, *batch: Tensor) -> Tensor:
        if trainer.iteration == 49:
            Event().wait()
        return step(trainer, *batch)

    Trainer.step = held


def losses_so_far(folder: Path) -> list[str]:
    log = folder / "log.jsonl"
    return log.read_text().splitlines() if log.exists() else []


def write_folder(folder: Path, images: str) -> None:
    """A data set of one's own with two classes and an image for each letter."""
    for name in ("images", "masks"):
        (folder / name / "train").mkdir(parents=True)
    (folder / "classes.yaml").write_text("classes: [plain, striped]\n")
    for number, letter in enumerate(images):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / "train" / f"{letter}.png")
        Image.fromarray((pixels[..., 0] > 128).astype(np.uint8)).save(folder / "masks" / "train" / f"{letter}.png")


class TestResume:
    @pytest.mark.usefixtures("one_thread")
    def test_a_kill_changes_nothing(self, tmp_path: Path) -> None:
        """SIGKILL at a random moment, then ``--resume``: the same bits as a run that was left alone."""
        flags = "--optim.iterations 60 --optim.batch-size 4 --data.crop-size 32 32 --data.eval-split val/held-out"
        command = ["train", "shapes-tiny", *flags.split(), "--log-every", "1", "--checkpoint-every", "7"]
        command += ["--no-progress", "--accelerator", "cpu", "--data.photometric", "0.5", "--model.dropout", "0.2"]
        main([*command, "--out", str(tmp_path / "whole")])

        killed = tmp_path / "killed"
        moment = random.SystemRandom().randint(1, 40)
        with processes.command([*command, "--out", str(killed)], tmp_path / "errors", wait_before_step_50) as process:
            wait_until(lambda: len(losses_so_far(killed)) >= moment, process)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (killed / "record.json").exists()

        main([*command, "--out", str(killed), "--resume"])
        assert_same(killed, tmp_path / "whole")
        assert losses(killed) == losses(tmp_path / "whole"), f"killed at iteration {moment}"
        records = [load_records(tmp_path / name, "record.json")[0] for name in ("killed", "whole")]
        assert records[0]["scores"] == records[1]["scores"]

    def test_auxiliary_head_goes_on_where_it_stood(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        recipe = with_auxiliary_head(tiny_recipe())
        whole = short_train(recipe, tmp_path / "whole")
        train_to_first_checkpoint(recipe, tmp_path / "stopped", monkeypatch)
        assert load_training_state(tmp_path / "stopped" / "last.pt")[1]["iteration"] == 4
        resumed = short_train(recipe, tmp_path / "stopped", resume=True)
        assert_same(tmp_path / "stopped", tmp_path / "whole")
        assert resumed.scores == whole.scores
        loaded = Segmenter.from_pretrained(tmp_path / "stopped" / "last.pt")
        assert torch.equal(loaded.auxiliary[2].weight, whole.model.auxiliary[2].weight)

    def test_a_full_disk_leaves_the_last_checkpoint(
        self, finished: tuple[Path, TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save, saved = torch.save, []

        def fail_at_the_second(content: dict[str, Any], path: Path) -> None:
            if saved:
                path.write_bytes(b"PK half a checkpoint")
                raise OSError(28, "No space left on device")
            saved.append(path)
            save(content, path)

        with monkeypatch.context() as full:
            full.setattr(checkpoints.torch, "save", fail_at_the_second)
            with pytest.raises(OSError, match="No space left"):
                short_train(tiny_recipe(), tmp_path)
        assert load_training_state(tmp_path / "last.pt")[1]["iteration"] == 4
        assert not list(tmp_path.glob(".*"))
        short_train(tiny_recipe(), tmp_path, resume=True)
        assert_same(tmp_path, finished[0])

    def test_later_lines_of_the_log_are_dropped(self, tmp_path: Path) -> None:
        """A run that died logged more than it saved, its last line half."""
        with RunLog(tmp_path, 0) as log:
            for iteration in (1, 2, 3, 4):
                log.write(iteration, loss=float(iteration))
        with (tmp_path / "log.jsonl").open("a") as file:
            file.write('{"iteration": 5, "lo')
        assert len(read_log(tmp_path)) == 4
        with RunLog(tmp_path, 2) as log:
            log.write(3, loss=0.5)
        assert losses(tmp_path) == {1: 1, 2: 2, 3: 0.5}

    def test_goes_on_counting(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Seconds, the name of the run, what has changed, and the scale of gradients in half precision."""
        records, loaded = [], []
        precision = type(Trainer(tiny_recipe(), tmp_path / "other", CPU).fabric.strategy.precision)
        monkeypatch.setattr(precision, "state_dict", lambda self: {"scale": 4.0})
        monkeypatch.setattr(precision, "load_state_dict", lambda self, state: loaded.append(state))
        for iterations in (2, 3, 4):
            recipe = tiny_recipe(optim={"iterations": iterations})
            records.append(short_train(recipe, tmp_path / "run", resume=True).record)
        assert loaded == [{"scale": 4.0}] * 2
        assert len({record["run"] for record in records}) == 1
        seconds = [record["seconds"]["training"] for record in records]
        assert seconds == sorted(seconds)
        _, state = load_training_state(tmp_path / "run" / "last.pt")
        assert Trainer(recipe, tmp_path / "run", replace(CPU, resume=True)).seconds == state["seconds"] > 0
        assert records[-1]["changes"] == [f"optim.iterations {i} → {i + 1} at iteration {i}" for i in (2, 3)]

    def test_starts_anew_where_there_is_nothing(self, finished: tuple[Path, TrainResult], tmp_path: Path) -> None:
        short_train(tiny_recipe(), tmp_path / "new", resume=True)
        assert_same(tmp_path / "new", finished[0])

    def test_of_a_finished_run_only_scores(self, tmp_path: Path) -> None:
        first = short_train(tiny_recipe(), tmp_path)
        again = short_train(tiny_recipe(), tmp_path, resume=True)
        assert again.scores == first.scores
        assert again.record["seconds"]["training"] == first.record["seconds"]["training"]
        assert losses(tmp_path).keys() == set(range(1, 9))

    def test_how_to_score_may_change(self, tmp_path: Path) -> None:
        short_train(tiny_recipe(), tmp_path)
        recipe = replace(tiny_recipe(), evaluation=EvalConfig(every=0, scales=(1.0, 2.0)))
        assert set(short_train(recipe, tmp_path, resume=True).scores) == {"single scale", "multi-scale"}

    def test_longer(self, tmp_path: Path) -> None:
        """A finished run goes on; its record says where the schedule changed."""
        short_train(tiny_recipe(), tmp_path)
        result = short_train(tiny_recipe(optim={"iterations": 10}), tmp_path, resume=True)
        assert load_training_state(tmp_path / "last.pt")[1]["iteration"] == 10
        assert result.record["changes"] == ["optim.iterations 8 → 10 at iteration 8"]
        with pytest.raises(CheckpointError, match=r"at iteration 10, .*optim\.iterations: 10 there, 8 here"):
            short_train(tiny_recipe(), tmp_path, resume=True)

    def test_shortened_to_where_it_stands(self) -> None:
        """And no further: the schedule of what has been done was that of a longer run."""
        before, short = tiny_recipe(), tiny_recipe(optim={"iterations": 4})
        changes = refuse_changes(Path("last.pt"), before, {"iteration": 4}, short, "")
        assert changes == ["optim.iterations 8 → 4 at iteration 4"]
        with pytest.raises(CheckpointError, match=r"optim\.iterations: 8 there, 4 here"):
            refuse_changes(Path("last.pt"), before, {"iteration": 5}, short, "")

    def test_where_the_data_have_moved(self, tmp_path: Path) -> None:
        """A folder's content counts, and not where it lies."""
        for name, images in (("here", "abcd"), ("there", "abcd"), ("other", "abce")):
            write_folder(tmp_path / name, images)
        recipe = tiny_recipe(data={"train_split": "train", "eval_split": "train"}, optim={"iterations": 2})
        recipe = replace(recipe, model=replace(recipe.model, num_classes=2))

        def run(folder: str, **options: Any) -> TrainResult:
            data = replace(recipe.data, name=f"{tmp_path / folder}/")
            return train(replace(recipe, data=data), tmp_path / "run", replace(CPU, **options))

        first = run("here")
        assert run("there", resume=True).scores == first.scores
        with pytest.raises(CheckpointError, match="was trained on other images or classes than"):
            run("other", resume=True)

    def test_damaged_checkpoint(self, tmp_path: Path) -> None:
        (tmp_path / "last.pt").write_bytes(b"PK half a checkpoint")
        with pytest.raises(CheckpointError, match=r"last\.pt is damaged"):
            short_train(tiny_recipe(), tmp_path, resume=True)

    def test_with_another_recipe(self, finished: tuple[Path, TrainResult]) -> None:
        with pytest.raises(
            CheckpointError, match=r"another recipe \(optim\.lr: 0\.003 there, 0\.1 here; seed: 0 there, 1 here\)"
        ):
            short_train(tiny_recipe(seed=1, optim={"lr": 0.1}), finished[0], resume=True)
