"""`emalab export RUN OUT`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from emalab.results import load_records

__all__ = ["run"]


def run(run: Positional[Path], out: Positional[Path], data: str = "") -> None:
    """Release a finished run as one .safetensors file: half precision, with its recipe, scores and origin.

    Args:
        run: the folder of a finished run.
        out: the file to write, ending in .safetensors.
        data: what the network was trained on, and under which terms, for those who download it.
    """
    if out.suffix != ".safetensors":
        raise ValueError(f"a released network is a .safetensors file; got {out}")
    if not (run / "record.json").is_file():
        raise FileNotFoundError(f"{run} holds no finished run: record.json is missing; go on with it (--resume)")
    (record,) = load_records(run, "record.json")
    from emalab.checkpoints import export_segmenter, load_segmenter, read_recipe

    told = ("scores", "seed", "commit", "device", "versions", "date", "seconds")
    metadata = {**{key: record[key] for key in told}, "data": data}
    export_segmenter(load_segmenter(run / "last.pt"), out, read_recipe(run / "last.pt"), metadata)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB")
