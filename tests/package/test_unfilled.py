"""Networks that are built for the weights of a file: no memory, no random numbers, and all their values afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from emalab.modules import ConvNormAct, Normalize
from emalab.recipes import get_recipe
from emalab.segmenter import Segmenter, SegmenterConfig
from emalab.unfilled import fill, unfilled

CONFIGS = {
    "tiny": get_recipe("shapes-tiny").model,
    "lite2": SegmenterConfig(num_classes=3, backbone="tf_efficientnet_lite2"),
    "resnet": SegmenterConfig(num_classes=3, backbone="resnet18", auxiliary_channels=8, context="non_local"),
    "deeplab_v3": SegmenterConfig(num_classes=3, backbone="resnet18", context="deeplab_v3"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_the_network_built_with_values(name: str) -> None:
    torch.manual_seed(1)
    built = Segmenter(CONFIGS[name]).eval()
    state = torch.get_rng_state()
    with unfilled():
        filled = Segmenter(CONFIGS[name])
    assert all(tensor.is_meta for tensor in filled.state_dict().values())
    assert fill(filled, built.state_dict())
    assert torch.equal(state, torch.get_rng_state())
    images = torch.randint(0, 256, (1, 3, 33, 50), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(filled.eval()(images), built(images))
    trained = [[p.requires_grad for p in model.parameters()] for model in (filled, built)]
    assert trained[0] == trained[1]


def test_takes_the_precision_of_the_network() -> None:
    built = ConvNormAct(3, 4, 1)
    with unfilled():
        filled = ConvNormAct(3, 4, 1)
    assert fill(filled, {key: value.half() for key, value in built.state_dict().items()})
    assert {key: value.dtype for key, value in filled.state_dict().items()} == {
        key: value.dtype for key, value in built.state_dict().items()
    }
    torch.testing.assert_close(filled[0].weight, built[0].weight.half().float(), rtol=0, atol=0)


def test_constants_are_not_in_the_file() -> None:
    with unfilled():
        filled = nn.Sequential(Normalize((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)))
    assert fill(filled, {})
    images = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert torch.equal(filled(images), Normalize((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))(images))


def test_a_buffer_that_is_in_no_file_is_reported() -> None:
    class Shifted(nn.Module):
        shift: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.ones(2), persistent=False)

    with unfilled():
        shifted = Shifted()
    assert not fill(shifted, {})
