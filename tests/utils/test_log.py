"""Tests of utils.log: the file, the curves, and the live view on a Visdom server started for the test."""

import base64
import io
import json
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from utils import log as log_module
from utils.log import Log

LOSSES = {"rpn_loc": 0.1, "rpn_cls": 0.2, "roi_loc": 0.3, "roi_cls": 0.4, "total": 1.0}


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_server(folder):
    """A Visdom server in a process of its own, and its port; returns once it accepts connections."""
    pytest.importorskip("visdom")
    port = free_port()
    code = "import sys; from visdom.server.run_server import start_server as start; "
    code += "start(int(sys.argv[1]), base_url='', env_path=sys.argv[2], bind_local=True)"
    command = [sys.executable, "-c", code, str(port), str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return server, port
        except OSError:
            assert server.poll() is None, "the Visdom server ended at once"
            time.sleep(0.1)
    server.kill()
    raise AssertionError("the Visdom server did not start within 30 seconds")


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("visdom")


@pytest.fixture(scope="module")
def port(server_folder):
    server, port = start_server(server_folder)
    yield port
    server.kill()
    server.wait()


@pytest.fixture
def window(port):
    """A function that reads a window of an environment back from the server."""
    import visdom

    def read(env, win):
        client = visdom.Visdom(port=port, env=env, use_incoming_socket=False, raise_exceptions=True)
        return json.loads(client.get_window_data(win))

    return read


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def offline(folder, start_step=0):
    return Log(folder, "test", "off", 8097, {}, start_step=start_step)


def test_file_holds_what_was_logged(tmp_path):
    log = offline(tmp_path / "runs" / "a")
    log.losses(40, 0, LOSSES | {"roi_loc": float("nan"), "total": float("inf")}, 1e-3, 2.5)
    log.evaluation(50, 1, 0.25, {"cat": 0.5, "dog": None, "cow": float("nan")})
    expected = {"kind": "train", "step": 40, "epoch": 0, "rpn_loc": 0.1, "rpn_cls": 0.2, "roi_loc": None}
    expected |= {"roi_cls": 0.4, "total": None, "lr": 1e-3, "images_per_second": 2.5}
    assert lines(tmp_path / "runs" / "a") == [  # before close: each line is written at once
        expected,
        {"kind": "eval", "step": 50, "epoch": 1, "map": 0.25, "ap": {"cat": 0.5, "dog": None, "cow": None}},
    ]
    assert "NaN" not in (tmp_path / "runs" / "a" / "log.jsonl").read_text()
    log.evaluation(60, 1, float("nan"), {})
    assert lines(tmp_path / "runs" / "a")[2]["map"] is None


def test_resuming_keeps_the_lines_up_to_its_step(tmp_path):
    first = offline(tmp_path)
    for step in (40, 80, 120):
        first.losses(step, 0, LOSSES, 1e-3, 2.5)
    first.evaluation(100, 0, 0.25, {})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    second = offline(tmp_path, start_step=80)
    assert [line["step"] for line in lines(tmp_path)] == [40, 80]
    second.losses(120, 0, LOSSES, 1e-3, 2.5)
    assert [line["step"] for line in lines(tmp_path)] == [40, 80, 120]
    assert [record["step"] for record in second.records] == [40, 80, 120]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curves.png", "log.jsonl"]


def test_a_last_line_without_its_end_is_kept_where_it_is_whole(tmp_path):
    offline(tmp_path).losses(40, 0, LOSSES, 1e-3, 2.5)
    (tmp_path / "log.jsonl").write_text((tmp_path / "log.jsonl").read_text().rstrip("\n"))
    offline(tmp_path, start_step=40).losses(80, 0, LOSSES, 1e-3, 2.5)
    assert [line["step"] for line in lines(tmp_path)] == [40, 80]


def test_a_new_run_starts_the_file_anew(tmp_path):
    offline(tmp_path).evaluation(0, 0, 0.25, {})
    offline(tmp_path)
    assert lines(tmp_path) == []


def test_damage_before_the_last_line_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2 is no JSON"):
        offline(tmp_path, start_step=3)
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"st\n{"step": 3}\n'


def test_curves_are_redrawn_now_and_then(tmp_path):
    curves = tmp_path / "curves.png"
    log = offline(tmp_path)
    log.close()
    assert not curves.exists()
    log.losses(40, 0, LOSSES, 1e-3, 2.5)
    curves.unlink()
    log.losses(80, 0, LOSSES, 1e-3, 2.5)
    assert not curves.exists()
    log.evaluation(80, 0, 0.25, {})
    curves.unlink()
    log.close()
    img = np.array(Image.open(curves).convert("RGB"))
    assert img.shape == (600, 1200, 3)
    assert len(np.unique(img.reshape(-1, 3), axis=0)) > 20


def test_visdom_option_is_checked(tmp_path):
    with pytest.raises(ValueError, match="visdom is 'on'"):
        Log(tmp_path, "test", "on", 8097, {})


def test_importing_and_off_do_without_visdom():
    code = "import sys; sys.modules['visdom'] = None; import utils.log as log, tempfile; "
    code += f"log.Log(tempfile.mkdtemp(), 'e', 'off', 1, {{}}).losses(1, 0, {LOSSES}, 1e-3, 2.5)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_missing_visdom_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "visdom", None)
    log = Log(tmp_path, "test", "auto", 8097, {})
    log.losses(40, 0, LOSSES, 1e-3, 2.5)
    log.losses(80, 0, LOSSES, 1e-3, 2.5)
    out, err = capsys.readouterr()
    assert out.startswith("No live view, visdom is not there")
    assert (out.count("\n"), err) == (1, "")
    assert len(lines(tmp_path)) == 2


def test_live_view_shows_the_numbers(tmp_path, port, window, server_folder, capfd):
    log = Log(tmp_path, "numbers", "auto", port, {"lr": 0.001, "note": "<b>"})
    log.losses(40, 0, LOSSES, 1e-3, 2.5)
    twice = {name: 2 * loss for name, loss in LOSSES.items()}
    log.losses(80, 0, twice | {"roi_cls": float("nan")}, 1e-3, 2.5)
    log.evaluation(80, 0, 0.25, {"cat": 0.25})
    log.evaluation(160, 1, 0.5, {"cat": 0.5})
    img = np.zeros((20, 30, 3), np.uint8)
    img[5, 7] = (255, 128, 1)
    log.picture("prediction", img)
    log.close()
    assert capfd.readouterr() == ("", "")
    assert (server_folder / "numbers.json").exists()

    losses = window("numbers", "losses")
    assert [curve["name"] for curve in losses["content"]["data"]] == list(LOSSES)
    assert [curve["x"] for curve in losses["content"]["data"]] == [[40, 80]] * 5
    expected = [[0.1, 0.2], [0.2, 0.4], [0.3, 0.6], [0.4, None], [1.0, 2.0]]
    assert [curve["y"] for curve in losses["content"]["data"]] == expected
    (test_map,) = window("numbers", "test mAP")["content"]["data"]
    assert (test_map["x"], test_map["y"]) == ([80, 160], [0.25, 0.5])
    options = window("numbers", "options")["content"]
    assert "<td>lr</td><td>0.001</td>" in options
    assert "&lt;b&gt;" in options
    png = base64.b64decode(window("numbers", "prediction")["content"]["src"].split(",")[1])
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png))), img)


def test_live_view_of_a_resumed_run_shows_each_step_once(tmp_path, port, window):
    first = Log(tmp_path, "resumed", "auto", port, {})
    for step in (40, 80, 120):
        first.losses(step, 0, LOSSES, 1e-3, 2.5)
    second = Log(tmp_path, "resumed", "auto", port, {}, start_step=80)
    second.losses(121, 0, LOSSES, 1e-3, 2.5)
    second.losses(161, 0, LOSSES, 1e-3, 2.5)
    assert window("resumed", "losses")["content"]["data"][4]["x"] == [40, 80, 121, 161]


def test_live_view_goes_past_a_proxy(tmp_path, port, capfd, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")
    Log(tmp_path, "proxy", "auto", port, {}).losses(40, 0, LOSSES, 1e-3, 2.5)
    assert capfd.readouterr() == ("", "")


def test_no_server_is_one_line_with_a_command_that_starts_one(tmp_path, capfd):
    pytest.importorskip("visdom")
    port = free_port()
    log = Log(tmp_path, "test", "auto", port, {})
    log.losses(40, 0, LOSSES, 1e-3, 2.5)
    log.picture("prediction", np.zeros((20, 30, 3), np.uint8))
    log.close()
    out, err = capfd.readouterr()
    assert out.startswith(f"No Visdom server on localhost:{port};")
    assert (out.count("\n"), err) == (1, "")
    command = out.split('python -c "')[1].rstrip().removesuffix('"')
    compile(command, "command", "exec")
    assert f"start_server({port}, base_url='', bind_local=True)" in command
    assert f"python -m visdom.server -bind_local -port {port} " in out
    assert len(lines(tmp_path)) == 1


def test_server_that_dies_is_one_line(tmp_path, capfd):
    server, port = start_server(tmp_path / "visdom")
    try:
        log = Log(tmp_path, "test", "auto", port, {})
        log.losses(40, 0, LOSSES, 1e-3, 2.5)
        assert capfd.readouterr() == ("", "")
    finally:
        server.kill()
        server.wait()
    start = time.monotonic()
    log.losses(80, 0, LOSSES, 1e-3, 2.5)
    log.losses(120, 0, LOSSES, 1e-3, 2.5)
    log.picture("prediction", np.zeros((20, 30, 3), np.uint8))
    assert time.monotonic() - start < 2
    out, err = capfd.readouterr()
    assert out == f"Visdom on localhost:{port} is gone (ConnectionError); training goes on.\n"
    assert err == ""
    assert [line["step"] for line in lines(tmp_path)] == [40, 80, 120]


def test_server_that_never_answers_does_not_hang(tmp_path, capfd, monkeypatch):
    pytest.importorskip("visdom")
    monkeypatch.setattr(log_module, "_TIME_LIMITS", (1, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        start = time.monotonic()
        Log(tmp_path, "test", "auto", port, {}).picture("prediction", np.zeros((20, 30, 3), np.uint8))
        assert time.monotonic() - start < 5
    out, err = capfd.readouterr()
    assert out.startswith(f"No Visdom server on localhost:{port};")
    assert (out.count("\n"), err) == (1, "")


def test_another_server_on_the_port_is_one_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("visdom")
    monkeypatch.setattr(BaseHTTPRequestHandler, "log_message", lambda *args: None)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:  # refuses every POST
        threading.Thread(target=other.serve_forever, daemon=True).start()
        log = Log(tmp_path, "test", "auto", other.server_port, {})
        log.losses(40, 0, LOSSES, 1e-3, 2.5)
        log.losses(80, 0, LOSSES, 1e-3, 2.5)
        other.shutdown()
    out, err = capsys.readouterr()
    assert out.startswith(f"No Visdom server on localhost:{other.server_port};")
    assert (out.count("\n"), err) == (1, "")
