"""`emalab data prepare NAME` and `emalab data check NAME`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from emalab.commands.environment import DEFAULT_ROOT, default_data_root
from emalab.data.names import check_name, is_folder_name
from emalab.data.required import check_data

__all__ = ["check", "prepare"]

_LINES = 30  # of a proposal, as it is shown; the file has all


def prepare(
    name: Positional[str],
    source: Annotated[Path | None, arg(name="from")] = None,
    data_root: Path | None = None,
    keep_archives: bool = False,
) -> None:
    """Get a benchmark from its official release: download, verify, unpack and convert what is not there yet.

    A run that was stopped goes on where it was when it is started again. Without a network, download the archives
    elsewhere and name their folder with --from; the error for an empty folder lists their names and addresses.

    Args:
        name: camvid, voc (3.4 GB), context-59 or context-60 (1.3 GB together), coco-stuff-10k (2 GB), coco-stuff-164k
            or coco-voc (21 GB together).
        source: folder with the release's archives, which are kept; nothing is downloaded then.
        data_root: where the data goes; $EMALAB_DATA by default, and data/ here without one.
        keep_archives: keep downloaded archives, in archives/ under the data root, once they are unpacked.
    """
    check_name(name)
    if source is not None and not source.is_dir():
        raise FileNotFoundError(f"{source} is not a folder; --from takes the one that holds the release's archives")
    from emalab.data.prepare import prepare_dataset

    root = data_root or default_data_root() or DEFAULT_ROOT
    prepare_dataset(name, root, source, keep_archives=keep_archives, progress=True)


def check(
    name: Positional[str], data_root: Path | None = None, write: bool = False, preview: Path | None = None
) -> None:
    """Decode every file of a data set; report what is missing, unreadable, mismatched in size or wrongly labeled.

    For a folder of your own it also reports what was assumed, which files are not used, and the share of each class. A
    folder without classes.yaml has one proposed from the values in its masks.

    Args:
        name: data set, or the path of a folder of your own (`emalab.data.folder` says what it holds).
        data_root: folder with the unpacked releases; $EMALAB_DATA by default, and data/ here without one.
        write: write what a folder of your own lacks: classes.yaml as proposed, and splits/ where there are no splits.
        preview: file for a picture of some images beside their labels, such as preview.png.
    """
    root = data_root or default_data_root()
    check_data(name, root)
    from emalab.data.check import check_dataset

    if is_folder_name(name) and not _is_described(name, write):
        raise SystemExit(1)
    report = check_dataset(name, root, progress=True)
    print(report)
    if preview is not None and report.counts:
        from emalab.data import load_dataset
        from emalab.data.preview import write_preview

        write_preview(load_dataset(name, next(iter(report.counts)), root), preview)
        print(f"wrote {preview}")
    if not report.ok:
        raise SystemExit(1)


def _is_described(name: str, write: bool) -> bool:
    """Whether a folder has a classes.yaml; proposes one where it has not, and writes it where that is wanted."""
    from emalab.data.folder_labels import CLASSES_FILE, folder_of
    from emalab.data.propose import propose_labels
    from emalab.recipes.from_folder import complete_folder

    folder = folder_of(name)
    if write:
        complete_folder(name)
    if folder != Path(name) or not folder.is_dir() or (folder / CLASSES_FILE).exists():
        return True
    proposal = propose_labels(folder, progress=True)
    print(f"{proposal.file} is missing. Proposed from the masks (--write keeps it there, to be edited):\n")
    lines = proposal.text.splitlines()
    if len(lines) > _LINES:
        lines[_LINES - 2 : -1] = [f"… {len(lines) - _LINES + 1} more lines"]
    print("\n".join(lines) + "\n")
    return False
