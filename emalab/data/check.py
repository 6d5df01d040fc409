"""Does a data set on the disk hold what its benchmark promises? Every file is decoded to find out."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from emalab.data import DatasetSpec, LabeledImages, get_spec, load_dataset
from emalab.data.conversion import run_all
from emalab.data.dataset import FilePair, SegmentationDataset
from emalab.data.errors import DataError
from emalab.data.folder import CLASSES_FILE, folder_notes, folder_of, read_labels
from emalab.data.folder_files import listed
from emalab.data.names import is_folder_name
from emalab.tables import aligned

_Result = TypeVar("_Result")

_Pixels = tuple[np.ndarray, np.ndarray]  # labels, and how many pixels of each; the ignored one counts as the last class

_TABLE_ROWS = 32  # classes above which a report's table of pixels has the most frequent ones alone
_FREQUENT_ROWS = 10
_FREQUENT = 0.01  # part of pixels above which an ignored value is suspicious beside a class without a pixel
_SHOWN = 10  # problems of one kind that a printed report lists


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the file, the kind (`DataError.kind`), and a message that says what to do."""

    file: Path
    kind: str
    message: str


@dataclass
class CheckReport:
    """What `check_dataset` found.

    Args:
        name: the data set.
        counts: number of samples in each split.
        problems: what is wrong.
        notes: what is only worth knowing: what was assumed, and which files are not used.
        warnings: what is probably not as it was meant.
        pixels: split -> number of pixels of each class, and last of ignored ones.
        classes: their names.
    """

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every file is as it should be."""
        return not self.problems

    def __str__(self) -> str:
        counts = ", ".join(f"{split} {count}" for split, count in self.counts.items()) or "no split could be read"
        lines = [f"{self.name}: {counts}", *(f"note: {note}" for note in self.notes), *self._pixel_table()]
        lines += [f"warning: {warning}" for warning in self.warnings]
        by_kind = defaultdict(list)
        for problem in self.problems:
            by_kind[problem.kind].append(problem)
        for kind, problems in by_kind.items():
            lines.append(f"{kind}: {len(problems)}")
            lines += [f"  {problem.message}" for problem in problems[:_SHOWN]]
            if len(problems) > _SHOWN:
                lines.append(f"  … and {len(problems) - _SHOWN} more")
        order = "everything is in order" if not self.warnings else "every file can be read, but mind the warning above"
        lines.append(order if self.ok else f"problems: {len(self.problems)}")
        return "\n".join(lines)

    def _pixel_table(self) -> list[str]:
        """Percent of pixels of each class in each split; of many classes, the most frequent ones."""
        names = (*self.classes, "ignored")
        if not self.pixels:
            return []
        total = np.sum(list(self.pixels.values()), axis=0)
        shown, rest = list(range(len(names))), []
        if len(names) > _TABLE_ROWS:
            shown = [*np.argsort(-total[:-1], kind="stable")[:_FREQUENT_ROWS].tolist(), len(names) - 1]
            others, absent = len(self.classes) - _FREQUENT_ROWS, int((total[:-1] == 0).sum())
            rest = [f"and {others} classes with fewer pixels, {absent} of them with none"]
        columns = {split: 100 * counts / max(counts.sum(), 1) for split, counts in self.pixels.items()}
        rows: list[tuple[str, ...]] = [("pixels in %", *columns)]
        rows += [(names[row], *(_percent(column[row]) for column in columns.values())) for row in shown]
        return aligned(rows, right=range(1, len(rows[0]))) + rest


def check_dataset(
    name: str,
    root: Path | str | None,
    splits: Sequence[str] | None = None,
    *,
    num_threads: int | None = None,
    progress: bool = False,
) -> CheckReport:
    """Read every file of a data set and list what is missing, unreadable, of another size, or wrongly labeled.

    Args:
        name: the data set, one of `emalab.data.dataset_names()`.
        root: the folder that contains the unpacked releases.
        splits: the splits to check; all of them by default. A file in several splits is read once.
        num_threads: files read at a time; by default one for each processor.
        progress: show a progress bar.

    Returns:
        The report. A split that differs in size from the published one is a note, not a problem. Generated data has
        no files, so nothing can be wrong with it.

    Raises:
        DataError: there is no data set or split of this name.
    """
    spec = get_spec(name)
    report = CheckReport(name)
    samples: dict[FilePair, tuple[SegmentationDataset, int]] = {}
    pairs_of_split: dict[str, list[FilePair]] = {}
    for split in splits or spec.splits:
        try:
            dataset = load_dataset(name, split, root)
        except DataError as error:
            if split not in spec.splits:
                raise
            problem = Problem(Path(root or "."), error.kind, str(error))
            if problem not in report.problems:  # a missing root is one problem, not one for each split
                report.problems.append(problem)
            continue
        report.counts[split] = len(dataset)
        if (published := spec.published_size(split)) not in (None, len(dataset)):
            # A subset is a legitimate thing to train on, but its scores are not comparable.
            report.notes.append(f"{split} lists {len(dataset)} images, the published split has {published}")
        if isinstance(dataset, SegmentationDataset):
            samples |= {pair: (dataset, index) for index, pair in enumerate(dataset.pairs)}
            pairs_of_split[split] = list(dataset.pairs)

    found = run_all(
        lambda sample: _check_sample(*sample), list(samples.values()), f"checking {name}", num_threads, progress
    )
    report.problems += chain.from_iterable(problems for problems, _ in found)
    counts = {pair: pixels for pair, (_, pixels) in zip(samples, found, strict=True) if pixels is not None}
    report.classes = spec.classes
    for split, pairs in pairs_of_split.items():
        report.pixels[split] = _total((counts[pair] for pair in pairs if pair in counts), spec)
    if is_folder_name(name):
        _look_at_folder(name, spec, report)
    return report


def check_labels(name: str, splits: Sequence[str], *, progress: bool = False) -> list[str]:
    """The warnings that training on a folder begins with: classes without a pixel, and the like.

    Args:
        name: the folder's path.
        splits: of which to read the masks.
        progress: show a progress bar.

    Raises:
        DataError: a mask cannot be read, or training on these labels is of no use.
    """
    spec = get_spec(name)
    report = CheckReport(name, classes=spec.classes)
    for split in dict.fromkeys(splits):
        dataset = load_dataset(name, split)

        def count(index: int, dataset: LabeledImages = dataset) -> _Pixels:
            return _pixels(dataset.mask(index), spec)

        counts = run_all(count, range(len(dataset)), f"reading masks of {split}", None, progress)
        report.pixels[split] = _total(counts, spec)
    _look_at_pixels(name, spec, report)
    if report.problems:
        raise DataError(report.problems[0].message)
    return report.warnings


def _look_at_folder(name: str, spec: DatasetSpec, report: CheckReport) -> None:
    report.notes += folder_notes(name)
    if not report.problems:  # else the labels are not all known
        _look_at_pixels(name, spec, report)


def _look_at_pixels(name: str, spec: DatasetSpec, report: CheckReport) -> None:
    """Labels that are there and still cannot be meant: in a folder nobody else has looked at them."""
    file = folder_of(name) / CLASSES_FILE
    for split, pixels in report.pixels.items():
        if pixels.sum() and not pixels[:-1].sum():
            message = f"{file}: every pixel of {split} is ignored, so it can neither train nor be scored"
            report.problems.append(Problem(file, "unused", message + _way_out(name, spec, pixels)))
    total = np.sum(list(report.pixels.values()), axis=0)
    absent = [name for name, count in zip(spec.classes, total, strict=False) if not count]
    if not total[:-1].sum() or not absent:
        return
    ignored = total[-1] / total.sum()
    message = f"{file}: {listed(absent)} {'has' if len(absent) == 1 else 'have'} no pixel"
    suspicious = ignored >= _FREQUENT and (
        spec.num_classes <= _TABLE_ROWS or len(absent) == 1
    )  # of many, some are rare
    if suspicious:
        message += f", while {100 * ignored:.3g} % of pixels are ignored{_way_out(name, spec, total)}"
    if spec.num_classes - len(absent) < 2 and ignored >= _FREQUENT:
        report.problems.append(Problem(file, "unused", message))
    else:
        report.warnings.append(message)


def _way_out(name: str, spec: DatasetSpec, pixels: np.ndarray) -> str:
    """What `values` to write, where one class has no pixel and one value is ignored."""
    root = Path(name)
    labels = read_labels(root if root.suffix in (".yaml", ".yml") else root / CLASSES_FILE)
    absent = [label for label in range(spec.num_classes) if not pixels[label]]
    ignored = [entry for entry in labels.ignored if isinstance(entry, int)]
    if labels.colors or len(absent) != 1 or len(ignored) != 1 or spec.num_classes > _TABLE_ROWS:
        return "; correct values or ignore there"
    values = list(labels.values or range(spec.num_classes))
    values[absent[0]] = ignored[0]
    shown = str([list(value) if isinstance(value, tuple) else value for value in values])
    also = "" if labels.ignore is None else " and leave ignore out"
    return f"; if masks store {ignored[0]} for {spec.classes[absent[0]]}, write values: {shown}{also}"


def _pixels(mask: torch.Tensor, spec: DatasetSpec) -> _Pixels:
    """The pixels of labels (h, w); few numbers, whatever the number of classes, as there can be many masks."""
    counts = np.bincount(np.asarray(mask).reshape(-1), minlength=spec.ignore_index + 1)
    counts = np.append(counts[: spec.num_classes], counts[spec.ignore_index])
    present = np.flatnonzero(counts)
    return present, counts[present]


def _total(found: Iterable[_Pixels], spec: DatasetSpec) -> np.ndarray:
    """Pixels of each class in all masks, and last of ignored ones: (classes + 1,)."""
    total = np.zeros(spec.num_classes + 1, np.int64)
    for labels, counts in found:
        total[labels] += counts
    return total


def _percent(value: float) -> str:
    return "0" if value == 0 else "<0.01" if value < 0.005 else f"{value:.2f}"


def _check_sample(dataset: SegmentationDataset, index: int) -> tuple[list[Problem], _Pixels | None]:
    """The problems of one pair of files, both looked at even when one is bad, and the pixels of each class."""
    pair = dataset.pairs[index]
    problems: list[Problem] = []

    def attempt(file: Path, read: Callable[[], _Result]) -> _Result | None:
        try:
            return read()
        except DataError as error:
            problems.append(Problem(file, error.kind, str(error)))
            return None

    image = attempt(pair.image, lambda: dataset.decode_image(index))
    mask = attempt(pair.mask, lambda: dataset.read_mask(index))
    labels = None if mask is None else attempt(pair.mask, lambda: dataset.labels(index, mask))
    if image is not None and mask is not None and labels is not None:
        attempt(pair.mask, lambda: dataset.joined(index, image, mask))
    return problems, None if labels is None else _pixels(labels, dataset.spec)
