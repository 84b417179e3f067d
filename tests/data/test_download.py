"""Fetching and unpacking archives from a server in a thread of this process."""

import hashlib
import io
import os
import socket
import tarfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from data import download
from data.download import VOC2007, DownloadError, download_voc2007

TRAINVAL = {"VOCdevkit/VOC2007/jpg/5.jpg": b"five", "VOCdevkit/VOC2007/lists/trainval.txt": b"000005\n"}
TEST = {"VOCdevkit/VOC2007/jpg/1.jpg": b"one", "VOCdevkit/VOC2007/lists/test.txt": b"000001\n"}


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder and notes what was asked for."""

    def log_message(self, *args):
        self.server.asked.append(self.path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with the two archives; `.archives` says how to fetch them, `.asked` what was."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "server"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    server.folder, server.asked, server.archives = folder, [], []
    for name, files in (("trainval.tar", TRAINVAL), ("test.tar", TEST)):
        with tarfile.open(folder / name, "w") as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        md5 = hashlib.md5((folder / name).read_bytes()).hexdigest()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        server.archives.append({"url": url, "filename": name, "md5": md5})
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_real_archives_are_described_in_full():
    names = [archive["filename"] for archive in VOC2007]
    assert names == ["VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"]
    assert all(archive["url"].endswith("/" + archive["filename"]) for archive in VOC2007)
    assert all(len(archive["md5"]) == 32 for archive in VOC2007)


def test_fetch_and_unpack(server, tmp_path):
    root = tmp_path / "new" / "datasets"
    voc = download_voc2007(root, server.archives)
    assert voc == root / "VOCdevkit" / "VOC2007"
    for path, content in {**TRAINVAL, **TEST}.items():
        assert (root / path).read_bytes() == content
    assert sorted(os.listdir(root)) == ["VOCdevkit", "test.tar", "trainval.tar"]

    server.asked.clear()
    assert download_voc2007(root, server.archives) == voc
    assert server.asked == []


def test_an_intact_archive_is_used_and_a_broken_one_replaced(server, tmp_path):
    root = tmp_path / "datasets"
    root.mkdir()
    intact = (server.folder / "trainval.tar").read_bytes()
    (root / "trainval.tar").write_bytes(intact)
    (root / "test.tar").write_bytes(b"cut short")
    (root / "test.tar.partial").write_bytes(b"left by a killed process")
    voc = download_voc2007(root, server.archives)
    assert set(server.asked) == {"/test.tar"}
    assert (voc / "lists" / "trainval.txt").exists()
    assert (voc / "lists" / "test.txt").exists()
    assert sorted(os.listdir(root)) == ["VOCdevkit", "test.tar", "trainval.tar"]


def test_a_wrong_checksum_is_refused_before_unpacking(server, tmp_path):
    server.archives[1]["md5"], found = "0" * 32, server.archives[1]["md5"]
    with pytest.raises(DownloadError) as caught:
        download_voc2007(tmp_path / "datasets", server.archives)
    url, wanted = server.archives[1]["url"], "0" * 32
    assert str(caught.value).startswith(f"test.tar from {url} has md5 {found} instead of {wanted}, and")
    assert os.listdir(tmp_path / "datasets") == ["trainval.tar"]  # whole, and kept for the next try


def test_a_failed_unpacking_leaves_no_data_set(server, tmp_path):
    broken = server.folder / "test.tar"
    broken.write_bytes(broken.read_bytes()[:700])
    server.archives[1]["md5"] = hashlib.md5(broken.read_bytes()).hexdigest()
    with pytest.raises(DownloadError, match=r"test\.tar cannot be unpacked \(.*unexpected end.*\): name a copy"):
        download_voc2007(tmp_path / "datasets", server.archives)
    assert sorted(os.listdir(tmp_path / "datasets")) == ["test.tar", "trainval.tar"]


VOC = "VOCdevkit/VOC2007"


@pytest.mark.parametrize(("name", "kind", "link"), [
    ("../outside", tarfile.REGTYPE, ""),
    (f"{VOC}/../../../outside", tarfile.REGTYPE, ""),
    ("/{}/outside", tarfile.REGTYPE, ""),  # {}: a folder of this test
    ("//{}/outside", tarfile.REGTYPE, ""),
    ("../outside", tarfile.DIRTYPE, ""),
    (f"{VOC}/link", tarfile.SYMTYPE, "../../../outside"),
    (f"{VOC}/link", tarfile.SYMTYPE, "/etc/hostname"),
    (f"{VOC}/link", tarfile.SYMTYPE, "jpg/1.jpg"),  # harmless, but a data set has no need of it
    (f"{VOC}/link", tarfile.LNKTYPE, "../outside"),
    (f"{VOC}/link", tarfile.LNKTYPE, f"{VOC}/jpg/1.jpg"),
    (f"{VOC}/pipe", tarfile.FIFOTYPE, ""),
    (f"{VOC}/device", tarfile.CHRTYPE, ""),
    (f"{VOC}/device", tarfile.BLKTYPE, ""),
], ids=lambda value: value.decode() if isinstance(value, bytes) else value)
def test_nothing_is_unpacked_outside_and_no_link_or_device(server, tmp_path, name, kind, link):
    """The archive has the right checksum: whoever made it meant it."""
    for path in (tmp_path / "outside", tmp_path / "datasets" / "outside"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("old")
    with tarfile.open(server.folder / "test.tar", "a") as tar:
        info = tarfile.TarInfo(name.format(str(tmp_path).lstrip("/")))
        info.type, info.linkname, info.size = kind, link, 3 * (kind == tarfile.REGTYPE)
        tar.addfile(info, io.BytesIO(b"new"))
    server.archives[1]["md5"] = hashlib.md5((server.folder / "test.tar").read_bytes()).hexdigest()
    with pytest.raises(DownloadError, match=r"test\.tar cannot be unpacked \(.*(no plain file|outside)") as caught:
        download_voc2007(tmp_path / "datasets", server.archives)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path / "datasets")) == ["outside", "test.tar", "trainval.tar"]
    assert sorted(os.listdir(tmp_path)) == ["datasets", "outside", "server"]
    assert {(tmp_path / folder / "outside").read_text() for folder in ("", "datasets")} == {"old"}


def test_what_is_unpacked_belongs_to_the_reader_and_to_nobody_else(server, tmp_path):
    with tarfile.open(server.folder / "test.tar", "a") as tar:
        info = tarfile.TarInfo(f"{VOC}/program")
        info.mode, info.uid, info.gid = 0o6777, 0, 0
        tar.addfile(info)
    server.archives[1]["md5"] = hashlib.md5((server.folder / "test.tar").read_bytes()).hexdigest()
    program = (download_voc2007(tmp_path / "datasets", server.archives) / "program").stat()
    assert program.st_mode & 0o6022 == 0  # no set-uid, no set-gid, others may not write
    assert program.st_uid == os.getuid()


def test_archives_of_something_else(server, tmp_path):
    with tarfile.open(server.folder / "test.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("readme"))
    server.archives[1]["md5"] = hashlib.md5((server.folder / "test.tar").read_bytes()).hexdigest()
    with pytest.raises(DownloadError, match=r"hold no VOCdevkit/VOC2007: they are not those of VOC2007"):
        download_voc2007(tmp_path / "datasets", server.archives[1:])
    assert os.listdir(tmp_path / "datasets") == ["test.tar"]


def assert_one_sentence(caught, url):
    message = str(caught.value)
    assert message.startswith(f"{url} cannot be fetched (")
    assert "--voc-data-dir" in message
    assert "--data=shapes" in message
    assert "\n" not in message
    assert caught.value.__cause__ is None  # nothing above it in a traceback
    assert caught.value.__suppress_context__


def test_a_server_that_is_gone(server, tmp_path):
    server.shutdown()
    server.server_close()
    start = time.monotonic()
    with pytest.raises(DownloadError) as caught:
        download_voc2007(tmp_path / "datasets", server.archives)
    assert time.monotonic() - start < 5
    assert_one_sentence(caught, server.archives[0]["url"])
    assert os.listdir(tmp_path / "datasets") == []


def test_a_file_that_is_not_there(server, tmp_path):
    (server.folder / "test.tar").unlink()
    with pytest.raises(DownloadError, match="404") as caught:
        download_voc2007(tmp_path / "datasets", server.archives)
    assert_one_sentence(caught, server.archives[1]["url"])


def test_a_server_that_never_answers(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/trainval.tar"
        start = time.monotonic()
        with pytest.raises(DownloadError, match="timed out") as caught:
            download_voc2007(tmp_path, [{"url": url, "filename": "trainval.tar", "md5": "0" * 32}])
    assert time.monotonic() - start < 5
    assert_one_sentence(caught, url)
    assert socket.getdefaulttimeout() is None


def test_less_than_was_announced_leaves_no_file_and_starts_again(server, tmp_path, monkeypatch):
    root, copy = tmp_path / "datasets", Handler.copyfile
    monkeypatch.setattr(Handler, "copyfile", lambda self, source, out: out.write(source.read(100)))
    with pytest.raises(DownloadError, match=r"trainval\.tar from .* has md5 .* and was removed: try again"):
        download_voc2007(root, server.archives)
    assert os.listdir(root) == []
    monkeypatch.setattr(Handler, "copyfile", copy)
    assert (download_voc2007(root, server.archives) / "lists" / "test.txt").exists()


def test_an_interrupted_download_leaves_no_file_and_starts_again(server, tmp_path, monkeypatch):
    root, fetch = tmp_path / "datasets", download.download_url

    def interrupted(url, folder, name):
        (folder / name).write_bytes(b"the first half")
        assert os.listdir(root) == ["trainval.tar.partial"]
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "download_url", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_voc2007(root, server.archives)
    assert os.listdir(root) == []
    monkeypatch.setattr(download, "download_url", fetch)
    assert (download_voc2007(root, server.archives) / "lists" / "test.txt").exists()
