"""Figures of demo.ipynb: images and maps in a grid, boxes on an image, RoI pooling, bars, curves, the gradient flow.

Each function returns a matplotlib `Figure`, which a notebook displays.
N: boxes. H, W: sides of an image; h, w: of a map; S: of a pooled map.
"""

from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from numpy.typing import ArrayLike

DPI = 80  # low: the notebook stores all figures
RED, NAVY = "#e6194b", "#31557f"


class Boxes(NamedTuple):
    """Boxes of one style."""

    bbox: ArrayLike  # (N, 4), y_min, x_min, y_max, x_max
    color: Any
    name: str = ""  # in the legend; empty: none
    style: str = "-"
    width: float = 1.5


def describe(**values):
    """Print shape, type and range of arrays and tensors, one line each."""
    for name, value in values.items():
        array = np.asarray(value.detach() if hasattr(value, "detach") else value)
        bounds = f"{array.min():9.3f} to {array.max():.3f}" if array.size else ""
        print(f"{name:<18} {array.shape!s:<20} {array.dtype!s:<8} {bounds}")


def grid(images, titles=(), columns=4, size=2.4, colors="gray", limits=(None, None), bbox=()):
    """Show images or maps of one size in a grid.

    Args:
        images: (H, W, 3) images, or (h, w) maps, which the colormap `colors` colors.
        titles: one per image, or none.
        columns: of the grid.
        size: width of an image in inches.
        limits: values of a map at the ends of the colormap; None: its own range.
        bbox: (N, 4) boxes in pixels or cells, drawn on each image.
    """
    height, width = np.shape(images[0])[:2]
    figure, panels = _panels(len(images), columns, 1.05 * size, size * height / width + 0.35)
    for i, (axes, image) in enumerate(zip(panels, images, strict=True)):
        _show(axes, image, titles[i] if titles else "", cmap=colors, vmin=limits[0], vmax=limits[1])
        _draw(axes, Boxes(bbox, "white", width=1))
    return figure


def boxes(img, *panels, columns=3, size=4.0):
    """Show an image (H, W, 3), of values 0 to 255, once per panel: a tuple (title, Boxes, Boxes, ...).

    Args:
        columns: largest number of panels in a row.
        size: width of a panel in inches.
    """
    img = _to_bytes(img)
    height, width = img.shape[:2]
    names = max(sum(bool(group.name) for group in groups) for _, *groups in panels)
    figure, all_axes = _panels(len(panels), min(columns, len(panels)), size, size * height / width + 0.35 + 0.2 * names)
    legend = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "fontsize": 9}  # below the image
    legend |= {"facecolor": "#c9ced6", "edgecolor": "none", "framealpha": 1}  # gray: white lines stay visible
    for axes, (title, *groups) in zip(all_axes, panels, strict=True):
        _show(axes, img, title)
        for group in groups:
            _draw(axes, group)
        if any(group.name for group in groups):
            axes.legend(**legend)
    return figure


def highlight(img, weight):
    """Darken an image (H, W, 3) and blend it with white in proportion to the root of the map `weight` (H, W)."""
    weight = np.sqrt(np.asarray(weight) / np.max(np.asarray(weight)))[..., None]
    return _to_bytes(0.45 * (1 - weight) * _to_bytes(img) + 255 * weight)


def pooling(channel, cell, edges, pool):
    """Show RoI pooling of one channel: the map with the RoI, the RoI's cells with the bins, the maxima.

    Args:
        channel: (h, w) map.
        cell: (y_min, x_min, y_max, x_max) of the RoI in whole cells, ends excluded.
        edges: of the rows and of the columns of bins: (begin, end) per bin, in cells of the RoI.
        pool: (S, S) maxima.
    """
    y_min, x_min, y_max, x_max = cell
    channel, pool = np.asarray(channel), np.asarray(pool)
    part = channel[y_min:y_max, x_min:x_max]
    limits = {"vmin": 0, "vmax": part.max()}
    figure, (whole, inside, result) = _panels(3, 3, 4.3, 4.4)
    _show(whole, channel, f"one channel, {channel.shape[0]} x {channel.shape[1]} cells", **limits)
    _draw(whole, Boxes([cell], RED, width=2))
    _show(inside, part, f"{part.shape[0]} x {part.shape[1]} cells of the RoI, bins, maximum of each bin", **limits)
    for top, bottom in edges[0]:
        for left, right in edges[1]:
            _draw(inside, Boxes([(top, left, bottom, right)], "white", width=0.7))
            inner = part[top:bottom, left:right]  # smaller where the RoI extends beyond the map
            y, x = np.unravel_index(inner.argmax(), inner.shape)
            inside.plot(left + x + 0.5, top + y + 0.5, ".", color=RED)
    _show(result, pool, f"pooled map, {pool.shape[0]} x {pool.shape[1]}", **limits)
    for (i, j), value in np.ndenumerate(pool):
        color = "black" if value > 0.6 * limits["vmax"] else "white"
        result.text(j + 0.5, i + 0.5, f"{value:.1f}", ha="center", va="center", fontsize=8, color=color)
    return figure


def bars(*panels, size=(4.2, 2.6)):
    """Plot horizontal bars: one panel per (title, names, values); `size`: width and height of one in inches."""
    longest = max(len(names) for _, names, _ in panels)
    figure, all_axes = _panels(len(panels), len(panels), size[0], max(size[1], 0.28 * longest + 0.8))
    for axes, (title, names, values) in zip(all_axes, panels, strict=True):
        axes.bar_label(axes.barh(names, np.asarray(values, float)), fmt="%.3g", fontsize=8, padding=2)
        axes.tick_params(axis="y", labelsize=9)
        axes.locator_params(axis="x", nbins=4)
        axes.invert_yaxis()
        axes.margins(x=0.18)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(title, fontsize=10)
    return figure


def lines(x, series, title, x_label):
    """Plot curves over `x`; `series` maps their names in the legend to their values."""
    figure, (axes,) = _panels(1, 1, 6, 3)
    for name, value in series.items():
        axes.plot(x, value, label=name)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False)
    return figure


def gradient_flow(parts, arrows):
    """Draw the parts of the network and the flow of values and gradients between them.

    Args:
        parts: name -> (x, y) of its center, in inches.
        arrows: (from, to, whether a gradient flows back).
    """
    figure = Figure(figsize=(12, 4), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 12), ylim=(0, 4))
    axes.axis("off")
    text = {"ha": "center", "va": "center", "fontsize": 12}
    text |= {"bbox": {"boxstyle": "round,pad=0.45", "facecolor": "#eef3fb", "edgecolor": NAVY}}
    drawn = {name: axes.text(x, y, name, **text).get_bbox_patch() for name, (x, y) in parts.items()}
    arrow = {"arrowstyle": "-|>", "mutation_scale": 14, "linewidth": 1.8, "shrinkA": 3, "shrinkB": 3}
    arrow["zorder"] = 4  # after the parts, whose drawing computes the borders that arrows end at
    for start, end, has_gradient in arrows:
        look = {"linestyle": "-", "color": NAVY} if has_gradient else {"linestyle": (0, (4, 3)), "color": RED}
        ends = {"patchA": drawn[start], "patchB": drawn[end]}
        axes.add_patch(FancyArrowPatch(parts[start], parts[end], **ends, **arrow, **look))
    axes.plot([], [], "-", color=NAVY, label="values forward, gradients back")
    axes.plot([], [], "--", color=RED, label="values only, no gradient")
    axes.legend(loc="lower left", fontsize=12, frameon=False)
    return figure


def _panels(count, columns, width, height):
    """Create a figure with `count` panels of one size in inches, row by row; return it and their axes."""
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), dpi=DPI, layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def _show(axes, image, title, **limits):
    """Show an image or a map in its own pixels or cells: a box from 0 to its side covers it."""
    height, width = np.shape(image)[:2]
    axes.imshow(np.asarray(image), extent=(0, width, height, 0), **limits)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)


def _draw(axes, group):
    """Draw `Boxes`, and an empty line with their name for the legend."""
    style = {"linestyle": group.style, "linewidth": group.width}
    for y_min, x_min, y_max, x_max in np.asarray(group.bbox, float).reshape(-1, 4):
        width, height = x_max - x_min, y_max - y_min
        axes.add_patch(Rectangle((x_min, y_min), width, height, fill=False, edgecolor=group.color, **style))
    if group.name:
        axes.plot([], [], color=group.color, label=group.name, **style)


def _to_bytes(img):
    """Round an image of values 0 to 255, tensor or array, to uint8."""
    return np.asarray(img).clip(0, 255).round().astype(np.uint8)
