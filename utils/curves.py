"""The curves of a run: what is plotted of log.jsonl, and the picture that stays in the run's folder.

Shapes: N records of one run, in the order of their steps.
"""

import gc
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from utils.files import replacing
from utils.vis import class_color

LOSSES = ("rpn_loc", "rpn_cls", "roi_loc", "roi_cls", "total")
_BLUE, _GREEN, _ORANGE, _RED, _BLACK, _PURPLE = "#1f77b4", "#2ca02c", "#ff7f0e", "#d62728", "#222222", "#9467bd"


class Panel(NamedTuple):
    """One plot over the steps."""

    title: str
    lines: dict[str, tuple[str, str]]  # name of a figure in log.jsonl -> name in the legend, colour
    log: bool = False  # whether the axis of values is logarithmic
    smooth: bool = False  # whether a local mean is drawn over the values


PANELS = {  # of the records of kind "train"
    "loss": Panel(
        "losses",
        dict(zip(LOSSES, zip(LOSSES, (_BLUE, _GREEN, _ORANGE, _RED, _BLACK), strict=True), strict=True)),
        log=True,
        smooth=True,
    ),
    "rate": Panel(
        "share that is classified right",
        {
            "rpn_recall_pos": ("RPN: positive anchors", _BLUE),
            "rpn_recall_neg": ("RPN: negative anchors", _GREEN),
            "roi_acc_fg": ("head: RoIs on objects", _ORANGE),
            "roi_acc_bg": ("head: RoIs on background", _RED),
        },
        smooth=True,
    ),
    "count": Panel(
        "in an image",
        {
            "n_proposal": ("proposals that survive the NMS", _BLACK),
            "n_pos_anchor": ("positive anchors, sampled", _BLUE),
            "n_pos_roi": ("positive RoIs, sampled", _ORANGE),
        },
        log=True,
        smooth=True,
    ),
    "speed": Panel("images a second", {"images_per_second": ("images a second", _PURPLE)}),
    "lr": Panel("learning rate", {"lr": ("learning rate", _PURPLE)}, log=True),
}
AP_TITLE = "average precision on the test split"
FIGURES = tuple(name for panel in PANELS.values() for name in panel.lines)
_MOST_NAMES = 25  # classes in a legend


def column(records: list[dict], name: str) -> np.ndarray:
    """(N,) one figure of each record, NaN where there is none."""
    return np.array([record.get(name) for record in records], dtype=float)


def ap_lines(evals: list[dict]) -> list[tuple[str, np.ndarray, str]]:
    """Name, (N,) average precisions and colour: of the mean over the classes, "mAP", then of each class."""
    lines = [("mAP", column(evals, "map"), _BLACK)]
    for label, name in enumerate(evals[-1]["ap"] if evals else ()):
        color = "#{:02x}{:02x}{:02x}".format(*class_color(label))
        lines.append((name, column([record["ap"] for record in evals], name), color))
    return lines


def smooth(value: np.ndarray) -> np.ndarray:
    """(N,) the mean of each value and its neighbours, the near ones counting most; NaN is left out."""
    kernel = np.hanning(len(value) // 8 + 3)[1:-1]
    if len(kernel) > len(value):
        return value
    known = np.isfinite(value)
    weight = np.convolve(known, kernel, mode="same")
    total = np.convolve(np.where(known, value, 0), kernel, mode="same")
    return np.divide(total, weight, out=np.full(len(value), np.nan), where=weight > 0)


def plot_curves(records: list[dict], path: Path) -> None:
    """Draw what a run has learned over its steps into a PNG file: `PANELS`, and average precision by class.

    `records` are the lines of log.jsonl: those of kind "train" hold `step` and the figures of `PANELS`, those of
    kind "eval" `step`, `map` and `ap`, a number a class; None stands for NaN, and figures may be missing. The file
    is written whole or not at all.
    """
    train = [record for record in records if record["kind"] == "train"]
    evals = [record for record in records if record["kind"] == "eval"]
    figure = Figure(figsize=(16, 9), dpi=100, layout="constrained")
    axes = figure.subplot_mosaic(
        [["loss", "loss", "ap", "ap"], ["rate", "count", "speed", "lr"]], height_ratios=(3, 2), sharex=True
    )
    for name, panel in PANELS.items():
        _draw_panel(axes[name], panel, train)
    axes["rate"].set_ylim(-0.02, 1.02)
    axes["speed"].set_ylim(bottom=0)
    _draw_ap(axes["ap"], evals)
    for panel in axes.values():
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelbottom=True)
        panel.set_xlabel("step")
    axes["lr"].xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10), integer=True))
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
    del figure, axes, panel
    gc.collect()  # a figure is full of cycles: its pixels, 6 MB, would wait for Python's next full collection


def _draw_panel(axes: Axes, panel: Panel, train: list[dict]) -> None:
    """Draw one of `PANELS`: the values, faint where a local mean is drawn over them, and a legend with the last."""
    step, marker, strong = column(train, "step"), "o" if len(train) <= 20 else None, []
    for name, (label, color) in panel.lines.items():
        value = column(train, name)
        strong.append(smooth(value) if panel.smooth else value)
        if panel.smooth:
            axes.plot(step, value, color=color, alpha=0.18, linewidth=0.6)
        last = ""
        if train and np.isfinite(strong[-1][-1]):
            last = " " + np.format_float_positional(strong[-1][-1], 3, fractional=False, trim="-")  # 1070, not 1.07e+03
        style = "steps-post" if name == "lr" else "default"
        axes.plot(step, strong[-1], color=color, linewidth=1.8, marker=marker, drawstyle=style, label=label + last)
    if panel.log:
        _log_axis(axes, np.concatenate(strong))
    smoothed = panel.smooth and len(train) >= 8
    axes.set_title(panel.title + (", smoothed" if smoothed else ""))
    if len(panel.lines) > 1:
        wide = len(panel.lines) == len(LOSSES)
        axes.legend(loc="best", ncols=5 if wide else 1, columnspacing=1, handlelength=1, fontsize="small")


def _draw_ap(axes: Axes, evals: list[dict]) -> None:
    """Draw the average precision of each class, the best named first, and their mean over the evaluations."""
    step, (mean, *classes) = column(evals, "step"), ap_lines(evals)
    for name, value, color in sorted(classes, key=lambda line: -np.nan_to_num(line[1][-1], nan=-1)):
        last = f"{value[-1]:.3f}" if np.isfinite(value[-1]) else "n/a"
        axes.plot(step, value, color=color, linewidth=1, marker="o", markersize=3, label=f"{name} {last}")
    axes.plot(step, mean[1], color=mean[2], linewidth=2.5, marker="o")
    known = mean[1][np.isfinite(mean[1])]
    axes.set_ylim(-0.02, 1.02)
    summary = f": mean (black) {known[-1]:.4f}, best {known.max():.4f}" if len(known) else ""
    axes.set_title(AP_TITLE + summary)
    if 0 < len(classes) <= _MOST_NAMES:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", frameon=False)


def _log_axis(axes: Axes, value: np.ndarray) -> None:
    """Give `axes` a logarithmic scale with plain numbers that shows the positive ones of `value`."""
    value = value[np.isfinite(value) & (value > 0)]
    if len(value):
        room = 1.5 if value.max() > 10 * value.min() else 3
        axes.set_yscale("log", nonpositive="mask")
        axes.set_ylim(value.min() / room, value.max() * room)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
