"""The examples in the docstrings of the public functions and classes run as they are printed."""

from __future__ import annotations

import doctest

import pytest

import emalab

WITHOUT = {
    "EMOutput": "what em_attention returns; the example is there",
    "Recipe": "get_recipe and train have examples",
    "SegmenterConfig": "build_segmenter has the example",
    "load_mmseg": "needs a checkpoint of mmsegmentation",
    "load_official": "needs a checkpoint of the authors' code",
}


@pytest.mark.parametrize("name", [name for name in emalab.__all__ if name not in WITHOUT])
def test_example(name: str) -> None:
    found = getattr(emalab, name)
    examples = [test for test in doctest.DocTestFinder().find(found, name) if test.examples]
    assert examples, f"emalab.{name} has no example"
    for test in examples:
        assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed == 0
