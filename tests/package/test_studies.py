"""Studies: what a study is, what its folder survives, and what its summary says."""

from __future__ import annotations

import errno
import gc
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import weakref
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import processes
import pytest
import torch
from study_workers import Blocked, Instant, Mortal, Unusable, append
from tiny import scenes, tiny_recipe
from waiting import wait_until

from emalab.cli import main
from emalab.data import DataError, load_dataset
from emalab.data.memory import InMemory
from emalab.evaluation import evaluate
from emalab.recipes import Recipe, get_recipe, recipe_from_dict
from emalab.segmenter import Segmenter
from emalab.studies import Cell, Study, StudyFolder, StudyOptions, family, job, override, run_study, training
from emalab.studies.folder import CorruptRecordError
from emalab.studies.job import Board, Job
from emalab.studies.runner import Outcome, make_plan
from emalab.studies.statistics import student_interval
from emalab.studies.summary import format_summary, score, summarize, summary_to_dict
from emalab.studies.supervisor import Supervisor
from emalab.studies.worker import share_of_cores
from emalab.trainer import Trainer

CPU = StudyOptions(accelerator="cpu")
FROZEN = {"model.ema.maintenance": "frozen"}


def base(iterations: int = 2) -> Recipe:
    """Two steps of two crops of 32×32."""
    recipe = tiny_recipe(optim={"iterations": iterations, "batch_size": 2}, name="tiny")
    return replace(recipe, evaluation=replace(recipe.evaluation, batch_size=50))


def tiny_study(*cells: Cell, iterations: int = 2) -> Study:
    return Study("tiny", "", base(iterations), cells or (Cell("base", seeds=2), Cell("frozen", FROZEN, seeds=2)))


@pytest.fixture(autouse=True)
def _few_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six scenes to learn from and to be scored on: the same for every run in this process."""
    monkeypatch.setattr(training, "load_dataset", lambda name, split, *_: scenes(6, split))


class Lines(list[str]):
    """The lines that a study reports."""

    def __call__(self, line: str) -> None:
        self.append(line)


def run_tiny(study: Study, out: Path, **options: Any) -> tuple[Outcome, Lines]:
    lines = Lines()
    return run_study(study, out, replace(CPU, **options), lines), lines


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


class TestStudy:
    def test_override(self) -> None:
        changed = override(base(), {"model.ema.num_bases": 16, "optim.lr": 0.5})
        assert (changed.model.ema.num_bases, changed.optim.lr) == (16, 0.5)
        assert replace(changed, optim=base().optim, model=base().model) == base()
        for path in ("model.ema.bases", "model.nothing.at", "optim.lr.peak", "speed"):
            with pytest.raises(ValueError, match=f"a recipe has no field '{path}'"):
                override(base(), {path: 1})
        with pytest.raises(ValueError, match="must be one of stop, last, unroll"):
            override(base(), {"model.ema.grad": "full"})

    def test_seed_0_of_every_cell_comes_first(self) -> None:
        study = tiny_study(
            Cell("base", seeds=3), Cell("frozen", FROZEN, seeds=1), Cell("K=4", {"model.ema.num_bases": 4})
        )
        assert [(run.cell.label, run.recipe.seed) for run in study.runs()] == [
            *(("base", 0), ("frozen", 0), ("K=4", 0)),
            *(("base", 1), ("K=4", 1), ("base", 2), ("K=4", 2)),
        ]
        assert [run.name for run in study.runs(["K=4"])] == [f"tiny-num-bases-4-seed{seed}" for seed in range(3)]
        with pytest.raises(ValueError, match="no cell 'frosen'; did you mean 'frozen'"):
            study.runs(["frosen"])

    @pytest.mark.parametrize(
        ("cells", "message"),
        [
            ([Cell("a", FROZEN)], "needs a cell without changes"),
            ([Cell("a"), Cell("a", FROZEN)], "two cells with the label 'a'"),
            ([Cell("a"), Cell("b", {"model.ema.num_bases": 8})], "two cells with the recipe"),
            ([Cell("a", seeds=0)], "a has 0 seeds"),
            ([Cell("a", seeds=10**9)], "a has 1000000000 seeds"),
            ([Cell("a", evaluations={"x": {"optim.lr": 1}})], "evaluation 'x' of a changes optim.lr"),
            ([Cell("a", evaluations={"x": {"model.size": 1}})], "no field 'model.size'"),
        ],
    )
    def test_refuses_what_cannot_be_compared(self, cells: list[Cell], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            tiny_study(*cells)

    @pytest.mark.parametrize("name", ["../a", "a/b", "a\\b", "a\n", ".a", "", "C:a"])
    def test_names_are_those_of_files(self, name: str) -> None:
        """Records lie in the folder of their study, whatever a file of studies says."""
        cells = (Cell("base"),)
        with pytest.raises(ValueError, match="a study cannot be called"):
            Study(name, "", base(), cells)
        with pytest.raises(ValueError, match="a study cannot be called"):
            Study("a", "", base(), cells, name or "/")
        with pytest.raises(ValueError, match="a study cannot be called"):
            Study("a", "", replace(base(), name=name), cells)

    def test_a_family_trains_a_recipe_once(self) -> None:
        """K=8 is the base of this network: one run, with the seeds and evaluations of both axes."""
        at_test = {"T=1": {"model.ema.num_iters": 1}}
        cells = [Cell(f"K={k}", {"model.ema.num_bases": k}, seeds=1) for k in (4, 8)]
        whole, bases, iterations = family(
            "tiny", "", base(), {"bases": ("", cells), "iterations": ("", [Cell("T=3", evaluations=at_test, seeds=5)])}
        )
        assert [study.name for study in (whole, bases, iterations)] == ["tiny", "tiny-bases", "tiny-iterations"]
        assert {run.name for run in whole.runs()} == {run.name for s in (bases, iterations) for run in s.runs()}
        shared = bases.baseline
        assert (shared.label, shared.seeds, shared.evaluations) == ("K=8", 5, at_test)
        assert iterations.recipe(iterations.baseline) == bases.recipe(shared) == whole.recipe(whole.baseline)


class TestRuns:
    def test_records_everything_once(self, tmp_path: Path) -> None:
        at_test = {"T=3": {"model.ema.num_iters": 3}, "T=9": {"model.ema.num_iters": 9}}
        study = tiny_study(Cell("base", evaluations=at_test, seeds=2), Cell("frozen", FROZEN, seeds=1), iterations=30)
        leftover = tmp_path / "records" / ".tiny-seed0.json.7.tmp"  # of a process that was killed
        leftover.parent.mkdir()
        leftover.touch()
        outcome, lines = run_tiny(study, tmp_path, keep_weights=True, commit="abc")
        expected = ["tiny-seed0", "tiny-maintenance-frozen-seed0", "tiny-seed1"]
        assert outcome.finished == expected
        assert not leftover.exists()
        assert [re.findall(r", (\d) left in about [\d.]+ minutes$", line) for line in lines] == [["2"], ["1"], []]
        assert [line.split()[:2] for line in lines] == [[f"{i}/3", f"{name}:"] for i, name in enumerate(expected, 1)]
        record = json.loads((tmp_path / "records" / "tiny-seed0.json").read_text())
        assert recipe_from_dict(record["recipe"]) == study.runs()[0].recipe
        assert record["evaluations"]["T=3"] == record["scores"]["single scale"]
        model = Segmenter.from_pretrained(tmp_path / "weights" / "tiny-seed0.pt")
        model.context.num_iters = 9
        assert record["evaluations"]["T=9"] == evaluate(model, scenes(6)).to_dict() != record["evaluations"]["T=3"]
        assert (record["study"], record["cell"], record["commit"], record["changes"]) == ("tiny", "base", "abc", {})
        assert record["seconds"]["run"] > record["seconds"]["training"] > 0
        assert record["milliseconds_per_step"] > 0
        assert [line["iteration"] for line in record["log"] if "loss" in line] == list(range(1, 31))
        assert names(tmp_path / "weights") == sorted(f"{name}.pt" for name in expected)
        assert names(tmp_path / "running") == []
        assert run_tiny(study, tmp_path) == (Outcome(), [])  # all is done

    def test_equals_a_run_from_its_record(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`emalab train --from-record`: the same recipe and seed, the same score."""
        monkeypatch.setattr(training, "load_dataset", load_dataset)
        study = tiny_study(Cell("base", seeds=2))
        run_tiny(study, tmp_path, commit="abc")
        path = tmp_path / "records" / "tiny-seed1.json"
        monkeypatch.chdir(tmp_path)
        main(["train", "--from-record", str(path), "--accelerator", "cpu", "--no-progress"])
        again = json.loads((tmp_path / "runs" / "tiny-seed1" / "record.json").read_text())
        first = json.loads(path.read_text())
        assert (again["recipe"], again["seed"], again["scores"]) == (first["recipe"], 1, first["scores"])
        text = capsys.readouterr().out
        assert "note: tiny-seed1.json was made by commit abc; this is " in text
        assert f"recorded: {100 * first['scores']['single scale']['miou']:.2f}" in text

    def test_leaves_nothing_in_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trainers: list[weakref.ref[Trainer]] = []

        def remembered(*arguments: Any) -> Trainer:
            trainer = Trainer(*arguments)
            trainers.append(weakref.ref(trainer))
            return trainer

        monkeypatch.setattr(training, "Trainer", remembered)
        threads = []
        for seed in (0, 1):
            trainings = training.Trainings(StudyFolder(tmp_path / str(seed)), CPU)
            assert "diverged" not in trainings(tiny_study().runs()[0])
            threads.append(len(list(Path("/proc/self/task").glob("*"))))
        gc.collect()
        assert [trainer() for trainer in trainers] == [None, None]
        assert threads[1] <= threads[0]

    def test_a_diverging_run_is_a_result(self, tmp_path: Path) -> None:
        study = tiny_study(Cell("base", seeds=1), Cell("wild", {"optim.lr": 1e30}, seeds=1))
        outcome, lines = run_tiny(study, tmp_path)
        assert outcome.diverged == ["tiny-lr-1e-30-seed0"]
        assert lines[1] == "2/2 tiny-lr-1e-30-seed0: diverged, which is a result"
        record = json.loads((tmp_path / "records" / "tiny-lr-1e-30-seed0.json").read_text())
        assert "the loss became" in record["diverged"]
        assert record["scores"] == {}
        assert run_tiny(study, tmp_path)[0] == Outcome()  # not again
        base_row, wild = summarize(study, StudyFolder(tmp_path).records(study)).rows
        assert (wild.diverged, wild.missing, wild.scores) == ([0], [], {})
        assert "diverged: seed 0" in format_summary([base_row, wild])

    def test_a_failing_run_does_not_stop_the_others(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        study, fit = tiny_study(), Trainer.fit

        def breaks(trainer: Trainer) -> Any:
            if trainer.recipe.seed == 0 and trainer.recipe.name == "tiny":
                raise RuntimeError("a loose cable")
            return fit(trainer)

        with monkeypatch.context() as patched:
            patched.setattr(Trainer, "fit", breaks)
            outcome, lines = run_tiny(study, tmp_path)
        assert (outcome.failed, len(outcome.finished)) == (["tiny-seed0"], 3)
        assert "failed: RuntimeError: a loose cable" in lines[0]
        failure = tmp_path / "failures" / "tiny-seed0.txt"
        assert "in breaks" in failure.read_text()
        folder = StudyFolder(tmp_path)
        assert folder.failed(study) == ["tiny-seed0"]
        (row, _) = summarize(study, folder.records(study), failed=folder.failed(study)).rows
        assert (row.failed, row.missing) == ([0], [0])
        assert run_tiny(study, tmp_path)[0].finished == ["tiny-seed0"]  # again, and alone
        assert not failure.exists()

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """It loses the run that it meets, even its failure report, and nothing else."""

        with monkeypatch.context() as patched:
            for module, name in ((training, "write_record"), (job, "write_atomically")):
                write = getattr(module, name)
                patched.setattr(module, name, lambda path, content, write=write: full_or(write, path, content))
            outcome, lines = run_tiny(tiny_study(), tmp_path)
        assert (outcome.failed, len(outcome.finished)) == (["tiny-seed0"], 3)
        assert "No space left on device" in lines[0]
        assert "failures/tiny-seed0.txt cannot be written either" in lines[0]
        assert len(names(tmp_path / "records")) == 3
        assert names(tmp_path / "running") == names(tmp_path / "failures") == []

    def test_a_corrupt_record_is_set_aside_and_made_again(self, tmp_path: Path) -> None:
        study = tiny_study(Cell("base", seeds=2))
        run_tiny(study, tmp_path)
        path, whole = tmp_path / "records" / "tiny-seed0.json", tmp_path / "records" / "tiny-seed1.json"
        kept = whole.read_bytes()
        edited = path.read_text().replace('"miou": 0.', '"miou": 0.9')
        other = '{"recipe": {"nothing": 1}, "seconds": {}, "diverged": ""}'
        problem = r"tiny-seed0\.json (is not a (result )?record|was changed after)"
        for text in (edited, path.read_text()[:500], "[]", "{}", other):
            path.write_text(text)
            folder = StudyFolder(tmp_path)
            with pytest.raises(CorruptRecordError, match=problem):
                folder.read(study.runs()[0])
            assert folder.corrupt(study)[0] == "tiny-seed0.json"
            assert len(folder.records(study)) == 1
        outcome, lines = run_tiny(study, tmp_path)
        assert outcome.finished == ["tiny-seed0"]
        assert "tiny-seed0.json is not a record" in lines[0]
        assert "it is now tiny-seed0.json.corrupt, and the run is made again" in lines[0]
        assert StudyFolder(tmp_path).corrupt(study) == ["tiny-seed0.json.corrupt"]
        assert whole.read_bytes() == kept

    def test_records_of_another_recipe_are_refused(self, tmp_path: Path) -> None:
        run_tiny(tiny_study(), tmp_path)
        with pytest.raises(ValueError, match=r"is the record of another recipe .* --out"):
            run_tiny(tiny_study(iterations=3), tmp_path)

    def test_a_new_evaluation_trains_again(self, tmp_path: Path) -> None:
        run_tiny(tiny_study(Cell("base", seeds=1)), tmp_path)
        more = tiny_study(Cell("base", seeds=1, evaluations={"T=1": {"model.ema.num_iters": 1}}))
        assert run_tiny(more, tmp_path)[0].finished == ["tiny-seed0"]

    def test_shards_share_the_runs(self, tmp_path: Path) -> None:
        study = tiny_study(Cell("base", seeds=5), *(Cell(f"K={k}", {"model.ema.num_bases": k}) for k in (2, 4, 6)))
        folder = StudyFolder(tmp_path)
        plans = [make_plan(study, folder, replace(CPU, shard=(index, 3))) for index in range(3)]
        assert sorted(run.name for plan in plans for run in plan.runs) == sorted(run.name for run in study.runs())
        assert max(len(plan.runs) for plan in plans) - min(len(plan.runs) for plan in plans) <= 1
        with pytest.raises(ValueError, match="shard 3 of 3: it must be one of 0 to 2"):
            StudyOptions(shard=(3, 3))

    @pytest.mark.parametrize("seconds", [-1.0, float("nan")])
    @pytest.mark.parametrize("name", ["deadline_seconds", "run_deadline_seconds", "seconds_per_run"])
    def test_seconds_are_not_negative(self, name: str, seconds: float) -> None:
        with pytest.raises(ValueError, match=f"{name} is {seconds}; it must be a number of seconds from 0 on"):
            replace(CPU, **{name: seconds})  # type: ignore[arg-type]

    def test_a_deadline_that_leaves_no_time(self, tmp_path: Path) -> None:
        study = tiny_study()
        outcome, _ = run_tiny(study, tmp_path, deadline_seconds=100.0, seconds_per_run=101.0)
        assert (len(outcome.postponed), outcome.finished) == (4, [])
        run_tiny(study, tmp_path, only=("frozen",))  # from now on the folder knows how long a run takes
        assert len(run_tiny(study, tmp_path, deadline_seconds=0.0)[0].postponed) == 2
        assert len(run_tiny(study, tmp_path, deadline_seconds=100.0, seconds_per_run=101.0)[0].postponed) == 2
        outcome, _ = run_tiny(study, tmp_path, deadline_seconds=100.0)
        assert (outcome.postponed, len(outcome.finished)) == ([], 2)

    def test_plan_predicts_minutes(self, tmp_path: Path) -> None:
        plan = make_plan(tiny_study(), StudyFolder(tmp_path), replace(CPU, seconds_per_run=60.0))
        assert (plan.states, plan.minutes(1), plan.minutes(3)) == (["missing"] * 4, 4.0, 2.0)
        assert make_plan(tiny_study(), StudyFolder(tmp_path), CPU).minutes(1) is None

    def test_missing_data_are_told_before_anything_starts(self, tmp_path: Path) -> None:
        study = Study("streets", "", get_recipe("camvid-lite2"), (Cell("base"),))
        with pytest.raises(DataError, match="camvid"):
            run_tiny(study, tmp_path, data_root=tmp_path, processes=2)


def full_or(write: Any, path: Path, content: Any) -> None:
    """A disk that is full for the files of one run."""
    if path.stem == "tiny-seed0":
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    write(path, content)


SCRIPT = """
if __name__ == "__main__":
    import pickle
    from pathlib import Path
    from emalab.studies.job import Board
    from emalab.studies.supervisor import Supervisor
    job = pickle.loads(Path("job").read_bytes())
    Supervisor(job, Board.blank(len(job.runs), 1), [None]).run()
"""
HOLD = """
import sys
from pathlib import Path
from emalab.studies import StudyFolder
with StudyFolder(Path("out")).active_worker():
    print("working", flush=True)
    sys.stdin.read()
"""


class TestProcesses:
    """Workers do what `study_workers` says instead of training. Nothing is asserted by time.

    They are copies of this process where they can be; that new ones do as well is what the last test shows.
    """

    @pytest.fixture(autouse=True)
    def _copies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("emalab.studies.supervisor.get_context", lambda _: get_context(processes.START))

    @pytest.fixture
    def lines(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("STUDY_LINES", str(tmp_path / "lines"))
        return tmp_path / "lines"

    def supervise(self, out: Path, performer: Any, clock: Any = lambda: 0.0, **options: Any) -> tuple[list[int], Any]:
        """States of the four runs of a study at the end, and the supervisor."""
        task = Job(StudyFolder(out), tiny_study().runs(), replace(CPU, **options), append, None, performer)
        board = Board.blank(4, 1)
        supervisor = Supervisor(task, board, [None], clock)
        supervisor.run()
        return list(board.states), supervisor

    def test_a_worker_that_is_killed_is_replaced(self, tmp_path: Path, lines: Path) -> None:
        states, _ = self.supervise(tmp_path / "out", Mortal)
        assert states == [job.FAILED, job.DONE, job.DONE, job.DONE]
        failure = (tmp_path / "out" / "failures" / "tiny-seed0.txt").read_text()
        assert failure == (
            "tiny-seed0 was lost: its process was killed by SIGKILL; did the machine run out of memory?\n"
        )
        reported = lines.read_text().splitlines()
        assert reported[0] == f"1/4 tiny-seed0: failed: {failure.strip()}"
        assert [line.split(":")[0] for line in reported[1:]] == [
            *("2/4 tiny-maintenance-frozen-seed0", "3/4 tiny-seed1", "4/4 tiny-maintenance-frozen-seed1")
        ]

    def test_a_run_that_stalls_is_ended(self, tmp_path: Path, lines: Path) -> None:
        """By a clock that stands still but for the time that the blocked run takes."""
        ticks, blocked = iter(range(0, 10**9, 50)), tmp_path / "out" / "blocked"

        def clock() -> float:
            if "failed" in (lines.read_text() if lines.exists() else ""):
                return 0.0
            return float(next(ticks)) if blocked.exists() else 0.0

        states, _ = self.supervise(tmp_path / "out", Blocked, clock, run_deadline_seconds=100.0)
        assert states == [job.FAILED, job.DONE, job.DONE, job.DONE]
        assert "1/4 tiny-seed0: failed: tiny-seed0 took longer than 100 s and was ended" in lines.read_text()

    def test_a_worker_that_cannot_start_is_not_started_for_ever(self, tmp_path: Path, lines: Path) -> None:
        states, _ = self.supervise(tmp_path / "out", Unusable)
        assert states == [job.WAITING] * 4
        assert lines.read_text() == 3 * "worker 1 ended with exit code 3 before it took a run\n"

    @pytest.mark.usefixtures("lines")
    def test_an_interruption_ends_the_workers(self, tmp_path: Path) -> None:
        """Ctrl-C comes while the worker is in the middle of a run."""
        out, held = tmp_path / "out", StudyFolder(tmp_path / "out")

        def clock() -> float:
            if (out / "blocked").exists():
                raise KeyboardInterrupt
            return 0.0

        with pytest.raises(KeyboardInterrupt):
            self.supervise(out, Blocked, clock)
        assert names(out / "failures") == []
        assert held.active_workers() == 0
        assert not held.is_claimed(tiny_study().runs()[0])

    def test_two_studies_in_one_folder_and_one_is_killed(self, tmp_path: Path, lines: Path) -> None:
        """SIGKILL to the first in the middle of a run, which ends its worker too; the second leaves that run alone."""
        out, folder = tmp_path / "out", StudyFolder(tmp_path / "out")
        runs = tiny_study().runs()
        (tmp_path / "job").write_bytes(pickle.dumps(Job(folder, runs, CPU, append, None, Blocked)))
        (tmp_path / "script.py").write_text(SCRIPT)
        path = os.pathsep.join(sys.path)
        first = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
        try:
            wait_until((out / "blocked").exists, first)
            states, _ = self.supervise(out, Instant)
            assert states == [job.WAITING, job.DONE, job.DONE, job.DONE]
            assert folder.is_claimed(runs[0])
        finally:
            first.kill()
            first.wait()
        wait_until(lambda: not folder.is_claimed(runs[0]), None)  # its worker has ended as well
        kept = {run.name: folder.record(run).read_bytes() for run in runs[1:]}
        assert self.supervise(out, Instant)[0] == [job.DONE] * 4
        assert {run.name: folder.record(run).read_bytes() for run in runs[1:]} == kept
        performed = (out / "performed").read_text().split()
        assert sorted(performed) == sorted(run.name for run in runs)
        assert lines.exists()

    def test_studies_in_one_folder_share_the_cores(self, tmp_path: Path) -> None:
        """A worker of another study takes half of them while it lasts, and not even a killed one is counted on."""
        folder = StudyFolder(tmp_path / "out")
        with folder.active_worker():
            assert share_of_cores(8, folder) == 8
            other = subprocess.Popen(
                [sys.executable, "-c", HOLD], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            try:
                assert other.stdout is not None
                assert other.stdout.readline() == b"working\n"
                assert (share_of_cores(8, folder), share_of_cores(1, folder)) == (4, 1)
            finally:
                other.kill()
                other.communicate()
            assert share_of_cores(8, folder) == 8
        assert names(tmp_path / "out" / "workers") == []

    def test_one_process_trains(self, tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same records as in this process, from the workers that `emalab study` starts."""
        monkeypatch.setattr("emalab.studies.supervisor.get_context", get_context)
        data = replace(base().data, train_split="train/held-out", eval_split="val/held-out")  # 20 scenes to score
        study = Study("tiny", "", replace(base(), data=data), (Cell("base", seeds=1),))
        outcome = run_study(study, tmp_path / "out", replace(CPU, processes=1), append)
        assert outcome == Outcome(finished=["tiny-seed0"])
        assert lines.read_text().startswith("1/1 tiny-seed0: done, ")


class TestInMemory:
    def test_decodes_once_and_gives_copies(self) -> None:
        source = scenes(3)
        held = InMemory(source)
        held.fill(threads=2)
        held._dataset = None  # type: ignore[assignment]  # it is not needed again
        for index in (0, -1, 2):
            sample, expected = held[index], source[range(3)[index]]
            assert torch.equal(sample.image, expected.image)
            assert torch.equal(sample.mask, expected.mask)
            assert (type(sample.image), type(sample.mask)) == (type(expected.image), type(expected.mask))
            assert sample.image.stride() == expected.image.stride()
        held[0].image.zero_()
        assert held[0].image.any()
        with pytest.raises(IndexError):
            held[3]


def record(name: str, seed: int, miou: float | None, **evaluations: float) -> dict[str, Any]:
    return {
        "recipe": {"name": name},
        "seed": seed,
        "scores": {"single scale": {"miou": miou}},
        "evaluations": {label: {"miou": value} for label, value in evaluations.items()},
        "commit": "abc",
        "device": "pocket calculator",
    }


class TestSummary:
    def test_of_a_study(self) -> None:
        at_test = {"T=9": {"model.ema.num_iters": 9}}
        study = tiny_study(Cell("base", evaluations=at_test, seeds=2), Cell("frozen", FROZEN, seeds=3))
        frozen = "tiny-maintenance-frozen"
        records = [
            *(record("tiny", 0, 0.5, **{"T=9": 0.6}), record("tiny", 1, 0.6, **{"T=9": 0.8})),
            *(record(frozen, 1, 0.7), {**record(frozen, 2, 0.0), "diverged": "the loss became nan"}),
            record("of-another-study", 0, 0.0),
        ]
        base_row, row = summarize(study, records, failed=[f"{frozen}-seed0"]).rows
        assert base_row.mean == pytest.approx(student_interval([50.0, 60.0]))
        assert np.isnan(base_row.difference.mean)
        assert (row.scores, row.missing, row.diverged, row.failed) == ({1: 70.0}, [0], [2], [0])
        assert (row.difference.mean, row.difference.num_values) == (pytest.approx(10), 1)
        (at_nine,) = summarize(study, records, "T=9").rows
        assert at_nine.scores == {0: 60.0, 1: 80.0}
        table = format_summary([base_row, row]).splitlines()
        assert table[1].split() == ["base", "2", "55.00", "±", "63.53"]
        assert table[2].split()[:5] == ["frozen", "1", "70.00", "+10.00", "+10.00"]
        assert table[2].endswith("diverged: seed 2; failed: seed 0")
        with pytest.raises(ValueError, match="no evaluation 'T=8'; there are: T=9"):
            summarize(study, records, "T=8")
        plain = json.loads(json.dumps(summary_to_dict(study, records), allow_nan=False))
        assert plain["scores"]["T=9"][0]["mean"]["mean"] == pytest.approx(70)
        assert plain["scores"]["single scale"][0]["difference"]["mean"] is None

    def test_score(self) -> None:
        assert score(record("tiny", 0, 0.5, a=0.25)) == 50
        assert score(record("tiny", 0, 0.5, a=0.25), "a") == 25
        assert score(record("tiny", 0, 0.5), "b") is None
        assert score(record("tiny", 0, None)) is None


SMALL = """
question: Do moving bases help?
test: paired by seed
base: shapes-tiny
cells:
  moving average: {changes: {}, evaluations: {T=1: {model.ema.num_iters: 1}}}
  frozen: {model.ema.maintenance: frozen}
"""


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file with a study of six runs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    return "small.yaml"


class TestCommand:
    """`emalab study`, from the root of a clone."""

    def test_without_a_study(self, capsys: pytest.CaptureFixture[str], small: str) -> None:
        with pytest.raises(SystemExit) as stopped:
            main(["study"])
        assert stopped.value.code == 2
        assert "usage: emalab study" in capsys.readouterr().out
        with pytest.raises(SystemExit) as stopped:
            main(["study", small, "--list"])
        assert stopped.value.code == 0
        assert "  small  2 cells  6 runs" in capsys.readouterr().out

    def test_ends_when_told_to_where_interrupts_are_ignored(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: str
    ) -> None:
        """As behind nohup and &."""

        def run(*_: object) -> None:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the signal was not received")

        monkeypatch.setattr("emalab.commands.study.run_study", run)
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with pytest.raises(SystemExit) as end:
                main(["study", small, "--accelerator", "cpu", "--out", str(tmp_path)])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        assert end.value.code == 130

    def test_plan_then_summary(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], small: str) -> None:
        out = ["--out", "runs", "--accelerator", "cpu"]
        main(["study", small, *out, "--dry-run", "--seconds-per-run", "30", "--devices", "1"])
        text = capsys.readouterr().out
        assert "frozen          seed 0 missing, 1 missing, 2 missing" in text
        assert "question: Do moving bases help?" in text
        assert "planned seeds: 3 for each cell\n" in text
        assert "6 runs, 0 done, 6 missing: 3.0 minutes on 1 at a time" in text
        main(["study", small, *out, "--summary"])
        assert "0 of 6 runs have a record" in capsys.readouterr().out
        assert names(tmp_path) == [small]

    def test_plan_names_the_cells_of_other_seeds(self, capsys: pytest.CaptureFixture[str], small: str) -> None:
        more = "  K=4: {changes: {model.ema.num_bases: 4}, seeds: 5}\n"
        Path(small).write_text(Path(small).read_text() + more)
        main(["study", small, "--accelerator", "cpu", "--dry-run"])
        assert "planned seeds: 3 for each cell, except K=4 5\n" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["small.yaml:smal"], "no study 'smal' in small.yaml; did you mean small"),
            (["small.yaml", "--shard", "2"], "--shard is I/N"),
            (["small.yaml", "--shard", "2/2"], "shard 2 of 2"),
            (["small.yaml", "--devices", "0"], "--devices 0: there are "),
            (["small.yaml", "--only", "frosen", "--dry-run"], "did you mean 'frozen'"),
            (["small.yaml", "--summary", "--evaluation", "T=2"], "no evaluation 'T=2'; there are: T=1"),
        ],
    )
    @pytest.mark.usefixtures("small")
    def test_mistakes(self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stopped:
            main(["study", *words, *(["--accelerator", "cpu"])])
        assert stopped.value.code == 1
        assert message in capsys.readouterr().err

    def test_from_a_file_that_is_no_record(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, text, message in (
            ("gone.json", None, "no record at "),
            ("cut.json", '{"recipe"', "is not a result record"),
            ("other.json", "{}", "is not the record of a run: it has no recipe"),
            ("new.json", '{"recipe": {"magic": 1}}', "recipe has no field 'magic'"),
        ):
            if text is not None:
                (tmp_path / name).write_text(text)
            with pytest.raises(SystemExit):
                main(["train", "--from-record", str(tmp_path / name)])
            assert message in capsys.readouterr().err
