"""Networks out of PyTorch: an ONNX file for images of any size and number, kept if its logits are the network's."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from emalab.files import refusal, write_atomically
from emalab.segmenter import Segmenter

__all__ = ["SIZES", "export_onnx"]

SIZES = ((1, 96, 128), (2, 65, 97), (3, 130, 51))
"""Batch, height and width at which logits are compared: multiples of the stride, odd ones, high and wide."""

_TOLERANCE = 1e-3
"""Of the largest logit. Two orders of summation in float32 differ by 1e-6 of it; a size baked into the graph, by 1."""

_OPSET = 18


def export_onnx(model: Segmenter, path: Path, metadata: Mapping[str, Any] | None = None) -> float:
    """Write a network as ONNX: ``images`` (b, i, h, w), uint8 → ``logits`` (b, classes, h, w), float32.

    b, h and w are free; i is the network's ``in_channels``, 3 for RGB. Normalization is part of the graph. The file is
    run by onnxruntime on random images of `SIZES` first, and kept only if its logits are those of the network.

    The graph is traced, which needs no further package; torch's newer exporter needs onnxscript.

    Args:
        model: in any mode, float32.
        path: ends in ``.onnx``.
        metadata: anything that JSON can hold, stored with the graph.

    Returns:
        The largest difference between its logits and the network's, as a part of the largest logit.

    Raises:
        ValueError: a path with another ending, packages that are not installed (``pip install 'emalab[onnx]'``), a
            network that ONNX has no operations for, or logits that differ; nothing is written.
    """
    if path.suffix != ".onnx":
        raise ValueError(f"an ONNX network is a .onnx file; got {path}")
    _require_packages(path)
    model = model.cpu()
    was_training = model.training
    try:
        differences: list[float] = []
        write_atomically(
            path, lambda temporary: differences.append(_write_and_compare(model.eval(), temporary, metadata))
        )
        return differences[0]
    finally:
        model.train(was_training)


def _require_packages(path: Path) -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{path}: ONNX needs packages of its own: pip install 'emalab[onnx]' ({error})") from error


def _write_and_compare(model: Segmenter, path: Path, metadata: Mapping[str, Any] | None) -> float:
    import onnx

    example = _images(SIZES[0], model.config.in_channels)
    axes = {0: "batch", 2: "height", 3: "width"}
    # Warnings of tracing and of the exporter's age; if they matter, the comparison fails.
    with warnings.catch_warnings(), _no_output():
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model,
                (example,),
                str(path),
                dynamo=False,
                opset_version=_OPSET,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": axes, "logits": axes},
            )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            if refused := refusal(path):  # a full disk
                raise refused from error
            raise ValueError(f"this network cannot be written as ONNX: {' '.join(str(error).split())[:200]}") from error
    graph = onnx.load(str(path))
    onnx.helper.set_model_props(graph, {key: json.dumps(value) for key, value in (metadata or {}).items()})
    onnx.save(graph, str(path))
    return _largest_difference(model, path)


@contextmanager
def _no_output() -> Iterator[None]:
    """Drop what C++ code writes to standard output: where an operation is missing, torch prints the whole graph."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        if sys.platform != "win32":
            ctypes.CDLL(None).fflush(None)  # what is left in the C library's buffers
        os.dup2(kept, 1)
        os.close(kept)


@torch.inference_mode()
def _largest_difference(model: Segmenter, path: Path) -> float:
    import onnxruntime

    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    worst = 0.0
    for size in SIZES:
        images = _images(size, model.config.in_channels)
        expected = model(images)
        try:
            (found,) = session.run(None, {"images": images.numpy()})
        except Exception as error:  # onnxruntime's are of no common class
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"the ONNX graph cannot run at batch, height, width {size}: {reason}") from error
        difference = ((torch.from_numpy(found) - expected).abs().max() / expected.abs().max()).item()
        if not difference <= _TOLERANCE:
            raise ValueError(
                f"the ONNX graph differs at batch, height, width {size}: by {difference:.1g} of the largest logit"
            )
        worst = max(worst, difference)
    return worst


def _images(size: tuple[int, int, int], channels: int) -> torch.Tensor:
    batch, height, width = size
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, channels, height, width), generator=generator, dtype=torch.uint8)
