"""Networks of other implementations as `Segmenter`: every tensor accounted for, the same logits."""

from emalab.convert.mmseg import load_mmseg, mmseg_recipe, read_mmseg
from emalab.convert.official import load_official, official_recipe, read_official
from emalab.convert.own import load_state_dict, read_own

__all__ = [
    "load_mmseg",
    "load_official",
    "load_state_dict",
    "mmseg_recipe",
    "official_recipe",
    "read_mmseg",
    "read_official",
    "read_own",
]
