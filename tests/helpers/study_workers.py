"""What worker processes do in tests of studies, in place of training; they tell each other by files, not by time."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from threading import Event
from typing import Any

from emalab.recipes import recipe_to_dict
from emalab.results import write_record
from emalab.studies import Run, StudyFolder, StudyOptions


class Instant:
    """Writes a record at once, and the run's name to the file ``performed``."""

    def __init__(self, folder: StudyFolder, options: StudyOptions) -> None:
        self.folder = folder

    def __call__(self, run: Run, cores: int | None) -> dict[str, Any]:
        with (self.folder.root / "performed").open("a") as file:
            file.write(f"{run.name}\n")
        record = {
            "recipe": recipe_to_dict(run.recipe),
            "seed": run.recipe.seed,
            "scores": {"single scale": {"miou": 0.5}},
            "evaluations": {},
            "seconds": {"run": 0.0},
        }
        write_record(self.folder.record(run), record)
        return record


class Mortal(Instant):
    """Is killed in its first run."""

    def __call__(self, run: Run, cores: int | None) -> dict[str, Any]:
        if run.recipe.seed == 0 and run.cell.label == "base":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(run, cores)


class Blocked(Instant):
    """Never ends the run of seed 0 of the base, and says by the file ``blocked`` that it is at it."""

    def __call__(self, run: Run, cores: int | None) -> dict[str, Any]:
        if run.recipe.seed == 0 and run.cell.label == "base":
            (self.folder.root / "blocked").write_text(str(os.getpid()))
            Event().wait()
        return super().__call__(run, cores)


class Unusable(Instant):
    """Ends before it takes a run."""

    def __init__(self, folder: StudyFolder, options: StudyOptions) -> None:
        raise SystemExit(3)


def append(line: str) -> None:
    """A line of progress to the file that the environment names."""
    with Path(os.environ["STUDY_LINES"]).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
