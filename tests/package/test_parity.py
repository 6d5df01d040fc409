"""Whole networks and training against recordings of the authors' code and of mmsegmentation; see reference/README.md.

``pytest tests -k parity`` compares these and the modules' own recordings, and ends with a table of the differences.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lab.recordings import REFERENCE, image, label, state_dict
from tiny import CPU
from torch import Tensor
from torchvision import tv_tensors

from emalab.convert.mmseg import MMSEG, load_mmseg
from emalab.convert.official import OFFICIAL, load_official
from emalab.data.dataset import Sample
from emalab.data.spec import DatasetSpec
from emalab.data.voc import VOC
from emalab.optim import cross_entropy, parameter_groups, poly_lr
from emalab.recipes import OptimConfig, Recipe, get_recipe
from emalab.segmenter import Segmenter
from emalab.trainer import Trainer

SMALL = (1, 1, 1, 1)
NETWORKS = {
    "s8": (SMALL, 8, (), 65),
    "s16": (SMALL, 16, (), 65),
    "mg_s8": ((1, 1, 2, 3), 8, (1, 2, 4), 65),
    "mg_s16": ((1, 1, 2, 3), 16, (1, 2, 4), 97),
    "r50_s8": ((3, 4, 6, 3), 8, (1, 2, 4), 65),
}

Compare = Callable[..., None]


def reference(name: str) -> dict[str, np.ndarray]:
    with np.load(REFERENCE / f"{name}.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", NETWORKS)
@torch.inference_mode()
def test_network(name: str, compare: Compare) -> None:
    blocks, stride, multi_grid, side = NETWORKS[name]
    model, expected = load_official(state_dict(blocks), stride, multi_grid), reference(f"network_{name}")
    images = image("image", (1, 3, side, side))
    first_weights = model.get_parameter("backbone.network.conv1.0.weight").flatten()[:8]
    assert np.array_equal(images.flatten()[:8], expected["image_first8"])
    assert np.array_equal(first_weights, expected["conv_first8"])

    extracted = model.backbone(images)
    features = model.reduction(extracted)
    attended = model.context(features)
    small, logits = model.classifier(attended), model(images)
    compare(f"network {name}: logits at stride {stride}", small, expected["logits_lowres"])
    for part, row in zip((extracted, features, attended, small, logits), expected["stats"], strict=True):
        ours = torch.stack([part.mean(), part.std(), part.norm()])
        compare(f"network {name}: mean, deviation and norm of every part", ours, row)
    if "logits_probe" in expected:
        compare(f"network {name}: logits, every 8th pixel", logits[..., ::8, ::8], expected["logits_probe"])
    else:
        responsibilities = model.context.attend(features).responsibilities
        compare(f"network {name}: responsibilities", responsibilities, expected["emau_z"])
        for key, part in (("logits", logits), ("extractor", extracted), ("emau_out", attended)):
            compare(f"network {name}: {key}, recorded as float32", part, expected[key], 1e-6)

    model.float()  # the authors' own float32 run is off by up to 1.2e-5, and ours by 4.1e-5 with AVX2
    small = model.classifier(model.context(model.features(images.float())))
    compare(f"network {name}: logits at stride {stride}, float32", small, expected["logits_lowres"], 1e-4)


class TestLoss:
    @pytest.mark.parametrize("average", ["official", "torch_mean"])
    def test_value_and_gradient(self, average: str, compare: Compare) -> None:
        expected = reference("loss")
        logits = torch.from_numpy(expected["logits"]).double().requires_grad_()
        masks = torch.from_numpy(expected["labels"])
        total, labeled = cross_entropy(logits, masks)
        assert labeled == expected["valid_pixels"].sum()
        loss = total / (masks.numel() if average == "official" else labeled)
        (gradient,) = torch.autograd.grad(loss, logits)
        compare(f"loss, {average}: value", loss.detach(), expected[f"{average}/value"])
        compare(f"loss, {average}: gradient", gradient[..., 10, 10], expected[f"{average}/grad_at_10_10"])
        norms = torch.stack([gradient.norm(), gradient.abs().max(), gradient.abs().sum()])
        compare(f"loss, {average}: norms of the gradient", norms, expected[f"{average}/grad_norms"])

    def test_nothing_labeled(self) -> None:
        expected = reference("loss")
        logits, masks = torch.from_numpy(expected["logits"]), torch.from_numpy(expected["labels"])
        total, _ = cross_entropy(logits, torch.full_like(masks, 255))
        assert total == expected["all_ignored/official_per_image"].sum()


@pytest.mark.parametrize("name", ["voc-r50", "voc-r101", "voc-r152"])
def test_learning_rate(name: str, compare: Compare) -> None:
    expected, config = reference("poly_lr"), get_recipe(name).optim
    rates = [poly_lr(int(iteration) - 1, config) for iteration in expected["iters"]]
    ours = np.outer(rates, [1, 1, config.bias_lr_factor])
    compare(f"learning rate of {name}", ours, expected["lr"])


def test_parameter_groups(compare: Compare) -> None:
    """The same rate and decay for each parameter, but for the convolution that no gradient reaches: we leave it out."""
    recorded = json.loads((REFERENCE / "param_groups_small.json").read_text())
    expected = {
        name: factors
        for kind, factors in (
            ("conv_weight_lr1_wd1e-4", (1.0, 1e-4)),
            ("bn_weight_lr1_wd0", (1.0, 0.0)),
            ("bias_lr2_wd0", (2.0, 0.0)),
        )
        for name in recorded[kind]
        if not name.startswith("emau.conv1.")
    }
    model = load_official(state_dict(SMALL), 16, ())
    names = {id(parameter): OFFICIAL.theirs(name) for name, parameter in model.named_parameters()}
    ours = {
        names[id(parameter)]: (group["lr_factor"], group["weight_decay"])
        for group in parameter_groups(model, get_recipe("voc-r101").optim)
        for parameter in group["params"]
    }
    assert ours.keys() == expected.keys()
    for column, what in enumerate(("factors of the learning rate", "weight decays")):
        rows = ([factors[name][column] for name in expected] for factors in (ours, expected))
        compare(f"parameter groups: {what}", *rows, 0)
    groups = sorted(set(expected.values()))
    counts = ([list(factors.values()).count(group) for group in groups] for factors in (ours, expected))
    compare("parameter groups: parameters in each", *counts, 0)


@dataclass
class NoImages:
    """Says which benchmark it is, with an image of one labeled pixel; the batches come from the test."""

    spec: DatasetSpec = VOC

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        pixel = torch.zeros(3, 1, 1, dtype=torch.uint8)
        return Sample(tv_tensors.Image(pixel), tv_tensors.Mask(pixel[0]), "pixel")


@pytest.fixture
def _double_precision() -> Iterator[None]:
    """Fabric hands results back in torch's default precision, whatever it computes in."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_double_precision")
def test_four_training_steps(tmp_path: Path, compare: Compare) -> None:
    """The recipe voc-r50 but for the size of its network and batch, stride 16 and no dropout."""
    recipe = get_recipe("voc-r50")
    start = load_official(state_dict(SMALL), 16, ())
    config = replace(recipe.model, backbone_blocks=SMALL, backbone_weights=None, output_stride=16, multi_grid=())
    optim = replace(recipe.optim, batch_size=2)
    recipe = replace(recipe, model=replace(config, dropout=0.0), optim=optim, precision="64-true")
    trainer = Trainer(recipe, tmp_path / "run", CPU, NoImages(), NoImages())
    trainer.model.load_state_dict(start.state_dict())
    trainer.model.train()

    expected = reference("train_steps")
    losses, bases = [], []
    for step in range(1, 5):
        images, masks = image(f"image/{step}", (2, 3, 65, 65)), label(f"label/{step}", (2, 65, 65))
        losses.append(trainer.step(images, masks))
        bases.append(trainer.model.context.bases.T[None].clone())
        rates = {group["lr"] for group in trainer.optimizer.param_groups}
        assert sorted(rates) == pytest.approx(sorted(set(expected["lr"][step - 1])), abs=1e-15)
    compare("4 training steps: losses", torch.stack(losses), expected["loss"])
    compare("4 training steps: bases, recorded as float32", torch.stack(bases), expected["mu"], 1e-7)
    for step in (1, 4):
        theirs = expected[f"mu_step{step}_f64_first4cols"]
        compare(f"4 training steps: bases after step {step}", bases[step - 1][..., :4], theirs)

    state = {OFFICIAL.theirs(key): value for key, value in trainer.model.state_dict().items()}
    trained = [state[key] for key in expected["keys"]]
    sums, norms = torch.stack([t.sum() for t in trained]), torch.stack([t.norm() for t in trained])
    compare("4 training steps: sums of the parameters", sums, expected["param_sum"])
    compare("4 training steps: norms of the parameters", norms, expected["param_l2"])
    for mode in ("eval", "train"):
        ours = mean_and_std(trainer.model.train(mode == "train"), images)
        compare(f"4 training steps: logits then, {mode} mode", ours, expected[f"logits_{mode}_mean_std"])


class TestMmsegmentation:
    """Its EMANet with one, one, two and two blocks: concatenated input, auxiliary head, 19 classes, stride 8."""

    BLOCKS = (1, 1, 2, 2)

    @torch.inference_mode()
    def test_network(self, compare: Compare) -> None:
        model, expected = load_mmseg(state_dict(self.BLOCKS, "mmseg")), reference("network_mmseg")
        images = image("image", (1, 3, 65, 65))
        inner, extracted = model.backbone.stages(images)
        features = model.reduction(extracted)
        attended = model.context(features)
        bottleneck, small, auxiliary = model.bottleneck(attended), model.coarse_logits(images), model.auxiliary(inner)
        compare("mmsegmentation: logits at stride 8", small, expected["logits_lowres"])
        compare("mmsegmentation: auxiliary logits at stride 8", auxiliary, expected["auxiliary_lowres"])
        compare("mmsegmentation: logits, every 8th pixel", model(images)[..., ::8, ::8], expected["logits_probe"])
        parts = (inner, extracted, features, attended, bottleneck, small, auxiliary)
        for part, row in zip(parts, expected["stats"], strict=True):
            ours = torch.stack([part.mean(), part.std(), part.norm()])
            compare("mmsegmentation: mean, deviation and norm of every part", ours, row)
        model.float()  # its own float32 run is off by 6e-6, and ours by 2.2e-5 with SSE
        small = model.coarse_logits(images.float())
        compare("mmsegmentation: logits at stride 8, float32", small, expected["logits_lowres"], 1e-4)

    @pytest.mark.usefixtures("_double_precision")
    def test_three_training_steps(self, tmp_path: Path, compare: Compare) -> None:
        """Cross-entropy over all pixels, that of the auxiliary head weighted; SGD without weight decay."""
        start = load_mmseg(state_dict(self.BLOCKS, "mmseg"))
        recipe = Recipe(
            model=replace(start.config, dropout=0.0),
            optim=OptimConfig(lr=1e-2, lr_hold=10, weight_decay=0.0, batch_size=2, loss_average="all"),
            precision="64-true",
        )
        data = NoImages(replace(VOC, classes=VOC.classes[:19], palette=VOC.palette[:19]))
        trainer = Trainer(recipe, tmp_path / "run", CPU, data, data)
        trainer.model.load_state_dict(start.state_dict())
        trainer.model.train()

        expected = reference("network_mmseg")
        tiny = torch.finfo(torch.float32).eps  # that mmsegmentation adds to the number of pixels
        for step, (loss, auxiliary_loss) in enumerate(expected["train/loss"], start=1):
            images, masks = image(f"image/{step}", (2, 3, 65, 65)), label(f"label/{step}", (2, 65, 65), 19)
            theirs = (loss + auxiliary_loss) * (1 + tiny / masks.numel())
            compare("mmsegmentation, 3 training steps: losses", trainer.step(images, masks), theirs)
            bases = trainer.model.context.bases.T[None, :, :4]
            compare("mmsegmentation, 3 training steps: bases", bases, expected["train/bases_first4"][step - 1])

        state = {MMSEG.theirs(key): value for key, value in trainer.model.state_dict().items()}
        trained = [state[key] for key in expected["train/keys"]]
        sums, norms = torch.stack([t.sum() for t in trained]), torch.stack([t.norm() for t in trained])
        compare("mmsegmentation, 3 training steps: sums of the parameters", sums, expected["train/param_sum"])
        compare("mmsegmentation, 3 training steps: norms of the parameters", norms, expected["train/param_l2"])
        logits = mean_and_std(trainer.model.eval(), images)
        compare("mmsegmentation, 3 training steps: logits then", logits, expected["train/logits_eval"])


@torch.no_grad()
def mean_and_std(model: Segmenter, images: Tensor) -> Tensor:
    logits = model(images)
    return torch.stack([logits.mean(), logits.std()])
