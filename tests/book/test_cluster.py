"""The scripts for a cluster, with substitutes for SLURM's commands and for those of the package."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from waiting import HANGS, wait_until

from emalab.cli import main
from emalab.options import RunOptions
from emalab.studies import StudyOptions

PAGE = Path(__file__).parents[2] / "book" / "running.md"
SECTION = PAGE.read_text(encoding="utf-8").split("## On a SLURM cluster")[1].split("\n## ")[0]
TRAIN, GPUS, TORCHRUN, STUDY = re.findall(r"```bash\n(.*?)```", SECTION, re.DOTALL)
SEVERAL = re.sub(r"#SBATCH --gpus=1\n", GPUS, re.sub(r"emalab train .*\n", TORCHRUN, TRAIN))

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or shutil.which("bash") is None, reason="the scripts are for bash"
)

# Notes its name and its arguments. The one that trains then waits for SIGTERM, and exits as a run does.
NOTE = """#!/bin/bash
echo "${0##*/} $*" >> "$NOTES"
if [[ "$*" == *train* ]]; then
    trap 'echo saved >> "$NOTES"; exit 143' TERM
    echo waiting >> "$NOTES"
    while true; do sleep 0.05; done
fi
"""


class Cluster:
    """A folder with an environment and a script, and what the script called."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, folder / "notes"
        (folder / ".venv/bin").mkdir(parents=True)
        (folder / ".venv/bin/activate").write_text("PATH=$PWD/.venv/bin:$PATH")
        for name in ("emalab", "torchrun", "scontrol"):
            path = folder / ".venv/bin" / name
            path.write_text(NOTE)
            path.chmod(0o755)

    def start(self, script: str, **environment: str) -> subprocess.Popen[bytes]:
        path = self.folder / "script"
        path.write_text(script)
        environment = {**os.environ, "NOTES": str(self.notes), "SLURM_JOB_ID": "7", **environment}
        return subprocess.Popen(["bash", str(path)], cwd=self.folder, env=environment)

    def noted(self) -> list[str]:
        return self.notes.read_text().splitlines() if self.notes.exists() else []


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.mark.parametrize("script", [TRAIN, SEVERAL], ids=["one GPU", "several"])
def test_a_time_limit_saves_and_queues_again(script: str, cluster: Cluster) -> None:
    job = cluster.start(script)
    try:
        wait_until(lambda: "waiting" in cluster.noted(), None)
        job.send_signal(signal.SIGTERM)
        job.wait(HANGS)
    finally:
        job.kill()
    started, *rest = cluster.noted()
    assert started.endswith("emalab train voc-r101 --resume")
    assert rest == ["waiting", "saved", "scontrol requeue 7"]


@pytest.mark.parametrize("script", [TRAIN, SEVERAL], ids=["one GPU", "several"])
def test_a_run_that_ends_is_not_queued_again(script: str, cluster: Cluster) -> None:
    for name in ("emalab", "torchrun"):
        (cluster.folder / ".venv/bin" / name).write_text('#!/bin/bash\necho "$0" >> "$NOTES"\nexit 3')
    assert cluster.start(script).wait(HANGS) == 3
    assert len(cluster.noted()) == 1


@pytest.mark.parametrize("script", [TRAIN, SEVERAL, STUDY], ids=["one GPU", "several", "study"])
def test_directives_are_read(script: str) -> None:
    """They come before the first command, and each is one that SLURM has."""
    head, _, body = script.partition("\n\n")
    assert "#SBATCH" not in body
    known = ["job-name", "gpus", "cpus-per-task", "time", "signal", "requeue", "open-mode", "array"]
    for line in head.splitlines()[1:]:
        match = re.fullmatch(r"#SBATCH --([a-z-]+)(=\S+)?", line)
        assert match is not None, line
        assert match[1] in known


def test_several_gpus_have_a_process_each() -> None:
    assert re.findall(r"--gpus=(\d+)", SEVERAL) == re.findall(r"--nproc-per-node (\d+)", SEVERAL) == ["4"]


class _CalledError(Exception):
    pass


def test_flags_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(recipe: object, out: object, options: RunOptions) -> None:
        assert options.resume
        raise _CalledError

    monkeypatch.setattr("emalab.trainer.train", train)
    monkeypatch.setattr("emalab.commands.train.check_data", lambda name, root: None)  # there is no VOC here
    for script in (TRAIN, TORCHRUN):
        words = re.findall(r"emalab (train .*) &", script)[0].split()
        with pytest.raises(_CalledError):
            main(words)


def test_tasks_of_an_array_share_a_study(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the script calls is what the command takes; the time is shorter than that of the job."""
    count = 1 + int(re.findall(r"--array=0-(\d+)", STUDY)[0])
    for task in range(count):
        array = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": str(count)}
        assert cluster.start(STUDY, **array).wait(HANGS) == 0
    seen: list[StudyOptions] = []

    def run_study(study: object, out: Path, options: StudyOptions) -> None:
        assert out == Path("studies/mine")
        seen.append(options)
        raise _CalledError

    monkeypatch.setattr("emalab.commands.study.run_study", run_study)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.chdir(cluster.folder)
    Path("study.yaml").write_text("name: a\nsummary: b\nbase: shapes-tiny\nseeds: 2\ncells: {base: {}}\n")
    for line in cluster.noted():
        with pytest.raises(_CalledError):
            main(line.split()[1:])
    assert [options.shard for options in seen] == [(task, count) for task in range(count)]
    hours = int(re.findall(r"--time=(\d+):00:00", STUDY)[0])
    assert all(0 < (options.deadline_seconds or 0) < 3600 * hours for options in seen)
    summary = re.findall(r"`(emalab study study.yaml[^`]*)`", SECTION)[0].split()[1:]
    main(summary)
