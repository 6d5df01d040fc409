"""What a segmentation benchmark is, apart from its files: classes, colors, splits and the headline score."""

from dataclasses import dataclass

Color = tuple[int, int, int]


def ignored_label(num_classes: int) -> int:
    """The label of ignored pixels for so many classes: 255 for up to 254, and 65535 for more.

    The label below it, 254 or 65534, marks unknown values while files are read.
    """
    return 255 if num_classes <= 254 else 65535


@dataclass(frozen=True)
class DatasetSpec:
    """The constants of one benchmark.

    Args:
        name: how commands and recipes call it, e.g. `"camvid"`.
        title: how a table or a figure calls it.
        classes: class names; the position is the label value after loading.
        palette: one RGB color (0–255) for each class.
        splits: names of the lists of images.
        source: the release that the labels come from, and its terms.
        ignore_index: label value of pixels that neither train nor count: 255, or 65535 beside more than 254 classes.
            Masks are uint8 with 255, and int32 with 65535.
        report_name: name of the headline score.
        report_classes: classes that the headline score averages over; empty for all of them.
        split_sizes: published number of images of each split; empty where none is published.
        unlabeled_splits: names of the lists of images whose labels the benchmark keeps to itself.
        channels: of every image: 3 for RGB, 1 for gray, or the number of bands.
        bits: depth of images of more than 8 bits, where their files do not state it.

    Raises:
        ValueError: the fields contradict each other.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    splits: tuple[str, ...]
    source: str
    ignore_index: int = 255
    report_name: str = "mIoU"
    report_classes: tuple[str, ...] = ()
    split_sizes: tuple[int, ...] = ()
    unlabeled_splits: tuple[str, ...] = ()
    channels: int = 3
    bits: int | None = None

    def __post_init__(self) -> None:
        def fail(reason: str) -> None:
            raise ValueError(f"DatasetSpec {self.name!r}: {reason}")

        if not self.classes or not self.splits:
            fail("needs at least one class and one split")
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for i, name in enumerate(self.classes) if name in self.classes[:i])
            fail(f"class names repeat: {twice!r} is there twice")
        if len(self.palette) != len(self.classes):
            fail(f"{len(self.classes)} classes but {len(self.palette)} palette colors")
        for color in self.palette:
            if len(color) != 3 or not all(0 <= value <= 255 for value in color):
                fail(f"palette color {color} is not RGB in 0–255")
        count, most = len(self.classes), 254 if self.ignore_index <= 255 else 65534
        if count > most:
            fail(
                f"{count} classes; with ignore_index {self.ignore_index} at most {most} fit"
                + ", take 65535" * (most < 255)
            )
        if not count <= self.ignore_index <= 65535:
            fail(f"ignore_index {self.ignore_index} must lie above the {count} labels, and at most at 65535")
        if unknown := set(self.report_classes) - set(self.classes):
            fail(f"report_classes {sorted(unknown)} are not among its classes")
        if self.split_sizes and len(self.split_sizes) != len(self.splits):
            fail(f"{len(self.splits)} splits but {len(self.split_sizes)} split_sizes")

    @property
    def num_classes(self) -> int:
        """Number of classes, the ignored label not counted."""
        return len(self.classes)

    def published_size(self, split: str) -> int | None:
        """Number of images of `split` in the published benchmark; None where none is published."""
        return dict(zip(self.splits, self.split_sizes, strict=False)).get(split)

    @property
    def report_indices(self) -> tuple[int, ...]:
        """Labels that the headline score averages over, in the order of `report_classes`."""
        label = {name: i for i, name in enumerate(self.classes)}
        return tuple(label[name] for name in self.report_classes or self.classes)


def channels_in_words(channels: int) -> str:
    """What images of so many channels are called: "RGB", "gray", or such as "of 4 channels"."""
    return {1: "gray", 3: "RGB"}.get(channels, f"of {channels} channels")


def channels_of(count: int) -> str:
    """Such as "4 channels"."""
    return f"{count} channel{'s' * (count != 1)}"
