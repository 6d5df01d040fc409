"""Runs what is missing of a study: a worker for each device, and one list of runs that they share."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from emalab.files import write_atomically
from emalab.studies.config import Run, Study
from emalab.studies.folder import StudyFolder
from emalab.studies.worker import Answer, LocalWorker, Task, Worker

__all__ = ["Outcome", "Plan", "StudyOptions", "make_plan", "run_study"]


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
    """CPU cores that the workers share."""
    only: tuple[str, ...] = ()
    """Labels of the cells to run; all by default."""
    shard: tuple[int, int] = (0, 1)
    """(i, n): take every n-th run from the i-th on, i = 0 … n−1."""
    deadline_seconds: float | None = None
    """Start no run that is predicted to end later than this from now."""
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


@dataclass(frozen=True)
class Plan:
    """What a study consists of, and how far it is."""

    runs: list[Run]
    states: list[str]
    """Of each run: "done", "diverged", "failed" (and to be tried again) or "missing"."""
    seconds_per_run: float | None
    """Mean of the finished runs, or as given."""

    @property
    def missing(self) -> list[Run]:
        """Runs without a record, those that failed included, in the order in which they will run."""
        return [run for run, state in zip(self.runs, self.states, strict=True) if state in ("failed", "missing")]

    def minutes(self, workers: int) -> float | None:
        """Predicted time of what is missing on so many workers."""
        if self.seconds_per_run is None:
            return None
        return -(-len(self.missing) // workers) * self.seconds_per_run / 60


@dataclass
class Outcome:
    """What became of the runs that were missing, by name."""

    finished: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    """Another process is at it."""
    postponed: list[str] = field(default_factory=list)
    """Not started, for the deadline."""


def make_plan(study: Study, folder: StudyFolder, options: StudyOptions) -> Plan:
    """The runs of this shard and how far they are; errors as in `Study.runs` and `StudyFolder.read`."""
    index, count = options.shard
    runs = study.runs(options.only)[index::count]
    seconds = options.seconds_per_run or folder.seconds_per_run()
    return Plan(runs, [folder.state(run) for run in runs], seconds)


def run_study(study: Study, out: Path, options: StudyOptions, report: Callable[[str], None] | None = None) -> Outcome:
    """Run what has no record yet in the folder ``out``: seed 0 of every cell first, then seed 1, ….

    May be stopped and started again at any time, and several may work in one folder: a finished run is never run
    again, and no run is run by two. A run that fails does not stop the others; it is tried again next time.

    Args:
        study: what to run.
        out: gets ``records/NAME-seedN.json``, ``failures/NAME-seedN.txt`` and, on request, ``weights/``.
        options: where and how.
        report: gets a line for whatever happens; prints to stderr by default.

    Raises:
        DataError: the data of the study are not there.
        OSError: ``out`` cannot be written.
        ValueError: ``out`` holds the records of other recipes.
    """
    if report is None:
        report = partial(print, file=sys.stderr, flush=True)
    folder = StudyFolder(out)
    folder.check_writable()
    for path in folder.set_corrupt_aside(study.runs(options.only)):
        report(f"{path.name}: not a record; set aside, and run again")
    plan = make_plan(study, folder, options)
    _check_data(plan.missing, options)
    agenda = _Agenda(folder, plan, options, report)
    with_processes = options.gpus or options.processes
    slots: list[str | None] = [*options.gpus] or [None] * max(options.processes, 1)
    threads = max(options.cores // len(slots), 1)
    settings = {
        "data_root": options.data_root,
        "accelerator": options.accelerator,
        "num_workers": threads if options.gpus else 0,
        "commit": options.commit,
    }
    tasks = [Task(folder, settings, gpu, threads, options.keep_weights) for gpu in slots[: len(plan.missing)]]
    if not with_processes:
        for task in tasks:
            _Slot(task, agenda, LocalWorker).work()
        return agenda.outcome
    workers = [_Slot(task, agenda, Worker) for task in tasks]
    helpers = [Thread(target=slot.work, daemon=True) for slot in workers]
    try:
        for helper in helpers:
            helper.start()
        while any(helper.is_alive() for helper in helpers):
            time.sleep(0.1)  # a thread that waits for another hears no signal that a third one got
    finally:  # after Ctrl-C, too
        agenda.close()
        for slot, helper in zip(workers, helpers, strict=True):
            while helper.is_alive():
                slot.stop()
                helper.join(0.1)
    return agenda.outcome


class _Slot:
    """A device and its worker, which is replaced when it dies."""

    def __init__(self, task: Task, agenda: _Agenda, kind: Callable[[Task], Any]) -> None:
        self.task, self.agenda, self.kind = task, agenda, kind
        self.worker: Any = None

    def work(self) -> None:
        """Take runs until there are none."""
        while run := self.agenda.take():
            worker = self.worker = self.worker or self.kind(self.task)
            answer = worker.perform(run)
            self.agenda.note(run, answer)
            if answer.ending in ("failed", "died"):
                self.stop()
        self.stop()

    def stop(self) -> None:
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.stop()


class _Agenda:
    """The runs still to do, shared by the threads that talk to the workers."""

    def __init__(self, folder: StudyFolder, plan: Plan, options: StudyOptions, report: Callable[[str], None]) -> None:
        self.folder, self.options, self.report = folder, options, report
        self.started = time.monotonic()
        self.waiting, self.total, self.ended = deque(plan.missing), len(plan.missing), 0
        self.outcome = Outcome()
        self.lock = Lock()
        self.closed = False

    def take(self) -> Run | None:
        """The next run; None when there is none that would end in time."""
        with self.lock:
            if self.closed or not self.waiting:
                return None
            limit = self.options.deadline_seconds
            predicted = self.options.seconds_per_run or self.folder.seconds_per_run() or 0.0
            if limit is not None and time.monotonic() - self.started + predicted > limit:
                self.outcome.postponed += [run.name for run in self.waiting]
                self.waiting.clear()
                return None
            return self.waiting.popleft()

    def note(self, run: Run, answer: Answer) -> None:
        """Keep how a run ended, and report it."""
        with self.lock:
            if self.closed:
                return
            self.ended += 1
            lists = {
                "done": self.outcome.finished,
                "present": self.outcome.finished,
                "diverged": self.outcome.diverged,
                "elsewhere": self.outcome.elsewhere,
            }
            lists.get(answer.ending, self.outcome.failed).append(run.name)
            line = f"{self.ended}/{self.total} {run.name}: {_WORDS.get(answer.ending, 'failed')}"
            if answer.why:
                line += f": {answer.why.strip().splitlines()[-1]}"
                line += self._report(run, answer.why)
            elif answer.ending == "done":
                line += self._score(run)
            self.report(line)

    def close(self) -> None:
        """Start nothing more, and note nothing."""
        with self.lock:
            self.closed = True

    def _report(self, run: Run, why: str) -> str:
        path = self.folder.failure(run)
        try:
            write_atomically(path, lambda temporary: temporary.write_text(why, encoding="utf-8"))
            return f" (traceback in {path})" if "Traceback" in why else ""
        except OSError as error:
            return f" ({path} cannot be written either: {error.strerror})"

    def _score(self, run: Run) -> str:
        record = self.folder.read(run) or {}
        return f", {100 * record['scores']['single scale']['miou']:.2f} in {record['seconds']['run']:.0f} s"


_WORDS = {
    "done": "done",
    "diverged": "diverged, which is a result",
    "present": "was done meanwhile",
    "elsewhere": "another process is at it",
}


def _check_data(runs: Sequence[Run], options: StudyOptions) -> None:
    """Errors of missing data before any worker starts."""
    from emalab.data import load_dataset

    splits = {
        (data.name, split)
        for data in (run.recipe.data for run in runs)
        for split in (data.train_split, data.eval_split)
    }
    for name, split in sorted(splits):
        load_dataset(name, split, options.data_root)
