"""`emalab study NAME`."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from emalab.commands.environment import default_data_root, visible_gpus
from emalab.results import write_record
from emalab.studies.catalog import get_study, studies
from emalab.studies.config import Study
from emalab.studies.engine import Plan, StudyOptions, make_plan, run_study
from emalab.studies.folder import StudyFolder

__all__ = ["run"]


def run(
    name: Positional[str] = "",
    out: Path | None = None,
    data_root: Path | None = None,
    devices: int | None = None,
    accelerator: Literal["auto", "cpu", "cuda"] = "auto",
    shard: str = "0/1",
    only: tuple[str, ...] = (),
    deadline_seconds: float | None = None,
    seconds_per_run: float | None = None,
    keep_weights: bool = False,
    commit: str | None = None,
    dry_run: bool = False,
    summary: bool = False,
    evaluation: str | None = None,
    list: bool = False,
) -> None:
    """Run what is missing of a study, and summarize it: one record per run, and a table with intervals.

    A study compares changes of one recipe over several seeds. Each run leaves one record, so a study may be stopped in
    any way and started again; several may work in one folder and share the runs. Seed 0 of every cell comes first, so
    that an early stop leaves a balanced study. `emalab train --from-record FILE` repeats a run.

    Args:
        name: of the study; see --list.
        out: folder of its family, for records and summaries; studies/FAMILY by default.
        data_root: folder with the unpacked releases; $EMALAB_DATA by default, and data/ here without one.
        devices: GPUs to use, by default all, or processes on a CPU, by default one.
        accelerator: hardware to run on.
        shard: I/N takes every N-th run from the I-th on, I = 0 … N−1: a share for one of N machines without a common
            disk. Put the records into one folder afterwards.
        only: labels of the cells to run; all by default.
        deadline_seconds: start no run that is predicted, see below, to end later than this.
        seconds_per_run: prediction; by default the median of all finished runs, on whatever machine.
        keep_weights: keep the trained networks in weights/.
        commit: commit to record; by default that of the running source.
        dry_run: show the runs and how long they will take, and run none.
        summary: show what the records say, and run none.
        evaluation: summarize this further evaluation of the trained networks, such as T=6.
        list: list the studies.
    """
    if list or not name:
        print(_catalog())
        raise SystemExit(0 if list else 2)
    study = get_study(name)
    from emalab.data.loader import num_cores

    gpus = () if accelerator == "cpu" else visible_gpus()
    if accelerator == "cuda" and not gpus:
        raise ValueError("there is no cuda device here; take --accelerator cpu")
    if devices is not None and not 1 <= devices <= (len(gpus) or num_cores()):
        raise ValueError(
            f"--devices {devices}: there are {len(gpus) or num_cores()} {'GPUs' if gpus else 'cores'} here"
        )
    options = StudyOptions(
        data_root=data_root or default_data_root(),
        accelerator="cuda" if gpus else "cpu",
        gpus=gpus[:devices],
        processes=0 if gpus else devices or 1,
        cores=num_cores(),
        only=only,
        shard=_shard(shard),
        deadline_seconds=deadline_seconds,
        seconds_per_run=seconds_per_run,
        keep_weights=keep_weights,
        commit=commit,
    )
    folder = StudyFolder(out or Path("studies") / study.family)
    workers = len(options.gpus) or options.processes
    if dry_run:
        print(_describe(study, make_plan(study, folder, options), workers))
        return
    amiss = False
    if not summary:
        signal.signal(signal.SIGTERM, _interrupt)
        outcome = run_study(study, folder.root, options)
        amiss = bool(outcome.failed)
    _summarize(study, folder, evaluation)
    if amiss:
        raise SystemExit(1)


def _interrupt(*_: object) -> None:
    """End the workers as Ctrl-C does; SIGINT itself may be ignored, as it is behind ``nohup … &``."""
    raise KeyboardInterrupt


def _shard(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit()):
        raise ValueError(f"--shard is I/N, such as 0/2 and 1/2 for two machines; got {text!r}")
    return int(index), int(count)


def _summarize(study: Study, folder: StudyFolder, evaluation: str | None) -> None:
    from emalab.studies.summary import format_summary, summarize, summary_to_dict

    records, failed, corrupt = folder.records(study), folder.failed(study), folder.corrupt(study)
    print(format_summary(summarize(study, records, evaluation, failed)))
    print(f"\n{len(records)} of {len(study.runs())} runs have a record, in {folder.root / 'records'}")
    for name in corrupt:
        print(f"corrupt, and not counted: {name}")
    for name in failed:
        print(f"failed, and to be tried again: {folder.root / 'failures' / name}.txt")
    if records:
        write_record(
            folder.root / f"summary-{study.name}.json", {**summary_to_dict(study, records, failed), "corrupt": corrupt}
        )


def _describe(study: Study, plan: Plan, workers: int) -> str:
    """The plan: what is done and what is missing of every cell, and how long that will take."""
    labels = dict.fromkeys(run.cell.label for run in plan.runs)
    width = max(map(len, labels))
    lines = [f"{study.name}: {study.summary}", ""]
    for label in labels:
        states = [
            f"{run.recipe.seed} {state}"
            for run, state in zip(plan.runs, plan.states, strict=True)
            if run.cell.label == label
        ]
        lines.append(f"  {label:<{width}}  seed {', '.join(states)}")
    minutes = plan.minutes(workers)
    predicted = (
        "--seconds-per-run predicts how long" if minutes is None else f"{minutes:.1f} minutes on {workers} at a time"
    )
    done = len(plan.runs) - len(plan.missing)
    return "\n".join([*lines, "", f"{len(plan.runs)} runs, {done} done, {len(plan.missing)} missing: {predicted}"])


def _catalog() -> str:
    """Names, cells and runs of the studies, by family."""
    rows = [
        (study.name, f"{len(study.cells)} cells", f"{len(study.runs())} runs", study.summary)
        for members in studies().values()
        for study in members
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    table = "\n".join(
        f"  {name:<{widths[0]}}  {cells:>{widths[1]}}  {runs:>{widths[2]}}  {summary}"
        for name, cells, runs, summary in rows
    )
    return (
        f"usage: emalab study NAME [--dry-run | --summary] ...\n\n{table}\n\n`emalab study --help` explains the flags."
    )
