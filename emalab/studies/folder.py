"""The folder of a family of studies: a record per finished run, a report per failed one, and who runs what now.

Everything is decided by files and by locks that the kernel drops when their process ends, whatever ends it. So any
number of processes may work in one folder, and there is nothing to repair after a kill.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import IO, Any, Literal

from emalab.recipes import Recipe, recipe_from_dict
from emalab.studies.config import Run, Study, same_training

__all__ = ["CorruptRecordError", "State", "StudyFolder"]

State = Literal["done", "diverged", "failed", "missing"]


class CorruptRecordError(ValueError):
    """A file that should be the record of a run, and is not; the message names it."""


@dataclass(frozen=True)
class StudyFolder:
    """Files of the runs in ``root``: ``records/``, ``failures/``, ``claims/``, ``running/`` and ``weights/``."""

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
        """A folder for the run while it lasts, empty at the start, for who holds its claim."""
        path = self.root / "running" / run.name
        shutil.rmtree(path, ignore_errors=True)
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def claim(self, run: Run) -> Iterator[bool]:
        """Whether this process may run it: no other one does, nor can until the context ends."""
        path = self.root / "claims" / f"{run.name}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            try:
                _lock(file)
            except OSError:
                yield False
                return
            yield True

    def read(self, run: Run) -> dict[str, Any] | None:
        """The record of a run with all evaluations of its cell, or None where it has yet to be made.

        Raises:
            CorruptRecordError: the file is not a record.
            ValueError: it is the record of another recipe or seed.
        """
        path = self.record(run)
        if not path.is_file():
            return None
        record = _parse(path)
        if not same_training(_recipe(path, record), run.recipe):
            raise ValueError(
                f"{path} is the record of another recipe than {run.cell.label!r} of study {run.study}; "
                "move it away, or choose another folder with --out"
            )
        complete = "diverged" in record or record["evaluations"].keys() >= run.cell.evaluations.keys()
        return record if complete else None

    def set_corrupt_aside(self, runs: Sequence[Run]) -> list[Path]:
        """Rename each record of ``runs`` that is none to NAME.json.corrupt; returns the new names."""
        moved = []
        for run in runs:
            try:
                self.read(run)
            except CorruptRecordError:
                path = self.record(run)
                aside = path.with_name(path.name + ".corrupt")
                with self.claim(run) as mine:
                    if mine and path.exists():
                        path.replace(aside)
                        moved.append(aside)
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
                durations.append(float(_parse(path)["seconds"]["run"]))
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


def _lock(file: IO[bytes]) -> None:
    """Lock a file until it is closed; `OSError` where another process has it locked."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process alone: forked loaders do not hold it


def _parse(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptRecordError(f"{path} is not a record: {error}") from error
    if not isinstance(record, dict):
        raise CorruptRecordError(f"{path} is not a record: it holds {type(record).__name__}")
    wanted = {"recipe": dict, "seconds": dict} | ({} if "diverged" in record else {"scores": dict, "evaluations": dict})
    for key, kind in wanted.items():
        if not isinstance(record.get(key), kind):
            raise CorruptRecordError(f"{path} is not a record of a study: {key!r} is missing")
    return record


def _recipe(path: Path, record: dict[str, Any]) -> Recipe:
    try:
        return recipe_from_dict(record["recipe"])
    except (ValueError, TypeError) as error:
        raise CorruptRecordError(f"{path} is not a record: {error}") from error
