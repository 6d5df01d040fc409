"""A data set that is held in memory."""

from __future__ import annotations

import pytest
import torch
from tiny import scenes

from emalab.data.memory import InMemory


class TestInMemory:
    def test_decodes_once_and_gives_copies(self) -> None:
        source = scenes(3)
        held = InMemory(source)
        held.fill(threads=2)
        held._dataset = None  # type: ignore[assignment]  # it is not needed again
        for index in (0, -1, 2):
            sample, expected = held[index], source[range(3)[index]]
            assert torch.equal(sample.image, expected.image)
            assert torch.equal(sample.mask, expected.mask)
            assert (type(sample.image), type(sample.mask)) == (type(expected.image), type(expected.mask))
            assert sample.image.stride() == expected.image.stride()
        held[0].image.zero_()
        assert held[0].image.any()
        with pytest.raises(IndexError):
            held[3]
