"""Scores of rankings, for labels that an image has or has not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def average_precision(
    scores: NDArray[np.float64],
    labels: NDArray[np.float64],
    weights: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Mean precision at each positive of a ranking, Σ (R_i − R_{i−1}) P_i.

    Args:
        scores: (images,), no two alike.
        labels: (images,), 0 or 1.
        weights: (samples, images), how often each image counts.

    Returns:
        (samples,); NaN where no positive counts.
    """
    order = np.argsort(-scores, kind="stable")
    weights, positive = weights[:, order], weights[:, order] * labels[order]
    with np.errstate(invalid="ignore"):
        precision = positive.cumsum(axis=1) / np.maximum(weights.cumsum(axis=1), 1)
        return (positive * precision).sum(axis=1) / positive.sum(axis=1)
