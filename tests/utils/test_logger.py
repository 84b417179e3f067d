"""Tests of utils.logger: means by hand, the run folder, the curves, Visdom on a server started here, TensorBoard."""

import base64
import errno
import gc
import io
import json
import math
import socket
import subprocess
import sys
import time
import types
from collections import namedtuple

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image

from utils import logger as logger_module
from utils import vis
from utils.logger import COUNTS, FIGURES, LOSSES, PANELS, Logger, MetricLogger, plot_curves, smooth

TRAINED = {name: 0.25 * (i + 1) for i, name in enumerate(FIGURES)}
IMG = np.zeros((20, 30, 3), np.uint8)
IMG[5, 7] = (255, 128, 1)
draw = lambda: IMG  # noqa: E731
Losses = namedtuple("Losses", [*LOSSES, "stats"])
Stats = namedtuple("Stats", COUNTS)


def losses(value, device="cpu", **counts):
    """A step whose losses are `value`, 2 `value`, ... and whose counts are 0 where they are not given."""
    tensors = [torch.tensor(float(value) * (i + 1), device=device) for i in range(5)]
    return Losses(*tensors, Stats(*(torch.tensor(counts.get(name, 0), device=device) for name in COUNTS)))


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Spare the Loggers their curves, a second each."""
    monkeypatch.setattr(logger_module, "plot_curves", lambda records, path: path.touch())


def lines(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


# MetricLogger


def test_means_and_speed_start_anew_when_they_are_read(monkeypatch):
    clock = iter([10.0, 14.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(logger_module.time, "monotonic", lambda: next(clock))
    metrics = MetricLogger()
    metrics.update(losses(1.0, n_image=2))
    metrics.update(losses(3.0, n_image=6))
    figures = metrics.read()
    assert [figures[name] for name in LOSSES] == [2.5, 5, 7.5, 10, 12.5]  # means over the 8 images
    assert figures["images_per_second"] == 2  # in 4 seconds
    metrics.update(losses(1.0, n_image=5))
    figures = metrics.read()
    assert (figures["total"], figures["images_per_second"]) == (5, 0.5)


def test_rates_by_hand():
    metrics = MetricLogger()
    metrics.update(losses(1.0, n_image=1, n_proposal=7, n_pos_anchor=3, n_pos_anchor_correct=1, n_pos_roi=2))
    metrics.update(
        losses(1, n_image=3, n_proposal=3, n_pos_anchor=5, n_pos_anchor_correct=5, n_neg_anchor=8,
               n_neg_anchor_correct=4, n_pos_roi=2, n_pos_roi_correct=1, n_neg_roi=10, n_neg_roi_correct=9,
               n_same_score=1)
    )  # fmt: skip
    figures = metrics.read()
    del figures["images_per_second"]
    assert {name: figures[name] for name in figures if name not in LOSSES} == {
        "rpn_recall_pos": 6 / 8, "rpn_recall_neg": 4 / 8, "roi_acc_fg": 1 / 4, "roi_acc_bg": 9 / 10,
        "n_pos_anchor": 2, "n_proposal": 2.5, "n_pos_roi": 1, "same_score": 0.25,
    }  # fmt: skip


def test_nothing_to_divide_by_is_not_a_number():
    metrics = MetricLogger()
    metrics.update(losses(1.0, n_image=1, n_neg_anchor=2, n_neg_anchor_correct=2))
    figures = metrics.read()
    assert (figures["rpn_recall_neg"], figures["n_proposal"]) == (1, 0)
    assert all(math.isnan(figures[name]) for name in ("rpn_recall_pos", "roi_acc_fg", "roi_acc_bg"))
    figures = metrics.read()  # no step since
    assert math.isnan(figures["total"])
    assert set(figures) == set(FIGURES) - {"lr"} | {"same_score"}


def test_several_processes_add_up():
    metrics, other = MetricLogger(), MetricLogger()
    metrics.update(losses(1.0, n_image=1, n_pos_roi=4, n_pos_roi_correct=1))
    other.update(losses(4.0, n_image=2, n_pos_roi=4, n_pos_roi_correct=3))
    sums = []
    other.read(lambda tensors: sums.extend(tensors))

    def all_reduce(tensors):
        tensors[0] += sums[0]

    figures = metrics.read(all_reduce)
    assert figures["rpn_loc"] == 3  # (1 * 1 + 4 * 2) / 3
    assert figures["roi_acc_fg"] == 0.5


def test_reset_forgets():
    metrics = MetricLogger()
    metrics.update(losses(9.0, n_image=100))
    metrics.reset()
    metrics.update(losses(1.0, n_image=1))
    assert metrics.read()["total"] == 5


def test_losses_are_those_of_the_trainer():
    trainer = pytest.importorskip("trainer")
    assert trainer.Losses._fields == Losses._fields
    assert set(trainer.Stats._fields) == set(COUNTS)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_updating_waits_for_no_gpu():
    metrics, step = MetricLogger(), losses(1.0, "cuda", n_image=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        metrics.update(step)
        metrics.update(step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert metrics.read()["total"] == 5


# curves.png


def run(n_train, n_eval):
    train = [
        {"kind": "train", "step": 40 * i, "epoch": 0} | {name: (k + 1.0) / (i + 1) for k, name in enumerate(FIGURES)}
        for i in range(1, n_train + 1)
    ]
    return train + [
        {
            "kind": "eval",
            "step": 80 * i,
            "epoch": i,
            "split": "val",
            "map": 0.1 * i,
            "ap": {"dog": None, "$1_$5": 0.2 * i},
        }
        for i in range(1, n_eval + 1)
    ]


@pytest.mark.parametrize(("n_train", "n_eval"), [(0, 0), (1, 0), (2, 1), (0, 2), (300, 6)])
@pytest.mark.filterwarnings("error")
def test_curves_are_a_complete_picture(tmp_path, n_train, n_eval):
    path = tmp_path / "curves.png"
    plot_curves(run(n_train, n_eval), path)
    img = np.array(Image.open(path).convert("RGB")).astype(int)
    assert img.shape == (900, 1600, 3)
    colorful = img.max(axis=2) - img.min(axis=2) > 80
    for columns, n in ((slice(50, 550), n_train), (slice(800, 1300), n_eval)):  # left of the legends
        assert colorful[20:480, columns].any() == (n > 0)
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_every_figure_has_a_line_and_a_name(tmp_path):
    plot_curves(run(40, 3), tmp_path / "curves.png")
    drawn = {axes.get_title(): axes for axes in logger_module._figure.axes}
    for panel in PANELS.values():
        if panel.figures:
            axes = drawn[panel.title]
            assert len(axes.lines) == len(panel.figures) * (1 + panel.smooth)  # raw below smoothed
            texts = [text.get_text().split()[1] for text in axes.get_legend().get_texts()]
            assert texts == list(panel.figures)
    raw, strong = drawn["losses"].lines[:2]
    np.testing.assert_allclose(raw.get_ydata(), [1 / (i + 1) for i in range(1, 41)])
    np.testing.assert_allclose(strong.get_ydata(), smooth(raw.get_ydata()))
    np.testing.assert_array_equal(raw.get_xdata(), 40 * np.arange(1, 41))
    axes = drawn["average precision on val"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0.3 mAP", "0.6 $1_$5", "n/a dog"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.1, 0.2, 0.3])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), [0.2, 0.4, 0.6])


def drawn_axes(records, path):
    plot_curves(records, path)
    return {axes.get_title(): axes for axes in logger_module._figure.axes}


def test_the_rate_falls_where_it_was_lowered(tmp_path):
    records = run(4, 0)
    for record in records:
        record["lr"] = 1e-3 if record["step"] <= 80 else 1e-4  # from step 81 on
    line = drawn_axes(records, tmp_path / "curves.png")["learning rate"].lines[0]
    x, y = cbook.STEP_LOOKUP_MAP[line.get_drawstyle()](*line.get_data())
    assert x[:-1][np.diff(y) < 0].tolist() == [80]


@pytest.mark.filterwarnings("error::matplotlib.MatplotlibDeprecationWarning")
def test_a_class_name_is_no_markup(tmp_path):
    names = ["$1_$5", "_crack", "_background", r"\frac{", "a^{b", "<b>x</b>", "a\nb", "größe", "猫\u200b"]
    ap = dict.fromkeys(names, 0.5)
    records = [{"kind": "eval", "step": 80, "epoch": 0, "split": "$x^", "map": 0.5, "ap": ap}]
    axes = drawn_axes(records, tmp_path / "curves.png")["average precision on $x^"]
    shown = [text.get_text() for text in axes.get_legend().get_texts()]
    assert shown == ["0.5 mAP", *(f"0.5 {vis.drawable(name, i)}" for i, name in enumerate(names))]
    assert [vis.drawable(name, i) for i, name in enumerate(names)][:8] == [*names[:6], "6", "größe"]
    assert not any(text.get_parse_math() for text in axes.get_legend().get_texts())


def test_a_long_class_name_leaves_room(tmp_path):
    records = [{"kind": "eval", "step": 80, "epoch": 0, "split": "val", "map": 0.5, "ap": {"long " * 60: 0.5}}]
    axes = drawn_axes(records, tmp_path / "curves.png")["average precision on val"]
    assert axes.get_legend().get_texts()[1].get_text() == "0.5 " + ("long " * 6)[:29] + "…"


def test_the_line_of_the_only_class_is_visible(tmp_path):
    records = [{"kind": "eval", "step": 80, "epoch": 0, "split": "val", "map": 0.5, "ap": {"cat": 0.5}}]
    below, above = drawn_axes(records, tmp_path / "curves.png")["average precision on val"].lines
    assert above.get_linewidth() < below.get_linewidth()


def test_an_evaluation_of_proposals_has_no_average_precision(tmp_path):
    records = [{"kind": "eval", "step": 80, "epoch": 0, "split": "val", "map": None, "ap": {}, "recall": {"300": 0.5}}]
    axes = drawn_axes(records, tmp_path / "curves.png")["average precision on val"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mAP"]  # not "nan mAP"


def test_no_legend_covers_a_line(tmp_path):
    for axes in drawn_axes(run(40, 3), tmp_path / "curves.png").values():
        legend, plot = axes.get_legend().get_window_extent(), axes.get_window_extent()
        assert not legend.overlaps(plot), axes.get_title()


@pytest.mark.filterwarnings("error")
def test_curves_bear_gaps_and_zeros(tmp_path):
    records = run(40, 3)
    records[3]["roi_loc"] = 0.0
    records[5]["total"] = None
    records[-1]["map"] = None
    for record in records[:40]:
        record["lr"] = 0.0
        record["n_proposal"] = None
        del record["rpn_recall_pos"]
    plot_curves(records, tmp_path / "curves.png")
    plot_curves([record | {"map": None} for record in records[40:]], tmp_path / "curves.png")
    Image.open(tmp_path / "curves.png").verify()


def test_smoothing_is_a_local_mean_without_gaps():
    value = np.full(64, 2.0)
    value[10] = np.nan
    np.testing.assert_allclose(smooth(value), 2.0)
    smoothed = smooth(np.repeat([1.0, 3.0], 50))
    np.testing.assert_allclose(smoothed[[0, 99]], [1.0, 3.0])
    assert (np.diff(smoothed) >= -1e-12).all()
    assert 1.5 < smoothed[48] < 2.0
    np.testing.assert_array_equal(smooth(np.array([1.0, 5.0])), [1.0, 5.0])


def test_drawing_often_keeps_one_picture_in_memory(tmp_path):
    """Discarded figures, full of cycles, would keep 6 MB of pixels each until the next full garbage collection."""
    kept = set()
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            plot_curves(run(2, 1), tmp_path / "curves.png")
            renderers = [thing for thing in gc.get_objects() if type(thing).__name__ == "RendererAgg"]
            kept.add(sum(renderer.width == 1600 for renderer in renderers))
    finally:
        gc.enable()
    assert kept == {1}


# the run folder


@pytest.fixture
def drawn(undrawn, monkeypatch):
    """Draw them all the same."""
    monkeypatch.setattr(logger_module, "plot_curves", plot_curves)


def test_log_holds_what_was_logged(tmp_path):
    logger = Logger(tmp_path / "runs" / "a", {})
    logger.train(40, 0, TRAINED | {"roi_loc": float("nan"), "total": float("inf")})
    logger.eval(50, 1, "val", 0.25, {"cat": 0.5, "dog": None}, draw)
    logger.train(60, 1, {"lr": 0.5})
    first, second, third = lines(tmp_path / "runs" / "a")  # before close: each line is written at once
    assert first == {"kind": "train", "step": 40, "epoch": 0} | TRAINED | {"roi_loc": None, "total": None}
    assert second == {
        "kind": "eval",
        "step": 50,
        "epoch": 1,
        "split": "val",
        "map": 0.25,
        "ap": {"cat": 0.5, "dog": None},
    }
    assert list(third)[3:] == list(FIGURES)
    assert (third["lr"], third["total"]) == (0.5, None)
    assert [logger.has_eval(step) for step in (40, 50)] == [False, True]
    picture = np.array(Image.open(tmp_path / "runs" / "a" / "pictures" / "000050.png"))
    np.testing.assert_array_equal(picture, IMG)
    assert sorted(file.name for file in (tmp_path / "runs" / "a").iterdir()) == ["curves.png", "log.jsonl", "pictures"]


def test_resuming_keeps_the_lines_up_to_its_step(tmp_path):
    first = Logger(tmp_path, {})
    for step in (40, 80, 120):
        first.train(step, 0, TRAINED)
    first.eval(80, 0, "val", 0.25, {}, draw)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    second = Logger(tmp_path, {}, start_step=80)
    assert [line["step"] for line in lines(tmp_path)] == [40, 80, 80]
    assert second.has_eval(80)
    second.train(120, 0, TRAINED)
    assert [line["step"] for line in lines(tmp_path)] == [40, 80, 80, 120]
    Logger(tmp_path, {})  # a new run
    assert lines(tmp_path) == []


@pytest.mark.parametrize("line", ['{"st', "[1, 2]", '{"step": "4", "kind": "train"}', '{"step": 4}', '"text"'])
def test_a_damaged_line_is_dropped(tmp_path, line):
    text = '{"kind": "train", "step": 1}\n' + line + '\n{"kind": "train", "step": 9}\n'
    (tmp_path / "log.jsonl").write_text(text)
    Logger(tmp_path, {}, start_step=9)
    assert [line["step"] for line in lines(tmp_path)] == [1, 9]


def test_curves_are_redrawn_now_and_then(tmp_path, drawn):
    logger, curves = Logger(tmp_path, {}), tmp_path / "curves.png"
    logger.train(40, 0, TRAINED)
    for call, drawn in (
        (lambda: logger.train(80, 0, TRAINED), False),
        (lambda: logger.eval(80, 0, "val", 0.25, {}, draw), True),
        (lambda: logger.train(120, 0, TRAINED), False),
        (logger.close, True),
    ):
        curves.unlink(missing_ok=True)
        call()
        assert curves.exists() == drawn


def test_a_full_disk_is_one_line_and_the_log_catches_up(tmp_path, capsys, monkeypatch):
    logger = Logger(tmp_path, {})
    logger.train(40, 0, TRAINED)

    def refuse(*args, **kwargs):
        with open(tmp_path / "log.jsonl", "a") as file:
            file.write('{"kind": "tr')  # half a line
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(tmp_path), "open", refuse)
        patch.setattr(logger_module, "write_text", refuse)
        logger.train(80, 0, TRAINED)
        logger.train(120, 0, TRAINED)
    assert capsys.readouterr().out.count("No space left on device") == 1
    logger.train(160, 0, TRAINED)
    monkeypatch.setattr(logger_module, "write_text", refuse)
    logger.train(200, 0, TRAINED)  # one line more, the others are not written again
    assert [line["step"] for line in lines(tmp_path)] == [40, 80, 120, 160, 200]


def test_a_drawing_that_fails_is_one_line_and_keeps_the_old_one(tmp_path, capsys, drawn, monkeypatch):
    def fill_the_disk(path, *args, **kwargs):
        path.write_bytes(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "curves.png").write_bytes(b"old")
    logger = Logger(tmp_path, {})
    monkeypatch.setattr(logger_module._figure, "savefig", fill_the_disk)
    monkeypatch.setattr(Image.Image, "save", lambda self, path: fill_the_disk(path))
    for step in (40, 80):
        logger.eval(step, 0, "val", 0.25, {}, draw)
    assert (tmp_path / "curves.png").read_bytes() == b"old"
    assert not list((tmp_path / "pictures").iterdir())
    assert sorted(line.split(" failed")[0] for line in capsys.readouterr().out.splitlines()) == [
        str(tmp_path / "pictures"),
        "curves.png",
    ]


def test_an_evaluation_picture_that_fails_is_one_line(tmp_path, capsys):
    logger = Logger(tmp_path, {})
    for step in (40, 80):
        logger.eval(step, 0, "val", 0.25, {"cat": 0.5}, lambda: 1 / 0)
    assert capsys.readouterr().out.count("pictures failed (ZeroDivisionError") == 1
    assert [line["step"] for line in lines(tmp_path)] == [40, 80]
    assert not list((tmp_path / "pictures").iterdir())


def test_what_changes_on_a_resume_is_listed_and_kept(tmp_path, capsys):
    Logger(tmp_path, {}).train(40, 0, TRAINED)
    logger = Logger(tmp_path, {}, start_step=40)
    logger.resume(40, {"lr": [0.001, 0.01], "max_steps": [None, 80]})
    assert capsys.readouterr().out == "changed: --lr=0.01 (was 0.001), --max-steps=80 (was none)\n"
    logger.train(80, 0, TRAINED)
    logger.close()
    assert [line["kind"] for line in lines(tmp_path)] == ["train", "resume", "train"]
    Logger(tmp_path, {}, start_step=80)
    assert lines(tmp_path)[1]["changed"] == {"lr": [0.001, 0.01], "max_steps": [None, 80]}


# Visdom


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start_server(folder, port):
    """A Visdom server in a process of its own, as `make dashboard` starts it; returns once it accepts connections."""
    pytest.importorskip("visdom")
    code = "from visdom.server.run_server import main; main()"
    command = [sys.executable, "-c", code, "-port", str(port), "-env_path", str(folder), "-bind_local"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return server
        except OSError:
            assert server.poll() is None, "the Visdom server ended at once"
            time.sleep(0.1)
    server.kill()
    raise AssertionError("the Visdom server did not start within 30 seconds")


@pytest.fixture
def patient(monkeypatch):
    """Draw each record, ask a failed server again at once, and wait longer for it on a busy machine."""
    requests = pytest.importorskip("requests")
    monkeypatch.setattr(logger_module, "_REDRAW_AFTER", 0)
    monkeypatch.setattr(logger_module, "_RETRY_AFTER", 0)
    send = requests.Session.send
    monkeypatch.setattr(requests.Session, "send", lambda self, call, **kw: send(self, call, **kw | {"timeout": 20}))


def test_visdom_shows_the_run_and_may_come_and_go(tmp_path, patient, capfd, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")  # has no say on this machine
    port, folder = free_port(), tmp_path / "kept" / "here"
    logger = Logger(tmp_path / "mine", {"lr": 0.001, "note": "<b>"}, visdom_port=port)
    logger.train(40, 0, TRAINED)
    out, err = capfd.readouterr()
    assert out.startswith(f"Visdom on localhost:{port} failed (ConnectionError: ")
    hint = "To start a server: make dashboard, or python -m visdom.server -bind_local\n"
    assert out.endswith(f"; training continues. {hint}")
    assert (out.count("\n"), err) == (1, "")
    server = start_server(folder, port)
    try:
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            socket.create_connection(("127.0.0.2", port), timeout=1).close()  # another address of this machine
        logger.train(80, 0, TRAINED | {"roi_cls": float("nan")})
        logger.eval(80, 0, "val", 0.25, {"cat": 0.25, "dog": None}, draw)
        logger.eval(160, 1, "val", 0.5, {"cat": 0.5, "$1_$5": 0.75}, draw)
        logger.close()
        assert capfd.readouterr() == (f"plots: http://localhost:{port}/env/mine\n", "")
        windows = json.loads((folder / "mine.json").read_text())["jsons"]
    finally:
        server.kill()
        server.wait()
    logger.train(200, 1, TRAINED)
    logger.train(240, 1, TRAINED)
    assert capfd.readouterr().out.count("\n") == 1
    assert len(lines(tmp_path / "mine")) == 6

    shown = {
        title: {line["name"]: (line["x"], line["y"]) for line in window["content"]["data"]}
        for title, window in windows.items()
        if title in [panel.title for panel in PANELS.values()]
    }
    assert len(shown) == len(PANELS)
    assert list(shown["losses"]) == list(LOSSES)
    assert shown["losses"]["rpn_loc"] == ([40, 80], [0.25, 0.25])
    assert shown["losses"]["roi_cls"][1] == [1.0, None]
    assert shown["learning rate"] == {"lr": ([40, 80], [TRAINED["lr"]] * 2)}
    assert shown["average precision"] == {
        "mAP": ([80, 160], [0.25, 0.5]), "$1_$5": ([80, 160], [None, 0.75]), "cat": ([80, 160], [0.25, 0.5]),
    }  # fmt: skip
    assert windows["average precision"]["title"] == "average precision on val"
    assert windows["losses"]["content"]["layout"]["yaxis"]["type"] == "log"
    assert windows["losses"]["content"]["layout"]["title"] == {"text": "losses", "x": 0}
    assert "<td>lr<td>0.001" in windows["options"]["content"]
    assert "&lt;b&gt;" in windows["options"]["content"]
    assert windows["evaluation"]["title"] == "evaluation, step 160"
    png = base64.b64decode(windows["evaluation"]["content"]["src"].split(",")[1])
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(png))), IMG)


def test_a_server_that_never_answers_holds_training_for_a_second(tmp_path, capfd, monkeypatch):
    pytest.importorskip("visdom")
    monkeypatch.setattr(logger_module, "plot_curves", lambda records, path: None)
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts connections, and that is all
        start = time.monotonic()
        logger = Logger(tmp_path, {}, visdom_port=server.getsockname()[1])
        assert 0.5 < time.monotonic() - start < 2
        start = time.monotonic()
        for step in (40, 80, 120):
            logger.train(step, 0, TRAINED)  # it is asked again after a minute
        logger.close()
        assert time.monotonic() - start < 0.5
    out, err = capfd.readouterr()
    assert (out.count("\n"), err) == (1, "")
    assert len(lines(tmp_path)) == 3


def test_what_failed_is_asked_again_after_a_while(tmp_path, monkeypatch):
    asked, now = [], [100.0]
    monkeypatch.setattr(logger_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(logger_module, "_REDRAW_AFTER", 0)
    monkeypatch.setattr(logger_module.VisdomWriter, "__init__", lambda *args: asked.append(now[0]) or 1 / 0)
    logger = Logger(tmp_path, {}, visdom_port=1)
    for now[0] in (101, 159, 161, 162, 222):
        logger.train(40, 0, TRAINED)
    assert asked == [100, 161, 222]


def test_a_long_run_is_thinned_out_after_smoothing():
    sent = {}
    client = types.SimpleNamespace(line=lambda Y, X, win, opts: sent.update({win: (Y, X)}))
    records = run(2000, 0)
    for record in records:
        record["total"] = 1 + record["step"] / 40 % 2
    writer = object.__new__(logger_module.VisdomWriter)
    writer.client = client
    writer.draw(records)
    values, steps = sent["losses"]
    assert values.shape == (200, 5)
    assert (steps[0], steps[-1]) == (40, 80000)
    np.testing.assert_allclose(values[20:-20, 4], 1.5, atol=0.02)


# both


@pytest.mark.parametrize(("package", "options"), [("visdom", {"visdom_port": 8097}), ("tensorboard", {})])
def test_a_missing_package_is_one_line(tmp_path, capsys, monkeypatch, package, options):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if package == "tensorboard" else package, None)
    logger = Logger(tmp_path, {}, tensorboard=package == "tensorboard", **options)
    logger.train(40, 0, TRAINED)
    logger.close()
    out, err = capsys.readouterr()
    assert package in out
    assert (out.count("\n"), err) == (1, "")
    assert len(lines(tmp_path)) == 1


def test_importing_needs_neither_package():
    code = "import sys; sys.modules['visdom'] = sys.modules['tensorboard'] = None; import utils.logger"
    subprocess.run([sys.executable, "-c", code], check=True)


# TensorBoard


class Writer:
    """Stands in for TensorBoard's SummaryWriter."""

    def __init__(self, folder, purge_step):
        self.purge_step, self.scalars, self.images, self.texts, self.closed = purge_step, {}, {}, [], False

    def add_scalar(self, tag, value, step):
        assert (tag, step) not in self.scalars
        self.scalars[tag, step] = value

    def add_image(self, tag, img, step, dataformats):
        self.images[tag, step] = img, dataformats

    def add_text(self, tag, text):
        self.texts.append((tag, text))

    def flush(self):
        pass

    def close(self):
        self.closed = True


def test_tensorboard_gets_each_record_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    Logger(tmp_path, {}).train(40, 0, TRAINED | {"roi_acc_fg": float("nan")})
    logger = Logger(tmp_path, {"lr": 0.5}, tensorboard=True, start_step=40)
    writer = logger._writers["TensorBoard", "To install it: pip install tensorboard"].writer
    logger.train(80, 0, TRAINED)
    logger.train(120, 0, TRAINED)
    logger.eval(120, 1, "val", 0.25, {"cat": 0.5, "dog": None}, draw)
    logger.close()
    assert (writer.purge_step, writer.texts) == (0, [("options", "lr: 0.5")])
    at = {step: {tag: value for (tag, other), value in writer.scalars.items() if other == step} for step in (40, 120)}
    assert len(at[40]) == len(FIGURES) - 1  # but for the NaN
    assert at[40]["loss/roi_loc"] == TRAINED["roi_loc"]
    assert len(at[120]) == len(FIGURES) + 2
    assert (at[120]["ap/mAP"], at[120]["ap/cat"], at[120]["lr/lr"]) == (0.25, 0.5, TRAINED["lr"])
    assert writer.images["evaluation", 120] == (IMG, "HWC")
    assert writer.closed


def test_tensorboard_writes_its_files(tmp_path):
    pytest.importorskip("torch.utils.tensorboard")
    logger = Logger(tmp_path, {"lr": 0.5}, tensorboard=True)
    logger.train(40, 0, TRAINED)
    logger.eval(40, 0, "val", 0.25, {"cat": 0.5}, draw)
    logger.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    for tag in (b"loss/total", b"rate/roi_acc_bg", b"ap/cat", b"evaluation"):
        assert tag in content
