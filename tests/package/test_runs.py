"""The folder of a run: one process at a time, nothing lost when it ends, nothing left of those that were killed."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from processes import command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import CPU, scenes, short_train, tiny_recipe
from torch import nn
from waiting import HANGS, Process, wait_until

from emalab import run_folder
from emalab.checkpoints import (
    CheckpointError,
    export_segmenter,
    load_training_state,
    read_spec,
    require_one_run,
    save_training_state,
    tensors_checksum,
)
from emalab.cli import main
from emalab.files import CannotWriteError, write_atomically
from emalab.interruption import Interrupted, Interruption
from emalab.recipes import EvalConfig, recipe_to_dict
from emalab.results import read_record
from emalab.run_folder import RunBusyError, RunFolder
from emalab.runlog import RunLog, read_log
from emalab.trainer import Trainer

TRAIN = ["train", "shapes-tiny", "--accelerator", "cpu", "--no-progress", "--log-every", "1"]
TRAIN += ["--data.eval-split", "val/held-out"]
LONG = [*TRAIN, "--optim.iterations", "100000", "--optim.batch-size", "2", "--data.crop-size", "32", "32"]


def wait_for_steps(folder: Path, process: Process, steps: int = 3) -> None:
    log = folder / "log.jsonl"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) >= steps, process)


class TestOneProcess:
    def test_a_second_one_is_refused(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """It learns who is there; a kill frees the folder, and leftovers go with the next run."""
        run = tmp_path / "run"
        with command([*LONG, "--out", str(run)], tmp_path / "errors") as process:
            wait_for_steps(run, process)
            with pytest.raises(SystemExit) as refused:
                main([*LONG, "--optim.lr", "0.1", "--out", str(run)])
            assert refused.value.code == 1
            error = capsys.readouterr().err
            assert f"{run} is in use by process {process.pid} on " in error
            assert error.count("\n") == 1
        for name in (".last.pt.7.tmp", ".record.json.7.tmp"):
            (run / name).write_bytes(b"half")
        main([*TRAIN, "--optim.iterations", "2", "--out", str(run)])
        assert not [path.name for path in run.iterdir() if path.name.startswith(".") or path.name == "run.lock"]

    def test_within_a_process(self, tmp_path: Path) -> None:
        folder = RunFolder(tmp_path)
        with folder.hold():
            with pytest.raises(RunBusyError, match="in use by another run of this process"):
                folder.refuse_if_held()
            with pytest.raises(RunBusyError), RunFolder(tmp_path / ".").hold():
                pass
        with folder.hold():
            pass
        assert not list(tmp_path.iterdir())

    def test_a_lock_whose_file_its_former_holder_removes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It ends between opening and locking: a lock on a file without a name would keep nobody out."""
        folder, lock, removed = RunFolder(tmp_path), run_folder._lock, []

        def late(file: int) -> None:
            lock(file)
            if not removed:
                (tmp_path / "run.lock").unlink()
                removed.append(file)

        monkeypatch.setattr(run_folder, "_lock", late)
        with folder.hold():
            assert removed
            assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()

    def test_results_of_a_run_that_is_gone(self, tmp_path: Path) -> None:
        """Its record must not stand beside the weights of another."""
        short_train(tiny_recipe(), tmp_path)
        (tmp_path / "last.pt").unlink()
        for resume in (False, True):
            with pytest.raises(FileExistsError, match=r"holds the record of a run whose last\.pt is gone"):
                short_train(tiny_recipe(optim={"lr": 0.1}), tmp_path, resume=resume)

    def test_progress_of_another_between_set_up_and_start(self, tmp_path: Path) -> None:
        trainer = Trainer(tiny_recipe(), tmp_path, CPU, eval_data=scenes())
        short_train(tiny_recipe(), tmp_path)
        with pytest.raises(FileExistsError, match=r"another process has trained in .* meanwhile"):
            trainer.fit()


def test_record_and_weights_name_their_run(tmp_path: Path) -> None:
    result = short_train(tiny_recipe(), tmp_path)
    record = read_record(tmp_path / "record.json")
    states = [load_training_state(tmp_path / name)[1] for name in ("last.pt", "best.pt")]
    assert {record["run"], *(state["run"] for state in states)} == {result.record["run"]}
    assert record["weights"] == tensors_checksum(states[0]["model"])
    again = short_train(tiny_recipe(), tmp_path, resume=True)
    assert again.record["run"] == record["run"]
    assert states[0]["spec"]["classes"] == scenes().spec.classes  # a network can be given away with its classes


def test_a_record_of_other_weights_is_not_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the record of another run, nor that of the same run before it went on."""
    one, other, released = tmp_path / "one", tmp_path / "other", tmp_path / "a.safetensors"
    short_train(tiny_recipe(), one)
    short_train(tiny_recipe(optim={"lr": 0.1}), other)
    main(["export", str(one), str(released)])
    spec = read_spec(released)
    assert spec is not None
    assert (spec.classes, spec.palette) == (scenes().spec.classes, scenes().spec.palette)
    (other / "record.json").write_bytes((one / "record.json").read_bytes())
    short_train(tiny_recipe(optim={"iterations": 12}), one, resume=True)
    (one / "record.json").write_bytes((other / "record.json").read_bytes())
    for folder in (one, other):
        with pytest.raises(SystemExit):
            main(["export", str(folder), str(tmp_path / "b.safetensors")])
        assert "last.pt and the record beside it are not of one finished run" in capsys.readouterr().err
    assert not (tmp_path / "b.safetensors").exists()


def test_a_record_and_the_weights_of_one_finished_run(tmp_path: Path) -> None:
    record = short_train(tiny_recipe(), tmp_path).record
    require_one_run(tmp_path / "last.pt", record)
    recipe, state = load_training_state(tmp_path / "last.pt")
    faster = recipe_to_dict(tiny_recipe(optim={"lr": 0.1}))
    for other, problem in (
        ({"run": "another"}, f"run {record['run']} and another"),
        ({"weights": "sha256:0"}, rf"weights {record['weights']} and sha256:0"),
        ({"recipe": faster}, "another recipe"),
    ):
        with pytest.raises(CheckpointError, match=rf"not of one finished run \({problem}\)"):
            require_one_run(tmp_path / "last.pt", {**record, **other})
    scored = recipe_to_dict(replace(recipe, evaluation=EvalConfig(flip=True)))
    require_one_run(tmp_path / "last.pt", {**record, "recipe": scored})
    save_training_state(tmp_path / "last.pt", recipe, {**state, "iteration": 3})
    with pytest.raises(CheckpointError, match=r"not of one finished run \(iteration 3 of 8\)"):
        require_one_run(tmp_path / "last.pt", record)


class TestInterruption:
    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to hear")
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
    def test_saves_first(self, number: signal.Signals, tmp_path: Path) -> None:
        """Nothing that has been learned is lost, however far away the next checkpoint was."""
        run = tmp_path / "run"
        words = [*LONG, "--checkpoint-every", "90000", "--num-workers", "1", "--out", str(run)]
        with command(words, tmp_path / "errors") as process:
            wait_for_steps(run, process)
            process.send_signal(number)
            _, error = process.communicate()
        assert process.returncode == 128 + number
        iteration = load_training_state(run / "last.pt")[1]["iteration"]
        assert f"shapes-tiny was stopped at iteration {iteration} of 100000; {run / 'last.pt'} is saved" in error
        assert error.endswith("go on with --resume\n")
        assert read_log(run)[-1]["iteration"] in (iteration - 1, iteration)

    def test_never_in_the_middle_of_a_step(self) -> None:
        done = []

        def steps() -> None:
            with Interruption() as interruption:
                with interruption.deferred():
                    signal.raise_signal(signal.SIGTERM)
                    done.append("step")
                done.append("after")

        with pytest.raises(Interrupted):
            steps()
        assert done == ["step"]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_never_in_the_middle_of_a_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """TensorBoard's thread would wait two minutes for what it was about to be handed."""
        write, done = RunLog.write, []

        def interrupted(log: RunLog, iteration: int, **values: float) -> None:
            signal.raise_signal(signal.SIGTERM)
            write(log, iteration, **values)
            done.append(iteration)

        monkeypatch.setattr(RunLog, "write", interrupted)
        with pytest.raises(KeyboardInterrupt, match="stopped at iteration 1 of 8"):
            short_train(tiny_recipe(), tmp_path)
        assert done == [1]

    def test_resumed_as_if_never_stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        short_train(tiny_recipe(), tmp_path / "whole")
        step = Trainer.step

        def interrupted(trainer: Trainer, *batch: torch.Tensor) -> torch.Tensor:
            loss = step(trainer, *batch)
            if trainer.iteration == 3:
                raise Interrupted(signal.SIGINT)
            return loss

        with monkeypatch.context() as stopped:
            stopped.setattr(Trainer, "step", interrupted)
            with pytest.raises(KeyboardInterrupt, match="stopped at iteration 3 of 8"):
                short_train(tiny_recipe(), tmp_path / "stopped", checkpoint_every=100)
        short_train(tiny_recipe(), tmp_path / "stopped", resume=True)
        one, other = (load_training_state(tmp_path / name / "last.pt")[1] for name in ("whole", "stopped"))
        assert tensors_checksum(one["model"]) == tensors_checksum(other["model"])
        assert tensors_checksum(one["optimizer"]) == tensors_checksum(other["optimizer"])


def curves(run: Path) -> dict[str, list[int]]:
    """TensorBoard's curves, each with the iterations at which it has a point."""
    board = EventAccumulator(str(run / "tensorboard")).Reload()
    return {name: [point.step for point in board.Scalars(name)] for name in board.Tags()["scalars"]}


class TestCurves:
    """Log lines come every 3 of 8 steps, evaluations after 4 and at the end."""

    recipe = tiny_recipe(evaluation=EvalConfig(every=4))
    options: ClassVar[dict[str, Any]] = {"log_every": 3, "checkpoint_every": 100}

    def test_reach_the_end_and_show_every_class(self, tmp_path: Path) -> None:
        result = short_train(self.recipe, tmp_path, **self.options)
        found = curves(tmp_path)
        for name in ("loss", "lr", "images_per_second"):
            assert found.pop(name) == [3, 4, 6, 8]
        assert found.pop("single_scale") == [8]
        iou = result.scores["single scale"].iou
        present = {"iou/" + name.replace(" ", "_"): [4, 8] for name, value in iou.items() if not math.isnan(value)}
        assert found == {"miou": [4, 8], "pixel_accuracy": [4, 8], **present}

    def test_reach_the_step_at_which_a_run_is_stopped(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        step = Trainer.step

        def interrupted(trainer: Trainer, *batch: torch.Tensor) -> torch.Tensor:
            loss = step(trainer, *batch)
            if trainer.iteration == 5:
                signal.raise_signal(signal.SIGTERM)
            return loss

        with monkeypatch.context() as stopped:
            stopped.setattr(Trainer, "step", interrupted)
            with pytest.raises(KeyboardInterrupt, match="stopped at iteration 5 of 8"):
                short_train(self.recipe, tmp_path, **self.options)
        assert curves(tmp_path)["loss"] == [3, 4, 5]
        assert [line["iteration"] for line in read_log(tmp_path) if "loss" in line] == [3, 4, 5]
        short_train(self.recipe, tmp_path, resume=True, **self.options)
        assert curves(tmp_path)["loss"] == [3, 4, 5, 6, 8]

    def test_are_no_reason_to_stop(self, tmp_path: Path) -> None:
        """A file lies where TensorBoard wants a folder."""
        (tmp_path / "tensorboard").touch()
        with pytest.warns(UserWarning, match="TensorBoard gets no more of this run"):
            short_train(self.recipe, tmp_path)
        assert read_log(tmp_path)[-1]["iteration"] == 8

    def test_import_no_tensorflow(self, tmp_path: Path) -> None:
        """TensorBoard would import it where it is installed; here it is one that cannot be imported."""
        (tmp_path / "tensorflow.py").write_text("raise RuntimeError('compiled against another NumPy')\n")
        program = "from pathlib import Path; from emalab.runlog import RunLog; RunLog(Path(), 0).write(1, loss=2.0)"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert list((tmp_path / "tensorboard").iterdir())


class TestDisk:
    def test_a_full_disk_is_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """torch reports it as a RuntimeError; the last checkpoint is whole, and the next resume works."""
        save, calls = torch.save, []

        def full(content: object, path: Path) -> None:
            calls.append(path)
            if len(calls) > 1:
                raise RuntimeError("PytorchStreamWriter failed writing file data/3: file write failed\nmore")
            save(content, path)

        command = [*TRAIN, "--optim.iterations", "4", "--checkpoint-every", "2", "--out", str(tmp_path / "run")]
        with monkeypatch.context() as patched:
            patched.setattr(torch, "save", full)
            with pytest.raises(SystemExit) as stopped:
                main(command)
        error = capsys.readouterr().err
        assert stopped.value.code == 1
        assert "last.pt could not be written: PytorchStreamWriter failed" in error
        assert error.endswith("; the file from before is whole\n")
        assert error.count("\n") == 1
        assert load_training_state(tmp_path / "run" / "last.pt")[1]["iteration"] == 2
        main([*command, "--resume"])

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_the_system_says_why(self, tmp_path: Path) -> None:
        def fill(temporary: Path) -> None:
            with Path("/dev/full").open("w") as device:
                device.write("x" * 10**6)

        with pytest.raises(CannotWriteError, match=r"a\.json could not be written: No space left on device$"):
            write_atomically(tmp_path / "a.json", fill)

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the size of files")
    def test_a_limit_that_torch_does_not_name(self, tmp_path: Path) -> None:
        """Nor safetensors as an error of the system: one reports "unexpected pos 93888 vs 93784", the other its own."""
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, most))
        try:
            with pytest.raises(CannotWriteError, match=r"a\.pt could not be written: File too large$"):
                write_atomically(tmp_path / "a.pt", lambda temporary: torch.save(torch.zeros(2**20), temporary))
            with pytest.raises(CannotWriteError, match=r"b\.safetensors could not be written: File too large$"):
                export_segmenter(nn.Linear(512, 512), tmp_path / "b.safetensors", tiny_recipe(), {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert not list(tmp_path.iterdir())

    def test_a_file_in_place_of_the_folder(self, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("a file")
        with pytest.raises(CannotWriteError, match=r"run/a\.json could not be written: .*run is a file$"):
            write_atomically(tmp_path / "run" / "a.json", Path.touch)
        with pytest.raises(OSError, match="run"):
            short_train(tiny_recipe(), tmp_path / "run")


def test_one_process_in_an_allocation_of_slurm(tmp_path: Path) -> None:
    """As in a batch script: the variables are there, and srun is not."""
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    words = [*TRAIN, "--optim.iterations", "2", "--out", str(tmp_path / "run")]
    with command(words, tmp_path / "errors", **job) as process:
        _, error = process.communicate()
    assert process.returncode == 0, error
    assert json.loads((tmp_path / "run" / "record.json").read_text())["devices"] == 1


@contextmanager
def two_processes(run: Path, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A long run of two processes in the middle of it: the first one, and the number of the second."""
    process = subprocess.Popen(
        [sys.executable, "-m", "emalab", *LONG, "--devices", "2", "--out", str(run), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_steps(run, process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        yield process, next(int(pid) for pid in children if b"emalab" in Path(f"/proc/{pid}/cmdline").read_bytes())
    finally:
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("hears", ["first", "second"])
def test_two_processes_stop_together(hears: str, tmp_path: Path) -> None:
    """A scheduler's warning reaches one of them; both end after the same step, and it is saved."""
    run = tmp_path / "run"
    with two_processes(run, "--log-every", "2", "--checkpoint-every", "90000") as (process, second):
        os.kill(process.pid if hears == "first" else second, signal.SIGTERM)
        _, error = process.communicate(timeout=HANGS)
    assert process.returncode == 128 + signal.SIGTERM, error
    iteration = load_training_state(run / "last.pt")[1]["iteration"]
    assert iteration % 2 == 0
    message = f"shapes-tiny was stopped at iteration {iteration} of 100000; {run / 'last.pt'} is saved"
    assert error.count(message) == 2, error


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("dies", ["first", "second"])
def test_when_one_of_two_processes_dies(dies: str, tmp_path: Path) -> None:
    """The other ends soon, with a message, rather than waiting."""
    with two_processes(tmp_path / "run") as (process, second):
        os.kill(process.pid if dies == "first" else second, signal.SIGKILL)
        _, error = process.communicate(timeout=HANGS)  # standard error is shared: it ends when both have ended
    if dies == "second":
        assert process.returncode != 0
    assert "another process of shapes-tiny ended at iteration" in error or "Child process" in error


def test_processes_with_different_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emalab.run_checks.of_all_ranks", lambda value: [value, ("others", value[1])])
    with pytest.raises(ValueError, match="processes of this run read different data as shapes-pooled"):
        short_train(tiny_recipe(), tmp_path / "run")


def test_half_precision_on_a_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="precision 16-mixed needs a GPU"):
        short_train(replace(tiny_recipe(), precision="16-mixed"), tmp_path / "run")
