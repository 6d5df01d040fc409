"""Networks of other implementations as `Segmenter`: every tensor accounted for, the same logits."""

from emalab.convert.mmseg import load_mmseg, mmseg_recipe, read_mmseg
from emalab.convert.official import load_official, official_recipe, read_official

__all__ = ["load_mmseg", "load_official", "mmseg_recipe", "official_recipe", "read_mmseg", "read_official"]
