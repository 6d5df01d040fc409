"""The process that starts workers: it replaces those that die, ends runs that take too long, and passes on a stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import wait
from typing import Any

from emalab.studies.job import STARTED, WAITING, Board, Job, note_failure
from emalab.studies.worker import AFTER_FAILURE, work

__all__ = ["Supervisor"]

_STARTS = 3  # deaths in a row without a run, after which a worker is not replaced
_SHORTEST_DEADLINE, _FIRST_DEADLINE = 600.0, 86_400.0  # seconds


class Supervisor:
    """Starts a worker process for each slot, replaces those that die, and ends runs that take too long.

    Args:
        job: whose runs the workers take.
        board: that they note them on.
        gpus: for each worker the GPU that it may see, or None.
        clock: seconds, by which the duration of runs is measured.
    """

    def __init__(
        self, job: Job, board: Board, gpus: Sequence[str | None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.job, self.board, self.gpus, self.clock = job, board, gpus, clock
        self.processes: list[Any] = [None] * len(gpus)
        self.deaths = [0] * len(gpus)  # in a row, without a run in between
        self.since: list[tuple[int, float]] = [(-1, 0.0)] * len(gpus)  # index of a worker's run, and when it began
        self.longest = 0.0

    def run(self) -> None:
        """Until no run is left that a worker could take."""
        try:
            for slot in range(len(self.gpus)):
                self._start(slot)
            while running := [process for process in self.processes if process is not None]:
                wait([process.sentinel for process in running], timeout=0.2)
                for slot, process in enumerate(self.processes):
                    if process is not None:
                        self._watch(slot, process)
        finally:  # after Ctrl-C, too
            for process in self.processes:
                if process is not None:
                    _stop(process)

    def _start(self, slot: int) -> None:
        self.processes[slot] = None
        if self.deaths[slot] < _STARTS and self._is_any_open():
            context = get_context("spawn")  # CUDA does not survive a fork
            process = context.Process(target=work, args=(self.job, self.board, slot, self.gpus[slot]))
            with _waiting_without_spinning():
                process.start()
            self.processes[slot] = process

    def _watch(self, slot: int, process: Any) -> None:
        index, now = self.board.current[slot], self.clock()
        previous, began = self.since[slot]
        if index != previous:
            self.longest = max(self.longest, now - began) if previous >= 0 else self.longest
            self.since[slot] = (index, now)
        elif index >= 0 and now - began > self._limit():
            _kill(process)
            self._end_run(slot, index, f"took longer than {self._limit():.0f} s and was ended")
            self._start(slot)
        elif process.exitcode is not None:
            process.join()
            self._replace(slot, index, process)

    def _replace(self, slot: int, index: int, process: Any) -> None:
        """Start another worker in place of one that has ended, if a run is left for it."""
        if index >= 0:
            self._end_run(slot, index, f"was lost: its process {_cause(process)}")
        elif process.exitcode in (0, AFTER_FAILURE):
            self.deaths[slot] = 0
        else:
            self.deaths[slot] += 1
            self.job.report(f"worker {slot + 1} {_cause(process)} before it took a run")
        self._start(slot)

    def _end_run(self, slot: int, index: int, why: str) -> None:
        """Note the failure of the run during which a worker ended."""
        self.board.current[slot], self.since[slot], self.deaths[slot] = -1, (-1, 0.0), 0
        if self.board.states[index] == STARTED:  # not if the run was done, and its process ended afterwards
            note_failure(self.job, self.board, index, f"{self.job.runs[index].name} {why}\n")
            self.job.folder.clear_workspace(self.job.runs[index])

    def _limit(self) -> float:
        """Seconds that a run may take."""
        if self.job.options.run_deadline_seconds is not None:
            return self.job.options.run_deadline_seconds
        return max(20 * self.longest, _SHORTEST_DEADLINE) if self.longest else _FIRST_DEADLINE

    def _is_any_open(self) -> bool:
        """Whether there is a run to take: not begun, without a record, and no other study is at it."""
        if self.job.is_too_late():
            return False
        folder = self.job.folder
        waiting = [run for run, state in zip(self.job.runs, self.board.states, strict=True) if state == WAITING]
        return any(folder.state(run) in ("missing", "failed") and not folder.is_claimed(run) for run in waiting)


@contextmanager
def _waiting_without_spinning() -> Iterator[None]:
    """For processes started here, threads of OpenMP that wait let others run, unless the caller says otherwise.

    Studies that share a machine have more threads than cores for as long as the run lasts during which the second one
    comes. Threads that spin then make both several times slower.
    """
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_WAIT_POLICY"]


def _stop(process: Any) -> None:
    """End a worker, in the middle of a run too; it gets a moment to tidy up."""
    process.terminate()
    process.join(3)
    _kill(process)


def _kill(process: Any) -> None:
    process.kill()
    process.join()


def _cause(process: Any) -> str:
    """How a process ended."""
    if process.exitcode >= 0:
        return f"ended with exit code {process.exitcode}"
    name = signal.Signals(-process.exitcode).name
    return f"was killed by {name}" + ("; did the machine run out of memory?" if name == "SIGKILL" else "")
