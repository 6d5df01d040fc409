"""`emalab export RUN OUT`."""

from __future__ import annotations

import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from emalab.commands.messages import one_line
from emalab.files import remove_leftovers
from emalab.results import load_records
from emalab.shipped import find_checkpoint

__all__ = ["run"]

Format = Literal["auto", "safetensors", "onnx"]


def run(
    run: Positional[str],
    out: Positional[Path],
    format: Format = "auto",
    data: str = "",
    allow_code: tuple[str, ...] = (),
    dtype: Literal["float16", "float32"] = "float16",
) -> None:
    """Release a finished run as one file: .safetensors for emalab, with its recipe, scores and origin; or .onnx for
    other programs, with free batch, height and width, compared with the network by onnxruntime.

    Args:
        run: the folder of a finished run; for ONNX also a checkpoint, or the name of a shipped network.
        out: the file to write.
        format: by default what the ending of the file says. ONNX takes uint8 images (b, channels, h, w), RGB or as the
            network was trained, and gives logits.
        allow_code: modules that may be imported for a network with a part of your own.
        data: what the network was trained on, and under which terms, for those who download it.
        dtype: of the weights in .safetensors; float16 halves the file, and a warning says where it is too narrow. ONNX
            has float32.
    """
    kind = out.suffix.removeprefix(".") if format == "auto" else format
    if kind not in ("safetensors", "onnx") or out.suffix != f".{kind}":
        raise ValueError(f"a released network is a .safetensors file, or an .onnx file; got {out}")
    remove_leftovers(out)
    if kind == "onnx":
        _export_onnx(run, out, data, allow_code)
    else:
        record = _record(Path(run))
        import torch

        from emalab.checkpoints import PrecisionWarning, export_segmenter, read_recipe, read_spec
        from emalab.segmenter import Segmenter

        last = Path(run) / "last.pt"
        spec = read_spec(last)
        metadata = {**_metadata(record, data), **({"spec": asdict(spec)} if spec else {})}
        model = Segmenter.from_pretrained(last, allow_code)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", PrecisionWarning)
            export_segmenter(model, out, read_recipe(last), metadata, getattr(torch, dtype))
        for warning in caught:
            print(f"warning: {one_line(warning.message)}", file=sys.stderr)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


def _export_onnx(run: str, out: Path, data: str, allow_code: tuple[str, ...]) -> None:
    record = _record(Path(run)) if Path(run).is_dir() else {}
    checkpoint = Path(run) / "last.pt" if record else find_checkpoint(run)
    from emalab.checkpoints import read_recipe, read_spec
    from emalab.data import get_spec
    from emalab.onnx_export import SIZES, export_onnx
    from emalab.segmenter import Segmenter

    recipe = read_recipe(checkpoint)
    spec = read_spec(checkpoint) or get_spec(recipe.data.name)
    metadata = {**_metadata(record, data), "recipe": recipe.name, "classes": spec.classes}
    difference = export_onnx(Segmenter.from_pretrained(checkpoint, allow_code), out, metadata)
    print(f"logits as the network's at {len(SIZES)} sizes, to {difference:.1g} of the largest")


def _record(run: Path) -> dict[str, Any]:
    if not (run / "record.json").is_file():
        raise FileNotFoundError(f"{run} holds no finished run: record.json is missing; go on with it (--resume)")
    (record,) = load_records(run, "record.json")
    from emalab.checkpoints import require_one_run

    require_one_run(run / "last.pt", record)
    return record


def _metadata(record: dict[str, Any], data: str) -> dict[str, Any]:
    kept = ("scores", "seed", "commit", "device", "versions", "date", "seconds")
    return {**{key: record[key] for key in kept if key in record}, "data": data}
