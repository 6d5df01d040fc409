"""Worker processes of a study: killed, stalled, interrupted, and beside those of another study."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import processes
import pytest
from study_workers import Blocked, Instant, Mortal, Unusable, append
from tiny_studies import CPU, base, names, tiny_study
from waiting import wait_until

from emalab.studies import Cell, Study, StudyFolder, job, run_study
from emalab.studies.job import Board, Job
from emalab.studies.runner import Outcome
from emalab.studies.supervisor import Supervisor
from emalab.studies.worker import share_of_cores

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
