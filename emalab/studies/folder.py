"""The folder of a family of studies: a record per finished run, a report per failed one, and who runs what now.

Everything is decided by files and by locks that the kernel drops when their process ends, whatever ends it. So any
number of processes may work in one folder, and there is nothing to repair after a kill.
"""

from __future__ import annotations

import errno
import glob
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any, Literal

from emalab.files import remove_leftovers
from emalab.studies.config import Run, Study, same_training
from emalab.studies.records import CorruptRecordError, first_difference, read_run

__all__ = ["CorruptRecordError", "State", "StudyFolder"]

State = Literal["done", "diverged", "failed", "missing"]


@dataclass(frozen=True)
class StudyFolder:
    """Files of the runs in ``root``: ``records/``, ``failures/`` and ``weights/``; while they run, ``claims/``,
    ``running/`` and ``workers/``."""

    root: Path

    def record(self, run: Run) -> Path:
        """The record of a finished run."""
        return self.root / "records" / f"{run.name}.json"

    def failure(self, run: Run) -> Path:
        """What stopped the run when it was last tried, with the traceback."""
        return self.root / "failures" / f"{run.name}.txt"

    def weights(self, run: Run) -> Path:
        """The trained network, where it is kept."""
        return self.root / "weights" / f"{run.name}.pt"

    @contextmanager
    def workspace(self, run: Run) -> Iterator[Path]:
        """A folder for the run while it lasts, empty at the start, for the process that holds its claim.

        What a process that was killed has left of the run goes first.
        """
        path = self.root / "running" / run.name
        shutil.rmtree(path, ignore_errors=True)
        for file in (self.record(run), self.failure(run)):
            remove_leftovers(file)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def clear_workspace(self, run: Run) -> None:
        """Remove what a process that was killed has left, unless another one is at the run."""
        with self.claim(run) as mine:
            if mine:
                shutil.rmtree(self.root / "running" / run.name, ignore_errors=True)

    @contextmanager
    def claim(self, run: Run) -> Iterator[bool]:
        """Whether this process may run it: no other one does, nor can until the context ends."""
        path = self.root / "claims" / f"{run.name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            mine = not _is_locked(file, keep=True)
            yield mine

    def is_claimed(self, run: Run) -> bool:
        """Whether another process is at a run."""
        with self.claim(run) as mine:
            return not mine

    @contextmanager
    def active_worker(self) -> Iterator[None]:
        """Count this process among the workers of the folder on this machine while the context lasts."""
        path = self.root / "workers" / f"{_machine()}{os.getpid()}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            _lock(file)
            try:
                yield
            finally:
                path.unlink(missing_ok=True)

    def active_workers(self) -> int:
        """Workers of the folder on this machine, this process included if it is one; drops what dead ones left."""
        count = 0
        for path in (self.root / "workers").glob(f"{glob.escape(_machine())}*.lock"):
            if path.name == f"{_machine()}{os.getpid()}.lock":  # to open and close it would give up the lock
                count += 1
                continue
            with suppress(FileNotFoundError), path.open("r+b") as file:
                if _is_locked(file):
                    count += 1
                else:
                    path.unlink(missing_ok=True)
        return count

    def read(self, run: Run) -> dict[str, Any] | None:
        """The record of a run with all evaluations of its cell, or None where it has yet to be made.

        Raises:
            CorruptRecordError: the file is not a whole record; the message names the field.
            ValueError: it is the record of another recipe or seed; the message names the first field that differs.
        """
        path = self.record(run)
        if not path.is_file():
            return None
        record, recipe = read_run(path)
        if not same_training(recipe, run.recipe):
            raise ValueError(
                f"{path} is the record of another recipe than {run.cell.label!r} of study {run.study} "
                f"({first_difference(recipe, run.recipe)}); move it away, or choose another folder with --out"
            )
        complete = "diverged" in record or record["evaluations"].keys() >= run.cell.evaluations.keys()
        return record if complete else None

    def set_corrupt_aside(self, runs: Sequence[Run]) -> list[str]:
        """Rename each record of ``runs`` that is none to NAME.json.corrupt; returns what is wrong, and the new name."""
        moved = []
        for run in runs:
            try:
                self.read(run)
            except CorruptRecordError as error:
                path = self.record(run)
                aside = path.with_name(path.name + ".corrupt")
                with self.claim(run) as mine:
                    if mine and path.exists():
                        path.replace(aside)
                        moved.append(f"{error}; it is now {aside.name}")
        return moved

    def state(self, run: Run) -> State:
        """How far a run is; one whose record is corrupt is missing."""
        try:
            record = self.read(run)
        except CorruptRecordError:
            record = None
        if record is not None:
            return "diverged" if "diverged" in record else "done"
        return "failed" if self.failure(run).is_file() else "missing"

    def records(self, study: Study) -> list[dict[str, Any]]:
        """Records of a study's runs, in its order, without corrupt ones."""
        found = []
        for run in study.runs():
            try:
                record = self.read(run)
            except CorruptRecordError:
                continue
            if record is not None:
                found.append(record)
        return found

    def corrupt(self, study: Study) -> list[str]:
        """Names of a study's files that are no records, those set aside included."""
        names = []
        for run in study.runs():
            path = self.record(run)
            try:
                self.read(run)
            except CorruptRecordError:
                names.append(path.name)
            if (aside := path.with_name(path.name + ".corrupt")).exists():
                names.append(aside.name)
        return names

    def failed(self, study: Study) -> list[str]:
        """Names of runs that failed when last tried and have no record since."""
        return [run.name for run in study.runs() if self.state(run) == "failed"]

    def seconds_per_run(self) -> float | None:
        """Median duration of all finished runs in the folder; None before the first."""
        durations = []
        for path in sorted(self.root.glob("records/*.json")):
            try:
                durations.append(float(read_run(path)[0]["seconds"]["run"]))
            except CorruptRecordError:
                continue
        return median(durations) if durations else None

    def clear_failure(self, run: Run) -> None:
        """Forget what stopped a run that has succeeded since."""
        self.failure(run).unlink(missing_ok=True)

    def check_writable(self) -> None:
        """Make the folder; `OSError` now rather than after hours if it cannot be written."""
        self.root.mkdir(parents=True, exist_ok=True)
        if not os.access(self.root, os.W_OK):
            raise PermissionError(f"{self.root} cannot be written; choose another folder with --out")


def _machine() -> str:
    """This machine in the name of a file, ending in a dash."""
    return "".join(letter if letter.isalnum() else "-" for letter in platform.node()) + "-"


def _is_locked(file: IO[bytes], *, keep: bool = False) -> bool:
    """Whether another process has locked a file; if not, and with ``keep``, this one has until it closes it."""
    try:
        _lock(file)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            raise  # locks that this file system does not have: nobody's claim
        return True
    if not keep:
        _unlock(file)
    return False


def _lock(file: IO[bytes]) -> None:
    """Lock a file until it is closed; `OSError` where another process has it locked."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: forked loaders do not hold it


def _unlock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_UN)
