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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, Literal, NamedTuple

from filelock import FileLock, Timeout

from emalab.data.errors import DataError
from emalab.progress import progress_bar

_CHUNK = 1 << 20  # bytes read at a time
_PATIENCE = 60.0  # seconds without a byte after which a connection counts as lost
_LOST = (urllib.error.URLError, ConnectionError, TimeoutError, ssl.SSLError, http.client.HTTPException)
_DAMAGED = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError, RuntimeError),
    *(ValueError, OverflowError, IndexError, KeyError, NotImplementedError),  # on nonsense in headers
)
_MAX_READ = 16 << 20  # bytes that a tar may ask for at a time, in a header say
MAX_MEMBERS = 1_000_000  # the largest release, COCO 2017, has 123 287 images

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
        ArchiveError: one of them differs, or it is no file.
    """
    if not path.is_file():
        raise ArchiveError(f"{path}: is {'a folder' if path.is_dir() else 'no file'}, where the release has a file.")
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
        ArchiveError: the file is not the expected one; it is removed. Or another process is downloading it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    for taken in (path, part):
        if taken.exists() and not taken.is_file():
            raise DownloadError(f"{taken} is a folder or a device, where a downloaded file belongs; remove it.")
    with _only_one(path.with_name(f".{path.name}.lock"), f"{url} is being downloaded"):
        return _download(url, path, part, checksum, size, attempts, pause, progress)


def _download(
    url: str,
    path: Path,
    part: Path,
    checksum: str | None,
    size: int | None,
    attempts: int,
    pause: float,
    progress: bool,
) -> str:
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
        if length is not None and not (length.isascii() and length.isdigit()):
            raise DownloadError(f"{url} cannot be downloaded: its server states a length of {length[:40]!r} bytes.")
        total = start + int(length) if length else None
        received = start
        with (
            part.open("r+b" if start else "wb") as file,
            progress_bar(
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


def unpack(
    archive: Path,
    folder: Path,
    parts: Sequence[Part] = (Part(),),
    *,
    max_bytes: int | None = None,
    max_members: int = MAX_MEMBERS,
    progress: bool = False,
) -> None:
    """Unpack a .tar, .tar.gz, .tgz or .zip: all of it, or nothing. A .json is taken for an archive of itself.

    Names, kinds and sizes of all members are checked before the first is written. It is unpacked into a hidden folder
    inside `folder`, and moved from there once it is complete. Folders that exist are added to; files that exist must be
    of the same size, as after a move that was interrupted, and are replaced.

    Args:
        archive: the file.
        folder: an existing folder, such as the data root.
        parts: what of it goes where under `folder`; by default all of it. The rest is left out.
        max_bytes: size of all members together; by default what is free on the disk.
        max_members: how many files and folders it may hold.
        progress: show a progress bar.

    Raises:
        ArchiveError: the archive is damaged, truncated or too large, has a member that would be written outside the
            folder (`../`, an absolute path) or is neither file nor folder (a link, a device), lacks something of
            `parts`, a file that is already there differs, or another process is unpacking it.
    """
    if not archive.is_file():
        raise ArchiveError(f"{archive}: is {'a folder' if archive.is_dir() else 'no file'}; an archive is a file.")
    open_members = {".zip": _zip_members, ".json": _one_member}.get(archive.suffix, _tar_members)
    free = shutil.disk_usage(folder).free
    bound = _Bound(archive, free if max_bytes is None else min(max_bytes, free), max_members)
    temporary = folder / f".{archive.name}.unpacking"
    with _only_one(temporary.with_name(f"{temporary.name}.lock"), f"{archive} is being unpacked"):
        _remove(temporary)  # of an earlier call that was killed
        temporary.mkdir()
        try:
            with _explained(archive):
                for member in open_members(archive, bound):
                    bound.check(member)
            bar = progress_bar(desc=f"unpacking {archive.name}", unit=" files", disable=not progress)
            with bar, _explained(archive):
                for member in open_members(archive, bound):
                    _write(member, temporary, archive)
                    bar.update()
            _move(archive, temporary, folder, parts)
        finally:
            _remove(temporary)


def _move(archive: Path, temporary: Path, folder: Path, parts: Sequence[Part]) -> None:
    """What was unpacked to its places, all of it or nothing."""
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


@contextmanager
def _explained(archive: Path) -> Iterator[None]:
    """Turn what the readers of archives raise on damaged bytes into an `ArchiveError`."""
    try:
        yield
    except DataError:
        raise
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0].rstrip(":") or type(error).__name__
        raise ArchiveError(f"{archive}: damaged or incomplete ({reason}). Download it again.") from error


class _Member(NamedTuple):
    """A file or folder of an archive: its name, its size in bytes, and how to open it; a folder opens as None."""

    name: str
    size: int
    kind: Literal["file", "folder", "other"]
    open: Callable[[], IO[bytes]]


@dataclass
class _Bound:
    """How much an archive may unpack to; `check` counts its members."""

    archive: Path
    max_bytes: int
    max_members: int
    size: int = 0
    count: int = 0

    def check(self, member: _Member) -> None:
        """Refuse a member that is harmful in itself, or one too many."""
        if member.kind == "other":
            raise ArchiveError(
                f"{self.archive}: refused, as {_shown(member.name)} is a link or a device; releases hold files alone."
            )
        _check_name(self.archive, member.name)
        self.size, self.count = self.size + max(member.size, 0), self.count + 1
        if self.size > self.max_bytes:
            raise ArchiveError(
                f"{self.archive}: refused, as it unpacks to more than {self.max_bytes / 1e9:.3g} GB, which is what the "
                "disk has free or the release should need. Make room, or check where the file comes from."
            )
        if self.count > self.max_members:
            raise ArchiveError(f"{self.archive}: refused, as it holds more than {self.max_members} files.")


def _write(member: _Member, folder: Path, archive: Path) -> None:
    """Write a member below `folder`, which holds nothing but what this function has written."""
    target = folder / PurePosixPath(member.name)
    try:
        (target if member.kind == "folder" else target.parent).mkdir(parents=True, exist_ok=True)
        # There are no links in here to follow. Should there be one after all, it ends here.
        if not target.parent.resolve().is_relative_to(folder.resolve()):
            raise ArchiveError(f"{archive}: refused, as it would write outside its folder: {_shown(member.name)}")
        if member.kind == "file":
            with member.open() as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
    except OSError as error:
        if error.errno not in _UNWRITABLE:  # a full disk is no fault of the archive
            raise
        raise ArchiveError(
            f"{archive}: its member {_shown(member.name)} cannot be written ({error.strerror}): the name is too long, "
            "or is that of a file and of a folder. Is it the right file?"
        ) from error


class _Stream:
    """The bytes of a tar, unzipped: no more than `limit` of them, and never many at once.

    A header may claim to be of any size, and tarfile reads all of it into memory.
    """

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file, self._limit = file, limit

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        data = self._file.read(size)
        self._bounded(self._file.tell())
        return data

    def seek(self, position: int) -> int:
        self._bounded(position)
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()

    def _bounded(self, position: int) -> None:
        if position > self._limit:
            raise tarfile.ReadError(f"more than {self._limit} bytes")


def _tar_members(archive: Path, bound: _Bound) -> Iterator[_Member]:
    with ExitStack() as stack:
        raw = stack.enter_context(archive.open("rb"))
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        file: Any = stack.enter_context(gzip.GzipFile(fileobj=raw)) if zipped else raw
        # Twice the bound: each member takes a header and padding, and archives end in zeros.
        stream: Any = _Stream(file, 2 * bound.max_bytes + (bound.max_members + 100) * 4 * tarfile.BLOCKSIZE)
        tar = stack.enter_context(tarfile.open(fileobj=stream, mode="r:"))
        for info in tar:
            kind: Literal["file", "folder", "other"]
            kind = "file" if info.isfile() else "folder" if info.isdir() else "other"
            yield _Member(info.name, info.size, kind, partial(_open_in_tar, tar, info))
        # tarfile takes anything but a header for the end. A true end is zeros, or the end of the file; reading on to
        # the end of the stream checks gzip's checksum.
        stream.seek(tar.offset)
        if stream.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise tarfile.ReadError(f"no header of a member at byte {tar.offset}")
        while stream.read(_CHUNK):
            pass


def _open_in_tar(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    assert file is not None  # so for files, and no other kind is opened
    return file


def _zip_members(archive: Path, bound: _Bound) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for info in file.infolist():
            plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
            kind: Literal["file", "folder", "other"]
            kind = "other" if not plain else "folder" if info.is_dir() else "file"
            yield _Member(info.filename, info.file_size, kind, partial(file.open, info))


def _one_member(file: Path, bound: _Bound) -> Iterator[_Member]:
    yield _Member(file.name, file.stat().st_size, "file", lambda: file.open("rb"))


def _check_name(archive: Path, name: str) -> None:
    """`ArchiveError` unless `name` is a relative path without `..`, to POSIX and to Windows."""
    if "\0" in name:
        raise ArchiveError(f"{archive}: refused, as a name in it has a zero byte: {_shown(name)}")
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.anchor or ".." in path.parts:
            raise ArchiveError(f"{archive}: refused, as it would write outside its folder: {_shown(name)}")


def _shown(name: str) -> str:
    return repr(name[:80])


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _only_one(lock: Path, action: str) -> Iterator[None]:
    """Refuse, with an `ArchiveError`, to do what another process is doing."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            try:
                yield
            finally:
                lock.unlink(missing_ok=True)
    except Timeout as error:
        raise ArchiveError(f"{action} by another process; wait for it, or end it. ({lock} is locked.)") from error


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
