"""A disk that is really full: one line that names the file, exit status 1, no half of a file; then all works."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_disk import FILLER, files, fill, make_room, small_disk
from tiny import short_train, tiny_recipe

from emalab.checkpoints import load_training_state
from emalab.cli import main

KB = 1024
SHORT = ["--optim.iterations", "4", "--optim.batch-size", "2", "--optim.warmup", "0", "--data.crop-size", "32", "32"]
TRAIN = ["train", "shapes-tiny", *SHORT, "--accelerator", "cpu", "--no-progress", "--log-every", "1"]
TRAIN += ["--checkpoint-every", "1", "--evaluation.every", "2", "--data.eval-split", "val/held-out"]
STUDY = """
base: shapes-tiny
changes: {optim.iterations: 2, optim.warmup: 0, optim.batch_size: 2, data.eval_split: val/held-out}
seeds: 1
cells: {base: {}}
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", 4) as disk:
        yield disk


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checksum of the weights of a run that met no full disk."""
    run = tmp_path_factory.mktemp("whole") / "run"
    main([*TRAIN, "--out", str(run)])
    return str(json.loads((run / "record.json").read_text())["weights"])


def refused(capfd: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line with which a command ends; TensorBoard may be given up before, which is said in another."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 1
    *before, line = capfd.readouterr().err.splitlines()
    assert all(other.startswith("warning: TensorBoard gets no more of this run") for other in before), before
    assert line.startswith("emalab: error: ")
    assert "No space left on device" in line
    return line


# From no room at all to room for one checkpoint and its successor, of 750 KB each, but not for best.pt.
@pytest.mark.parametrize("free", [0, 4 * KB, 12 * KB, 400 * KB, 1200 * KB, 1700 * KB])
def test_training(free: int, disk: Path, whole: str, capfd: pytest.CaptureFixture[str]) -> None:
    command = [*TRAIN, "--out", str(disk / "run")]
    fill(disk, free)
    line = refused(capfd, command)
    assert not [name for name in files(disk) if name.endswith(".tmp")]
    last = disk / "run" / "last.pt"
    assert last.exists() == (free >= 1200 * KB)
    if last.exists():
        assert "is whole" in line
        assert load_training_state(last)[1]["iteration"] >= 1
    make_room(disk)
    main([*command, "--resume"])
    assert json.loads((disk / "run" / "record.json").read_text())["weights"] == whole


@pytest.mark.parametrize("name", ["net.safetensors", "net.onnx"])
def test_export(name: str, disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if name.endswith("onnx"):
        pytest.importorskip("onnxruntime", reason="pip install 'emalab[onnx]'")
    short_train(tiny_recipe(), tmp_path / "run")
    command = ["export", str(tmp_path / "run"), str(disk / name)]
    for free in (0, 4 * KB, 40 * KB):
        fill(disk, free)
        assert f"{name} could not be written" in refused(capfd, command)
        assert not files(disk)
        make_room(disk)
    main(command)
    assert files(disk) == {name}


@pytest.mark.parametrize("free", [0, 4 * KB])
def test_study(free: int, disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The runs of a study train in the system's folder for temporary files; records go to the disk."""
    (tmp_path / "study.yaml").write_text(STUDY)
    command = ["study", str(tmp_path / "study.yaml"), "--out", str(disk / "out"), "--accelerator", "cpu"]
    fill(disk, free)
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 1
    error = capfd.readouterr().err
    assert "No space left on device" in error
    assert "Traceback" not in error
    assert not [name for name in files(disk) if name.endswith((".tmp", "records/study-seed0.json"))]
    make_room(disk)
    main(command)
    assert "out/records/study-seed0.json" in files(disk)
    assert FILLER not in files(disk)
