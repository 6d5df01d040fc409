import dataclasses

import pytest

from emalab.data import DataError, DatasetSpec, dataset_names, get_spec, load_dataset
from emalab.data.camvid import CAMVID
from emalab.data.spec import ignored_label
from emalab.data.voc import VOC, VOC_ANIMALS, voc_palette


def spec(**changes) -> DatasetSpec:
    fields = {
        "name": "toy",
        "title": "Toy",
        "classes": ("a", "b"),
        "palette": ((0, 0, 0), (255, 0, 0)),
        "splits": ("train",),
        "source": "made up",
    }
    return DatasetSpec(**(fields | changes))


def many(count: int) -> dict[str, object]:
    return {"classes": tuple(f"class {i}" for i in range(count)), "palette": voc_palette(count)}


def test_more_classes_than_8_bits_hold():
    large = spec(**many(65534), ignore_index=65535)
    assert large.report_indices == tuple(range(65534))
    assert len(set(large.palette)) == 65534
    assert [ignored_label(count) for count in (2, 254, 255, 65534)] == [255, 255, 65535, 65535]


def test_report_indices_default_to_all_classes():
    assert spec().report_indices == (0, 1)
    assert spec(report_classes=("b",)).report_indices == (1,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("a", "b", "a")}, "class names repeat: 'a' is there twice"),
        ({"classes": ()}, "at least one class"),
        ({"splits": ()}, "at least one class"),
        ({"palette": ((0, 0, 0),)}, "2 classes but 1 palette"),
        ({"palette": ((0, 0, 0), (0, 0, 256))}, r"\(0, 0, 256\)"),
        ({"ignore_index": 1}, "ignore_index 1"),
        ({"ignore_index": 65536}, "ignore_index 65536"),
        (many(255), "255 classes; with ignore_index 255 at most 254 fit, take 65535"),
        (many(299) | {"ignore_index": 298}, "ignore_index 298 must lie above the 299 labels"),
        (many(65535) | {"ignore_index": 65535}, "65535 classes; with ignore_index 65535 at most 65534 fit$"),
        ({"report_classes": ("c",)}, r"\['c'\]"),
        ({"split_sizes": (1, 2)}, "1 splits but 2 split_sizes"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        spec(**changes)


def test_specs_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CAMVID.name = "other"
    assert spec() == spec()


def test_class_counts():
    assert CAMVID.num_classes == 11
    assert VOC.num_classes == VOC_ANIMALS.num_classes == 21
    assert VOC_ANIMALS.report_name == "VOC-animals-7"
    assert VOC_ANIMALS.report_indices == (0, 8, 10, 12, 13, 15, 17)
    assert VOC.report_indices == tuple(range(21))


def test_voc_palette_has_the_devkits_colors():
    palette = voc_palette()
    known = {
        0: (0, 0, 0),
        1: (128, 0, 0),  # aeroplane
        8: (64, 0, 0),  # cat
        12: (64, 0, 128),  # dog
        15: (192, 128, 128),  # person
        20: (0, 64, 128),  # tvmonitor
        255: (224, 224, 192),  # the border
    }
    assert {label: palette[label] for label in known} == known
    assert len(set(palette)) == 256


@pytest.mark.parametrize("name", dataset_names())
def test_palettes_tell_classes_apart(name):
    assert len(set(get_spec(name).palette)) == get_spec(name).num_classes


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(DataError, match=r"'camvd'; did you mean 'camvid'\? There are: .*voc-animals"):
        get_spec("camvd")


def test_unknown_split_suggests_the_nearest():
    with pytest.raises(DataError, match=r"camvid has no split 'training'; did you mean 'train'\?"):
        load_dataset("camvid", "training")
