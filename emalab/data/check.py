"""Does a data set on the disk hold what its benchmark promises? Every file is decoded to find out."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TypeVar

from emalab.data import get_spec, load_dataset
from emalab.data.conversion import run_all
from emalab.data.dataset import SegmentationDataset
from emalab.data.errors import DataError

_Result = TypeVar("_Result")

_SHOWN = 10  # problems of one kind that a printed report lists


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the file, the kind (`DataError.kind`), and a message that says what to do."""

    file: Path
    kind: str
    message: str


@dataclass
class CheckReport:
    """What `check_dataset` found: the number of samples in each split, the problems, and what is only worth knowing."""

    name: str
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every file is as it should be."""
        return not self.problems

    def __str__(self) -> str:
        counts = ", ".join(f"{split} {count}" for split, count in self.counts.items()) or "no split could be read"
        lines = [f"{self.name}: {counts}", *(f"note: {note}" for note in self.notes)]
        by_kind = defaultdict(list)
        for problem in self.problems:
            by_kind[problem.kind].append(problem)
        for kind, problems in by_kind.items():
            lines.append(f"{kind}: {len(problems)}")
            lines += [f"  {problem.message}" for problem in problems[:_SHOWN]]
            if len(problems) > _SHOWN:
                lines.append(f"  … and {len(problems) - _SHOWN} more")
        lines.append("everything is in order" if self.ok else f"problems: {len(self.problems)}")
        return "\n".join(lines)


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
    samples: dict[tuple[Path, Path], tuple[SegmentationDataset, int]] = {}
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

    found = run_all(
        lambda sample: _check_sample(*sample), list(samples.values()), f"checking {name}", num_threads, progress
    )
    report.problems += chain.from_iterable(found)
    return report


def _check_sample(dataset: SegmentationDataset, index: int) -> list[Problem]:
    """The problems of one pair of files; both are looked at even when one is bad."""
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
    if image is not None and mask is not None:
        attempt(pair.mask, lambda: dataset.joined(index, image, mask))
    elif mask is not None:
        attempt(pair.mask, lambda: dataset.labels(index, mask))
    return problems
