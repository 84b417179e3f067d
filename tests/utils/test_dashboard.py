"""Tests of utils.dashboard: the server that `make dashboard` starts."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils import dashboard
from utils.log import Log

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(folder, port, *words):
    command = [sys.executable, "-m", "utils.dashboard", f"--port={port}", f"--folder={folder}", "--no-fetch", *words]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_it_serves_this_machine_only_and_keeps_what_was_shown(tmp_path, capfd):
    pytest.importorskip("visdom")
    from utils.boards import VisdomBoard

    port = free_port()
    server = start(tmp_path / "kept", port)
    try:
        for _ in range(300):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, server.stderr.read()
                time.sleep(0.1)
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            socket.create_connection(("127.0.0.2", port), timeout=1).close()  # another address of this machine
        log = Log(tmp_path, {}, [VisdomBoard("mine", port)])
        log.training(40, 0, {"total": 1.0})
        log.close()
        assert (tmp_path / "kept" / "mine.json").exists()
        assert capfd.readouterr() == ("", "")
        second = start(tmp_path / "other", port)
        assert f"error: port {port} is taken" in second.communicate(timeout=60)[1]
        assert second.returncode == 1
    finally:
        server.kill()
    printed = server.communicate()[0]
    assert f"http://localhost:{port} " in printed
    assert f"--visdom-port={port};" in printed


@pytest.mark.parametrize("arrives", [True, False])
def test_the_scripts_of_the_page_are_fetched_once(tmp_path, monkeypatch, capsys, arrives):
    code = f"open({str(tmp_path / 'version.built')!r}, 'w')" if arrives else "raise OSError('no network')"
    monkeypatch.setattr(dashboard, "_FETCH", code)
    dashboard.fetch_scripts(tmp_path)
    out, err = capsys.readouterr()
    assert out.startswith("fetching the scripts of Visdom's page, once, for 60 seconds at most ...\n")
    assert ("They cannot be fetched" in out) != arrives
    assert err == ""
    monkeypatch.setattr(dashboard, "_FETCH", "1 / 0")
    dashboard.fetch_scripts(tmp_path)
    assert bool(capsys.readouterr().out) != arrives  # those that are there are not asked for again


def test_fetching_ends(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dashboard, "_FETCH", "import time; time.sleep(60)")
    monkeypatch.setattr(dashboard, "_PATIENCE", 0.2)
    start = time.monotonic()
    dashboard.fetch_scripts(tmp_path)
    assert time.monotonic() - start < 10
    assert "They cannot be fetched" in capsys.readouterr().out
