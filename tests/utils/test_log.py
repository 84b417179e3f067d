"""Tests of utils.log and utils.boards: files, curves, pictures, and the live view on a Visdom server started here."""

import base64
import contextlib
import io
import json
import socket
import subprocess
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from PIL import Image

from utils import boards as boards_module
from utils import log as log_module
from utils.boards import BoardError, Post, TensorBoard, VisdomBoard
from utils.curves import FIGURES
from utils.log import Log, LogError, NoLog, open_log

LOSSES = {"rpn_loc": 0.1, "rpn_cls": 0.2, "roi_loc": 0.3, "roi_cls": 0.4, "total": 1.0}
RATES = {"rpn_recall_pos": 0.75, "rpn_recall_neg": 0.5, "roi_acc_fg": 0.25, "roi_acc_bg": 1.0}
COUNTS = {"n_proposal": 300.0, "n_pos_anchor": 4.0, "n_pos_roi": 8.0}
TRAINED = LOSSES | RATES | COUNTS | {"images_per_second": 2.5, "lr": 1e-3}
IMG = np.zeros((20, 30, 3), np.uint8)
IMG[5, 7] = (255, 128, 1)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_server(folder, port=None):
    """A Visdom server in a process of its own, and its port; returns once it accepts connections."""
    pytest.importorskip("visdom")
    port = port or free_port()
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


@pytest.fixture(autouse=True)
def draw_at_once(monkeypatch):
    monkeypatch.setattr(boards_module, "_EVERY", 0)
    monkeypatch.setattr(boards_module, "_PATIENCE", {"plot": 20, "picture": 10})  # other tests keep the machine busy


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
    return Log(folder, {}, start_step=start_step)


def live(folder, port, env="test", options=None, start_step=0):
    return Log(folder, options or {}, [VisdomBoard(env, port)], start_step)


def test_file_holds_what_was_logged(tmp_path):
    log = offline(tmp_path / "runs" / "a")
    log.training(40, 0, TRAINED | {"roi_loc": float("nan"), "total": float("inf")})
    log.evaluation(50, 1, 0.25, {"cat": 0.5, "dog": None, "cow": float("nan")}, IMG)
    expected = {"kind": "train", "step": 40, "epoch": 0, "rpn_loc": 0.1, "rpn_cls": 0.2, "roi_loc": None}
    expected |= {"roi_cls": 0.4, "total": None} | RATES | COUNTS | {"images_per_second": 2.5, "lr": 1e-3}
    assert lines(tmp_path / "runs" / "a") == [  # before close: each line is written at once
        expected,
        {"kind": "eval", "step": 50, "epoch": 1, "map": 0.25, "ap": {"cat": 0.5, "dog": None, "cow": None}},
    ]
    assert "NaN" not in (tmp_path / "runs" / "a" / "log.jsonl").read_text()
    log.evaluation(60, 1, float("nan"), {}, IMG)
    assert lines(tmp_path / "runs" / "a")[2]["map"] is None


def test_resuming_keeps_the_lines_up_to_its_step(tmp_path):
    first = offline(tmp_path)
    for step in (40, 80, 120):
        first.training(step, 0, TRAINED)
    first.evaluation(100, 0, 0.25, {}, IMG)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    second = offline(tmp_path, start_step=80)
    assert [line["step"] for line in lines(tmp_path)] == [40, 80]
    second.training(120, 0, TRAINED)
    assert [line["step"] for line in lines(tmp_path)] == [40, 80, 120]
    assert [record["step"] for record in second.records] == [40, 80, 120]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["curves.png", "log.jsonl", "pictures"]


def test_a_last_line_without_its_end_is_kept_where_it_is_whole(tmp_path):
    offline(tmp_path).training(40, 0, TRAINED)
    (tmp_path / "log.jsonl").write_text((tmp_path / "log.jsonl").read_text().rstrip("\n"))
    offline(tmp_path, start_step=40).training(80, 0, TRAINED)
    assert [line["step"] for line in lines(tmp_path)] == [40, 80]


def test_a_new_run_starts_the_file_anew(tmp_path):
    offline(tmp_path).evaluation(0, 0, 0.25, {}, IMG)
    offline(tmp_path)
    assert lines(tmp_path) == []


def test_damage_before_the_last_line_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"kind": "eval", "step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(LogError, match=r"log\.jsonl, line 2 is no JSON"):
        offline(tmp_path, start_step=3)
    assert (tmp_path / "log.jsonl").read_text() == '{"kind": "eval", "step": 1}\n{"st\n{"step": 3}\n'


def test_curves_are_redrawn_now_and_then(tmp_path):
    curves = tmp_path / "curves.png"
    log = offline(tmp_path)
    log.close()
    assert not curves.exists()
    log.training(40, 0, TRAINED)
    curves.unlink()
    log.training(80, 0, TRAINED)
    assert not curves.exists()
    log.evaluation(80, 0, 0.25, {}, IMG)
    curves.unlink()
    log.close()
    img = np.array(Image.open(curves).convert("RGB"))
    assert img.shape == (900, 1600, 3)
    assert len(np.unique(img.reshape(-1, 3), axis=0)) > 20


def test_a_picture_an_evaluation(tmp_path):
    log = offline(tmp_path)
    log.evaluation(240, 0, 0.25, {}, IMG)
    log.evaluation(1240, 0, 0.25, {}, IMG + 1)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["000240.png", "001240.png"]
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "pictures" / "000240.png")), IMG)


def test_figures_that_are_missing_are_none(tmp_path):
    offline(tmp_path).training(40, 0, LOSSES)
    (line,) = lines(tmp_path)
    assert list(line)[3:] == list(FIGURES)
    assert [line[name] for name in RATES] == [None] * 4


@pytest.mark.parametrize("tensorboard", [False, True])
@pytest.mark.parametrize("visdom", ["off", "auto"])
def test_options_choose_the_live_views(tmp_path, monkeypatch, visdom, tensorboard):
    for board in (VisdomBoard, TensorBoard):
        monkeypatch.setattr(board, "connect", lambda self, options: None)
    options = {"visdom": visdom, "visdom_port": 1234, "env": "mine", "tensorboard": tensorboard}
    log = open_log(tmp_path, options, 0)
    assert [type(board) for board in log.boards] == (
        [VisdomBoard] * (visdom == "auto") + [TensorBoard] * tensorboard)
    assert log.watched == bool(log.boards)
    if visdom == "auto":
        assert (log.boards[0].env, log.boards[0].port) == ("mine", 1234)


def test_importing_and_off_do_without_visdom():
    code = "import sys; sys.modules['visdom'] = None; import utils.log as log, tempfile; "
    code += f"log.Log(tempfile.mkdtemp(), {{}}).training(1, 0, {TRAINED})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_missing_visdom_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "visdom", None)
    log = live(tmp_path, 8097)
    log.training(40, 0, TRAINED)
    log.training(80, 0, TRAINED)
    out, err = capsys.readouterr()
    assert out.startswith("No live view, visdom is not there")
    assert (out.count("\n"), err) == (1, "")
    assert len(lines(tmp_path)) == 2


def curves(window):
    """Name -> (steps, values) of the lines of a window."""
    return {curve["name"]: (curve["x"], curve["y"]) for curve in window["content"]["data"]}


def test_live_view_shows_the_numbers(tmp_path, port, window, server_folder, capfd):
    log = live(tmp_path, port, "numbers", {"lr": 0.001, "note": "<b>"})
    log.training(40, 0, TRAINED)
    twice = {name: 2 * loss for name, loss in LOSSES.items()}
    log.training(80, 0, TRAINED | twice | {"roi_cls": float("nan"), "rpn_recall_pos": 0.5})
    log.evaluation(80, 0, 0.25, {"cat": 0.25, "dog": None}, IMG)
    log.evaluation(160, 1, 0.5, {"cat": 0.5, "dog": 0.75}, IMG)
    log.picture("training image", IMG, 40)
    log.close()
    assert capfd.readouterr() == ("", "")
    assert (server_folder / "numbers.json").exists()

    losses = curves(window("numbers", "losses"))
    assert list(losses) == [f"{name}, raw" for name in LOSSES] + list(LOSSES)
    assert [x for x, _ in losses.values()] == [[40, 80]] * 10
    expected = [[0.1, 0.2], [0.2, 0.4], [0.3, 0.6], [0.4, None], [1.0, 2.0]]
    assert [y for _, y in losses.values()] == expected + expected  # two are too few to smooth
    rates = curves(window("numbers", "share that is classified right"))
    assert rates["RPN: positive anchors"] == ([40, 80], [0.75, 0.5])
    assert rates["head: RoIs on background"] == ([40, 80], [1, 1])
    counts = curves(window("numbers", "in an image"))
    assert counts["proposals that survive the NMS"] == ([40, 80], [300, 300])
    assert curves(window("numbers", "images a second"))["images a second"] == ([40, 80], [2.5, 2.5])
    assert curves(window("numbers", "learning rate"))["learning rate"] == ([40, 80], [1e-3, 1e-3])
    assert curves(window("numbers", "average precision on the test split")) == {
        "mAP": ([80, 160], [0.25, 0.5]), "cat": ([80, 160], [0.25, 0.5]), "dog": ([80, 160], [None, 0.75])}
    options = window("numbers", "options")["content"]
    assert "<td>lr</td><td>0.001</td>" in options
    assert "&lt;b&gt;" in options
    for name, step in (("training image", 40), ("test images", 160)):
        shown = window("numbers", name)
        assert shown["title"] == f"{name}, step {step}"
        png = base64.b64decode(shown["content"]["src"].split(",")[1])
        np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png))), IMG)


def test_live_view_is_not_drawn_every_moment(tmp_path, port, window, monkeypatch):
    monkeypatch.setattr(boards_module, "_EVERY", 1000)
    log = live(tmp_path, port, "patient")

    def steps():
        return curves(window("patient", "losses"))["total"][0]

    log.training(1, 0, TRAINED)
    log.training(2, 0, TRAINED)
    assert steps() == [1]
    log.evaluation(2, 0, 0.25, {"cat": 0.25}, IMG)
    assert steps() == [1, 2]
    log.training(3, 0, TRAINED)
    assert steps() == [1, 2]
    log.close()
    assert steps() == [1, 2, 3]


def test_a_long_run_is_thinned_out_after_it_was_smoothed(tmp_path, port, window):
    log = live(tmp_path, port, "long")
    log.records += [{"kind": "train", "step": step, "epoch": 0} | TRAINED | {"total": 1 + step % 2}
                    for step in range(1, 2000)]
    log.training(2000, 0, TRAINED)
    losses = curves(window("long", "losses"))
    for x, y in losses.values():
        assert len(x) == len(y) == 200
        assert (x[0], x[-1]) == (1, 2000)
    assert set(losses["total, raw"][1]) <= {1, 2}
    np.testing.assert_allclose(losses["total"][1][20:-20], 1.5, atol=0.02)


def test_live_view_of_a_resumed_run_shows_each_step_once(tmp_path, port, window):
    first = live(tmp_path, port, "resumed")
    for step in (40, 80, 120):
        first.training(step, 0, TRAINED)
    second = live(tmp_path, port, "resumed", start_step=80)
    second.training(121, 0, TRAINED)
    second.training(161, 0, TRAINED)
    assert {tuple(x) for x, _ in curves(window("resumed", "losses")).values()} == {(40, 80, 121, 161)}


def test_live_view_of_a_resumed_run_shows_the_evaluations_before(tmp_path, port, window):
    offline(tmp_path).evaluation(80, 0, 0.25, {"cat": 0.25}, IMG)
    live(tmp_path, port, "resumed evaluation", start_step=80).training(120, 0, TRAINED)
    assert curves(window("resumed evaluation", "average precision on the test split"))["cat"] == ([80], [0.25])


def test_live_view_goes_past_a_proxy(tmp_path, port, capfd, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("no_proxy", "")
    live(tmp_path, port, "proxy").training(40, 0, TRAINED)
    assert capfd.readouterr() == ("", "")


def test_no_server_is_one_line_with_a_command_that_starts_one(tmp_path, capfd):
    pytest.importorskip("visdom")
    port = free_port()
    log = live(tmp_path, port)
    log.training(40, 0, TRAINED)
    log.picture("training image", IMG, 40)
    log.close()
    out, err = capfd.readouterr()
    assert out.startswith(f"No Visdom server on localhost:{port};")
    assert (out.count("\n"), err) == (1, "")
    assert out.endswith(f"make dashboard, or python -m utils.dashboard --port={port}\n")
    assert len(lines(tmp_path)) == 1


@pytest.fixture
def strict(monkeypatch):
    """The patience of a real run, and no pause before a server is asked again."""
    pytest.importorskip("visdom")
    monkeypatch.undo()  # of draw_at_once
    monkeypatch.setattr(boards_module, "_EVERY", 0)
    monkeypatch.setattr(log_module, "_RETRY_AFTER", 0)
    monkeypatch.setattr(log_module, "plot_curves", lambda records, path: None)  # whoever answers, it takes its time


def plot(log, step):
    """One plot of a training, and the seconds that it took."""
    start = time.monotonic()
    log.training(step, 0, TRAINED)
    log.picture("training image", IMG, step)
    return time.monotonic() - start


def test_server_that_dies_and_is_restarted(tmp_path, capfd, monkeypatch, window):
    monkeypatch.setattr(log_module, "_RETRY_AFTER", 0)
    server, port = start_server(tmp_path / "visdom")
    try:
        log = live(tmp_path, port)
        plot(log, 40)
        assert log.watched
        assert capfd.readouterr() == ("", "")
        server.kill()
        server.wait()
        assert plot(log, 80) + plot(log, 120) < 2
        assert not log.watched
        gone = f"Visdom on localhost:{port} is gone (ConnectionRefusedError); training goes on.\n"
        assert capfd.readouterr() == (gone, "")
        server, _ = start_server(tmp_path / "empty", port)
        plot(log, 160)
        plot(log, 200)
        assert log.watched
        assert capfd.readouterr() == (f"Visdom on localhost:{port} is there again\n", "")
        import visdom

        client = visdom.Visdom(port=port, env="test", use_incoming_socket=False, raise_exceptions=True)
        shown = json.loads(client.get_window_data("losses"))
        assert curves(shown)["total"][0] == [40, 80, 120, 160, 200]
        assert "options" in client.get_window_data("options")
    finally:
        server.kill()
        server.wait()
    assert [line["step"] for line in lines(tmp_path)] == [40, 80, 120, 160, 200]


def test_a_server_that_is_not_there_is_asked_again_after_a_while(tmp_path, monkeypatch):
    asked = []

    class Board:
        def connect(self, options):
            asked.append(options)
            raise BoardError("none")

    now = [100.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    log = Log(tmp_path, {"lr": 1}, [Board()])
    for now[0] in (101, 159, 161, 162, 222):
        log.picture("training image", IMG, 1)
    assert asked == [{"lr": 1}] * 3


def talk(handle):
    """A socket on this machine whose every connection is given to `handle`, in a thread; returns its port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return server, server.getsockname()[1]


def silent(connection):
    time.sleep(30)


def for_a_while():
    """Yields for 5 seconds, so that who waits without end fails, and does not hang."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        yield


def slow(connection):
    connection.recv(2**20)
    time.sleep(0.4)
    connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nwin")
    connection.close()


def dripping(connection):
    with contextlib.suppress(OSError):
        for _ in for_a_while():
            connection.sendall(b"H")
            time.sleep(0.05)


def endless(connection):
    with contextlib.suppress(OSError):
        for _ in for_a_while():
            connection.sendall(b"HTTP/1.0 200 OK\r\n" * 1000)


def rubbish(connection):
    with contextlib.suppress(OSError):
        connection.sendall(bytes(range(256)) * 20)
        connection.close()


def hanging_up(connection):
    connection.close()


@pytest.mark.parametrize("handle", [silent, slow, dripping, endless, rubbish, hanging_up])
def test_a_plot_waits_a_second_at_most_whatever_answers(tmp_path, capfd, strict, handle):
    server, port = talk(handle)
    with server:
        log = live(tmp_path, port)
        for step in (40, 80):
            assert plot(log, step) < 1.5  # a second, and the work itself on a busy machine
        start = time.monotonic()
        log.close()
        assert time.monotonic() - start < 1.5
    out, err = capfd.readouterr()
    assert err == ""
    assert out.count("\n") == 1 or handle in (endless, slow)  # which may pass for an answer
    assert len(lines(tmp_path)) == 2


def test_a_server_that_falls_silent_between_two_requests_of_a_plot(tmp_path, capfd, strict):
    n_answered = []

    def handle(connection):
        if len(n_answered) < 3:
            n_answered.append(1)
            connection.recv(2**20)
            time.sleep(0.1)
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\nwin")
            connection.close()
        else:
            time.sleep(30)

    server, port = talk(handle)
    with server:
        log = live(tmp_path, port)
        assert log.watched
        assert plot(log, 40) < 1.5
        assert not log.watched
    assert "is gone (TimeoutError)" in capfd.readouterr().out


def test_an_answer_without_end_is_read_up_to_a_megabyte():
    server, port = talk(endless)
    with server:
        post = Post(port)
        post.left = 4
        post("/update", "{}")
        assert post.left > 1  # it did not wait until its time was over


def test_all_is_drawn_again_on_a_server_that_was_restarted(monkeypatch):
    pytest.importorskip("visdom")
    monkeypatch.setattr(boards_module, "_EVERY", 1000)
    windows = []

    class Server:
        port, left = 1, 0.0

        def __call__(self, path, data):
            windows.append(json.loads(data).get("win"))
            return "win"

    board = VisdomBoard("test", 1)
    board.post = Server()
    board.connect({})
    records = [{"kind": "eval", "step": 2, "epoch": 0, "map": 0.25, "ap": {"cat": 0.25}},
               {"kind": "train", "step": 4, "epoch": 0} | TRAINED]
    board.update(records)
    first = list(windows)
    assert {"losses", "average precision on the test split"} <= set(first)
    windows.clear()
    board.update(records)
    assert windows == []  # drawn a moment ago
    board.connect({})
    board.update(records)
    assert windows == first


def test_what_a_board_throws_ends_nothing(tmp_path, capsys):
    class Board:
        def connect(self, options):
            raise ZeroDivisionError("a package of somebody else")

    Log(tmp_path, {}, [Board()]).training(40, 0, TRAINED)
    assert capsys.readouterr().out == (
        "No live view (ZeroDivisionError: a package of somebody else); training goes on.\n")
    assert len(lines(tmp_path)) == 1


def test_a_full_disk_is_one_line_and_the_log_catches_up(tmp_path, capsys, monkeypatch):
    log = offline(tmp_path)
    log.training(40, 0, TRAINED)
    full = OSError(28, "No space left on device")

    def refuse(*args, **kwargs):
        with open(tmp_path / "log.jsonl", "a") as file:
            file.write('{"kind": "tr')  # half a line
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "open", refuse)
        patch.setattr(log_module, "write_text", refuse)
        log.training(80, 0, TRAINED)
        log.training(120, 0, TRAINED)
    assert capsys.readouterr().out.count("No space left on device") == 1
    log.training(160, 0, TRAINED)
    monkeypatch.setattr(log_module, "write_text", refuse)
    log.training(200, 0, TRAINED)  # one line more, the others are not written again
    assert [line["step"] for line in lines(tmp_path)] == [40, 80, 120, 160, 200]


@pytest.mark.parametrize("line", ["[1, 2]", '{"step": "4", "kind": "train"}', '{"step": 4}', '"text"'])
def test_a_line_that_is_no_record_is_named(tmp_path, line):
    (tmp_path / "log.jsonl").write_text('{"kind": "train", "step": 1}\n' + line + '\n{"kind": "train", "step": 9}\n')
    with pytest.raises(LogError, match=r"log\.jsonl, line 2 is no record of a run, .*: delete that line"):
        offline(tmp_path, start_step=9)


def test_which_steps_were_evaluated(tmp_path):
    log = offline(tmp_path)
    log.training(40, 0, TRAINED)
    log.evaluation(80, 0, 0.25, {}, IMG)
    assert [log.evaluated(step) for step in (40, 80)] == [False, True]
    assert offline(tmp_path, start_step=80).evaluated(80)
    assert NoLog().evaluated(3)  # the first process decides


def test_another_server_on_the_port_is_one_line(tmp_path, capsys, monkeypatch):
    pytest.importorskip("visdom")
    monkeypatch.setattr(BaseHTTPRequestHandler, "log_message", lambda *args: None)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:  # refuses every POST
        threading.Thread(target=other.serve_forever, daemon=True).start()
        log = live(tmp_path, other.server_port)
        log.training(40, 0, TRAINED)
        log.training(80, 0, TRAINED)
        other.shutdown()
    out, err = capsys.readouterr()
    assert out.startswith(f"No Visdom server on localhost:{other.server_port};")
    assert (out.count("\n"), err) == (1, "")


# TensorBoard


def test_missing_tensorboard_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    log = Log(tmp_path, {}, [TensorBoard(tmp_path / "tensorboard")])
    log.training(40, 0, TRAINED)
    log.close()
    out, err = capsys.readouterr()
    assert out.startswith("No files for TensorBoard, its package is not there")
    assert out.endswith("pip install tensorboard\n")
    assert (out.count("\n"), err) == (1, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "log.jsonl"]


class Writer:
    """Stands in for TensorBoard's SummaryWriter."""

    def __init__(self, folder, purge_step):
        self.purge_step, self.scalars, self.images, self.texts, self.closed = purge_step, {}, {}, {}, False

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def add_image(self, tag, img, step, dataformats):
        self.images[tag, step] = img, dataformats

    def add_text(self, tag, text, step):
        self.texts[tag, step] = text

    def flush(self):
        pass

    def close(self):
        self.closed = True


def test_tensorboard_gets_each_record_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    board = TensorBoard(tmp_path, start_step=20)
    log = Log(tmp_path, {"lr": 0.5}, [board])
    log.training(40, 0, TRAINED | {"roi_acc_fg": float("nan")})
    log.evaluation(80, 1, 0.25, {"cat": 0.5, "dog": None}, IMG)
    log.close()
    writer = board.writer
    assert writer.purge_step == 21
    assert writer.texts["options", 20].endswith("| lr | 0.5 |")
    at_40 = {tag: value for (tag, step), value in writer.scalars.items() if step == 40}
    assert len(at_40) == len(FIGURES) - 1  # but for the NaN
    assert (at_40["loss/roi_loc"], at_40["rate/rpn_recall_pos"], at_40["count/n_proposal"]) == (0.3, 0.75, 300)
    at_80 = {tag: value for (tag, step), value in writer.scalars.items() if step == 80}
    assert at_80 == {"ap/mAP": 0.25, "ap/cat": 0.5}
    assert writer.images["test images", 80] == (IMG, "HWC")
    assert writer.closed


def test_tensorboard_writes_its_files(tmp_path):
    pytest.importorskip("torch.utils.tensorboard")
    log = Log(tmp_path, {"lr": 0.5}, [TensorBoard(tmp_path / "tensorboard")])
    log.training(40, 0, TRAINED)
    log.evaluation(40, 0, 0.25, {"cat": 0.5}, IMG)
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in (b"loss/total", b"rate/roi_acc_bg", b"ap/cat", b"test images"):
        assert tag in content
