"""Schematics of the book: one function a figure, each drawn by a cell as SVG that follows the page's colors."""

from lab.schematics.attention import attention_sizes, em_loop
from lab.schematics.network import ema_unit, emanet
from lab.schematics.paths import agreement, gradient_paths, memory_passes
from lab.schematics.places import unit_places

__all__ = [
    "agreement",
    "attention_sizes",
    "em_loop",
    "ema_unit",
    "emanet",
    "gradient_paths",
    "memory_passes",
    "unit_places",
]
