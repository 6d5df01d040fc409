"""State dicts as people save them: inside something else, and with the names of the modules around the network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

__all__ = ["find_state_dict", "without_prefix"]

_ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "module")


def find_state_dict(content: Any) -> dict[str, Tensor]:
    """The tensors in what `torch.save` wrote: bare, or as the entry of a checkpoint that is usually called so.

    Raises:
        ValueError: there are no such tensors; the message lists the entries that were found.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__} and no state dict")
    for candidate in (content, *(content[entry] for entry in _ENTRIES if entry in content)):
        if isinstance(candidate, Mapping) and candidate and all(isinstance(v, Tensor) for v in candidate.values()):
            return {str(key): value for key, value in candidate.items()}
    found = ", ".join(repr(str(key)[:40]) for key in list(content)[:5]) or "nothing"
    raise ValueError(f"it holds {found}, and neither tensors nor a state dict under {', '.join(_ENTRIES)}")


def without_prefix(state: Mapping[str, Tensor], wanted: Collection[str]) -> tuple[dict[str, Tensor], str]:
    """``state`` without what wrappers put in front of the ``wanted`` names: ``module.``, ``_orig_mod.``, ``model.``, …

    The prefix is the one under which most wanted names are found, so that no list of wrappers is needed; tensors beside
    it, such as those of a loss, are left out.

    Returns:
        The tensors under the prefix, and the prefix; all tensors and an empty one where nothing is found.

    Raises:
        ValueError: two prefixes serve equally well, as in a checkpoint with an average beside the network.
    """
    wanted = set(wanted)
    counts: Counter[str] = Counter()
    for key in state:
        cuts = [0, *(index + 1 for index, letter in enumerate(key) if letter == ".")]
        counts.update(key[:cut] for cut in cuts if key[cut:] in wanted)
    best = counts.most_common(2)
    if len(best) == 2 and best[0][1] == best[1][1] and best[0][1] > 1:
        raise ValueError(f"two networks are in it, under {best[0][0]!r} and {best[1][0]!r}; save one of them alone")
    prefix = best[0][0] if best else ""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}, prefix
