"""From the files of a benchmark's official release to a data root that `load_dataset` reads."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from emalab.data import get_spec, load_dataset
from emalab.data.archives import ArchiveError, download, unpack, verify
from emalab.data.dataset import SegmentationDataset
from emalab.data.errors import DataError, MissingFileError
from emalab.data.releases import Archive, get_release

DOWNLOADS = "archives"  # folder under the data root


def prepare_dataset(
    name: str,
    root: Path,
    source: Path | None = None,
    *,
    keep_archives: bool = False,
    progress: bool = False,
    report: Callable[[str], None] = print,
) -> dict[str, int]:
    """Download, verify, unpack and convert what the data set `name` consists of, as far as that is not done yet.

    It can be stopped at any moment and goes on from there when called again. What another data set has unpacked
    (VOC's images for PASCAL Context's two benchmarks, say) is not fetched again.

    Args:
        name: the data set.
        root: the data root; made where it does not exist. Downloads go to `root/archives`.
        source: a folder that holds the archives of the release; nothing is downloaded then, and they are kept.
        keep_archives: keep downloaded archives, too, once they are unpacked.
        progress: show progress bars.
        report: takes a line for each step.

    Returns:
        The number of images in each split; empty for generated data.

    Raises:
        DataError: there is no such data set or no public release of it, an archive is missing in `source`, cannot be
            downloaded, or is not the published one, the disk is too small, or what came out is incomplete.
    """
    release = get_release(name)
    if release is None:
        report(f"{name} is generated: there is nothing to prepare")
        return {}
    try:
        counts = _look(name, root)
    except DataError:
        pass
    else:
        report(f"{name} is already prepared in {root}: {_in_words(counts)}")
        return counts

    needed = [choices for choices in release.archives if not any(archive.unpacked(root) for archive in choices)]
    folder = root / DOWNLOADS if source is None else source
    files = [(choices[0], folder / choices[0].name) for choices in needed] if source is None else _find(needed, source)
    if root.exists() and not root.is_dir():
        raise DataError(f"the data root {root} is a file; name a folder, which is made if need be (--data-root)")
    root.mkdir(parents=True, exist_ok=True)
    _check_space(root, [archive for archive, _ in files], downloaded=source is None, kept=keep_archives)
    for archive, path in files:
        if source is None:
            _download(archive, path, progress, report)
        else:
            report(f"{path}: {_verified(verify(path, archive.checksum, archive.size), archive)}")
        report(f"unpacking {path.name}")
        unpack(path, root, archive.parts, progress=progress)
        if source is None and not keep_archives:
            path.unlink()
            if not any(folder.iterdir()):
                folder.rmdir()
    if release.convert is not None:
        report("converting labels and lists")
        release.convert(root, progress=progress)
    counts = _look(name, root)
    report(f"{name} is prepared in {root}: {_in_words(counts)}")
    return counts


def _look(name: str, root: Path) -> dict[str, int]:
    """Images in each split; `DataError` when a list, an image or a label file is missing or a split is not whole."""
    spec, counts = get_spec(name), {}
    for split in spec.splits:
        dataset = load_dataset(name, split, root)
        counts[split], published = len(dataset), spec.published_size(split)
        if published not in (None, len(dataset)):
            raise DataError(f"{name}: {split} has {len(dataset)} images under {root}, the release {published}")
        assert isinstance(dataset, SegmentationDataset)
        missing = [path for pair in dataset.pairs for path in pair if not path.is_file()]
        if missing:
            raise MissingFileError(f"{missing[0]}: no such file ({len(missing)} of {split} are missing)")
    return counts


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{split} {count}" for split, count in counts.items())


def _find(needed: list[tuple[Archive, ...]], source: Path) -> list[tuple[Archive, Path]]:
    """The archives among the files of the folder `source`; `MissingFileError` names every one that is not there."""
    if not source.is_dir():
        raise MissingFileError(f"{source} is not a folder; --from takes the one that holds the release's archives")

    def files(choices: tuple[Archive, ...]) -> Iterator[tuple[Archive, Path]]:
        return ((archive, source / name) for archive in choices for name in archive.names)

    found = [next(((archive, path) for archive, path in files(choices) if path.is_file()), None) for choices in needed]
    if None in found:
        missing = [choices for choices, hit in zip(needed, found, strict=True) if hit is None]
        names = "; ".join(" or ".join(path.name for _, path in files(choices)) for choices in missing)
        raise MissingFileError(f"{source} lacks {names}. Download from {' and '.join(c[0].url for c in missing)}")
    return [hit for hit in found if hit is not None]


def _check_space(root: Path, archives: list[Archive], *, downloaded: bool, kept: bool) -> None:
    """`DataError` where the disk is too small. The archives hold compressed images: unpacked, they are as large."""
    sizes = [archive.rough_size for archive in archives]
    still_to_come = [
        size - path.stat().st_size if (path := root / DOWNLOADS / archive.name).exists() else size
        for archive, size in zip(archives, sizes, strict=True)
    ]
    needed = sum(sizes)
    if downloaded:
        needed += sum(still_to_come) if kept else max(still_to_come, default=0)
    free = shutil.disk_usage(root).free
    if needed > free:
        raise DataError(
            f"{root} has {free / 1e9:.1f} GB free, but about {needed / 1e9:.1f} GB are needed. "
            "Make room, or take a --data-root on another disk."
        )


def _download(archive: Archive, path: Path, progress: bool, report: Callable[[str], None]) -> None:
    if path.is_file():
        try:
            report(f"{path}: {_verified(verify(path, archive.checksum, archive.size), archive)}")
            return
        except ArchiveError:
            path.unlink()
    report(f"downloading {archive.url}")
    actual = download(archive.url, path, archive.checksum, size=archive.size, progress=progress)
    report(f"{path}: {_verified(actual, archive)}")


def _verified(actual: str, archive: Archive) -> str:
    return f"{actual}, as published" if archive.checksum else f"{actual} (no checksum is published)"
