"""A process that runs one run after the other: imports, data and the GPU's plans are paid for once."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
import traceback
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from threading import Thread
from typing import TYPE_CHECKING, Any, NamedTuple

from emalab.studies.config import Run
from emalab.studies.folder import StudyFolder

if TYPE_CHECKING:  # the process that starts workers imports neither lightning nor timm
    from emalab.trainer import RunOptions

__all__ = ["Answer", "LocalWorker", "Task", "Worker"]


@dataclass(frozen=True)
class Task:
    """What all runs of a worker have in common."""

    folder: StudyFolder
    options: dict[str, Any]
    """Arguments of `RunOptions`."""
    gpu: str | None = None
    """The one GPU that the process may see, as CUDA_VISIBLE_DEVICES names it; none for all or for the CPU."""
    threads: int = 1
    """Cores that are this worker's own."""
    keep_weights: bool = False


class Answer(NamedTuple):
    """How a run ended: an `Ending` of `emalab.studies.execution`, "failed" or "died"; and why, with the traceback."""

    ending: str
    why: str = ""


class LocalWorker:
    """Runs in this process, for a chapter or a test: nothing to start, and nothing survives a crash."""

    def __init__(self, task: Task) -> None:
        from emalab.studies.execution import Datasets
        from emalab.trainer import RunOptions

        self._task = task
        self._options: RunOptions = RunOptions(**task.options)
        forks = self._options.num_workers != 0
        self._datasets = Datasets(self._options.data_root, task.threads if forks else 0)

    def perform(self, run: Run) -> Answer:
        """Run it, and say how it ended; exceptions are an answer as well."""
        from emalab.studies.execution import perform

        try:
            ending = perform(
                run, self._task.folder, self._options, self._datasets, keep_weights=self._task.keep_weights
            )
            return Answer(ending)
        except Exception:
            return Answer("failed", traceback.format_exc())

    def stop(self) -> None:
        """Nothing to end."""


class Worker:
    """Runs in a process of its own, which ends with the one that started it, however that ends."""

    def __init__(self, task: Task) -> None:
        context = get_context("spawn")  # CUDA does not survive a fork
        self._connection, inner = context.Pipe()
        self._process = context.Process(target=_serve, args=(inner, task))
        self._process.start()
        inner.close()  # so that its death is heard
        self._busy = False

    @property
    def pid(self) -> int | None:
        """Process id."""
        return self._process.pid

    def perform(self, run: Run) -> Answer:
        """Run it, and say how it ended; so is the death of the process an answer."""
        self._busy = True
        try:
            self._connection.send(run)
            answer = self._connection.recv()
            self._busy = False
            return answer
        except (EOFError, OSError):
            self._process.join()
            code = self._process.exitcode or 0
            cause = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            hint = "; did the machine run out of memory?" if cause.endswith("SIGKILL") else ""
            return Answer("died", f"the process that ran {run.name} {cause}{hint}\n")

    def stop(self) -> None:
        """End the process, in the middle of a run too; it gets a moment to tidy up."""
        if self._busy:
            self._process.terminate()
        else:
            self._connection.close()
        self._process.join(3)
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, task: Task) -> None:
    """The process of a `Worker`: takes runs and answers until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears Ctrl-C, too, and ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # tidies up, which the default does not
    faulthandler.enable()
    Thread(target=_end_with_parent, daemon=True).start()
    if task.gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = task.gpu
    import torch

    torch.set_num_threads(task.threads)
    worker = LocalWorker(task)  # imports lightning, which then lets its log talk
    for part in ("lightning.fabric", "lightning.pytorch"):  # or every run says which precision it has
        logging.getLogger(part).setLevel(logging.WARNING)
    while True:
        try:
            run = connection.recv()
        except EOFError:
            return
        answer = worker.perform(run)
        connection.send(answer)
        if answer.ending == "failed":
            return  # what failed may have left memory or the GPU in disorder; the next run gets a fresh process


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
