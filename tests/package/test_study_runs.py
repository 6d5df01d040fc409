"""The runs of a study in one process: what they record, and what its folder survives."""

from __future__ import annotations

import errno
import gc
import json
import re
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import scenes
from tiny_studies import CPU, FROZEN, names, tiny_study

from emalab.cli import main
from emalab.data import DataError, load_dataset
from emalab.evaluation import evaluate
from emalab.recipes import get_recipe, recipe_from_dict
from emalab.segmenter import Segmenter
from emalab.studies import Cell, Study, StudyFolder, StudyOptions, job, run_study, training
from emalab.studies.folder import CorruptRecordError
from emalab.studies.runner import Outcome, make_plan
from emalab.studies.summary import format_summary, summarize
from emalab.trainer import Trainer


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


def full_or(write: Any, path: Path, content: Any) -> None:
    """A disk that is full for the files of one run."""
    if path.stem == "tiny-seed0":
        raise OSError(errno.ENOSPC, "No space left on device", str(path))
    write(path, content)


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
