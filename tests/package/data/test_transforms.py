import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from emalab.data import Sample, transforms
from emalab.data.transforms import TrainTransform, adjust_bands, adjust_colors, turned_crop
from emalab.modules import Normalize

FILL = (1.0, 0.0, 1.0)  # a color that the ramp below has nowhere
FILLED = torch.tensor([255, 0, 255])


def ramp(height: int, width: int) -> Sample:
    """Labels are a function of the image, linear in both axes: the blue channel is row + column."""
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    value = (rows + columns + 20).to(torch.uint8)
    image = torch.stack([torch.full_like(value, 10), torch.full_like(value, 200), value])
    return Sample(tv_tensors.Image(image), tv_tensors.Mask(value.clone()), "ramp")


def is_padding(sample: Sample) -> torch.Tensor:
    return (sample.image == FILLED[:, None, None]).all(dim=0)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop=st.tuples(st.integers(1, 80), st.integers(1, 80)),
    scale=st.tuples(st.floats(0.25, 1), st.floats(1, 4)),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    rotation=st.sampled_from([0.0, 10.0, 180.0]),
    seed=st.integers(0, 2**32),
)
def test_size_padding_and_kinds(height, width, crop, scale, flip, rotation, seed):
    torch.manual_seed(seed)
    out = TrainTransform(crop, scale, flip=flip, rotation=rotation, mean_fill=FILL)(ramp(height, width))
    assert isinstance(out.image, tv_tensors.Image)
    assert isinstance(out.mask, tv_tensors.Mask)
    assert out.image.shape == (3, *crop)
    assert out.mask.shape == crop
    assert out.image.dtype == out.mask.dtype == torch.uint8
    assert out.image.is_contiguous()
    assert out.name == "ramp"
    assert torch.equal(is_padding(out), out.mask == 255)
    assert not is_padding(out).all()
    assert (out.image[0][~is_padding(out)] == 10).all()  # what is constant in the source stays so
    assert (out.image[1][~is_padding(out)] == 200).all()
    inside = out.mask[~is_padding(out)]
    assert 20 <= inside.min() <= inside.max() <= height + width + 18  # no label is invented


def test_one_pixel_wide():
    """Where torch's own uint8 kernel goes wrong (2.15)."""
    image = torch.full((3, 8, 5), 77, dtype=torch.uint8)
    sample = Sample(tv_tensors.Image(image), tv_tensors.Mask(image[0]), "gray")
    out = TrainTransform((3, 1), (0.4, 0.4))(sample)
    assert (out.image == 77).all()


# Not 0.5 nor 0.75: means of two labels are halves, which versions of torch round up or down.
@pytest.mark.parametrize("scale", [0.45, 0.6, 0.7, 1.0, 1.3, 2.0])
@pytest.mark.parametrize("crop", [(40, 50), (90, 110), (150, 60)])
@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_image_and_labels_stay_aligned(scale, crop, flip):
    """A half-pixel shift of the labels would show as a mean difference of half a source pixel or more.

    Without AVX2 torchvision resizes in another way, and the mean difference reaches 0.14.
    """
    transform = TrainTransform(crop, (scale, scale), flip=flip, mean_fill=FILL)
    differences = []
    for seed in range(8):
        torch.manual_seed(seed)
        out = transform(ramp(100, 120))
        inside = ~is_padding(out)
        differences.append((out.image[2].int() - out.mask.int())[inside])
    difference = torch.cat(differences).float()
    assert difference.abs().max() <= 2 / min(scale, 1)
    assert difference.mean().abs() <= 0.3


def test_scale_one_is_an_exact_crop():
    sample = ramp(50, 60)
    out = TrainTransform((20, 30), (1, 1), flip=0)(sample)
    top_left = int(out.mask[0, 0])
    assert torch.equal(out.mask, sample.mask[:20, :30] + (top_left - 20))
    assert torch.equal(out.image[2], out.mask)


def test_window_then_resize_equals_resize_then_crop():
    """Where scale and window fall on whole pixels, up to what the filter sees beyond the window's border."""
    torch.manual_seed(0)
    image = F.gaussian_blur(torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8), [5, 5])
    sample = Sample(tv_tensors.Image(image), tv_tensors.Mask(image[0]), "noise")
    out = TrainTransform((48, 48), (2, 2), flip=0)(sample)
    whole = F.resize(image, [128, 128], antialias=True)
    windows = whole.unfold(1, 48, 2).unfold(2, 48, 2)  # c, top, left, row, column
    inner = (windows[..., 2:-2, 2:-2].int() - out.image[:, None, None, 2:-2, 2:-2].int()).abs()
    assert inner.amax(dim=(0, 3, 4)).min() <= 1


def turn(sample: Sample, angle: float, crop: tuple[int, int], scale: float = 1.0, **settings) -> Sample:
    """`TrainTransform` with the angle fixed."""
    transform = TrainTransform(crop, (scale, scale), flip=0, rotation=180, mean_fill=FILL, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "turned_crop", lambda *drawn: turned_crop(*drawn[:-1], angle))
        return transform(sample)


def noise(height: int, width: int, smooth: bool = False) -> Sample:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8))
    image = F.gaussian_blur(image, [9, 9], [3.0, 3.0]) if smooth else image
    return Sample(tv_tensors.Image(image), tv_tensors.Mask(image[0] % 200), "noise")


class TestRotation:
    @pytest.mark.parametrize(("height", "width"), [(40, 40), (41, 41), (30, 40), (40, 30)])
    @pytest.mark.parametrize("turns", [0, 1, 2, 3])
    def test_quarter_turns_are_exact(self, height, width, turns):
        """Of an image that fills the crop; where sides differ, what leaves the crop is cut off."""
        sample = noise(height, width)
        out = turn(sample, 90 * turns if turns < 3 else -90, (height, width))
        image, mask = (torch.rot90(part, turns, (-2, -1)) for part in (sample.image, sample.mask))
        assert torch.equal(out.image, F.center_crop(image, [height, width]).where(~is_padding(out), out.image))
        assert torch.equal(out.mask, F.center_crop(mask, [height, width]).where(~is_padding(out), out.mask))
        assert int((~is_padding(out)).sum()) == min(height, width) * (
            max(height, width) if turns % 2 == 0 else min(height, width)
        )
        assert (out.mask[is_padding(out)] == 255).all()

    @pytest.mark.parametrize("angle", [-150.0, -30.0, 7.0, 45.0, 100.0])
    def test_is_torchvisions_rotation(self, angle):
        """Of an image that fills the crop. Its border is theirs to within the pixels that it passes through."""
        sample = noise(70, 90, smooth=True)
        out = turn(sample, angle, (70, 90))
        image = F.rotate(sample.image, angle, F.InterpolationMode.BILINEAR, fill=[255.0, 0.0, 255.0])
        mask = F.rotate(sample.mask, angle, fill=255)
        padding, theirs = is_padding(out), mask == 255
        assert (padding != theirs).float().mean() < 1e-3
        beyond = torch.nn.functional.pad(theirs[None].float(), (1, 1, 1, 1), value=1)
        near = torch.nn.functional.max_pool2d(beyond, 3, stride=1)[0] > 0  # there they blend with the padding
        assert (out.image.int() - image.int())[:, ~near].abs().max() <= 1
        assert (out.mask != mask)[~near].float().mean() < 1e-3  # nearest of two that are equally near

    @pytest.mark.parametrize("scale", [0.45, 0.6, 1.0, 1.3, 2.0])
    @pytest.mark.parametrize("crop", [(40, 50), (150, 60)])
    @pytest.mark.parametrize("rotation", [10.0, 180.0])
    def test_image_and_labels_stay_aligned(self, scale, crop, rotation):
        """As without rotation: half a pixel of the labels more would show."""
        transform = TrainTransform(crop, (scale, scale), flip=0, mean_fill=FILL, rotation=rotation)
        differences = []
        for seed in range(8):
            torch.manual_seed(seed)
            out = transform(ramp(100, 120))
            differences.append((out.image[2].int() - out.mask.int())[~is_padding(out)])
        difference = torch.cat(differences).float()
        assert difference.abs().max() <= 2 / min(scale, 1)
        assert difference.mean().abs() <= 0.3

    @pytest.mark.parametrize("scale", [0.6, 1.0, 1.5])
    def test_shows_the_same_place(self, scale):
        """A turn by nothing is no turn, and one by little differs little, wherever the crop lies."""
        sample = noise(80, 100, smooth=True)
        for seed in range(6):
            plain, unturned, turned = (
                (torch.manual_seed(seed), out())[1]
                for out in (
                    lambda: TrainTransform((40, 50), (scale, scale), flip=0, mean_fill=FILL)(sample),
                    lambda: turn(sample, 0.0, (40, 50), scale),
                    lambda: turn(sample, 1.0, (40, 50), scale),
                )
            )
            assert (plain.image.int() - unturned.image.int())[:, 2:-2, 2:-2].abs().max() <= 3
            assert (plain.image.int() - turned.image.int()).float().abs().mean() <= 8

    def test_reduces_with_antialiasing(self):
        """A board of black and white pixels becomes gray, as without a turn."""
        board = ((torch.arange(80)[:, None] + torch.arange(80)) % 2 * 255).to(torch.uint8)
        sample = Sample(tv_tensors.Image(board.repeat(3, 1, 1)), tv_tensors.Mask(board // 2), "board")
        out = turn(sample, 20.0, (24, 24), 0.4)
        gray = out.image[:, ~is_padding(out)].float()
        assert 110 < gray.min() <= gray.max() < 145

    def test_fills_from_beyond_the_crop(self):
        """A crop from the middle of a large image has no padding."""
        assert not is_padding(turn(noise(200, 200), 45.0, (40, 40))).all()
        centered = [turn(noise(200, 200), 45.0, (40, 40)) for _ in range(20)]
        assert any(not is_padding(out).any() for out in centered)

    def test_labels_are_those_of_the_image(self):
        """Nearest: no label between two."""
        sample = noise(60, 60)
        labels = tv_tensors.Mask(sample.mask // 100 * 100)
        assert set(turn(sample._replace(mask=labels), 33.0, (60, 60)).mask.unique().tolist()) == {0, 100, 255}

    def test_colors_change_in_the_image_alone(self):
        sample = noise(60, 60)
        plain, distorted = (turn(sample, -33.0, (60, 60), photometric=p) for p in (0.0, 0.5))
        assert torch.equal(is_padding(plain), is_padding(distorted))
        assert not torch.equal(plain.image, distorted.image)

    def test_angles_are_uniform(self, monkeypatch):
        angles = []
        monkeypatch.setattr(
            transforms, "turned_crop", lambda *arguments: (angles.append(arguments[-1]), turned_crop(*arguments))[1]
        )
        transform = TrainTransform((4, 4), rotation=30)
        torch.manual_seed(0)
        for _ in range(400):
            transform(ramp(4, 4))
        angles = torch.tensor(angles)
        assert -30 <= angles.min() < -29 < 29 < angles.max() <= 30

    def test_none_leaves_the_random_numbers_alone(self):
        """What a seed gave before there was a rotation: drawn numbers, image and labels."""
        torch.manual_seed(5)
        out = TrainTransform((20, 20), photometric=0.5)(noise(30, 30))
        assert torch.rand(1).item() == 0.0332646369934082
        assert int(out.mask.sum()) == 33420
        # Versions of torchvision round changed colors to either of two neighboring levels.
        assert abs(int(out.image.sum()) - 204857) <= out.image.numel()


def test_flip_mirrors_both():
    sample = ramp(30, 40)
    out = TrainTransform((30, 40), (1, 1), flip=1)(sample)
    assert torch.equal(out.image, sample.image.flip(-1))
    assert torch.equal(out.mask, sample.mask.flip(-1))


def test_scale_steps_are_the_recipes():
    transform = TrainTransform((8, 8), (0.5, 2.0), scale_steps=0.25)
    drawn = {transform._draw_scale() for _ in range(300)}
    assert drawn == {0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0}


def test_every_crop_position_occurs():
    transform = TrainTransform((4, 4), (1, 1), flip=0)
    corners = {int(transform(ramp(4, 7)).mask[0, 0]) for _ in range(100)}
    assert corners == {20, 21, 22, 23}
    wide = TrainTransform((4, 7), (1, 1), flip=0)
    places = {int((wide(ramp(4, 4)).mask[0] != 255).nonzero()[0]) for _ in range(100)}
    assert places == {0, 1, 2, 3}


def test_same_seed_same_result_and_input_untouched():
    transform = TrainTransform((40, 40), photometric=0.5)
    sample = ramp(50, 60)
    before = sample.image.clone(), sample.mask.clone()
    torch.manual_seed(3)
    first = transform(sample)
    torch.manual_seed(3)
    second = transform(sample)
    assert torch.equal(first.image, second.image)
    assert torch.equal(first.mask, second.mask)
    assert torch.equal(sample.image, before[0])
    assert torch.equal(sample.mask, before[1])


def test_photometric_leaves_labels_and_padding_alone():
    plain, distorted = (TrainTransform((90, 90), (0.5, 0.5), flip=0, photometric=p, mean_fill=FILL) for p in (0, 0.5))
    sample = ramp(60, 60)
    torch.manual_seed(0)
    a = plain(sample)
    torch.manual_seed(0)
    b = distorted(sample)
    assert torch.equal(a.mask, b.mask)
    assert torch.equal(is_padding(b), b.mask == 255)
    assert not torch.equal(a.image, b.image)


def mid_tones() -> torch.Tensor:
    """Colors so moderate that no adjustment below clamps."""
    return torch.from_numpy(np.random.default_rng(0).integers(90, 140, (3, 16, 17), dtype=np.uint8))


def test_no_adjustment_is_the_identity():
    assert torch.equal(adjust_colors(mid_tones(), 1, 1, 1, 0), mid_tones())


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.3])
def test_adjustments_equal_torchvisions(factor):
    image = mid_tones()
    ours = {
        F.adjust_brightness: adjust_colors(image, factor, 1, 1, 0),
        F.adjust_contrast: adjust_colors(image, 1, factor, 1, 0),
        F.adjust_saturation: adjust_colors(image, 1, 1, factor, 0),
    }
    for theirs, result in ours.items():
        assert (theirs(image, factor).int() - result.int()).abs().max() <= 1, theirs.__name__


def test_hue_turns_as_torchvisions_and_keeps_the_luma():
    image = mid_tones()
    ours, theirs = (adjust_colors(image, 1, 1, 1, 0.05).float(), F.adjust_hue(image, 0.05).float())
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert (torch.einsum("chw,c->hw", ours - image, luma)).abs().max() <= 1
    colored = lambda x: x - x.mean(dim=0)  # noqa: E731
    alignment = torch.cosine_similarity(colored(ours).flatten(), colored(theirs).flatten(), dim=0)
    unturned = torch.cosine_similarity(colored(image.float()).flatten(), colored(theirs).flatten(), dim=0)
    assert alignment > 0.98 > unturned


def test_colors_do_not_depend_on_the_number_of_threads():
    """Loader workers run one thread, the main process several."""
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 352, 480), dtype=np.uint8))
    threads = torch.get_num_threads()
    try:
        results = []
        for number in (1, 2):
            torch.set_num_threads(number)
            results.append(adjust_colors(image, 1.1, 0.8, 1.3, 0.03))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "changes",
    [
        {"crop_size": (0, 5)},
        {"scale_range": (0, 1)},
        {"scale_range": (2, 1)},
        {"scale_steps": 0},
        {"flip": 1.5},
        {"photometric": -1},
        {"rotation": -1},
        {"rotation": 181},
        {"mean_fill": (124, 116, 104)},
    ],
)
def test_bad_settings_are_named(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=name):
        TrainTransform(**({"crop_size": (8, 8)} | changes))


def test_normalize():
    images = torch.randint(0, 256, (2, 3, 5, 7), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    expected = F.normalize(images.double() / 255, mean, std)
    torch.testing.assert_close(Normalize(mean, std)(images).double(), expected, rtol=0, atol=1e-6)


def test_normalize_keeps_channels_last_and_has_no_state():
    images = torch.zeros(2, 3, 4, 5, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert Normalize()(images).is_contiguous(memory_format=torch.channels_last)
    assert not Normalize().state_dict()


def test_padding_is_zero_for_the_network():
    out = TrainTransform((40, 40), (0.5, 0.5))(ramp(20, 20))
    normalize = Normalize()
    padding = normalize(out.image)[:, out.mask == 255]
    rounding = 0.5 / 255 / normalize.std.min()  # the mean is no whole number of 1/255
    assert padding.abs().max() <= rounding


def test_normalize_refuses_other_than_uint8():
    with pytest.raises(TypeError, match=r"float32"):
        Normalize()(torch.rand(1, 3, 2, 2))
    with pytest.raises(ValueError, match="std"):
        Normalize(std=(1, 0, 1))


class TestOtherChannels:
    @staticmethod
    def sample(count: int) -> Sample:
        image = torch.from_numpy(np.random.default_rng(0).integers(60, 180, (count, 40, 50), dtype=np.uint8))
        return Sample(tv_tensors.Image(image), tv_tensors.Mask(image[0] % 5), "bands")

    @pytest.mark.parametrize("rotation", [0.0, 20.0])
    @pytest.mark.parametrize("scale", [0.4, 1.0, 1.7])
    @pytest.mark.parametrize("count", [1, 2, 4, 5, 13])
    def test_each_is_treated_as_one_of_rgb(self, count, scale, rotation):
        """Torch has several kernels for uint8, which it chooses by the number of channels; they round alike."""
        sample = self.sample(count)
        settings = {"crop_size": (24, 30), "scale_range": (scale, scale), "rotation": rotation}
        transform = TrainTransform(**settings, mean_fill=(0.4,) * count)
        torch.manual_seed(1)
        out = transform(sample)
        assert out.image.shape == (count, 24, 30)
        for channel in range(count):
            gray = sample._replace(image=tv_tensors.Image(sample.image[channel].expand(3, 40, 50).contiguous()))
            torch.manual_seed(1)
            expected = TrainTransform(**settings, mean_fill=(0.4,) * 3)(gray)
            assert (out.image[channel].int() - expected.image[0].int()).abs().max() <= 1
            assert torch.equal(out.mask, expected.mask)

    def test_padding_is_each_channels_own(self):
        transform = TrainTransform((90, 90), (0.5, 0.5), photometric=0.5, mean_fill=(0.0, 0.2, 0.4, 1.0))
        out = transform(self.sample(4))
        padding = out.mask == 255
        assert padding.any()
        assert [out.image[channel][padding].unique().tolist() for channel in range(4)] == [[0], [51], [102], [255]]

    @pytest.mark.parametrize("count", [1, 4])
    def test_contrast_keeps_the_mean_of_each_and_brightness_scales_it(self, count):
        image = self.sample(count).image.as_subclass(torch.Tensor)
        assert torch.equal(adjust_bands(image, 1, 1), image)
        means = image.float().mean(dim=(1, 2))
        changed = adjust_bands(image, 1.25, 0.5).float()
        torch.testing.assert_close(changed.mean(dim=(1, 2)), 1.25 * means, rtol=0, atol=0.1)
        deviation = 1.25 * 0.5 * image.float().std(dim=(1, 2))
        torch.testing.assert_close(changed.std(dim=(1, 2)), deviation, rtol=0.01, atol=0)

    def test_photometric_distorts_all_alike(self):
        image = torch.full((5, 30, 30), 100, dtype=torch.uint8)
        sample = Sample(tv_tensors.Image(image), tv_tensors.Mask(image[0]), "flat")
        out = TrainTransform((30, 30), (1, 1), photometric=0.5, mean_fill=(0.5,) * 5)(sample)
        assert len(out.image.unique()) == 1
        assert not torch.equal(out.image, sample.image)
