"""The words that settings take. Recipes and help need the words alone, and must not wait for torch."""

from typing import Literal

__all__ = ["AttentionPath", "Backend", "Grad", "MaintenanceName", "Method", "NonLocalMode", "Norm", "Renormalize"]

Norm = Literal["l2", "layer", "none"]
Grad = Literal["stop", "last", "unroll"]
Backend = Literal["auto", "torch", "triton"]
MaintenanceName = Literal["moving_average", "frozen", "learned", "per_image"]
Renormalize = Literal["none", "batch_mean", "after_mixing"]
NonLocalMode = Literal["gaussian", "embedded_gaussian", "dot_product"]
AttentionPath = Literal["sdpa", "explicit"]
Method = Literal["em-torch", "em-compiled", "em-triton", "non-local-explicit", "non-local-sdpa"]
"""What `emalab bench` compares."""
