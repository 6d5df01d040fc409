"""Random bytes and random contents as photographs and checkpoints: one line, exit status 1, never a traceback."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_recipe, tiny_segmenter
from tiny_data import save_image

from emalab.checkpoints import export_segmenter
from emalab.cli import main

FEW = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fuzz")
    export_segmenter(tiny_segmenter(), root / "net.safetensors", tiny_recipe(), {})
    save_image(root / "good.png", (20, 30))
    return root


def refused(*words: object) -> None:
    error = io.StringIO()
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(error),
        pytest.raises(SystemExit) as stopped,
    ):
        main([str(word) for word in words])
    assert stopped.value.code == 1
    lines = error.getvalue().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("emalab: error: ")
    assert lines[0].isprintable()


@FEW
@given(st.binary(max_size=200), st.sampled_from(["jpg", "png", "gif", "webp", "tif"]), st.booleans())
def test_photographs(folder: Path, content: bytes, ending: str, tail: bool) -> None:
    """Random bytes, and a real file with some of its bytes replaced by them."""
    good = (folder / "good.png").read_bytes()
    path = folder / f"bad.{ending}"
    path.write_bytes(good[:30] + content if tail else content)
    refused("predict", path, "--checkpoint", folder / "net.safetensors", "--out", folder / "out")


@FEW
@given(st.binary(max_size=200) | VALUES)
def test_networks_to_convert(folder: Path, content: Any) -> None:
    path = folder / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    refused("convert", "state-dict", path, folder / "o.safetensors", "--recipe", "shapes-tiny")
    refused("convert", "official", path, folder / "o.safetensors")
    assert not (folder / "o.safetensors").exists()
