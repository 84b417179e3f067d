"""The figures of demo.ipynb: images in a grid, groups of boxes, RoI pooling bin by bin, bars, where gradients flow.

Each function returns a matplotlib `Figure`, which a notebook shows. N: boxes. H, W: sides of an image; h, w: of a map.
"""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

DPI = 80  # moderate: all figures are stored in the notebook
BOX_COLOR = "#e6194b"


class Boxes(NamedTuple):
    """Boxes that look alike, and what the legend calls them."""

    bbox: Any  # (N, 4), y_min, x_min, y_max, x_max
    color: Any
    name: str = ""  # empty: not in the legend
    style: str = "-"
    width: float = 1.5


def describe(**values):
    """Prints the shape, the type and the range of arrays and tensors, one line each."""
    for name, value in values.items():
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
        bounds = f"{array.min():9.3f} to {array.max():.3f}" if array.size else ""
        print(f"{name:<18} {array.shape!s:<20} {array.dtype!s:<8} {bounds}")


def grid(pictures, titles=(), columns=4, size=2.4, colors="gray", limits=(None, None), bbox=None):
    """Images (H, W, 3) or maps (h, w), which are coloured, with the boxes `bbox`, in pixels or cells, on every one."""
    rows = -(-len(pictures) // columns)
    height, width = np.shape(pictures[0])[:2]
    figure = Figure(
        figsize=(size * columns * 1.05, rows * (size * height / width + 0.35)), dpi=DPI, layout="constrained"
    )
    for i, picture in enumerate(pictures):
        axes = figure.add_subplot(rows, columns, i + 1)
        picture = np.asarray(picture)
        axes.imshow(
            picture, cmap=colors, vmin=limits[0], vmax=limits[1], extent=(0, picture.shape[1], picture.shape[0], 0)
        )
        axes.set(xticks=[], yticks=[])
        axes.set_title(titles[i] if i < len(titles) else "", fontsize=9)
        _draw(axes, Boxes([] if bbox is None else bbox, "white", width=1))
    return figure


def boxes(img, *panels, columns=3, size=4.0):
    """The image (H, W, 3), of values 0 to 255, once for each panel, a tuple (title, Boxes, Boxes, ...)."""
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    img = _bytes(img)
    height, width = img.shape[:2]
    lines = max(sum(bool(group.name) for group in panel[1:]) for panel in panels)
    figure = Figure(
        figsize=(size * columns, rows * (size * height / width + 0.35 + 0.2 * lines)), dpi=DPI, layout="constrained"
    )
    for i, (title, *groups) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.imshow(img, extent=(0, width, height, 0))
        for group in groups:
            _draw(axes, group)
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
        axes.set_title(title, fontsize=10)
        if any(group.name for group in groups):
            axes.legend(
                loc="upper center",
                bbox_to_anchor=(0.5, 0),
                facecolor="#c9ced6",
                edgecolor="none",
                framealpha=1,
                fontsize=9,
            )  # grey: white boxes are named, too
    return figure


def highlight(img, weight):
    """The image (H, W, 3), darkened, with white where the map `weight` (H, W) is large."""
    weight = np.sqrt(np.asarray(weight) / np.max(np.asarray(weight)))[..., None]
    return _bytes(0.45 * (1 - weight) * _bytes(img) + 255 * weight)


def _bytes(img):
    """An image of values 0 to 255, tensor or array, as bytes."""
    return np.asarray(img).clip(0, 255).round().astype(np.uint8)


def _draw(axes, group):
    """Draws `Boxes` and names them for the legend."""
    for y_min, x_min, y_max, x_max in np.asarray(group.bbox, float).reshape(-1, 4):
        axes.add_patch(
            Rectangle(
                (x_min, y_min),
                x_max - x_min,
                y_max - y_min,
                fill=False,
                edgecolor=group.color,
                linestyle=group.style,
                linewidth=group.width,
            )
        )
    if group.name:
        axes.plot([], [], color=group.color, linestyle=group.style, linewidth=group.width, label=group.name)


def pooling(channel, cell, edges, pool):
    """RoI pooling of one channel: the map with the RoI, the RoI's cells with their bins, the maxima.

    Args:
        channel: (h, w) map.
        cell: (y_min, x_min, y_max, x_max) of the RoI in whole cells, ends excluded.
        edges: (rows, columns): for both, one (begin, end) a bin, in cells of the RoI.
        pool: (S, S) maxima.
    """
    y_min, x_min, y_max, x_max = cell
    channel, pool = np.asarray(channel), np.asarray(pool)
    part = channel[y_min:y_max, x_min:x_max]
    limits = {"vmin": 0, "vmax": part.max()}
    figure = Figure(figsize=(13, 4.4), dpi=DPI, layout="constrained")
    whole, inside, result = figure.subplots(1, 3)
    whole.imshow(channel, extent=(0, channel.shape[1], channel.shape[0], 0), **limits)
    _draw(whole, Boxes([cell], BOX_COLOR, width=2))
    whole.set_title(f"one channel, {channel.shape[0]} x {channel.shape[1]} cells", fontsize=10)
    inside.imshow(part, extent=(0, part.shape[1], part.shape[0], 0), **limits)
    for top, bottom in edges[0]:
        for left, right in edges[1]:
            _draw(inside, Boxes([(top, left, bottom, right)], "white", width=0.7))
            inner = part[top:bottom, left:right]  # smaller, where the RoI reaches beyond the map
            y, x = np.unravel_index(inner.argmax(), inner.shape)
            inside.plot(left + x + 0.5, top + y + 0.5, ".", color=BOX_COLOR)
    inside.set_title(f"the RoI's {part.shape[0]} x {part.shape[1]} cells, its bins, the largest of each", fontsize=10)
    result.imshow(pool, extent=(0, pool.shape[1], pool.shape[0], 0), **limits)
    for (i, j), value in np.ndenumerate(pool):
        result.text(
            j + 0.5,
            i + 0.5,
            f"{value:.1f}",
            ha="center",
            va="center",
            fontsize=8,
            color="black" if value > 0.6 * limits["vmax"] else "white",
        )
    result.set_title(f"what comes out, {pool.shape[0]} x {pool.shape[1]}", fontsize=10)
    for axes in (whole, inside, result):
        axes.set(xticks=[], yticks=[])
    return figure


def bars(*panels, size=(4.2, 2.6)):
    """Horizontal bars, a panel each: (title, names, values)."""
    longest = max(len(panel[1]) for panel in panels)
    figure = Figure(figsize=(size[0] * len(panels), max(size[1], 0.28 * longest + 0.8)), dpi=DPI, layout="constrained")
    for i, (title, names, values) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), i + 1)
        bar = axes.barh(names, np.asarray(values, float))
        axes.bar_label(bar, fmt="%.3g", fontsize=8, padding=2)
        axes.tick_params(axis="y", labelsize=9)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, fontsize=10)
    return figure


def lines(x, series, title, x_label):
    """Curves over `x`: legend -> values."""
    figure = Figure(figsize=(6, 3), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for name, value in series.items():
        axes.plot(x, value, label=name)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False)
    return figure


def gradient_flow(parts, arrows):
    """Which way numbers and gradients go.

    Args:
        parts: name -> (x, y) of its middle, in inches.
        arrows: (from, to, whether a gradient comes back along it).
    """
    figure = Figure(figsize=(12, 4), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 12), ylim=(0, 4))
    axes.axis("off")
    drawn = {
        name: axes.text(
            x,
            y,
            name,
            ha="center",
            va="center",
            fontsize=12,
            zorder=3,
            bbox={"boxstyle": "round,pad=0.45", "facecolor": "#eef3fb", "edgecolor": "#31557f"},
        )
        for name, (x, y) in parts.items()
    }
    for start, end, learns in arrows:
        axes.add_patch(
            FancyArrowPatch(
                parts[start],
                parts[end],
                patchA=drawn[start].get_bbox_patch(),
                patchB=drawn[end].get_bbox_patch(),
                shrinkA=3,
                shrinkB=3,
                arrowstyle="-|>",
                mutation_scale=14,
                linewidth=1.8,
                linestyle="-" if learns else (0, (4, 3)),
                color="#31557f" if learns else BOX_COLOR,
            )
        )
    for learns, text in ((True, "values forward, gradients back"), (False, "values only: no gradient comes back")):
        axes.plot([], [], "-" if learns else "--", color="#31557f" if learns else BOX_COLOR, label=text)
    axes.legend(loc="lower left", fontsize=12, frameon=False)
    return figure
