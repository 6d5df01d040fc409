"""What tests of several files start from: a finished run, a released network, a small data set."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import short_train, tiny_recipe, tiny_segmenter
from tiny_data import make_camvid

from emalab.checkpoints import export_segmenter
from emalab.trainer import TrainResult


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    """An uninterrupted run of the tiny recipe."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, short_train(tiny_recipe(), folder)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    export_segmenter(tiny_segmenter(), tmp_path / "net.safetensors", tiny_recipe(), {})
    return tmp_path / "net.safetensors"


@pytest.fixture
def camvid(tmp_path: Path) -> Path:
    return make_camvid(tmp_path / "data", per_split=2)


@pytest.fixture
def no_data_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that names the data of whoever runs the tests is not set."""
    monkeypatch.delenv("EMALAB_DATA", raising=False)
