"""What a command learns from its surroundings: where the data lies, which device there is, and what torchrun says.

Commands import it to parse their flags; so torch is imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

__all__ = [
    "DEFAULT_ROOT",
    "Device",
    "default_data_root",
    "is_first_process",
    "own_device",
    "processes",
    "under_torchrun",
    "visible_gpus",
]

Device = Literal["auto", "cpu", "cuda", "mps"]

DEFAULT_ROOT = Path("data")  # where `emalab data prepare` puts data, unless another folder is given


def default_data_root() -> Path | None:
    """$EMALAB_DATA, or else the folder data/ here, which `emalab data prepare` makes."""
    if value := os.environ.get("EMALAB_DATA"):
        return Path(value)
    return DEFAULT_ROOT if DEFAULT_ROOT.is_dir() else None


def under_torchrun() -> bool:
    """Whether torchrun started this process, as one of several perhaps."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first_process() -> bool:
    """Whether this is the one process that speaks; so without torchrun."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


@contextmanager
def processes(name: Device) -> Iterator[torch.device]:
    """The device of this process; under torchrun each has its own, and a process group to share images with."""
    import torch
    import torch.distributed as dist

    device = own_device(name)
    if not under_torchrun():
        yield device
        return
    from emalab.processes import hold_gloo_backend

    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    hold_gloo_backend()
    try:
        yield device
    finally:
        dist.destroy_process_group()


def visible_gpus() -> tuple[str, ...]:
    """The CUDA devices that this process may use, as $CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(named.split(",")[:count]) if named else tuple(map(str, range(count)))


def own_device(name: Device) -> torch.device:
    """The device called ``name``, the best there is for ``"auto"``; `ValueError` where there is none of that kind."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, available in there.items() if available))
    if not there[name]:
        raise ValueError(f"there is no {name} device here; take --device cpu")
    return torch.device(name)
