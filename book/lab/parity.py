"""The package against the authors' code: largest absolute differences from arrays recorded with it.

``tests/package/test_parity.py`` makes these comparisons and more. Here they are in the form of a table for a page.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from emalab import EMAU, em_attention, get_recipe, load_official
from emalab.bases import MovingAverage
from emalab.choices import Renormalize
from emalab.optim import cross_entropy, parameter_groups, poly_lr
from lab.recordings import REFERENCE, image, label, state_dict

BOUND = 1e-10  # in double precision: above rounding, below any other cause
SMALL = (1, 1, 1, 1)  # residual blocks of each stage
NETWORKS = {  # blocks, output stride, multi-grid, side of the image
    "s8": (SMALL, 8, (), 65),
    "mg_s16": ((1, 1, 2, 3), 16, (1, 2, 4), 97),
}
Pair = tuple[str, Tensor, Tensor]  # what is compared, ours, theirs

__all__ = ["differences", "five_batches", "recording"]


def recording(name: str) -> dict[str, Tensor]:
    """Arrays of tests/reference, as tensors."""
    with np.load(REFERENCE / f"{name}.npz") as arrays:
        kept = [key for key in arrays.files if arrays[key].dtype.kind in "fi"]
        return {key: torch.from_numpy(arrays[key]) for key in kept}


def five_batches(rule: Renormalize) -> Tensor:
    """Stored bases at the start and after each of the five recorded batches: (6, k, c)."""
    recorded, maintenance = recording("bases_momentum"), MovingAverage(0.9, rule)
    history = [rearrange(recorded["mu0"], "1 c k -> k c")]
    for x in _positions(recorded["x"]):
        reached = em_attention(x, history[-1]).bases
        history.append(maintenance.update(history[-1], reached))
    return torch.stack(history)


def differences() -> dict[str, float]:
    """Largest absolute difference of each kind of array.

    Raises:
        AssertionError: one of them exceeds `BOUND`.
    """
    largest: dict[str, float] = {}
    for part in (_loop, _unit, _bases, _networks, _training):
        for what, ours, theirs in part():
            assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
            gap = (ours.detach() - theirs).abs().max().item()
            assert gap < BOUND, (what, gap)
            largest[what] = max(largest.get(what, 0.0), gap)
    return largest


def _positions(values: Tensor) -> Tensor:
    return rearrange(values, "... c h w -> ... (h w) c")


def _loop() -> Iterator[Pair]:
    """Nine cases, among them huge features, dead bases and an image of zeros."""
    core = recording("em_core")
    for case in sorted({key.split("/")[0] for key in core}):
        x, bases = _positions(core[f"{case}/x"]), core[f"{case}/mu0"]
        for t in (1, 2, 3, 8):
            found = em_attention(x, rearrange(bases, "1 c k -> k c"), num_iters=t)
            theirs = {
                name: core[f"{case}/T{t}/{name}"] for name in ("z", "mu", "recon")
            }
            yield "EM loop: responsibilities", found.responsibilities, theirs["z"]
            ours = rearrange(found.bases, "b k c -> b c k")
            yield "EM loop: bases", ours, theirs["mu"]
            yield "EM loop: result", found.reconstruction, _positions(theirs["recon"])


def _unit() -> Iterator[Pair]:
    """The recorded state, loaded; output, gradients and statistics."""
    recorded = recording("emau_unit")
    unit = EMAU(32, num_bases=8).double()
    norm = unit.conv_out[1]
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = 3e-4
    unit.load_state_dict(_unit_state(recorded))
    for mode in ("eval", "train"):
        x = recorded["x"].clone().requires_grad_()
        output = unit.train(mode == "train")(x)
        yield "unit: output", output, recorded[f"{mode}/out"]
    (output * recorded["w"]).sum().backward()
    assert x.grad is not None
    yield "unit: gradients", x.grad, recorded["grad/x"]
    for name, parameter in unit.conv_out.named_parameters():
        assert parameter.grad is not None
        yield "unit: gradients", parameter.grad, recorded[f"grad/conv2.{name}"]
    for name in ("running_mean", "running_var"):
        ours = norm.get_buffer(name)
        yield (
            "unit: statistics of the batch norm",
            ours,
            recorded[f"after/conv2.1.{name}"],
        )


def _unit_state(recorded: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"conv1.": "conv_in.", "conv2.0.": "conv_out.0.", "conv2.1.": "conv_out.1."}
    names["mu"] = "bases"
    state = {}
    for key, value in recorded.items():
        if key.startswith("sd/"):
            theirs = key.removeprefix("sd/")
            old = next(name for name in names if theirs.startswith(name))
            state[names[old] + theirs.removeprefix(old)] = value
    state["bases"] = rearrange(state["bases"], "1 c k -> k c")
    return state


def _bases() -> Iterator[Pair]:
    theirs = recording("bases_momentum")["official/buffer"]
    yield (
        "bases after five batches",
        five_batches("none")[1:],
        rearrange(theirs, "t 1 c k -> t k c"),
    )


def _networks() -> Iterator[Pair]:
    for name, (blocks, stride, multi_grid, side) in NETWORKS.items():
        model = load_official(state_dict(blocks), stride, multi_grid)
        with torch.inference_mode():
            attended = model.context(model.features(image("image", (1, 3, side, side))))
            logits = model.classifier(attended)
        theirs = recording(f"network_{name}")["logits_lowres"]
        yield f"network at output stride {stride}: logits", logits, theirs


def _training() -> Iterator[Pair]:
    """Four steps, with the optimizer and the schedule of the recipe."""
    optim = get_recipe("voc-r50").optim
    model = load_official(state_dict(SMALL), output_stride=16, multi_grid=()).train()
    dropout, unit = model.classifier[1], model.context
    assert isinstance(dropout, nn.Dropout2d)
    assert isinstance(unit, EMAU)
    dropout.p = 0.0  # it would draw other channels
    optimizer = torch.optim.SGD(parameter_groups(model, optim), momentum=0.9)
    losses = []
    for step in range(1, 5):
        for group in optimizer.param_groups:
            group["lr"] = group["lr_factor"] * poly_lr(step - 1, optim)
        masks = label(f"label/{step}", (2, 65, 65))
        total, _ = cross_entropy(model(image(f"image/{step}", (2, 3, 65, 65))), masks)
        loss = total / masks.numel()  # the authors divide by all pixels
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    recorded = recording("train_steps")
    yield "training: losses of four steps", torch.stack(losses), recorded["loss"]
    theirs = rearrange(recorded["mu_step4_f64_first4cols"], "1 c k -> k c")
    yield "training: bases after four steps", unit.bases[:4], theirs
