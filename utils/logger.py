"""Average what training steps report, and write it to the run folder, Visdom and TensorBoard.

Shapes: H, W image height and width in pixels; N records of one kind, in the order of their steps.
"""

import contextlib
import html
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.checkpoint import write_text
from utils.config import as_text, dashed
from utils.vis import class_color, drawable, save_figure, save_picture, set_log_scale

LOSSES = ("rpn_loc", "rpn_cls", "roi_loc", "roi_cls", "total")
RATIOS = {  # figure -> the two counts of `Losses.stats` that it is the quotient of
    "rpn_recall_pos": ("n_pos_anchor_correct", "n_pos_anchor"),
    "rpn_recall_neg": ("n_neg_anchor_correct", "n_neg_anchor"),
    "roi_acc_fg": ("n_pos_roi_correct", "n_pos_roi"),
    "roi_acc_bg": ("n_neg_roi_correct", "n_neg_roi"),
    "n_pos_anchor": ("n_pos_anchor", "n_image"),
    "n_proposal": ("n_proposal", "n_image"),
    "n_pos_roi": ("n_pos_roi", "n_image"),
    "same_score": ("n_same_score", "n_image"),  # 1: the network is dead
}
COUNTS = tuple(dict.fromkeys(name for pair in RATIOS.values() for name in pair))


class Panel(NamedTuple):
    """One plot over the steps."""

    title: str
    figures: tuple[str, ...] = ()  # of the records of kind "train"; average precision has one line per class
    log: bool = False  # whether the axis of values is logarithmic
    smooth: bool = False  # whether local means are drawn


PANELS = {
    "loss": Panel("losses", LOSSES, log=True, smooth=True),
    "ap": Panel("average precision"),
    "rate": Panel("fraction classified correctly", tuple(RATIOS)[:4], smooth=True),
    "count": Panel("per image", tuple(RATIOS)[4:7], log=True, smooth=True),
    "speed": Panel("images per second", ("images_per_second",)),
    "lr": Panel("learning rate", ("lr",), log=True),
}
FIGURES = tuple(name for panel in PANELS.values() for name in panel.figures)
LONGEST = 30  # letters of a class name in a legend
_figure = FigureCanvasAgg(Figure(figsize=(16, 9), dpi=100, layout="constrained")).figure  # drawn on again and again:
# a discarded figure of 10 MB stays in memory until Python's next full garbage collection
_COLORS = ("#1f77b4", "#2ca02c", "#ff7f0e", "#d62728", "#222222")
_REDRAW_AFTER = 30  # seconds between two drawings, at least: each takes about one
_RETRY_AFTER = 60  # seconds until a Visdom server that failed is asked again


class MetricLogger:
    """Gather losses and counts of training steps; nothing leaves the device, or waits for it, before `read`."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all steps and start the clock of `images_per_second`."""
        self._rows, self._since = [], time.monotonic()

    def update(self, losses: NamedTuple) -> None:
        """Add a step: scalar tensors `LOSSES`, means over its images, and `stats` with the scalar tensors `COUNTS`."""
        row = torch.stack([getattr(losses, n) for n in LOSSES] + [getattr(losses.stats, n) for n in COUNTS]).double()
        row[: len(LOSSES)] *= losses.stats.n_image
        self._rows.append(row.detach())

    def read(self, all_reduce: Callable[[list[torch.Tensor]], None] | None = None) -> dict[str, float]:
        """Return the figures since the last call, and start anew.

        Args:
            all_reduce: replaces tensors by their sums over all processes, in place; None for a single process.

        Returns:
            Means over the images of `LOSSES`; `images_per_second`; the fractions of positive and negative anchors and
            RoIs that were classified correctly; numbers per image. NaN where there is nothing to divide by.
        """
        sums = torch.stack(self._rows).sum(0) if self._rows else torch.zeros(len(LOSSES) + len(COUNTS))
        if all_reduce:
            all_reduce([sums])
        total = dict(zip((*LOSSES, *COUNTS), sums.tolist(), strict=True))
        figures = {"images_per_second": total["n_image"] / (time.monotonic() - self._since)}
        for name, (part, whole) in (dict.fromkeys(LOSSES, (None, "n_image")) | RATIOS).items():
            figures[name] = total[part or name] / total[whole] if total[whole] else math.nan
        self.reset()
        return figures


def smooth(value: np.ndarray) -> np.ndarray:
    """Average each of (N,) values, N > 0, with its neighbours, weighting near ones most; NaN is left out."""
    kernel = np.hanning(len(value) // 8 + 3)[1:-1]
    known = np.isfinite(value)
    weight = np.convolve(known, kernel, mode="same")
    total = np.convolve(np.where(known, value, 0), kernel, mode="same")
    return np.divide(total, weight, out=np.full(len(value), np.nan), where=weight > 0)


def _column(rows: list[dict], key: str) -> np.ndarray:
    return np.array([row.get(key) for row in rows], dtype=float)


def _title(records: list[dict], name: str) -> str:
    """Return the title of a panel; that of the average precision names the split."""
    splits = [record["split"] for record in records if record.get("split")]
    return PANELS[name].title + (f" on {splits[-1]}" if name == "ap" and splits else "")


def _lines(records: list[dict], name: str) -> tuple[np.ndarray, list[tuple[str, np.ndarray, str]]]:
    """Return the steps (N,) of a panel, and of each line the label, values (N,) and colour; the best class first."""
    kind = "eval" if name == "ap" else "train"
    rows = [row for row in records if row["kind"] == kind and row.get("ap") != {}]  # {}: of proposals alone
    lines = [(key, _column(rows, key), color) for key, color in zip(PANELS[name].figures, _COLORS, strict=False)]
    if name == "ap":
        ap = [row["ap"] for row in rows]
        colors = {key: to_hex(np.divide(class_color(label), 255)) for label, key in enumerate(ap[-1] if ap else ())}
        lines = [(key, _column(ap, key), color) for key, color in colors.items()]
        lines.sort(key=lambda line: -np.nan_to_num(line[1][-1], nan=-1))
        lines.insert(0, ("mAP", _column(rows, "map"), _COLORS[-1]))
    return _column(rows, "step"), lines


def plot_curves(records: list[dict], path: Path) -> None:
    """Plot the records of log.jsonl, one plot per panel, into a PNG file that is replaced only by a complete one."""
    _figure.clear()
    mosaic = [["loss", "loss", "ap", "ap"], ["rate", "count", "speed", "lr"]]
    for name, axes in _figure.subplot_mosaic(mosaic, height_ratios=(3, 2)).items():
        _plot_panel(axes, name, records)
    save_figure(_figure, path)


def _plot_panel(axes, name: str, records: list[dict]) -> None:
    """Plot lines, faint below their local means, with the last values in the legend."""
    panel, handles, (step, lines) = PANELS[name], [], _lines(records, name)
    # the rate of a record is that of the steps before it
    look = {"marker": "o" if len(step) <= 20 else None, "drawstyle": "steps-pre" if name == "lr" else "default"}
    classes = next((list(record["ap"]) for record in reversed(records) if "ap" in record), [])
    for label, value, color in lines:
        label = drawable(label, classes.index(label)) if label in classes else label
        label = label if len(label) <= LONGEST else label[: LONGEST - 1] + "…"
        if panel.smooth and len(step):
            axes.plot(step, value, color=color, alpha=0.18, linewidth=0.6)
            value = smooth(value)
        last = f"{value[-1]:.4g} ".replace("nan", "n/a") if len(step) else ""
        handles += axes.plot(step, value, color=color, lw=4 if label == "mAP" else 1.8, label=last + label, **look)
    if panel.log and any(np.any(line.get_ydata() > 0) for line in handles):
        set_log_scale(axes, "y")
    if not panel.log:
        axes.set_ylim(-0.02, None if name == "speed" else 1.02)
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1 if name == "loss" else -0.15), "ncols": 2}  # below
    place |= {"loss": {"ncols": 5}, "ap": {"loc": "center left", "bbox_to_anchor": (1, 0.5), "ncols": 1}}.get(name, {})
    axes.legend(handles=handles[:26], fontsize="small", **place)  # of many classes the best
    axes.set(title=_title(records, name), xlabel="step")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10), integer=True))


class VisdomWriter:
    """Windows of the environment `env` on the Visdom server at localhost:`port`, one with the options of the run."""

    def __init__(self, port: int, env: str, options: Mapping):
        import visdom

        # send=False: the constructor does not warn that it goes without an incoming socket
        self.client = visdom.Visdom(port=port, env=env, use_incoming_socket=False, raise_exceptions=True, send=False)
        self.client.send, session = True, self.client.session
        session.trust_env = False  # no proxy between this machine and itself
        session.post = partial(session.post, timeout=1)  # seconds
        session.hooks["response"].append(lambda response, **_: response.raise_for_status())
        rows = "".join(f"<tr><td>{key}<td>{html.escape(str(value))}" for key, value in options.items())
        opts = {"title": "options", "width": 330, "height": 400}
        self.client.text(f"<table>{rows}</table>", win="options", opts=opts)
        print(f"plots: http://localhost:{port}/env/{env}", flush=True)

    def draw(self, records: list[dict]) -> None:
        """Draw all records anew, which is faster than appending points, thinned out to 200 per line."""
        for name, panel in PANELS.items():
            step, lines = _lines(records, name)
            if len(step):
                index = np.unique(np.linspace(0, len(step) - 1, 200).astype(int))
                value = np.stack([smooth(value) if panel.smooth else value for _, value, _ in lines], axis=1)
                opts = {"title": _title(records, name), "legend": [label for label, *_ in lines], "width": 600}
                opts["linecolor"] = np.array([list(bytes.fromhex(color[1:])) for _, _, color in lines])
                opts |= {"height": 400, "ytype": "log" if panel.log else "linear", "markers": len(index) <= 20}
                opts["layoutopts"] = {"plotly": {"title": {"text": opts["title"], "x": 0}}}  # beside the buttons
                self.client.line(value[index], step[index], win=panel.title, opts=opts)

    def picture(self, name: str, img: np.ndarray, step: int) -> None:
        """Show an image in the window `name`."""
        self.client.image(img.transpose(2, 0, 1), win=name, opts={"title": f"{name}, step {step}"})

    def close(self) -> None:
        """Have the server store the windows."""
        self.client.save([self.client.env])


class TensorBoardWriter:
    """Event files in `folder`, which replace those of earlier runs, with the options of the run."""

    def __init__(self, folder: Path, options: Mapping):
        from torch.utils.tensorboard import SummaryWriter

        self.writer, self._n_drawn = SummaryWriter(folder, purge_step=0), 0
        self.writer.add_text("options", "  \n".join(f"{key}: {value}" for key, value in options.items()))

    def draw(self, records: list[dict]) -> None:
        """Add the records since the last call."""
        for record in records[self._n_drawn :]:
            for name in PANELS:
                for label, value, _ in _lines([record], name)[1]:
                    if np.isfinite(value).any():
                        self.writer.add_scalar(f"{name}/{label}", value[0], record["step"])
        self._n_drawn = len(records)
        self.writer.flush()

    def picture(self, name: str, img: np.ndarray, step: int) -> None:
        """Add an image."""
        self.writer.add_image(name, img, step, dataformats="HWC")

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


def read_log(path: Path, last_step: int, first_step: int = 0) -> list[dict]:
    """Read the records of the steps `first_step` to `last_step`; damaged lines, such as a half one, are dropped."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            record = json.loads(line)
            if record["kind"] in ("train", "eval", "resume") and first_step <= record["step"] <= last_step:
                records.append(record)
    return records


class Logger:
    """Log of one training run: log.jsonl, curves.png and pictures/ in its folder, Visdom and TensorBoard.

    A failing disk, server or package is reported by one printed line, and training continues.

    Args:
        folder: created where missing; its name is the Visdom environment.
        options: of the run, name -> value, to show.
        visdom_port: of a server on this machine, which may be started or stopped at any time; None: no Visdom.
        tensorboard: whether to write event files into `folder`/tensorboard.
        start_step: step from which a run is resumed, whose log is kept up to there; 0 starts a new log.

    """

    def __init__(self, folder: Path, options: Mapping, visdom_port: int | None = None, tensorboard=False, start_step=0):
        self.folder, self.path, self._openers = Path(folder), Path(folder) / "log.jsonl", {}
        if visdom_port is not None:
            hint = "To start a server: make dashboard, or python -m visdom.server -bind_local"
            name = f"Visdom on localhost:{visdom_port}", hint
            self._openers[name] = lambda: VisdomWriter(visdom_port, self.folder.name, options)
        if tensorboard:
            name = "TensorBoard", "To install it: pip install tensorboard"
            self._openers[name] = lambda: TensorBoardWriter(self.folder / "tensorboard", options)
        self._writers, self._retry_at = {}, {}  # by name: what is open, and when to try again what failed
        self._redraw_at, self._failed = -math.inf, set()  # names of what failed the last time
        (self.folder / "pictures").mkdir(parents=True, exist_ok=True)
        self.records = read_log(self.path, start_step) if start_step else []
        self._write_log()
        self._show(lambda writer: None)

    def has_eval(self, step: int) -> bool:
        """Return whether there is an evaluation after `step` steps."""
        return any(record["kind"] == "eval" and record["step"] == step for record in self.records)

    def train(self, step: int, epoch: int, figures: Mapping[str, float]) -> None:
        """Log the `FIGURES` of the last steps; None for missing ones and for NaN and infinity, which JSON lacks."""
        known = {name: figures[name] for name in FIGURES if math.isfinite(figures.get(name, math.nan))}
        self._append({"kind": "train", "step": step, "epoch": epoch} | dict.fromkeys(FIGURES) | known)
        if time.monotonic() >= self._redraw_at:
            self._draw()

    def resume(self, step: int, changed: Mapping[str, list]) -> None:
        """List and log the options that change after `step` steps, name -> [before, now]."""
        texts = {name: [as_text(value) or "none" for value in pair] for name, pair in changed.items()}
        print("changed:", ", ".join(f"--{dashed(name)}={now} (was {old})" for name, (old, now) in texts.items()))
        self._append({"kind": "resume", "step": step, "changed": changed})

    def eval(self, step: int, epoch: int, split: str, map: float | None, ap: Mapping, draw=None, **more: Any) -> None:
        """Log the mean average precision on a split and that of each class, None without objects.

        `draw()` returns a picture (H, W, 3) uint8 for pictures/, Visdom and TensorBoard. `more` is logged, too.
        """
        self._append({"kind": "eval", "step": step, "epoch": epoch, "split": split, "map": map, "ap": ap} | more)
        self._draw()
        if draw:
            folder = self.folder / "pictures"
            with self._continuing(folder):
                img = draw()
                self._show(lambda writer: writer.picture("evaluation", img, step))
                save_picture(folder / f"{step:06d}.png", img)

    def close(self) -> None:
        """Draw the curves a last time and close what is open."""
        self._draw()
        self._show(lambda writer: writer.close())

    @contextlib.contextmanager
    def _continuing(self, name: Any, hint: str = "") -> Iterator[None]:
        """Report an error in the block, unless the block before failed, too, and continue."""
        try:
            yield
            self._failed.discard(name)
        except Exception as error:
            if name not in self._failed:
                print(f"{name} failed ({type(error).__name__}: {error}); training continues. {hint}", flush=True)
            self._failed.add(name)

    def _write_log(self) -> None:
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in self.records))

    def _append(self, record: dict) -> None:
        self.records.append(record)
        with self._continuing(self.path, "Free some space: checkpoints need it"):
            if self.path in self._failed:  # the last write may have left half a line
                self._write_log()
            else:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")

    def _draw(self) -> None:
        with self._continuing("curves.png"):
            plot_curves(self.records, self.folder / "curves.png")
        self._show(lambda writer: writer.draw(self.records))
        self._redraw_at = time.monotonic() + _REDRAW_AFTER

    def _show(self, draw: Callable) -> None:
        """Call `draw` with each writer; open a failed one again after a while."""
        for name, opener in self._openers.items():
            if time.monotonic() >= self._retry_at.get(name, 0):
                self._retry_at[name], writer = time.monotonic() + _RETRY_AFTER, self._writers.pop(name, None)
                with self._continuing(*name):
                    writer = writer or opener()
                    draw(writer)
                    self._writers[name], self._retry_at[name] = writer, 0
