"""Code of your own that a recipe names as "module:name"."""

from __future__ import annotations

import traceback
from importlib import import_module
from operator import attrgetter
from pathlib import Path
from typing import Any

__all__ = ["find_own", "place_in_words"]


def find_own(setting: str, name: str) -> Any:
    """The object called "module:name"; None if the module has no such name.

    Args:
        setting: the setting that has this name, for messages.
        name: as in the recipe; attributes of attributes are written with dots.

    Raises:
        ValueError: the module does not exist, or fails while it is imported. The message is one line.
    """
    where, _, attribute = name.partition(":")
    try:
        module = import_module(where)
    except ImportError as error:
        raise ValueError(
            f"{setting} {name!r} cannot be imported: {error}. Install its package, or put its folder on PYTHONPATH; "
            "`python -m emalab` looks in the current folder as well"
        ) from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[2:]  # after this function and import_module
        own = [frame for frame in frames if not frame.filename.startswith("<frozen ")]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{setting} {name!r} cannot be imported: its code failed with {reason}{place_in_words(own)}"
        ) from error
    try:
        return attrgetter(attribute)(module)
    except AttributeError:
        return None


def place_in_words(frames: list[traceback.FrameSummary]) -> str:
    """The first of these frames, as " (own.py, line 3)"; empty without one."""
    return "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in frames[:1])
