"""What can be known to fail later fails before a run starts."""

from __future__ import annotations

import json
import os
import shutil
import sys

from lightning_fabric import Fabric

from emalab.data import LabeledImages
from emalab.data.dataset import data_identity
from emalab.evaluation import check_channels, check_classes
from emalab.processes import of_all_ranks
from emalab.recipes import Recipe, recipe_from_dict, recipe_to_dict

__all__ = ["check_run"]


def check_run(recipe: Recipe, fabric: Fabric, train_data: LabeledImages, eval_data: LabeledImages) -> None:
    """Refuse a recipe that cannot be trained with these data on these devices.

    Raises:
        ValueError: the message names the setting and the way out.
    """
    recipe_from_dict(json.loads(json.dumps(recipe_to_dict(recipe))))  # as every checkpoint will hold it
    here = (data_identity(train_data), data_identity(eval_data))
    if any(other != here for other in of_all_ranks(here)):
        raise ValueError(f"the processes of this run read different data as {recipe.data.name}; give all the same")
    for data in (train_data, eval_data):
        check_classes(recipe.model.num_classes, data)
        check_channels(recipe.model.in_channels, data)
        if not _has_labels(data):
            raise ValueError(f"every pixel of a split of {data.spec.name} is ignored; there is nothing to learn")
    if recipe.execution == "compile":
        _require_compiler()
    parts = recipe.optim.accumulate_grad_batches
    if recipe.optim.batch_size % (fabric.world_size * parts):
        raise ValueError(
            f"optim.batch_size {recipe.optim.batch_size} cannot be shared equally by {fabric.world_size} processes"
            + (f" with {parts} micro-batches each (optim.accumulate_grad_batches)" if parts > 1 else "")
        )
    if parts > 1 and recipe.execution == "cuda_graph" and fabric.device.type == "cuda":
        raise ValueError(
            f"execution 'cuda_graph' overwrites the gradients of one micro-batch with those of the next; for "
            f"optim.accumulate_grad_batches {parts} take --execution eager or compile"
        )
    if recipe.precision == "16-mixed" and fabric.device.type == "cpu":
        raise ValueError("precision 16-mixed needs a GPU; take bf16-mixed or 32-true on a CPU")


def _require_compiler() -> None:
    """torch.compile would fail with a traceback of many lines, after the data are loaded."""
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"execution 'compile' needs a C++ compiler, and there is no {compiler} on PATH; "
            "install one, name another in the variable CXX, or train with --execution eager"
        )


def _has_labels(data: LabeledImages) -> bool:
    """Whether a pixel has a label; mostly the first image decides."""
    return any(bool((data[index].mask != data.spec.ignore_index).any()) for index in range(len(data)))
