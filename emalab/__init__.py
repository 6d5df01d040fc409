"""EM attention: the functional core, the network modules, and everything needed to train EMANet."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from emalab.version import __version__ as __version__

if TYPE_CHECKING:
    from emalab.convert import load_mmseg, load_official
    from emalab.data import get_spec, load_dataset
    from emalab.em import EMOutput, em_attention
    from emalab.evaluation import evaluate
    from emalab.modules import EMAU, NonLocal2d
    from emalab.options import RunOptions
    from emalab.prediction import predict, predict_with_confidence
    from emalab.recipes import Recipe, get_recipe, recipe_names
    from emalab.segmenter import Segmenter, build_segmenter
    from emalab.segmenter_config import SegmenterConfig
    from emalab.trainer import train

__all__ = [
    "EMAU",
    "EMOutput",
    "NonLocal2d",
    "Recipe",
    "RunOptions",
    "Segmenter",
    "SegmenterConfig",
    "build_segmenter",
    "em_attention",
    "evaluate",
    "get_recipe",
    "get_spec",
    "load_dataset",
    "load_mmseg",
    "load_official",
    "predict",
    "predict_with_confidence",
    "recipe_names",
    "train",
]

# Imported when first asked for: who wants only the attention does not wait for timm and lightning, and who wants only
# help not even for torch.
_LAZY = {
    "EMAU": "modules",
    "EMOutput": "em",
    "NonLocal2d": "modules",
    "Recipe": "recipes",
    "RunOptions": "options",
    "Segmenter": "segmenter",
    "SegmenterConfig": "segmenter_config",
    "build_segmenter": "segmenter",
    "em_attention": "em",
    "evaluate": "evaluation",
    "get_recipe": "recipes",
    "get_spec": "data",
    "load_dataset": "data",
    "load_mmseg": "convert",
    "load_official": "convert",
    "predict": "prediction",
    "predict_with_confidence": "prediction",
    "recipe_names": "recipes",
    "train": "trainer",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'emalab' has no attribute {name!r}")
    return getattr(import_module(f"emalab.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
