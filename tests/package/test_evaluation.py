"""Evaluation: what is averaged, what is padded, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tiny import random_images, scenes, tiny_segmenter
from torchvision import tv_tensors

from emalab import evaluation
from emalab.data import LabeledImages, Sample
from emalab.data.shapes import POOLED
from emalab.evaluation import _batches_of_one_size, evaluate
from emalab.inference import predict_probabilities
from emalab.metrics import SegmentationMetric
from emalab.segmenter import Segmenter
from emalab.views import Views


class Sizes(LabeledImages):
    """Scenes cut to several sizes, which cannot share a batch."""

    spec = POOLED
    sizes = ((64, 64), (48, 64), (64, 64), (33, 50), (48, 64), (64, 64), (64, 64))

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        image, mask, name = scenes(len(self))[index]
        height, width = self.sizes[index]
        return Sample(tv_tensors.Image(image[:, :height, :width]), tv_tensors.Mask(mask[:height, :width]), name)


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return tiny_segmenter()


class TestPredictProbabilities:
    images = random_images(2, 3, 32, 40)

    def test_single_scale_is_the_softmax_of_the_network(self, model: Segmenter) -> None:
        probabilities = predict_probabilities(model, self.images)
        torch.testing.assert_close(probabilities, model(self.images).softmax(1))
        torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 32, 40))

    def test_flip_averages_with_the_mirror_image(self, model: Segmenter) -> None:
        mirrored = model(self.images.flip(-1)).softmax(1).flip(-1)
        expected = (model(self.images).softmax(1) + mirrored) / 2
        torch.testing.assert_close(predict_probabilities(model, self.images, Views(flip=True)), expected)

    def test_scales_average_probabilities_at_the_images_size(self, model: Segmenter) -> None:
        """Scales 0.5 and 1.5, mirrored too: the mean of four, each resized as logits."""
        views = []
        for size in ((16, 20), (48, 60)):
            x = F.interpolate(model.normalize(self.images), size, mode="bilinear")
            for view, undo in ((x, lambda p: p), (x.flip(-1), lambda p: p.flip(-1))):
                logits = F.interpolate(model(view), (32, 40), mode="bilinear")
                views.append(undo(logits.softmax(1)))
        ours = predict_probabilities(model, self.images, Views((0.5, 1.5), flip=True))
        torch.testing.assert_close(ours, torch.stack(views).mean(0))

    @pytest.mark.parametrize(("align_corners", "padded"), [(False, (36, 44)), (True, (37, 45))])
    def test_pads_with_the_mean_color_and_crops(self, align_corners: bool, padded: tuple[int, int]) -> None:
        """33×43 grows to a multiple of the stride, plus one for aligned corners; the padding is not in the result."""
        model = tiny_segmenter(align_corners=align_corners)
        images = random_images(1, 3, 33 + align_corners, 43)
        height, width = images.shape[-2:]
        x = F.pad(model.normalize(images), (0, padded[1] - width, 0, padded[0] - height))
        expected = model(x)[..., :height, :width].softmax(1)
        torch.testing.assert_close(predict_probabilities(model, images), expected)

    @pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)], ids=str)
    def test_scales_that_are_none(self, scales: tuple[float, ...]) -> None:
        with pytest.raises(ValueError, match="scales must be positive factors, at least one; got"):
            Views(scales)


class TestEvaluate:
    @torch.no_grad()
    def test_is_the_score_of_the_networks_labels(self, model: Segmenter) -> None:
        metric = SegmentationMetric(POOLED)
        for image, mask, _ in (scenes()[index] for index in range(6)):
            metric.update(model(image[None]), mask[None])
        assert evaluate(model, scenes()) == metric.compute()

    def test_scales_and_flip_are_views(self, model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Views] = []
        labels = torch.zeros(1, 64, 64, dtype=torch.uint8)
        monkeypatch.setattr(evaluation, "predict_labels", lambda model, images, views: seen.append(views) or labels)
        views = Views((0.5, 1.0), flip=True)
        evaluate(model, scenes(1), [0.5, 1.0], True)
        evaluate(model, scenes(1), views=views)
        evaluate(model, scenes(1))
        assert seen == [views, views, Views()]
        with pytest.raises(ValueError, match=r"evaluate got scales \(1.0,\) and flip True beside Views.*put them into"):
            evaluate(model, scenes(1), flip=True, views=views)

    @pytest.mark.parametrize("batch_size", [2, 3, 64])
    def test_batch_size_does_not_change_the_scores(self, model: Segmenter, batch_size: int) -> None:
        one, many = evaluate(model, Sizes()), evaluate(model, Sizes(), batch_size=batch_size)
        assert one.images == many.images == len(Sizes())
        np.testing.assert_allclose(list(many.iou.values()), list(one.iou.values()), atol=1e-3)  # a pixel on the fence

    def test_workers_do_not_change_the_scores(self, model: Segmenter) -> None:
        assert evaluate(model, scenes(), num_workers=2) == evaluate(model, scenes())

    def test_ranks_share_the_images(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Seven images, three ranks: nobody repeats one to fill up."""
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: 3)
        shares = []
        for rank in range(3):
            monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
            shares.append([image for images, _ in _batches_of_one_size(Sizes(), 2, 0, False) for image in images])
        assert [len(share) for share in shares] == [3, 2, 2]
        seen = [image.numpy().tobytes() for share in shares for image in share]
        assert sorted(seen) == sorted(Sizes()[index].image.numpy().tobytes() for index in range(7))

    @pytest.mark.parametrize("training", [False, True])
    def test_leaves_the_network_as_it_was(self, training: bool) -> None:
        model = tiny_segmenter().train(training)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        evaluate(model, scenes(2))
        assert model.training == training
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    def test_another_number_of_classes(self) -> None:
        with pytest.raises(ValueError, match="the network predicts 3 classes, shapes-pooled has 5"):
            evaluate(tiny_segmenter(num_classes=3), scenes())

    def test_empty_split(self, model: Segmenter) -> None:
        empty = Sizes()
        empty.sizes = ()
        with pytest.raises(ValueError, match="the split of shapes-pooled has no images"):
            evaluate(model, empty)

    def test_no_room_in_a_batch(self, model: Segmenter) -> None:
        with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
            evaluate(model, scenes(), batch_size=0)
