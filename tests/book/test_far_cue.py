"""What the chapter on the gradient measures in far-cue scenes."""

from __future__ import annotations

import pytest
import torch
from lab.far_cue import error_reach, find_positions, measure_transfer, read_colors, with_gradient

from emalab import Segmenter, build_segmenter, get_recipe
from emalab.data.shapes import FarScenes, ShapesDataset


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    return build_segmenter(get_recipe("shapes-far").model).eval()


def test_errors_leave_the_stones_only_with_a_gradient_through_em(model: Segmenter) -> None:
    scene = ShapesDataset(FarScenes(), "val").scene(0)
    stones, key = find_positions(scene, (16, 16))
    assert stones.any()
    assert key.any()
    for grad in ("stop", "last", "unroll"):
        reach = error_reach(with_gradient(model, grad), [scene])[0]
        assert (reach[stones] > 0).all()
        assert bool((reach[~stones] == 0).all()) == (grad == "stop")


def test_the_backward_path_changes_no_output(model: Segmenter) -> None:
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(with_gradient(model, "unroll")(images), model(images))


def test_no_weight_exceeds_its_ceiling(model: Segmenter) -> None:
    found = measure_transfer(model, FarScenes(), count=2)
    assert 0 < found.weight <= found.ceiling
    assert found.volume > 0
    assert {factor: len(heard) for factor, heard in found.heard.items()} == {1: 2, 2: 2, 4: 2, 8: 2}


def test_the_reader_reads_what_is_there() -> None:
    codes = torch.eye(4, 8)
    heard = codes + 0.01 * torch.randn(20, 4, 8, generator=torch.Generator().manual_seed(0))
    assert read_colors(heard) == 1
    assert read_colors(torch.zeros(20, 4, 8)) == 0.25  # nothing to read: always the same guess
