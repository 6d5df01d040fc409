"""Downloads that break off, and archives that are damaged or mean harm."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from file_server import FileServer
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emalab.data.archives import ArchiveError, DownloadError, Part, download, unpack, verify
from emalab.data.errors import DataError

CONTENT = os.urandom(3_000_000)
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer({"data.bin": CONTENT}) as server:
        yield server


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestVerify:
    def test_tells_the_checksum(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(CONTENT)
        assert verify(tmp_path / "a", MD5, len(CONTENT)) == MD5
        assert verify(tmp_path / "a", None) == f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"

    def test_other_size(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(CONTENT[:-1])
        with pytest.raises(ArchiveError, match="a: has 2999999 bytes, the release has 3000000"):
            verify(tmp_path / "a", MD5, len(CONTENT))

    def test_other_contents(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(CONTENT[:-1] + b"?")
        with pytest.raises(ArchiveError, match=f"the release's {MD5}"):
            verify(tmp_path / "a", MD5, len(CONTENT))


class TestDownload:
    def test_whole(self, server: FileServer, tmp_path: Path) -> None:
        assert download(server.url("data.bin"), tmp_path / "new" / "data.bin", MD5) == MD5
        assert tree(tmp_path) == {"new/data.bin": CONTENT}
        assert server.ranges == [None]

    def test_goes_on_after_a_kill(self, server: FileServer, tmp_path: Path) -> None:
        (tmp_path / "data.bin.part").write_bytes(CONTENT[:1_000_000])
        download(server.url("data.bin"), tmp_path / "data.bin", MD5)
        assert tree(tmp_path) == {"data.bin": CONTENT}
        assert server.ranges == ["bytes=1000000-"]

    def test_killed_after_the_last_byte(self, server: FileServer, tmp_path: Path) -> None:
        (tmp_path / "data.bin.part").write_bytes(CONTENT)
        download(server.url("data.bin"), tmp_path / "data.bin", MD5)
        assert tree(tmp_path) == {"data.bin": CONTENT}

    def test_part_longer_than_the_file(self, server: FileServer, tmp_path: Path) -> None:
        (tmp_path / "data.bin.part").write_bytes(CONTENT + b"more")
        download(server.url("data.bin"), tmp_path / "data.bin", MD5)
        assert tree(tmp_path) == {"data.bin": CONTENT}

    def test_lost_connections_are_taken_up_again(self, server: FileServer, tmp_path: Path) -> None:
        server.break_after = 900_000
        download(server.url("data.bin"), tmp_path / "data.bin", MD5, attempts=2, pause=0)
        assert tree(tmp_path) == {"data.bin": CONTENT}
        assert server.ranges == [None, "bytes=900000-", "bytes=1800000-", "bytes=2700000-"]

    def test_server_without_ranges(self, server: FileServer, tmp_path: Path) -> None:
        server.ranged = False
        (tmp_path / "data.bin.part").write_bytes(b"x" * 1_000_000)
        download(server.url("data.bin"), tmp_path / "data.bin", MD5)
        assert tree(tmp_path) == {"data.bin": CONTENT}

    def test_gives_up_and_keeps_what_came(self, server: FileServer, tmp_path: Path) -> None:
        server.ranged, server.break_after = False, 5000
        with pytest.raises(DownloadError, match=r"broke off after 5000 of 3000000 bytes.*5000 bytes are kept in"):
            download(server.url("data.bin"), tmp_path / "data.bin", attempts=3, pause=0)
        assert tree(tmp_path) == {"data.bin.part": CONTENT[:5000]}
        assert len(server.ranges) == 3

    @pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (503, 3)])
    def test_refusal(self, status: int, requests: int, server: FileServer, tmp_path: Path) -> None:
        server.status = status
        with pytest.raises(DownloadError, match=f"HTTP Error {status}.* or get data.bin by other means .* --from"):
            download(server.url("data.bin"), tmp_path / "data.bin", attempts=3, pause=0)
        assert len(server.ranges) == requests
        assert tree(tmp_path) == {}

    def test_no_network(self, tmp_path: Path) -> None:
        with FileServer({}) as gone:
            url = gone.url("data.bin")
        with pytest.raises(DownloadError, match="Connection refused"):
            download(url, tmp_path / "data.bin", attempts=2, pause=0)
        with pytest.raises(DownloadError, match=r"cannot be downloaded: \[Errno -?\d+\] \w"):
            download("http://nowhere.invalid/data.bin", tmp_path / "data.bin", pause=1000)

    def test_wrong_contents_are_removed(self, server: FileServer, tmp_path: Path) -> None:
        with pytest.raises(ArchiveError, match=r"data.bin does not give the expected file, which was removed: .*md5:"):
            download(server.url("data.bin"), tmp_path / "data.bin", "md5:" + "0" * 32)
        with pytest.raises(ArchiveError, match="has 3000000 bytes, the release has 17"):
            download(server.url("data.bin"), tmp_path / "data.bin", size=17)
        assert tree(tmp_path) == {}

    @pytest.mark.parametrize("name", ["data.bin", "data.bin.part"])
    def test_a_folder_in_its_place(self, name: str, server: FileServer, tmp_path: Path) -> None:
        (tmp_path / name).mkdir()
        with pytest.raises(DownloadError, match=rf"{name} is a folder or a device, where a downloaded file belongs"):
            download(server.url("data.bin"), tmp_path / "data.bin")

    def test_two_at_once(self, server: FileServer, tmp_path: Path) -> None:
        with FileLock(tmp_path / ".data.bin.lock"), pytest.raises(ArchiveError, match="downloaded by another process"):
            download(server.url("data.bin"), tmp_path / "data.bin")
        download(server.url("data.bin"), tmp_path / "data.bin", MD5)
        assert tree(tmp_path) == {"data.bin": CONTENT}

    @pytest.mark.parametrize("length", ["many", "-1", "1e6", "5, 5", ""])
    def test_a_length_that_is_no_number(self, length: str, server: FileServer, tmp_path: Path) -> None:
        server.length = length
        with pytest.raises(DownloadError, match=f"its server states a length of '{length}' bytes"):
            download(server.url("data.bin"), tmp_path / "data.bin")

    def test_a_wrong_length(self, server: FileServer, tmp_path: Path) -> None:
        server.length = "17"
        with pytest.raises(ArchiveError, match=r"data\.bin does not give the expected file"):
            download(server.url("data.bin"), tmp_path / "data.bin", MD5, attempts=2, pause=0)
        server.length = "9999999999999999999999"  # the next request learns from the range that all is there
        download(server.url("data.bin"), tmp_path / "data.bin", MD5, attempts=2, pause=0)


FILES = {"top/a.txt": b"first", "top/deep/b.bin": bytes(range(256)) * 40, "top/empty": b"", "other/c": b"third"}


def make_tar(path: Path, files: dict[str, bytes] = FILES, *special: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in special:
            tar.addfile(info)
    return path


def make_zip(path: Path, files: dict[str, bytes] = FILES, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


MAKERS: dict[str, Callable[..., Path]] = {"a.tar": make_tar, "a.tar.gz": make_tar, "a.tgz": make_tar, "a.zip": make_zip}


@pytest.fixture(params=MAKERS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


class TestUnpack:
    def test_everything(self, kind: str, folder: Path) -> None:
        unpack(MAKERS[kind](folder.parent / kind), folder)
        assert tree(folder) == FILES
        assert sorted(path.name for path in folder.iterdir()) == ["other", "top"]

    def test_chosen_places(self, kind: str, folder: Path) -> None:
        unpack(MAKERS[kind](folder.parent / kind), folder, [Part("t*/deep", "new/place", {"*.bin": 1}), Part("other")])
        assert tree(folder) == {"new/place/b.bin": FILES["top/deep/b.bin"], "c": b"third"}

    def test_missing_place(self, kind: str, folder: Path) -> None:
        with pytest.raises(ArchiveError, match=r"holds 0 of images/train, expected one\. Is it the right file"):
            unpack(MAKERS[kind](folder.parent / kind), folder, [Part("top"), Part("images/train")])
        assert tree(folder) == {}

    def test_too_few_files(self, kind: str, folder: Path) -> None:
        with pytest.raises(ArchiveError, match=r"a\..*: holds 1 of 2 deep/\*.bin. Is it the right file, and whole"):
            unpack(MAKERS[kind](folder.parent / kind), folder, [Part("top", "top", {"deep/*.bin": 2})])
        assert list(folder.iterdir()) == []

    def test_adds_to_folders_and_completes_interrupted_moves(self, kind: str, folder: Path) -> None:
        (folder / "top").mkdir()
        (folder / "top" / "mine").write_bytes(b"mine")
        (folder / "top" / "a.txt").write_bytes(b"first")
        (folder / f".{kind}.unpacking" / "top").mkdir(parents=True)
        (folder / f".{kind}.unpacking" / "top" / "rest").write_bytes(b"of a killed call")
        unpack(MAKERS[kind](folder.parent / kind), folder)
        assert tree(folder) == FILES | {"top/mine": b"mine"}

    @pytest.mark.parametrize("taken", ["top/a.txt", "top/a.txt/inside", "top"])
    def test_does_not_overwrite_other_files(self, taken: str, kind: str, folder: Path) -> None:
        (folder / taken).parent.mkdir(parents=True, exist_ok=True)
        (folder / taken).write_bytes(b"something else")
        with pytest.raises(ArchiveError, match=r"is not the file that a\..* holds \(1 such in all\)"):
            unpack(MAKERS[kind](folder.parent / kind), folder)
        assert tree(folder) == {taken: b"something else"}

    def test_not_an_archive(self, kind: str, folder: Path) -> None:
        (folder.parent / kind).write_bytes(b"<html>not found</html>" * 100)
        with pytest.raises(ArchiveError, match=r"a\..*: damaged or incomplete \(.*\)\. Download it again") as error:
            unpack(folder.parent / kind, folder)
        assert "\n" not in str(error.value)
        assert list(folder.iterdir()) == []

    @settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
    @given(data=st.data())
    def test_truncated_anywhere(self, kind: str, folder: Path, data: st.DataObject) -> None:
        """An uncompressed tar that ends between two members looks whole; only its checksum tells."""
        path = MAKERS[kind](folder.parent / kind)
        whole = path.read_bytes()
        last = whole.rstrip(b"\0") if kind == "a.tar" else whole
        end = data.draw(st.integers(0, len(last) - 1))
        path.write_bytes(whole[:end])
        if kind == "a.tar" and end and end % 512 == 0:
            return
        with pytest.raises(ArchiveError, match="damaged or incomplete"):
            unpack(path, folder)
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("where", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("kind", ["a.tgz", "a.zip"], indirect=False)
    def test_tampered(self, where: float, kind: str, folder: Path) -> None:
        path = MAKERS[kind](folder.parent / kind, {"noise": os.urandom(5000)})
        content = bytearray(path.read_bytes())
        content[int(where * 5000)] ^= 0x10
        path.write_bytes(bytes(content))
        with pytest.raises(ArchiveError, match="damaged or incomplete"):
            unpack(path, folder)
        assert list(folder.iterdir()) == []

    def test_tampered_header_is_not_the_end(self, folder: Path) -> None:
        path = make_tar(folder.parent / "a.tar")
        content = bytearray(path.read_bytes())
        content[content.index(b"top/deep")] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(ArchiveError, match=r"damaged or incomplete .no header of a member at byte 1024"):
            unpack(path, folder)
        assert list(folder.iterdir()) == []

    def test_checksum_of_gzip(self, folder: Path) -> None:
        """The last bytes, after the end of the tar in it."""
        path = folder.parent / "a.tgz"
        content = bytearray(gzip.compress(make_tar(folder.parent / "a.tar").read_bytes()))
        content[-8] ^= 1
        path.write_bytes(bytes(content))
        with pytest.raises(ArchiveError, match=r"damaged or incomplete .CRC check failed"):
            unpack(path, folder)

    def test_that_broke_off_with_the_disk_full(self, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        path = MAKERS[kind](folder.parent / kind)
        monkeypatch.setattr("shutil.copyfileobj", full)
        with pytest.raises(OSError, match="No space left"):
            unpack(path, folder)
        assert list(folder.iterdir()) == []


class TestHarm:
    @pytest.mark.parametrize(
        "name", ["../evil", "top/../../evil", "/evil", "//evil", "..\\evil", "C:\\evil", "C:evil", "top/.."]
    )
    def test_name(self, name: str, kind: str, folder: Path) -> None:
        path = MAKERS[kind](folder.parent / kind, FILES | {name: b"evil"})
        before = tree(folder.parent)
        with pytest.raises(ArchiveError, match="refused, as it would write outside its folder"):
            unpack(path, folder)
        assert tree(folder.parent) == before
        assert not Path("/evil").exists()

    @pytest.mark.parametrize("target", ["../../outside", "/etc", "top/a.txt", "deep/b.bin", "nothing"])
    @pytest.mark.parametrize("link", [tarfile.SYMTYPE, tarfile.LNKTYPE], ids=["symbolic", "hard"])
    def test_link(self, link: bytes, target: str, folder: Path) -> None:
        """Also to the inside: what a link points to can change after it was looked at."""
        (folder.parent / "outside").write_bytes(b"secret")
        path = make_tar(folder.parent / "a.tar", FILES, special("top/link", link, target))
        with pytest.raises(ArchiveError, match="refused, as 'top/link' is a link or a device"):
            unpack(path, folder)
        assert list(folder.iterdir()) == []

    def test_file_through_a_link(self, folder: Path) -> None:
        path = folder.parent / "a.tar"
        with tarfile.open(path, "w") as tar:
            tar.addfile(special("here", tarfile.SYMTYPE, "."))
            tar.addfile(special("here/up", tarfile.SYMTYPE, ".."))
            tar.addfile(tarfile.TarInfo("here/up/evil"))
        with pytest.raises(ArchiveError, match="refused"):
            unpack(path, folder)
        assert tree(folder.parent) == {"a.tar": path.read_bytes()}

    def test_links_through_a_path_longer_than_any(self, folder: Path) -> None:
        """CVE-2025-4517: realpath gives up beyond PATH_MAX, and tarfile's own filter takes what is left for safe."""
        path, steps, name = folder.parent / "a.tar", "abcdefghijklmnop", "d" * 247
        with tarfile.open(path, "w") as tar:
            here = ""
            for step in steps:
                tar.addfile(special(f"{here}{name}", tarfile.DIRTYPE))
                tar.addfile(special(f"{here}{step}", tarfile.SYMTYPE, name))
                here += f"{name}/"
            deep = "/".join(steps) + "/" + "l" * 254
            tar.addfile(special(deep, tarfile.SYMTYPE, "../" * len(steps)))
            tar.addfile(special("escape", tarfile.SYMTYPE, f"{deep}/.."))
            info = tarfile.TarInfo("escape/evil")
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        with pytest.raises(ArchiveError, match="refused, as 'a' is a link"):
            unpack(path, folder)
        assert tree(folder.parent) == {"a.tar": path.read_bytes()}

    @pytest.mark.skipif(os.name != "posix", reason="needs links")
    def test_a_link_in_the_way_of_writing(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each target is resolved before it is written, whoever made the link."""
        (folder.parent / "outside").mkdir()
        made = Path.mkdir

        def link_as_well(path: Path, *arguments: object, **options: object) -> None:
            made(path, *arguments, **options)  # type: ignore[arg-type]
            if path.name == ".a.tar.unpacking":
                (path / "top").symlink_to(folder.parent / "outside")

        monkeypatch.setattr(Path, "mkdir", link_as_well)
        with pytest.raises(ArchiveError, match=r"refused, as it would write outside its folder: 'top/a\.txt'"):
            unpack(make_tar(folder.parent / "a.tar"), folder)
        assert list((folder.parent / "outside").iterdir()) == []

    @pytest.mark.parametrize("device", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE], ids=["c", "b", "fifo"])
    def test_device(self, device: bytes, folder: Path) -> None:
        path = make_tar(folder.parent / "a.tar", FILES, special("top/device", device))
        with pytest.raises(ArchiveError, match="refused, as 'top/device' is a link or a device"):
            unpack(path, folder)
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO], ids=["link", "device", "fifo"])
    def test_zip_of_something_else_than_files(self, mode: int, folder: Path) -> None:
        path = make_zip(folder.parent / "a.zip", {"top/link": b"../../outside"}, mode | 0o777)
        with pytest.raises(ArchiveError, match="'top/link' is a link or a device"):
            unpack(path, folder)
        assert list(folder.iterdir()) == []

    @pytest.mark.parametrize("kind", MAKERS)
    @pytest.mark.parametrize("names", [("a", "a/b"), ("long" * 80,)], ids=["file and folder", "too long"])
    def test_member_that_no_disk_holds(self, names: tuple[str, ...], kind: str, folder: Path) -> None:
        path = MAKERS[kind](folder.parent / kind, FILES | dict.fromkeys(names, b"x"))
        with pytest.raises(ArchiveError, match=rf"{kind}: its member '{names[-1][:80]}' cannot be written"):
            unpack(path, folder)
        assert list(folder.iterdir()) == []

    def test_too_large(self, kind: str, folder: Path) -> None:
        path, size = MAKERS[kind](folder.parent / kind), sum(map(len, FILES.values()))
        with pytest.raises(ArchiveError, match=r"refused, as it unpacks to more than 1\.02e-05 GB"):
            unpack(path, folder, max_bytes=size - 1)
        with pytest.raises(ArchiveError, match="refused, as it holds more than 3 files"):
            unpack(path, folder, max_members=3)
        assert list(folder.iterdir()) == []
        unpack(path, folder, max_bytes=size, max_members=4)
        assert tree(folder) == FILES

    def test_a_small_archive_of_zeros_without_end(self, folder: Path) -> None:
        path = folder.parent / "a.tgz"
        path.write_bytes(gzip.compress(make_tar(folder.parent / "a.tar").read_bytes() + bytes(1 << 20)))
        with pytest.raises(ArchiveError, match=r"damaged or incomplete .more than \d+ bytes"):
            unpack(path, folder, max_bytes=20_000, max_members=5)

    def test_a_header_larger_than_memory(self, folder: Path) -> None:
        """Names and comments of any length are read at once by tarfile."""
        info = special("long", tarfile.XHDTYPE)
        info.size = 1 << 30
        (folder.parent / "a.tar").write_bytes(info.tobuf() + bytes(2048))
        by_us, by_python = "a header claims 1073741824 bytes", "empty header"  # from Python 3.14 on
        with pytest.raises(ArchiveError, match=f"damaged or incomplete .({by_us}|{by_python})"):
            unpack(folder.parent / "a.tar", folder)

    def test_a_folder_in_place_of_an_archive(self, kind: str, folder: Path) -> None:
        (folder.parent / kind).mkdir()
        with pytest.raises(ArchiveError, match=rf"{kind}: is a folder; an archive is a file"):
            unpack(folder.parent / kind, folder)
        with pytest.raises(ArchiveError, match=rf"{kind}: is a folder, where the release has a file"):
            verify(folder.parent / kind, None)

    def test_two_at_once(self, kind: str, folder: Path) -> None:
        path = MAKERS[kind](folder.parent / kind)
        lock = folder / f".{kind}.unpacking.lock"
        with FileLock(lock), pytest.raises(ArchiveError, match="is being unpacked by another process; wait for it"):
            unpack(path, folder)
        unpack(path, folder)
        assert tree(folder) == FILES

    def test_encrypted_zip(self, folder: Path) -> None:
        path = make_zip(folder.parent / "a.zip", {"a": b"secret"})
        content = bytearray(path.read_bytes())
        content[6] |= 1  # the flag, in the member's own header and in the directory
        content[content.index(b"PK\1\2") + 8] |= 1
        path.write_bytes(bytes(content))
        with pytest.raises(ArchiveError, match=r"damaged or incomplete .*password"):
            unpack(path, folder)
        assert list(folder.iterdir()) == []


def test_errors_are_data_errors() -> None:
    assert issubclass(ArchiveError, DataError)
    assert issubclass(DownloadError, DataError)
