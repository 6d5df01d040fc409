"""What can be set of generated scenes, as a value. Recipes hold it, and must not wait for torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["SceneSettings"]


@dataclass(frozen=True)
class SceneSettings:
    """Settings of generated scenes (shapes-pooled, shapes-far) that differ from those of `emalab.data.shapes`."""

    size: int | None = None
    """Height and width of a scene, in pixels."""
    spacing: int | None = None
    """Pixels from one shape to the next."""
    grain: float | None = None
    """Standard deviation of each pixel by itself, in gray levels."""
    shift: float | None = None
    """shapes-pooled: how much brighter or darker a family is than its mean, in gray levels."""
    spread: float | None = None
    """shapes-pooled: standard deviation of the lightness of shapes, in gray levels."""
    key_size: int | None = None
    """shapes-far: side of the key, in pixels."""
    gap: int | None = None
    """shapes-far: fewest pixels between the key and a stone."""

    def chosen(self) -> dict[str, Any]:
        """The settings that are not left at their defaults."""
        return {name: value for name, value in asdict(self).items() if value is not None}
