"""A worker: takes one run after the other from the folder of a study; imports and data are paid for once."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from multiprocessing import parent_process
from threading import Thread

from emalab.studies.config import Run
from emalab.studies.folder import StudyFolder
from emalab.studies.job import DIVERGED, DONE, FAILED, STARTED, WAITING, Board, Job, Performer, note_failure

__all__ = ["AFTER_FAILURE", "Worker", "share_of_cores", "work"]

AFTER_FAILURE = 75  # exit code of a worker that wants to be replaced


class Worker:
    """Takes runs and leaves records.

    Args:
        job: whose runs to take.
        board: to note them on.
        slot: which of the job's workers this is.
        cores: to share with all workers of the folder on this machine; None leaves the number of threads as it is.
    """

    def __init__(self, job: Job, board: Board, slot: int, cores: int | None) -> None:
        if job.make_performer is None:
            from emalab.studies.training import Trainings

            self.perform: Performer = Trainings(job.folder, job.options)
        else:
            self.perform = job.make_performer(job.folder, job.options)
        self.job, self.board, self.slot, self.cores = job, board, slot, cores

    def run_next(self) -> int | None:
        """Run the first run that nobody else has taken; its index, or None where none would end in time."""
        for index, run in enumerate(self.job.runs):
            if self.board.states[index] != WAITING:
                continue
            try:
                with self.job.folder.claim(run) as mine:
                    if mine and self._is_missing(index, run):
                        if self.job.is_too_late():
                            return None
                        self._perform(index, run)
            except Exception:
                note_failure(self.job, self.board, index, traceback.format_exc())
            self.board.current[self.slot] = -1
            if self.board.states[index] != WAITING:
                return index
        return None

    def _is_missing(self, index: int, run: Run) -> bool:
        """Whether a run that this process has claimed is still to be made."""
        states = self.board.states
        if states[index] == WAITING and (record := self.job.folder.read(run)) is not None:  # made by another study
            states[index] = DIVERGED if "diverged" in record else DONE
        return bool(states[index] == WAITING)

    def _perform(self, index: int, run: Run) -> None:
        job, board = self.job, self.board
        board.states[index], board.current[self.slot] = STARTED, index
        record = self.perform(run, None if self.cores is None else share_of_cores(self.cores, job.folder))
        if "diverged" in record:
            text, state = "diverged, which is a result", DIVERGED
        else:
            score, seconds = record["scores"]["single scale"]["miou"], record["seconds"]["run"]
            text, state = f"done, {100 * score:.2f} in {seconds:.0f} s", DONE
        job.report(board.line(index, run, text + self._left()))
        board.states[index] = state

    def _left(self) -> str:
        """How many minutes the runs without a record will take the workers of the folder on this machine."""
        folder, states = self.job.folder, zip(self.job.runs, self.board.states, strict=True)
        missing = sum(state in (WAITING, STARTED) and not folder.record(run).is_file() for run, state in states)
        seconds, workers = self.job.options.seconds_per_run or folder.seconds_per_run(), folder.active_workers()
        if not missing or seconds is None:
            return ""
        return f", {missing} left in about {-(-missing // max(workers, 1)) * seconds / 60:.1f} minutes"


def share_of_cores(cores: int, folder: StudyFolder) -> int:
    """Cores for one worker: equal parts for all workers of the folder on this machine, at least one."""
    return max(cores // max(folder.active_workers(), 1), 1)


def work(job: Job, board: Board, slot: int, gpu: str | None) -> None:
    """A worker process, from start to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one receives Ctrl-C, and ends it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # tidies up, which the default does not
    faulthandler.enable()
    Thread(target=_end_with_parent, daemon=True).start()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    with job.folder.active_worker():
        worker = Worker(job, board, slot, job.options.cores)
        while (index := worker.run_next()) is not None:
            if board.states[index] == FAILED:  # what failed may have left memory or the GPU in disorder
                sys.exit(AFTER_FAILURE)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
