"""The networks inside the package, and where a checkpoint lies: found, or missed, before torch is imported."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

__all__ = ["DEFAULT_WEIGHTS", "MAX_SIDES", "find_checkpoint", "shipped_weights"]

DEFAULT_WEIGHTS = "emanet-lite2-voc-animals"
MAX_SIDES = {DEFAULT_WEIGHTS: 480}
"""Longer side in pixels at which photographs suit a shipped network; this one learned from photographs of 320."""


def shipped_weights() -> dict[str, Path]:
    """Releases inside the package, by name."""
    folder = Path(str(resources.files("emalab") / "weights"))
    return {path.stem: path for path in sorted(folder.glob("*.safetensors"))}


def find_checkpoint(path_or_name: str | Path) -> Path:
    """The file of a checkpoint, given its path or the name of a shipped network.

    Raises:
        FileNotFoundError: neither a file nor a shipped name.
    """
    shipped = shipped_weights()
    if str(path_or_name) in shipped:
        return shipped[str(path_or_name)]
    path = Path(path_or_name)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; shipped ones are {', '.join(shipped) or 'none'}")
    return path
