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
    with pytest.raises(tarfile.ReadError):
        download_voc2007(tmp_path / "datasets", server.archives)
    assert sorted(os.listdir(tmp_path / "datasets")) == ["test.tar", "trainval.tar"]


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


def test_a_connection_cut_half_way_leaves_no_partial_file(server, tmp_path, monkeypatch):
    def half(self, source, out):
        out.write(source.read(100))

    monkeypatch.setattr(Handler, "copyfile", half)
    with pytest.raises(DownloadError):
        download_voc2007(tmp_path / "datasets", server.archives)
    assert os.listdir(tmp_path / "datasets") == []
