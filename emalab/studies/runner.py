"""Runs what is missing of a study, in worker processes or in this one.

Which run is whose is decided by the locks of `StudyFolder` alone. So a worker does not care whether the others belong
to its own study or to another `emalab study` in the same folder, and there is nothing to repair after a kill.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emalab.studies.config import Run, Study
from emalab.studies.folder import StudyFolder
from emalab.studies.job import DIVERGED, DONE, FAILED, Board, Job, Report, StudyOptions, print_line
from emalab.studies.supervisor import Supervisor
from emalab.studies.worker import Worker

__all__ = ["Outcome", "Plan", "StudyOptions", "make_plan", "run_study"]


@dataclass(frozen=True)
class Plan:
    """What a study consists of, and how far it is."""

    runs: list[Run]
    states: list[str]
    """Of each run: "done", "diverged", "failed" (and to be tried again) or "missing"."""
    seconds_per_run: float | None
    """Median of the finished runs, or as given."""

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
    """Another study in the same folder is at it."""
    postponed: list[str] = field(default_factory=list)
    """Not started, for the deadline."""


def make_plan(study: Study, folder: StudyFolder, options: StudyOptions) -> Plan:
    """The runs of this shard and how far they are; errors as in `Study.runs` and `StudyFolder.read`."""
    index, count = options.shard
    runs = study.runs(options.only)[index::count]
    seconds = options.seconds_per_run or folder.seconds_per_run()
    return Plan(runs, [folder.state(run) for run in runs], seconds)


def run_study(study: Study, out: Path, options: StudyOptions, report: Report = print_line) -> Outcome:
    """Run what has no record yet in the folder ``out``: seed 0 of every cell first, then seed 1, ….

    May be stopped and started again at any time, and several may work in one folder: a finished run is never run
    again, and no run is run by two. A run that fails does not stop the others; it is tried again next time.

    Args:
        study: what to run.
        out: gets ``records/NAME-seedN.json``, ``failures/NAME-seedN.txt`` and, on request, ``weights/``.
        options: where and how.
        report: gets a line when a run has ended; see `Report`.

    Raises:
        DataError: the data of the study are not there.
        OSError: ``out`` cannot be written.
        ValueError: ``out`` holds the records of other recipes.
    """
    folder = StudyFolder(out)
    folder.check_writable()
    for line in folder.set_corrupt_aside(study.runs(options.only)):
        report(f"{line}, and the run is made again")
    missing = make_plan(study, folder, options).missing
    _check_data(missing, options)
    ends_at = None if options.deadline_seconds is None else time.time() + options.deadline_seconds
    job = Job(folder, missing, options, report, ends_at)
    workers = len(options.gpus) or options.processes
    board = Board.blank(len(missing), max(workers, 1))
    if workers:
        gpus: list[str | None] = [*options.gpus] or [None] * workers
        Supervisor(job, board, gpus[: len(missing)]).run()
    else:
        worker = Worker(job, board, 0, None)
        while worker.run_next() is not None:
            pass
    return _outcome(job, board)


def _outcome(job: Job, board: Board) -> Outcome:
    """What became of every run; those that nobody began and nobody may begin later count as failed."""
    outcome = Outcome()
    too_late = job.is_too_late()
    lists = {DONE: outcome.finished, DIVERGED: outcome.diverged, FAILED: outcome.failed}
    for run, state in zip(job.runs, board.states, strict=True):
        if state in lists:
            lists[state].append(run.name)
        elif (found := job.folder.state(run)) in ("done", "diverged"):  # made by another study meanwhile
            (outcome.diverged if found == "diverged" else outcome.finished).append(run.name)
        elif job.folder.is_claimed(run):
            outcome.elsewhere.append(run.name)
            job.report(f"{run.name}: another process is at it")
        else:
            (outcome.postponed if too_late else outcome.failed).append(run.name)
    return outcome


def _check_data(runs: Sequence[Run], options: StudyOptions) -> None:
    """Errors of missing data before any worker starts."""
    from emalab.data import load_dataset

    splits = dict.fromkeys(
        (data.name, split, data.scenes)
        for data in (run.recipe.data for run in runs)
        for split in (data.train_split, data.eval_split)
    )
    for name, split, scenes in splits:
        load_dataset(name, split, options.data_root, scenes)
