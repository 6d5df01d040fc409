"""What the processes of a study have in common: options, the list of runs, and a board in shared memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from emalab.files import write_atomically
from emalab.studies.config import Run
from emalab.studies.folder import StudyFolder

__all__ = ["Board", "Job", "Performer", "Report", "StudyOptions", "note_failure", "print_line"]

WAITING, STARTED, DONE, DIVERGED, FAILED = range(5)  # states of a run


@dataclass(frozen=True)
class StudyOptions:
    """Where and how the runs of a study run; nothing here changes what is learned."""

    data_root: Path | None = None
    """Folder with the unpacked releases."""
    accelerator: str = "auto"
    """Lightning Fabric's name of the hardware: auto, cpu, cuda."""
    gpus: tuple[str, ...] = ()
    """GPUs, one worker each, as CUDA_VISIBLE_DEVICES names them."""
    processes: int = 0
    """Workers without GPUs: processes, or 0 to run everything in this one."""
    cores: int = 1
    """CPU cores that the workers share, with those of other studies in the same folder on this machine."""
    only: tuple[str, ...] = ()
    """Labels of the cells to run; all by default."""
    shard: tuple[int, int] = (0, 1)
    """(i, n): take every n-th run from the i-th on, i = 0 … n−1."""
    deadline_seconds: float | None = None
    """Start no run that is predicted to end later than this from now."""
    run_deadline_seconds: float | None = None
    """End a run that takes longer, and note it as failed. By default 20 times the longest run of this call, at least
    10 minutes; a day before the first has ended. Runs in this process (``processes=0``) have no such limit."""
    seconds_per_run: float | None = None
    """Predicted duration of a run; by default the median of the finished ones."""
    keep_weights: bool = False
    """Keep the trained networks."""
    commit: str | None = None
    """Commit to record; by default that of the running source."""

    def __post_init__(self) -> None:
        index, count = self.shard
        if not 0 <= index < count:
            raise ValueError(f"shard {index} of {count}: it must be one of 0 to {count - 1}")
        if self.processes < 0 or self.cores < 1:
            raise ValueError(f"{self.processes} processes on {self.cores} cores; take at least 0 on 1")
        for name in ("deadline_seconds", "run_deadline_seconds", "seconds_per_run"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds >= 0:
                raise ValueError(f"{name} is {seconds}; it must be a number of seconds from 0 on")


class Performer(Protocol):
    """Makes the record of a run that its process has claimed; made once for each worker."""

    def __call__(self, run: Run, cores: int | None) -> dict[str, Any]:
        """The record, which has been written; on so many cores, or on as many as this process uses anyway."""


class Report(Protocol):
    """Takes a line of progress. With worker processes it is sent to them, so it must be a function of a module."""

    def __call__(self, line: str, /) -> object:
        """Show the line."""


def print_line(line: str) -> None:
    """The line to stderr, at once."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Job:
    """What all workers of a study have in common."""

    folder: StudyFolder
    runs: list[Run]
    """Those without a record when the study was started."""
    options: StudyOptions
    report: Report
    ends_at: float | None
    """Time by which every run should have ended, in seconds since the epoch."""
    make_performer: Callable[[StudyFolder, StudyOptions], Performer] | None = None
    """What makes the records; `emalab.studies.training.Trainings` by default."""

    def is_too_late(self) -> bool:
        """Whether a run that starts now would end after the deadline."""
        predicted = self.options.seconds_per_run or self.folder.seconds_per_run() or 0.0
        return self.ends_at is not None and time.time() + predicted > self.ends_at


@dataclass(frozen=True)
class Board:
    """Memory that the workers share with the process that started them, and that survives each of them."""

    states: Any
    """Of each run of the job: one of WAITING … FAILED."""
    current: Any
    """Of each worker: the index of its run, or −1."""

    @classmethod
    def blank(cls, runs: int, workers: int) -> Board:
        """For so many runs and workers."""
        context = get_context("spawn")
        return cls(context.RawArray("b", runs), context.RawArray("i", [-1] * workers))

    def line(self, index: int, run: Run, text: str) -> str:
        """A line of progress about a run that has ended: how many have, of how many."""
        ended = sum(state in (DONE, DIVERGED, FAILED) for i, state in enumerate(self.states) if i != index) + 1
        return f"{ended}/{len(self.states)} {run.name}: {text}"


def note_failure(job: Job, board: Board, index: int, why: str) -> None:
    """Leave the report of a run that failed, and a line; ``why`` ends with the line that says it shortest."""
    run = job.runs[index]
    path = job.folder.failure(run)
    line = f"failed: {why.strip().splitlines()[-1]}"
    try:
        write_atomically(path, lambda temporary: temporary.write_text(why, encoding="utf-8"))
        line += f" (traceback in {path})" if "Traceback" in why else ""
    except OSError as error:
        line += f" ({path} cannot be written either: {error.strerror})"
    job.report(board.line(index, run, line))
    board.states[index] = FAILED
