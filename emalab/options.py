"""Where and how a recipe runs, as a value. Help needs it, and must not wait for torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emalab.choices import SettingError

__all__ = ["RunOptions", "run_folder"]


@dataclass(frozen=True)
class RunOptions:
    """Where and how a recipe runs; nothing here changes what is learned.

    Example:
        >>> RunOptions(resume=True, num_workers=4).checkpoint_every
        500
    """

    data_root: Path | None = None
    """Folder with the unpacked releases (camvid/, VOCdevkit/); generated data needs none."""
    resume: bool = False
    """Go on from last.pt as if the run had never stopped; starts anew where there is none."""
    accelerator: str = "auto"
    """Lightning Fabric's name of the hardware: cpu, cuda, mps (Apple's, untested), auto for the best there is."""
    devices: int = 1
    """Devices per node; one process each."""
    num_nodes: int = 1
    """Machines; the run's folder must be on a file system that they share."""
    num_workers: int | None = None
    """Processes per rank that read and augment; by default all cores for a GPU, none for a CPU."""
    checkpoint_every: int = 500
    """Iterations between checkpoints; what a kill can cost at most."""
    log_every: int = 20
    """Iterations between lines of the log; each waits for the device, and there several processes agree to stop."""
    progress: bool = True
    """Show a progress bar, or lines where standard error is no terminal."""
    commit: str | None = None
    """Commit to record with the result; by default that of the running source."""

    def __post_init__(self) -> None:
        """Refuse intervals of nothing, no device, and fewer workers than none."""
        if self.num_workers is not None and self.num_workers < 0:
            raise SettingError(f"num_workers is {self.num_workers}; it must be at least 0")
        for name in ("checkpoint_every", "log_every", "devices", "num_nodes"):
            if getattr(self, name) < 1:
                raise SettingError(f"{name} is {getattr(self, name)}; it must be at least 1")


def run_folder(name: str, seed: int) -> str:
    """How the folder of a run of the recipe ``name`` is called, unless somebody says otherwise."""
    return f"{name}-seed{seed}"
