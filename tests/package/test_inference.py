"""Windows, scales and mirror images: what is averaged where, and what it costs in memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import random_images, tiny_segmenter
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from emalab import inference
from emalab.inference import predict_labels, predict_probabilities
from emalab.segmenter import Segmenter
from emalab.views import Views


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return tiny_segmenter()


class TestWindows:
    images = random_images(2, 3, 40, 52)

    def by_hand(self, model: Segmenter, x: Tensor, rows: list[int], columns: list[int], side: int) -> Tensor:
        """Logits of normalized images (b, 3, h, w), averaged where windows of side × side overlap."""
        total, count = torch.zeros(len(x), 5, *x.shape[-2:]), torch.zeros(x.shape[-2:])
        for top in rows:
            for left in columns:
                place = (slice(top, top + side), slice(left, left + side))
                total[:, :, *place] += model(x[:, :, *place])
                count[place] += 1
        return total / count

    def test_logits_are_averaged_where_windows_overlap(self, model: Segmenter) -> None:
        """Windows of 24 pixels that share a third: every 16 pixels, and the last ones end with the image."""
        logits = self.by_hand(model, model.normalize(self.images), [0, 16], [0, 16, 28], 24)
        ours = predict_probabilities(model, self.images, Views(window=(24, 24)))
        torch.testing.assert_close(ours, logits.softmax(1))

    def test_of_a_resized_and_mirrored_image(self, model: Segmenter) -> None:
        x = F.interpolate(model.normalize(self.images), (60, 78), mode="bilinear")
        views = []
        for view, undo in ((x, lambda p: p), (x.flip(-1), lambda p: p.flip(-1))):
            logits = self.by_hand(model, view, [0, 14, 28, 32], [0, 14, 28, 42, 50], 28)
            views.append(undo(F.interpolate(logits, (40, 52), mode="bilinear").softmax(1)))
        ours = predict_probabilities(model, self.images, Views((1.5,), True, (28, 28), overlap=0.5))
        torch.testing.assert_close(ours, torch.stack(views).mean(0))

    @pytest.mark.parametrize("align_corners", [False, True])
    @pytest.mark.parametrize("window", [(40, 52), (41, 1000)], ids=str)
    def test_as_large_as_the_image_changes_nothing(self, align_corners: bool, window: tuple[int, int]) -> None:
        model = tiny_segmenter(align_corners=align_corners)
        whole = predict_probabilities(model, self.images)
        assert torch.equal(predict_probabilities(model, self.images, Views(window=window)), whole)

    @pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
    @pytest.mark.parametrize("window", [(1, 3), (5, 7), (13, 4)], ids=str)
    def test_of_any_size_cover_every_pixel(self, model: Segmenter, window: tuple[int, int], scale: float) -> None:
        probabilities = predict_probabilities(model, self.images[:1, :, :9, :11], Views((scale,), False, window, 0.4))
        torch.testing.assert_close(probabilities.sum(1), torch.ones(1, 9, 11))

    def test_of_mmsegmentations_cityscapes_protocol(self) -> None:
        """Crops of 769 pixels, a step of 513."""
        assert [w.start for w in inference._windows(2048, 769, 1 / 3)] == [0, 513, 1026, 1279]
        assert inference._windows(769, 769, 1 / 3) == [range(769)]

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"window": (0, 24)}, r"a window must be at least one pixel high and wide, got \(0, 24\)"),
            ({"window": (24, 24), "overlap": 1.0}, r"overlap is the part .* in \[0, 1\); got 1.0"),
            ({"window": (24, 24), "overlap": -0.1}, "got -0.1"),
        ],
    )
    def test_that_are_none(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            Views(**settings)


def test_labels_are_the_most_probable_classes(model: Segmenter) -> None:
    images = random_images(2, 3, 30, 41)
    views = Views((0.75, 1.0), flip=True, window=(24, 24))
    labels = predict_labels(model, images, views)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, predict_probabilities(model, images, views).argmax(1))


@pytest.mark.parametrize("values", [1, 900])
def test_height_of_strips_does_not_matter(model: Segmenter, values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_images(2, 3, 30, 41)
    views = Views((0.75, 1.5), flip=True, window=(24, 24))
    at_once = predict_probabilities(model, images, views)
    monkeypatch.setattr(inference, "_STRIP_VALUES", values)
    torch.testing.assert_close(predict_probabilities(model, images, views), at_once)


def test_images_are_uint8(model: Segmenter) -> None:
    """Whether floating-point ones were normalized once more depended on the scale."""
    with pytest.raises(TypeError, match=r"must be uint8 RGB in 0–255, .*; got torch.float32. For values in 0…1 give"):
        predict_probabilities(model, random_images(1, 3, 24, 24) / 255)


def test_network_in_double_precision() -> None:
    """As Lightning Fabric runs it, with double as the default type."""
    model, images = tiny_segmenter(), random_images(1, 3, 30, 41)
    expected = predict_probabilities(model, images, Views((1.0, 1.5)))
    torch.set_default_dtype(torch.float64)
    try:
        ours = predict_probabilities(model.double(), images, Views((1.0, 1.5)))
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(ours, expected)


class Memory(TorchDispatchMode):
    """The most bytes of tensors alive at one time, of those that were made meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, storage: int, size: int) -> None:
        self._known.discard(storage)
        self.now -= size


@torch.inference_mode()
def test_memory_grows_with_neither_classes_nor_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """171 classes at 256×256, enlarged twice, are 45 MB a map and 179 MB at the scaled size: neither is ever made."""
    model, images = tiny_segmenter(num_classes=171), random_images(1, 3, 256, 256)
    monkeypatch.setattr(inference, "_STRIP_VALUES", 2**18)
    one_map = 171 * 256 * 256 * 4
    with Memory() as memory:
        predict_labels(model, images, Views((1.0, 2.0), flip=True))
    coarse = 2 * (64**2 + 128**2) * 171 * 4
    assert coarse < memory.peak < coarse + 20e6 < one_map + 20e6
    with Memory() as memory:
        predict_probabilities(model, images, Views((1.0, 2.0), flip=True))
    assert one_map < memory.peak < one_map + coarse + 20e6
