"""How a network looks at a whole image: what is averaged, and how much of the image it sees at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

__all__ = ["MIRRORED", "SINGLE_SCALE", "Views"]


@dataclass(frozen=True)
class Views:
    """The views of an image whose class probabilities are averaged: one for each scale, and its mirror image if wanted.

    With a ``window`` the network sees no more than that at once. Windows lie in a grid on the resized image, the last
    ones moved back to its border, and where they overlap their logits are averaged: then the average is to the resizing
    what the network's own logits are, a window as large as the image changes nothing, and scores compare with
    mmsegmentation's, which averages logits too.

    Example:
        >>> Views((0.5, 1.0), flip=True).single_scale()
        Views(scales=(1.0,), flip=False, window=None, overlap=0.3333333333333333)

    Raises:
        ValueError: scales, a window or an overlap out of range.
    """

    scales: tuple[float, ...] = (1.0,)
    """Factors of the image's size."""
    flip: bool = False
    """Whether left-right mirrored images are views too."""
    window: tuple[int, int] | None = None
    """Height and width of a window, in pixels of the resized image; None for the whole image at once. For a network
    with ``align_corners`` take 8k + 1, which needs no padding."""
    overlap: float = 1 / 3
    """Part of a window that the next one shares, in [0, 1)."""

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < math.inf for scale in self.scales):
            raise ValueError(f"scales must be positive factors, at least one; got {tuple(self.scales)}")
        if self.window is not None and min(self.window) < 1:
            raise ValueError(f"a window must be at least one pixel high and wide, got {tuple(self.window)}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap is the part that neighboring windows share, in [0, 1); got {self.overlap}")

    def single_scale(self) -> Views:
        """The image as it is and nothing else, through the same windows."""
        return replace(self, scales=(1.0,), flip=False)


SINGLE_SCALE = Views()
"""Each image as it is, whole."""
MIRRORED = Views(flip=True)
"""Each image and its mirror image, whole."""
