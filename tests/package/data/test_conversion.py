"""What every conversion does: read .mat files, check values and sizes, write whole files, go on where it stopped."""

import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import numpy as np
import pytest
from PIL import Image
from tiny_data import SIZE, random_labels, save_image, save_mat

from emalab.data.conversion import make_label_files, read_mat, run_all, translate, value_table, write_names
from emalab.data.errors import (
    DataError,
    MissingFileError,
    SizeMismatchError,
    UnknownLabelError,
    UnreadableFileError,
)
from emalab.data.masks import UNKNOWN

PALETTE = ((0, 0, 0), (255, 0, 0), (0, 255, 0))


def label_files(tmp_path, make, names=("a", "b", "c"), **options) -> int:
    folder, images = tmp_path / "labels", tmp_path / "images"
    return make_label_files(folder, names, make, images=images, palette=PALETTE, **options)


def constant(value: int = 1, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full(size, value, np.uint8)


# .mat files


def test_read_mat(tmp_path):
    path = save_mat(tmp_path / "a.mat", S=np.eye(3), other=np.zeros(2), unwanted=1)
    content = read_mat(path, "S", "other", "not there")
    assert np.array_equal(content["S"], np.eye(3))
    assert "other" in content
    assert "unwanted" not in content


def test_a_mat_file_without_the_key(tmp_path):
    path = save_mat(tmp_path / "a.mat", T=np.eye(3))
    with pytest.raises(UnreadableFileError, match=r"a\.mat: holds no 'S'"):
        read_mat(path, "S")


@pytest.mark.parametrize("kept", [0.0, 0.2, 0.6, 0.95])
def test_a_truncated_mat_file(tmp_path, kept):
    path = save_mat(tmp_path / "a.mat", S=random_labels(list(range(200)), (60, 60)))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UnreadableFileError, match=r"a\.mat"):
        read_mat(path, "S")


def test_damaged_bytes_in_a_mat_file(tmp_path):
    path = save_mat(tmp_path / "a.mat", S=random_labels(list(range(200)), (60, 60)))
    content = bytearray(path.read_bytes())
    content[200:400] = bytes(200)
    path.write_bytes(content)
    with pytest.raises(UnreadableFileError, match=r"a\.mat: not a readable \.mat file"):
        read_mat(path, "S")


def test_no_mat_file_and_another_kind_of_file(tmp_path):
    with pytest.raises(MissingFileError, match=r"a\.mat: no such file"):
        read_mat(tmp_path / "a.mat", "S")
    (tmp_path / "b.mat").write_text("<html>404</html>" * 100)
    with pytest.raises(UnreadableFileError, match=r"b\.mat"):
        read_mat(tmp_path / "b.mat", "S")


# Values


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
def test_translate(dtype):
    table = value_table({0: 255, 1: 0, 3: 1}, 4)
    assert table.tolist() == [255, 0, UNKNOWN, 1]
    labels = translate("a", np.array([[0, 1], [3, 3]], dtype), table)
    assert labels.dtype == np.uint8
    assert labels.tolist() == [[255, 0], [1, 1]]


@pytest.mark.parametrize(("stored", "named"), [(2, "2"), (4, "4"), (65535, "65535"), (-1, "-1"), (1e30, "1e")])
def test_values_outside_the_table_are_named(stored, named):
    table = value_table({0: 255, 1: 0, 3: 1}, 4)
    with pytest.raises(UnknownLabelError, match=rf"a\.mat: label values outside the label set: {named}"):
        translate("a.mat", np.array([[0, stored]]), table)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_labels_that_are_no_whole_numbers(value):
    stored = np.array([[0.0, 0.0], [0.0, value]])
    with pytest.raises(UnreadableFileError, match=rf"a\.mat: the label at row 1, column 1 is {value} \(1 such"):
        translate("a.mat", stored, value_table({0: 0}, 1))


def test_a_newer_file_of_matlab(tmp_path):
    path = tmp_path / "a.mat"
    path.write_bytes(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    with pytest.raises(UnreadableFileError, match=r"a\.mat: a file of MATLAB 7\.3, which is HDF5"):
        read_mat(path, "LabelMap")


@pytest.mark.parametrize("stored", [np.zeros((2, 2, 3)), "text", None])
def test_what_is_no_label_map(stored):
    with pytest.raises(UnreadableFileError, match=r"a\.mat: labels are .* expected a matrix of whole numbers"):
        translate("a.mat", stored, value_table({0: 0}, 1))


# Files


def test_files_hold_indices_and_the_palette(tmp_path):
    labels = random_labels([0, 1, 2, 255])
    assert label_files(tmp_path, lambda name: labels.astype(np.uint8), ["a"]) == 1
    with Image.open(tmp_path / "labels/a.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), labels)
        assert image.getpalette()[:9] == [value for color in PALETTE for value in color]
        assert image.convert("RGB").getpixel((0, 0)) == PALETTE[labels[0, 0]]


def test_files_that_exist_are_not_made_again(tmp_path):
    made = []

    def make(name):
        made.append(name)
        return constant()

    assert label_files(tmp_path, make, ["a"]) == 1
    assert label_files(tmp_path, make, ["a", "b", "b"]) == 1
    assert made == ["a", "b"]


def test_failures_come_together_at_the_end_and_the_rest_is_done(tmp_path):
    def make(name):
        if name in "bc":
            raise UnknownLabelError(f"{name}.mat: what is this?")
        return constant()

    with pytest.raises(DataError, match=r"(?s)2 of 3 label maps could not be converted.*b\.mat: what.*c\.mat: what"):
        label_files(tmp_path, make)
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["a.png"]
    with pytest.raises(UnknownLabelError, match=r"^b\.mat"):
        label_files(tmp_path, make, ["a", "b"])
    with pytest.raises(DataError, match="and 2 more"):
        label_files(tmp_path, lambda name: make("b"), [f"x{i}" for i in range(12)])


def test_labels_of_another_size_than_the_image(tmp_path):
    save_image(tmp_path / "images/a.jpg")
    label_files(tmp_path, lambda name: constant(), ["a", "image elsewhere"])
    save_image(tmp_path / "images/b.jpg")
    with pytest.raises(SizeMismatchError, match=r"b: the release's labels are 31×24 but the image .*b\.jpg is 32×24"):
        label_files(tmp_path, lambda name: constant(size=(24, 31)), ["b"])
    assert not (tmp_path / "labels/b.png").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def fail(image, file, **options):
        file.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="no space left"):
        label_files(tmp_path, lambda name: constant(), ["a"])
    assert list((tmp_path / "labels").iterdir()) == []


@pytest.fixture
def cancelled(monkeypatch):
    """Set once the pool has cancelled what was not begun: work that waits for it is never ahead of the interrupt."""
    done = Event()

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            done.set()
            super().shutdown(wait=wait)

    monkeypatch.setattr("emalab.data.conversion.ThreadPoolExecutor", Pool)
    return done


def test_an_interrupt_stops_at_once_and_the_next_run_goes_on(tmp_path, cancelled):
    names = [f"{i:03}" for i in range(20)]

    def make(name):
        if name == "003":
            raise KeyboardInterrupt
        if name > "003":
            cancelled.wait()
        return constant()

    with pytest.raises(KeyboardInterrupt):
        label_files(tmp_path, make, names, num_threads=1)
    done = {path.stem for path in (tmp_path / "labels").iterdir()}
    assert done - {"004"} == {"000", "001", "002"}  # the thread may have begun one more
    assert label_files(tmp_path, lambda name: constant(), names) == 20 - len(done)
    assert {path.name for path in (tmp_path / "labels").iterdir()} == {f"{name}.png" for name in names}


def test_an_interrupt_of_the_progress_bar_stops_the_work_too(monkeypatch, cancelled):
    started = []

    def work(i):
        started.append(i)
        return i == 0 or cancelled.wait()

    def interrupted(results, **options):
        yield next(results)
        raise KeyboardInterrupt

    monkeypatch.setattr("emalab.data.conversion.progress_bar", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(work, range(20), "naps", 1, progress=False)
    assert started in ([0], [0, 1])


def test_results_are_in_order():
    assert run_all(lambda i: i * i, range(20), "squares", 4, progress=False) == [i * i for i in range(20)]


def test_progress_is_shown_when_asked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    label_files(tmp_path, lambda name: constant(), ["a"], progress=True)
    assert "writing labels" in capsys.readouterr().err
    label_files(tmp_path, lambda name: constant(), ["b"])
    assert capsys.readouterr().err == ""


def test_lists_are_sorted(tmp_path):
    write_names(tmp_path / "lists/train.txt", {"b", "a"})
    assert (tmp_path / "lists/train.txt").read_text() == "a\nb\n"
    assert len(list((tmp_path / "lists").iterdir())) == 1
