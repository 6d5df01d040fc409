"""The network that a run starts with: random weights that follow from the seed, or those of an earlier network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from lightning_fabric import Fabric

from emalab.checkpoints import CheckpointError, load_training_state
from emalab.input_channels import adapt_inputs
from emalab.options import run_folder
from emalab.recipes import Recipe, recipe_names
from emalab.segmenter import Segmenter, build_segmenter
from emalab.shared_norm import share_batch_norm

__all__ = ["find_initial_weights", "initial_network", "load_initial_weights"]


def initial_network(
    recipe: Recipe,
    fabric: Fabric,
    runs: Path,
    *,
    resumed: bool = False,
    report: Callable[[str], object] = lambda line: None,
) -> Segmenter:
    """The network of ``recipe`` on the CPU, in its precision and memory format.

    Args:
        recipe: what to train.
        fabric: several processes share the statistics of batch norm.
        runs: as in `find_initial_weights`.
        resumed: a checkpoint follows, so that no weights need to be found.
        report: as in `load_initial_weights`.

    Raises:
        FileNotFoundError, CheckpointError: as in `find_initial_weights` and `load_initial_weights`.
    """
    config, start = recipe.model, recipe.init_from
    torch.manual_seed(recipe.seed)
    model = build_segmenter(replace(config, backbone_weights=None) if start else config)
    model.config = config
    if start and not resumed:
        load_initial_weights(model, find_initial_weights(recipe, runs), report=report)
    model = model.to(memory_format=torch.channels_last)
    if recipe.precision == "64-true":
        model = model.double()
    return _shared(model, fabric, recipe) if fabric.world_size > 1 else model


def _shared(model: Segmenter, fabric: Fabric, recipe: Recipe) -> Segmenter:
    """``model`` with batch norm over all processes: PyTorch's, or ours on a CPU and where the step is compiled."""
    if fabric.device.type == "cuda" and recipe.execution != "compile":
        from timm.layers.norm_act import convert_sync_batchnorm  # timm takes long to import

        return convert_sync_batchnorm(model)
    share_batch_norm(model)
    return model


def find_initial_weights(recipe: Recipe, runs: Path) -> str | Path:
    """The checkpoint that ``recipe.init_from`` means; a recipe's name means the end of its run of the same seed.

    Args:
        recipe: with ``init_from`` set.
        runs: folder in which the runs of other recipes lie.

    Raises:
        FileNotFoundError: the recipe that is named has no run there.
        CheckpointError: its run has not come to its end.
    """
    name = recipe.init_from
    assert name is not None
    if name not in recipe_names():
        return name
    path = runs / run_folder(name, recipe.seed) / "last.pt"
    if not path.is_file():
        raise FileNotFoundError(
            f"{recipe.name} starts from the weights of {name}, and there is no {path}; train that first "
            f"(emalab train {name} --seed {recipe.seed}), or name a checkpoint with --init-from"
        )
    first, state = load_training_state(path)
    if state["iteration"] < first.optim.iterations:
        raise CheckpointError(
            f"{path} is at iteration {state['iteration']} of {first.optim.iterations}; go on with it (--resume) "
            f"before {recipe.name} starts from its weights"
        )
    return path


def load_initial_weights(
    model: Segmenter, path_or_name: str | Path, *, report: Callable[[str], object] = lambda line: None
) -> list[str]:
    """Give ``model`` the weights, statistics and bases of a trained network, to go on from there with other data.

    Strict: both must have the same tensors. Where their numbers of classes differ, the tensors with a row for each
    class keep the values they have. If the numbers of channels differ, the first convolution is adapted as
    `emalab.input_channels` describes.

    Args:
        model: changed in place.
        path_or_name: as in `Segmenter.from_pretrained`.
        report: takes a line where the first convolution is adapted.

    Returns:
        The names of the tensors that were left alone.

    Raises:
        FileNotFoundError, CheckpointError: as in `emalab.checkpoints.load_network`, and for a network that differs in
            anything but the numbers of classes and channels; the message names the first tensor that does.
    """
    # What the model at hand is made of has been imported already.
    source = Segmenter.from_pretrained(path_or_name, allow_code=(model.config.context.partition(":")[0],))
    theirs, ours = source.state_dict(), model.state_dict()
    channels = (source.config.in_channels, model.config.in_channels)
    if channels[0] != channels[1]:
        theirs, names = adapt_inputs(theirs, ours, channels)
        report(f"{' and '.join(names)} of {path_or_name} adapted from {channels[0]} channels to {channels[1]}")
    classes = (source.config.num_classes, model.config.num_classes)

    def classifies(key: str) -> bool:
        old, new = theirs[key].shape, ours[key].shape
        return classes[0] != classes[1] and (old[:1], new[:1]) == ((classes[0],), (classes[1],)) and old[1:] == new[1:]

    new = [key for key in ours if key in theirs and classifies(key)]
    for key in {**ours, **theirs}:
        shapes = [tuple(state[key].shape) if key in state else "absent" for state in (theirs, ours)]
        if shapes[0] != shapes[1] and key not in new:
            raise CheckpointError(
                f"the weights in {path_or_name} are of another network: {key} is {shapes[0]} there and {shapes[1]} "
                "here; only the numbers of classes and of channels may differ"
            )
    model.load_state_dict({key: value for key, value in theirs.items() if key not in new}, strict=False)
    return new
