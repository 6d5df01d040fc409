"""Shift every seed of a process and of the processes it starts: a tool for the test matrix, which nothing imports.

Python runs this file at start-up where its folder is on ``PYTHONPATH``. ``EMALAB_SEED_SHIFT=n`` then adds n to each
seed given as a number, or as a sequence that begins with one; unset, or 0, changes nothing::

    EMALAB_SEED_SHIFT=1000 PYTHONPATH=tests/matrix python -m pytest …

It covers ``torch.manual_seed``, ``torch.Generator().manual_seed``, ``numpy.random.default_rng``, ``SeedSequence`` and
``seed``, and ``random.seed``. The modules in ``FIXED`` draw data sets whose recorded scores belong to exactly these
images; their seeds are names of images rather than luck, and stay.
"""

import os
import random
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

FIXED = {"emalab.data.shapes", "miniature", "lab.miniature"}


def shifted(seed: Any) -> Any:
    """The seed plus the shift; anything but a number, or a sequence that begins with one, is returned as it came."""
    if isinstance(seed, tuple | list) and seed:
        return type(seed)([shifted(seed[0]), *seed[1:]])
    if hasattr(seed, "__index__") and not isinstance(seed, bool):
        return seed.__index__() + SHIFT
    return seed


def caller() -> str:
    """Name of the module that called the function that asks."""
    return str(sys._getframe(2).f_globals.get("__name__", ""))


def patch_numpy_random(module: Any) -> None:
    """Shift ``default_rng``, ``SeedSequence`` and the legacy ``seed``."""
    default_rng, sequence, seed = module.default_rng, module.SeedSequence, module.seed

    class Kind(type):
        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, sequence)

    class SeedSequence(sequence, metaclass=Kind):  # type: ignore[valid-type]
        def __new__(cls, entropy: Any = None, **options: Any) -> Any:
            return sequence(entropy if caller() in FIXED else shifted(entropy), **options)

    module.SeedSequence = SeedSequence
    module.default_rng = lambda seed=None: default_rng(seed if caller() in FIXED else shifted(seed))
    module.seed = lambda value=None: seed(shifted(value))


def patch_torch(module: Any) -> None:
    """Shift ``manual_seed`` and the generators that a program makes."""
    manual_seed = module.manual_seed

    class Generator(module.Generator):
        def manual_seed(self, seed: int) -> "Generator":
            super().manual_seed(shifted(seed))
            return self

    module.Generator = Generator
    module.manual_seed = module.random.manual_seed = lambda seed: manual_seed(shifted(seed))


PATCHES = {"numpy.random": patch_numpy_random, "torch": patch_torch}


class Patching(Loader):
    """The usual loader of a module, with the patch applied once the module has run."""

    def __init__(self, usual: Loader) -> None:
        self.usual = usual

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.usual.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.usual.exec_module(module)
        PATCHES[module.__name__](module)

    def __getattr__(self, name: str) -> Any:  # get_source and the like
        return getattr(self.usual, name)


class Finder(MetaPathFinder):
    """Finds numpy.random and torch where Python would, so that importing neither costs a process nothing."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in PATCHES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = Patching(spec.loader)
        return spec


try:
    SHIFT = int(os.environ.get("EMALAB_SEED_SHIFT") or 0)
except ValueError:
    sys.exit(f"EMALAB_SEED_SHIFT is {os.environ['EMALAB_SEED_SHIFT']!r}; expected a whole number")
if SHIFT:
    sys.meta_path.insert(0, Finder())
    _seed = random.seed

    def _shifted_seed(a: Any = None, version: int = 2) -> None:
        _seed(shifted(a), version)

    random.seed = _shifted_seed
