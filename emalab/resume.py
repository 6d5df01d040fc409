"""Which changes a run may go on with, and which would make it another one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emalab.checkpoints import CheckpointError
from emalab.data.names import is_folder_name
from emalab.recipes import Recipe, recipe_changes

__all__ = ["refuse_changes"]

# How a network is scored and how a recipe is described change nothing of what is learned.
_FREE = ("evaluation.", "summary", "notes", "published")


def refuse_changes(path: Path, before: Recipe, state: Mapping[str, Any], recipe: Recipe, data: str) -> list[str]:
    """Refuse to go on with another recipe or other data than a run was started with.

    A run may become longer, be scored in another way, and find the same data in another folder.

    Args:
        path: the checkpoint, for the message.
        before: its recipe.
        state: its content.
        recipe: what to go on with.
        data: the `data_identity` of the split to learn from.

    Returns:
        What has changed of what is learned, in words, for the record.

    Raises:
        CheckpointError: it differs in more; the message names each field with both values.
    """
    changes = {key: values for key, values in recipe_changes(before, recipe).items() if not key.startswith(_FREE)}
    longer = changes.get("optim.iterations")
    if longer and longer[1] >= state["iteration"]:
        del changes["optim.iterations"]
    if "data" in state and state["data"] != data:
        raise CheckpointError(
            f"{path} was trained on other images or classes than {recipe.data.name} has now; restore them, or choose "
            "another folder for the run"
        )
    if "data.name" in changes and "data" in state and all(map(is_folder_name, changes["data.name"])):
        del changes["data.name"]  # a folder may move: its content counts
    wrong = [f"{key}: {there!r} there, {here!r} here" for key, (there, here) in changes.items()]
    if wrong:
        raise CheckpointError(
            f"{path}, at iteration {state['iteration']}, was trained with another recipe ({'; '.join(wrong)}); "
            "resume with the recipe it was started with, or choose another folder"
        )
    return [f"optim.iterations {longer[0]} → {longer[1]} at iteration {state['iteration']}"] if longer else []
