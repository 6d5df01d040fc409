"""Release archives: downloaded with resume, verified, and unpacked whole or not at all."""

import errno
import gzip
import hashlib
import http.client
import shutil
import ssl
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath

from tqdm.auto import tqdm

from emalab.data.errors import DataError

_CHUNK = 1 << 20  # bytes read at a time
_PATIENCE = 60.0  # seconds without a byte after which a connection counts as lost
_LOST = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError)

_UNWRITABLE = (errno.EEXIST, errno.EINVAL, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR)


class ArchiveError(DataError):
    """An archive that is damaged, not the expected one, or would write outside its folder."""

    kind = "archive"


class DownloadError(DataError):
    """A file that could not be downloaded."""

    kind = "download"


@dataclass(frozen=True)
class Part:
    """A folder of an archive that belongs somewhere under the data root.

    Args:
        source: the folder in the archive, or a pattern that this one folder matches; empty for all of the archive.
        target: where its contents go; empty for the data root itself.
        files: pattern -> how many files of it there are in the folder, at least.
    """

    source: str = ""
    target: str = ""
    files: Mapping[str, int] = field(default_factory=dict)

    def lacking(self, folder: Path) -> str | None:
        """What there are too few of in `folder`, which should hold this part; None where it is complete."""
        for pattern, expected in self.files.items():
            if (found := sum(1 for _ in folder.glob(pattern))) < expected:
                return f"{found} of {expected} {pattern}"
        return None


def verify(path: Path, checksum: str | None, size: int | None = None) -> str:
    """Compare a file with what is published about it.

    Args:
        path: the file.
        checksum: `"md5:…"`, `"sha256:…"` or any other algorithm of hashlib; None where none is published.
        size: in bytes; None where it is not known.

    Returns:
        The file's checksum: by the algorithm of `checksum`, else by sha256.

    Raises:
        ArchiveError: one of them differs.
    """
    if size is not None and (found := path.stat().st_size) != size:
        raise ArchiveError(f"{path}: has {found} bytes, the release has {size}. Download it again.")
    algorithm = checksum.partition(":")[0] if checksum else "sha256"
    with path.open("rb") as file:
        actual = f"{algorithm}:{hashlib.file_digest(file, algorithm).hexdigest()}"
    if checksum and actual != checksum:
        raise ArchiveError(f"{path}: its checksum is {actual}, the release's {checksum}. Download it again.")
    return actual


def download(
    url: str,
    path: Path,
    checksum: str | None = None,
    *,
    size: int | None = None,
    attempts: int = 5,
    pause: float = 2.0,
    progress: bool = False,
) -> str:
    """Fetch `url` into `path`, going on where an earlier call stopped.

    The bytes collect in `PATH.part`, which becomes `path` once it is complete and verified. A connection that breaks
    off is taken up again at the same byte; where the server cannot do that, the file is begun anew.

    Args:
        url: address of the file.
        path: where it goes; the folder is made.
        checksum, size: see `verify`.
        attempts: connections in a row that may fail, without a byte in between, before giving up.
        pause: seconds until the second of them; doubled for each further one.
        progress: show a progress bar.

    Returns:
        The checksum, as `verify` gives it.

    Raises:
        DownloadError: the server cannot be reached, refuses, or breaks off time and again. What came is kept.
        ArchiveError: the file is not the expected one; it is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            _fetch(url, part, progress)
            break
        except _LOST as error:
            failures = 1 if _size(part) > before else failures + 1
            if not _may_pass(error) or failures >= attempts:
                reason = error.reason if type(error) is urllib.error.URLError else error  # not <urlopen error …>
                kept = f" {_size(part)} bytes are kept in {part} to go on from." if _size(part) else ""
                raise DownloadError(
                    f"{url} cannot be downloaded: {reason}.{kept} Try again later, or get {path.name} by other means "
                    "and name its folder with --from."
                ) from error
            time.sleep(pause * 2 ** (failures - 1))
    try:
        actual = verify(part, checksum, size)
    except ArchiveError as error:
        part.unlink()
        raise ArchiveError(f"{url} does not give the expected file, which was removed: {error}") from error
    part.replace(path)
    return actual


def _may_pass(error: Exception) -> bool:
    """Whether trying again can help, as it does not for a wrong address, a refusal or a bad certificate."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code in (http.client.REQUEST_TIMEOUT, http.client.TOO_MANY_REQUESTS)
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    broken = (ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)
    return isinstance(cause, broken) and not isinstance(cause, ssl.SSLCertVerificationError)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _fetch(url: str, part: Path, progress: bool) -> None:
    """Append to `part` what it lacks, over one connection; one of `_LOST` when that breaks off."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"User-Agent": "emalab", "Accept-Encoding": "identity"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=_PATIENCE)
    except urllib.error.HTTPError as error:
        if not (start and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE):
            raise
        if error.headers.get("Content-Range") != f"bytes */{start}":
            part.unlink()  # longer than the file: the beginning of another one
            _fetch(url, part, progress)
        return
    with response:
        if response.headers.get("Content-Range", "").partition("-")[0] != f"bytes {start}":
            start = 0  # the server sends all of it
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        received = start
        with (
            part.open("r+b" if start else "wb") as file,
            tqdm(
                desc=part.stem, initial=start, total=total, unit="B", unit_scale=True, miniters=1, disable=not progress
            ) as bar,
        ):
            file.seek(start)
            while data := response.read1(_CHUNK):  # what has come: none of it is lost when the rest does not
                file.write(data)
                file.flush()
                received += len(data)
                bar.update(len(data))
    if total is not None and received < total:
        raise ConnectionError(f"the connection broke off after {received} of {total} bytes")


def unpack(archive: Path, folder: Path, parts: Sequence[Part] = (Part(),), *, progress: bool = False) -> None:
    """Unpack a .tar, .tar.gz, .tgz or .zip: all of it, or nothing. A .json is taken for an archive of itself.

    It is unpacked into a hidden folder inside `folder`, and moved from there once it is complete. Folders that exist
    are added to; files that exist must be of the same size, as after a move that was interrupted, and are replaced.

    Args:
        archive: the file.
        folder: an existing folder, such as the data root.
        parts: what of it goes where under `folder`; by default all of it. The rest is left out.
        progress: show a progress bar.

    Raises:
        ArchiveError: the archive is damaged or truncated, has a member that would be written outside the folder
            (`../`, an absolute path, a link) or is no file (a device), lacks something of `parts`, or a file that is
            already there differs.
    """
    if not hasattr(tarfile, "data_filter"):
        raise ArchiveError(f"{archive}: to unpack it safely needs Python 3.11.4 or newer")
    members = {".zip": _unpack_zip, ".json": _copy}.get(archive.suffix, _unpack_tar)
    temporary = folder / f".{archive.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)  # of an earlier call that was killed
    temporary.mkdir()
    try:
        with tqdm(desc=f"unpacking {archive.name}", unit=" files", disable=not progress) as bar:
            for _ in members(archive, temporary):
                bar.update()
        moves = [(_find(temporary, part, archive), folder / part.target) for part in parts]
        conflicts = [path for source, target in moves for path in _conflicts(source, target)]
        if conflicts:
            raise ArchiveError(
                f"{conflicts[0]} is not the file that {archive.name} holds ({len(conflicts)} such in all). "
                "Remove what is there, or take another --data-root."
            )
        for source, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            _merge(source, target)
    except tarfile.FilterError as error:
        raise ArchiveError(f"{archive}: refused, as it is not safe to unpack: {error}") from error
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise ArchiveError(f"{archive}: damaged or incomplete ({reason}). Download it again.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _unpack_tar(archive: Path, folder: Path) -> Iterator[str]:
    with tarfile.open(archive) as tar:
        for member in tar:
            with _writing(archive, member.name):
                tar.extract(member, folder, filter="data")
            yield member.name
        # tarfile takes anything but a header for the end. A true end is zeros, or the end of the file; reading on to
        # the end of the stream checks gzip's checksum.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"no header of a member at byte {tar.offset}")
        while tar.fileobj.read(_CHUNK):
            pass


def _unpack_zip(archive: Path, folder: Path) -> Iterator[str]:
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ArchiveError(f"{archive}: refused, as {member.filename!r} is a link or a device")
            with _writing(archive, member.filename):
                file.extract(member, folder)
            yield member.filename


def _copy(file: Path, folder: Path) -> Iterator[str]:
    shutil.copyfile(file, folder / file.name)
    yield file.name


@contextmanager
def _writing(archive: Path, name: str) -> Iterator[None]:
    """Refuse a member whose name is unsafe, or that cannot be written for what it is; a full disk is no such thing."""
    _check_name(archive, name)
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        raise ArchiveError(
            f"{archive}: its member {name[:80]!r} cannot be written ({error.strerror}): the name is too long, or is "
            "that of a file and of a folder. Is it the right file?"
        ) from error


def _check_name(archive: Path, name: str) -> None:
    """`ArchiveError` unless `name` is a relative path without `..`, to POSIX and to Windows."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.anchor or ".." in path.parts:
            raise ArchiveError(f"{archive}: refused, as it would write outside its folder: {name!r}")


def _find(folder: Path, part: Part, archive: Path) -> Path:
    """The folder `part.source` of an archive that was unpacked into `folder`."""
    matches = sorted(folder.glob(part.source)) if part.source else [folder]
    if len(matches) != 1:
        raise ArchiveError(f"{archive}: holds {len(matches)} of {part.source}, expected one. Is it the right file?")
    if lacking := part.lacking(matches[0]):
        raise ArchiveError(f"{archive}: holds {lacking}. Is it the right file, and whole?")
    return matches[0]


def _conflicts(source: Path, target: Path) -> Iterator[Path]:
    """Paths under `target` that `_merge` would overwrite with something else."""
    if source.is_dir() and target.is_dir():
        for path in source.iterdir():
            yield from _conflicts(path, target / path.name)
    elif target.exists() and (source.is_dir() or target.is_dir() or source.stat().st_size != target.stat().st_size):
        yield target


def _merge(source: Path, target: Path) -> None:
    """Move `source` to `target`, into the folders that are already there."""
    if source.is_dir() and target.is_dir():
        for path in source.iterdir():
            _merge(path, target / path.name)
    else:
        shutil.move(source, target)  # not rename: parts of a data root may be links to other disks
