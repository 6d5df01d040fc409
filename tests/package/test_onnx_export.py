"""ONNX: the logits of the network at any size, or no file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from tiny import random_images, tiny_recipe, tiny_segmenter
from torch import Tensor, nn

from emalab.checkpoints import export_segmenter
from emalab.cli import main
from emalab.onnx_export import export_onnx

onnx = pytest.importorskip("onnx", reason="pip install 'emalab[onnx]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="pip install 'emalab[onnx]'")


@pytest.mark.parametrize("changes", [{}, {"align_corners": True}, {"context": "non_local"}, {"context": "deeplab_v3"}])
@torch.inference_mode()
def test_any_batch_height_and_width(changes: dict[str, object], tmp_path: Path) -> None:
    model = tiny_segmenter(**changes)
    assert export_onnx(model, tmp_path / "net.onnx") < 1e-4
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    for size in ((1, 3, 32, 32), (4, 3, 77, 40), (1, 3, 9, 200)):
        images = random_images(*size)
        expected = model(images)
        (found,) = session.run(None, {"images": images.numpy()})
        torch.testing.assert_close(
            torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item()
        )


class FixedSize(nn.Module):
    """What tracing turns into a constant: a size read as a Python number."""

    def forward(self, features: Tensor) -> Tensor:
        return features / int(features.shape[-1])


def test_a_size_baked_into_the_graph_is_found_and_nothing_is_written(tmp_path: Path) -> None:
    model = tiny_segmenter()
    model.context = FixedSize()
    with pytest.raises(ValueError, match=r"the ONNX graph (differs|cannot run) at batch, height, width \(2, 65, 97\)"):
        export_onnx(model, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_segmenter(tiny_segmenter(), tmp_path / "net.safetensors", tiny_recipe(), {})
    main(["export", str(tmp_path / "net.safetensors"), str(tmp_path / "net.onnx"), "--format", "onnx"])
    assert "logits as the network's at 3 sizes" in capsys.readouterr().out
    properties = {entry.key: entry.value for entry in onnx.load(str(tmp_path / "net.onnx")).metadata_props}
    assert len(json.loads(properties["classes"])) == 5


class Missing(nn.Module):
    """An operation that ONNX does not have."""

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.interpolate(features, scale_factor=1.0, mode="bicubic", antialias=True)


def test_an_operation_that_onnx_does_not_have(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """torch prints its whole graph from C++."""
    model = tiny_segmenter()
    model.context = Missing()
    with pytest.raises(ValueError, match=r"cannot be written as ONNX: .*_upsample_bicubic2d_aa") as refused:
        export_onnx(model, tmp_path / "net.onnx")
    assert "\n" not in str(refused.value)
    print("and standard output is there again")
    assert capfd.readouterr() == ("and standard output is there again\n", "")
    assert not list(tmp_path.iterdir())


def test_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"an ONNX network is a \.onnx file"):
        export_onnx(tiny_segmenter(), tmp_path / "net.pt")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'emalab\[onnx\]'"):
        export_onnx(tiny_segmenter(), tmp_path / "net.onnx")
