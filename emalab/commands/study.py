"""`emalab study NAME`."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from emalab.commands.environment import default_data_root, visible_gpus
from emalab.results import write_record
from emalab.studies.config import Study
from emalab.studies.folder import StudyFolder
from emalab.studies.runner import Plan, StudyOptions, make_plan, run_study
from emalab.studies.sources import CATALOG, find_study, load_studies
from emalab.tables import aligned

__all__ = ["run"]

_USAGE = """usage: emalab study FILE.yaml|FILE.py:NAME|NAME [--dry-run | --summary] ...

`emalab study --help` explains the flags, and `emalab study --list [FILE]` lists the studies of a file."""


def run(
    study: Positional[str] = "",
    out: Path | None = None,
    data_root: Path | None = None,
    devices: int | None = None,
    accelerator: Literal["auto", "cpu", "cuda"] = "auto",
    shard: str = "0/1",
    only: tuple[str, ...] = (),
    deadline_seconds: float | None = None,
    run_deadline_seconds: float | None = None,
    seconds_per_run: float | None = None,
    keep_weights: bool = False,
    commit: str | None = None,
    dry_run: bool = False,
    summary: bool = False,
    evaluation: str | None = None,
    allow_code: tuple[str, ...] = (),
    list: bool = False,
) -> None:
    """Run what is missing of a study, and summarize it: one record per run, and a table with intervals.

    `emalab study my_study.yaml` and `emalab study my_studies.py:NAME` run studies of your own (`emalab.studies.sources`
    describes the files); `emalab study NAME`, from the root of a clone, runs one of the book.

    A study compares changes of one recipe over several seeds. Each run leaves one record, so a study may be stopped in
    any way and started again; several may work in one folder and share the runs. Seed 0 of every cell comes first, so
    that an early stop leaves a balanced study. `emalab train --from-record FILE` repeats a run.

    Args:
        study: FILE.yaml, FILE.py:NAME, or the NAME of one in book/experiments/studies.py.
        out: folder of its family, for records and summaries; studies/FAMILY by default.
        data_root: folder with the unpacked releases; $EMALAB_DATA by default, and data/ here without one.
        devices: GPUs to use, by default all, or processes on a CPU, by default one.
        accelerator: hardware to run on.
        shard: I/N takes every N-th run from the I-th on, I = 0 … N−1: a share for one of N machines without a common
            disk. Put the records into one folder afterwards.
        only: labels of the cells to run; all by default.
        deadline_seconds: start no run that is predicted, see below, to end later than this.
        run_deadline_seconds: end a run that takes longer, and note it as failed; by default 20 times the longest run so
            far, at least 10 minutes.
        seconds_per_run: prediction; by default the median of all finished runs, on whatever machine.
        keep_weights: keep the trained networks in weights/.
        commit: commit to record; by default that of the running source.
        dry_run: show the runs and how long they will take, and run none.
        summary: summarize the records, and run none.
        evaluation: summarize this further evaluation of the trained networks, such as T=6.
        allow_code: modules that may be imported for a part of your own (model.context) that FILE.yaml names.
        list: list the studies of FILE, or those of the book.
    """
    if list or not study:
        _list(study)
        raise SystemExit(0 if list else 2)
    chosen, family = find_study(study, allow_code)
    options = StudyOptions(
        data_root=data_root or default_data_root(),
        **_hardware(accelerator, devices),
        only=only,
        shard=_shard(shard),
        deadline_seconds=deadline_seconds,
        run_deadline_seconds=run_deadline_seconds,
        seconds_per_run=seconds_per_run,
        keep_weights=keep_weights,
        commit=commit,
    )
    folder = StudyFolder(out or Path("studies") / chosen.family)
    if dry_run:
        print(_describe(chosen, make_plan(chosen, folder, options), len(options.gpus) or options.processes))
        return
    failed = [] if summary else _run_missing(chosen, folder, options)
    _summarize(chosen, family, folder, evaluation)
    if failed:
        raise SystemExit(1)


def _list(file: str) -> None:
    """The usage, and the studies of ``file`` or of the book."""
    print(_USAGE)
    if file or CATALOG.is_file():
        print(_catalog(Path(file or CATALOG)))
    else:
        print(f"\nThe studies of the book are in {CATALOG} of a clone, and are listed from its root.")


def _hardware(accelerator: str, devices: int | None) -> dict[str, Any]:
    """Those of the `StudyOptions` that say on what the runs run."""
    from emalab.data.loader import num_cores

    gpus, cores = () if accelerator == "cpu" else visible_gpus(), num_cores()
    if accelerator == "cuda" and not gpus:
        raise ValueError("there is no cuda device here; take --accelerator cpu")
    if devices is not None and not 1 <= devices <= (len(gpus) or cores):
        raise ValueError(f"--devices {devices}: there are {len(gpus) or cores} {'GPUs' if gpus else 'cores'} here")
    return {
        "accelerator": "cuda" if gpus else "cpu",
        "gpus": gpus[:devices],
        "processes": 0 if gpus else devices or 1,
        "cores": cores,
    }


def _run_missing(study: Study, folder: StudyFolder, options: StudyOptions) -> Sequence[str]:
    """Run what has no record; the names of the runs that failed."""
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        return run_study(study, folder.root, options).failed
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(*_: object) -> None:
    """End the workers as Ctrl-C does; SIGINT itself may be ignored, as it is behind ``nohup … &``."""
    raise KeyboardInterrupt


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise ValueError(f"--shard is I/N, such as 0/2 and 1/2 for two machines; got {text!r}")
    return int(index), int(count)


def _summarize(study: Study, family: Study, folder: StudyFolder, evaluation: str | None) -> None:
    from emalab.studies.summary import format_summary, provenance, summarize, summary_to_dict

    records, failed, corrupt = folder.records(family), folder.failed(study), folder.corrupt(study)
    found = summarize(study, records, evaluation, failed, family)
    print("\n".join([*_preregistration(study), format_summary(found.rows)]))
    missing = len(study.runs()) - len(found.records)
    half_done = f"; {missing} are missing, so this is no result yet" if missing else ""
    print(f"\n{len(found.records)} of {len(study.runs())} runs have a record, in {folder.root / 'records'}{half_done}")
    for line in provenance(found.records):
        print(f"note: {line}")
    for name in corrupt:
        print(f"corrupt, and not counted: {name}")
    for name in failed:
        print(f"failed, and to be tried again: {folder.root / 'failures' / name}.txt")
    if found.records:
        plain = summary_to_dict(study, records, failed, family)
        write_record(folder.root / f"summary-{study.name}.json", {**plain, "corrupt": corrupt})


def _preregistration(study: Study) -> Sequence[str]:
    """The question and the test of a study that has them, and the seeds that it plans."""
    lines = [f"{what}: {text}" for what, text in (("question", study.question), ("test", study.test)) if text]
    if lines:
        lines.append(f"planned seeds: {_seeds(study)}")
    return [*lines, ""] if lines else []


def _seeds(study: Study) -> str:
    """Seeds by cell; the number that most cells have stands for all that are not named."""
    numbers = [cell.seeds for cell in study.cells]
    usual = max(numbers, key=numbers.count)
    others = ", ".join(f"{cell.label} {cell.seeds}" for cell in study.cells if cell.seeds != usual)
    return f"{usual} for each cell" + (f", except {others}" if others else "")


def _describe(study: Study, plan: Plan, workers: int) -> str:
    """The plan: what is done and what is missing of every cell, and how long that will take."""
    labels = dict.fromkeys(run.cell.label for run in plan.runs)
    lines = [f"{study.name}: {study.summary}", "", *_preregistration(study)]
    rows = []
    for label in labels:
        states = [
            f"{run.recipe.seed} {state}"
            for run, state in zip(plan.runs, plan.states, strict=True)
            if run.cell.label == label
        ]
        rows.append((label, f"seed {', '.join(states)}"))
    lines += aligned(rows, indent="  ")
    minutes = plan.minutes(workers)
    predicted = (
        "--seconds-per-run predicts how long" if minutes is None else f"{minutes:.1f} minutes on {workers} at a time"
    )
    done = len(plan.runs) - len(plan.missing)
    return "\n".join([*lines, "", f"{len(plan.runs)} runs, {done} done, {len(plan.missing)} missing: {predicted}"])


def _catalog(file: Path) -> str:
    """Names, cells and runs of the studies of a file."""
    rows = [
        (study.name, f"{len(study.cells)} cells", f"{len(study.runs())} runs", study.summary)
        for study in load_studies(file, allow_code=None).values()
    ]
    return "\n".join([f"\nThe studies of {file}:", *aligned(rows, right={1, 2}, indent="  ")])
