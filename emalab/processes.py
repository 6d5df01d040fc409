"""The processes of a run: how they start, what they agree on, and how the end of one is recognized."""

from __future__ import annotations

import atexit
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric  # not of `lightning`, which imports its trainer and torchmetrics for seconds
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from torch import nn

from emalab.options import RunOptions
from emalab.recipes import Recipe

__all__ = ["hold_gloo_backend", "lost_peer", "make_fabric", "of_all_ranks", "share_buffers"]


def make_fabric(recipe: Recipe, options: RunOptions) -> Fabric:
    """Fabric for the devices that are asked for.

    Raises:
        ValueError: there are none, or the surroundings (torchrun, SLURM) describe other processes than were asked for.
    """
    # One process in an allocation of SLURM just runs; Fabric would want it to be started by srun.
    alone = options.devices * options.num_nodes == 1
    try:
        return Fabric(
            accelerator=options.accelerator,
            devices=options.devices,
            num_nodes=options.num_nodes,
            precision=recipe.precision,
            plugins=[LightningEnvironment()] if alone else None,
        )
    except (RuntimeError, ImportError, ValueError, KeyError) as error:  # Fabric's answers to what is not there
        reason = str(error).split("\n")[0]
        if alone:
            message = f"there is no accelerator {options.accelerator!r} here; take auto or cpu ({reason})"
        else:
            message = (
                f"{options.num_nodes} × {options.devices} processes cannot start here: {reason}; start them with "
                "torchrun, or with srun and one task for each"
            )
        raise ValueError(message) from error


def hold_gloo_backend() -> None:
    """Call this once after joining a process group: in torch 2.6, `destroy_process_group` may otherwise never return.

    It destroys the group, and with it gloo's backend, while it holds Python's global lock. The backend waits for its
    threads to end, and a thread that still has to release a tensor waits for the lock. Here Python gets a reference to
    the backend itself, kept until the process exits; torch releases the lock before it destroys a backend that way.
    """
    if dist.is_initialized() and dist.get_backend() == "gloo":
        group: Any = dist.group.WORLD
        atexit.register(lambda held: None, group._get_backend(torch.device("cpu")))


def of_all_ranks(value: Any) -> list[Any]:
    """``value`` of every rank."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def share_buffers(module: nn.Module) -> None:
    """Give all ranks the first one's buffers, in case a module of your own has different ones on each."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)


def lost_peer(error: RuntimeError) -> bool:
    """Whether an exchange failed because another process is gone."""
    return isinstance(error, dist.DistError) or any(word in str(error).lower() for word in ("gloo", "nccl", "peer"))
