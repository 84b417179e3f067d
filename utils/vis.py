"""Pictures for people: boxes on an image, images side by side or in a grid, the recall of proposals.

Shapes: H, W image height and width in pixels; N boxes of one image; S spots for a tag;
T tags; C counts of proposals; K IoU thresholds.
"""

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from skimage.color import deltaE_ciede2000, rgb2lab

from utils.files import replacing

_N_COLOR = 256
_SHADE = (0, 0, 0, 110)  # black that lets 57 % through, around a line: it is seen on its own colour, too
_font = cache(ImageFont.load_default)


@cache
def _palette() -> np.ndarray:
    """(256, 3) uint8: each colour is the vivid one that the eye tells best from all before it."""
    rgb = np.stack(np.meshgrid(*[np.linspace(0, 255, 11)] * 3), axis=-1).reshape(-1, 3)  # (1331, 3)
    lab = rgb2lab(rgb / 255)
    vivid = (lab[:, 0] > 45) & (lab[:, 0] < 92) & (np.hypot(lab[:, 1], lab[:, 2]) > 45)
    rgb, lab = rgb[vivid], lab[vivid]
    order = [int(np.abs(rgb - (255, 0, 0)).sum(axis=1).argmin())]
    distance = np.full(len(lab), np.inf)
    while len(order) < _N_COLOR:
        distance = np.minimum(distance, deltaE_ciede2000(lab, lab[order[-1], None]))
        order.append(int(distance.argmax()))
    return rgb[order].round().astype(np.uint8)


def class_color(label: int) -> tuple[int, int, int]:
    """The (red, green, blue) of a class, 0 to 255: always the same, and the first ones differ most."""
    red, green, blue = _palette()[int(label) % _N_COLOR].tolist()
    return red, green, blue


def ink_color(color: tuple[int, int, int]) -> str:
    """What is read well on `color`, black or white: a contrast of at least 3.9 to 1, as WCAG counts it."""
    return "black" if rgb2lab(np.array(color) / 255)[0] > 54 else "white"


def _font_size(height: int, width: int) -> int:
    """A font size that reads well once the picture is scaled to a screen."""
    return max(11, round((height + width) / 100))


def _fit(text: str, size: int, room: int) -> ImageFont.FreeTypeFont:
    """The font at `size`, or as small as 8 where `text` would be wider than `room` pixels."""
    width = _font(size).getlength(text)
    return _font(size) if width <= room else _font(max(8, int(size * room / width)))


def _tag_text(i: int, label, score, class_names, difficult) -> str:
    """What the tag of box `i` says; the others as in `draw_bbox`."""
    words = [] if label is None else [class_names[label[i]] if class_names else str(label[i])]
    words += [] if score is None else [f"{score[i]:.2f}"]
    words += ["(difficult)"] if difficult is not None and difficult[i] else []
    return " ".join(words)


def _hidden(spot: np.ndarray, rect: np.ndarray) -> np.ndarray:
    """(S, T) the share, 0 to 1, of each of `rect` (T, 4) that each of `spot` (S, 4) covers."""
    shared = np.minimum(spot[:, None, 2:], rect[:, 2:]) - np.maximum(spot[:, None, :2], rect[:, :2])  # (S, T, 2)
    return shared.clip(0).prod(axis=2) / (rect[:, 2:] - rect[:, :2]).prod(axis=1).clip(1)


def _place_tag(i: int, tag: tuple, img_size: tuple, rim: np.ndarray, taken: np.ndarray) -> np.ndarray | None:
    """(4,) where the tag, of (height, width), of the box `i` goes; None in a crowd.

    `rim` (N, 4) are the boxes, `taken` (T, 4) the tags so far. Of the spots along the box, in the image, it is the one
    that hides the smallest shares of tags and boxes; the first ones, above the box, are worth a little more. A spot
    that hides more than a fourth of a tag or than the whole of a box, all shares added, is none.
    """
    (y_min, x_min, y_max, x_max), (height, width) = rim[i].tolist(), tag
    beside = [(top, left) for left in (x_max, x_min - width) for top in (y_min, y_max - height)]
    tops = [y_min - height, y_max, *range(y_min, y_max - height + 1, height), y_max - height]
    corner = np.array([(top, left) for top in tops for left in (x_min, x_max - width)] + beside)
    corner = corner.clip(0, (img_size[0] - height, img_size[1] - width))
    spot = np.concatenate([corner, corner + tag], axis=1)  # (S, 4)
    on_tags = _hidden(spot, taken).sum(axis=1)
    on_boxes = _hidden(spot, rim).sum(axis=1)
    best = (3 * on_tags + on_boxes + np.linspace(0, 0.2, len(spot))).argmin()
    return spot[best] if on_tags[best] <= 0.25 and on_boxes[best] <= 1 else None


def draw_bbox(
    img: np.ndarray,
    bbox: np.ndarray,
    label: Sequence[int] | None = None,
    score: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    difficult: Sequence[bool] | None = None,
) -> np.ndarray:
    """A copy of an image with its boxes, each in the colour of its class and with a tag that names it.

    `img` is (H, W, 3) uint8 RGB and stays as it is. `bbox` is (N, 4) in pixels of `img`, N may be 0; a line runs
    around its box, so that a tiny one stays visible; a box that leaves the image ends at its border. `label`, `score`
    and `difficult` are (N,), each may be None. Tags are placed from the best score on; in a crowd, one that would
    hide others is left out. Returns (H, W, 3) uint8. Raises ValueError where the shapes do not fit or a coordinate
    is NaN.
    """
    bbox = np.asarray(bbox)
    if img.ndim != 3 or img.shape[2] != 3 or img.dtype != np.uint8:
        raise ValueError(f"img is {img.shape} {img.dtype}; draw_bbox wants (H, W, 3) uint8")
    if bbox.ndim != 2 or bbox.shape[1] != 4 or np.isnan(bbox).any():
        raise ValueError(f"bbox is {bbox.shape}; draw_bbox wants (N, 4) without NaN")
    for name, values in (("label", label), ("score", score), ("difficult", difficult)):
        if values is not None and len(values) != len(bbox):
            raise ValueError(f"{name} has {len(values)} entries for {len(bbox)} boxes; give one each")
    size = _font_size(*img.shape[:2])
    line = max(2, size // 6)
    img_size = np.array(img.shape[:2])
    corners = bbox.reshape(-1, 2, 2).clip(0, img_size).round().astype(int) + np.array([[-line], [line]])
    rim = corners.clip([[0], [line]], [img_size - line, img_size]).reshape(-1, 4)  # (N, 4), with the line
    colors = [class_color(0 if label is None else label[i]) for i in range(len(bbox))]
    picture = Image.fromarray(img).copy()
    draw = ImageDraw.Draw(picture, "RGBA")
    for i in np.argsort(-(rim[:, 2:] - rim[:, :2]).prod(axis=1), kind="stable"):  # the small ones on top
        top, left, bottom, right = rim[i].tolist()
        draw.rectangle((left - 1, top - 1, right, bottom), outline=_SHADE)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colors[i], width=line)
    taken = np.zeros((0, 4), int)
    for i in range(len(bbox)) if score is None else np.argsort(-np.asarray(score), kind="stable"):
        text, pad = _tag_text(i, label, score, class_names, difficult), max(2, size // 5)
        if not text:
            continue
        font = _fit(text, size, img.shape[1] - 2 * pad)
        tag = np.minimum([sum(font.getmetrics()) + pad, round(font.getlength(text)) + 2 * pad], img_size)
        spot = _place_tag(i, tuple(tag.tolist()), img_size, rim, taken)
        if spot is not None:
            taken = np.vstack([taken, spot])
            top, left, bottom, right = spot.tolist()
            draw.rectangle((left, top, right - 1, bottom - 1), fill=colors[i])
            draw.text((left + pad, (top + bottom) / 2), text, fill=ink_color(colors[i]), font=font, anchor="lm")
    return np.array(picture)


def side_by_side(left: np.ndarray, right: np.ndarray, titles: tuple[str, str]) -> np.ndarray:
    """Two images of one height next to each other, below a bar with their titles.

    `left` is (H, W1, 3) uint8 and `right` (H, W2, 3). Returns (H + bar, W1 + gap + W2, 3) uint8; ValueError
    where the heights differ.
    """
    if left.shape[0] != right.shape[0]:
        raise ValueError(f"left is {left.shape[0]} pixels tall and right {right.shape[0]}: make them equal")
    size = _font_size(*left.shape[:2])
    bar, gap = 2 * size, max(2, size // 3)
    shape = (bar + left.shape[0], left.shape[1] + gap + right.shape[1])
    picture = Image.new("RGB", shape[::-1], (32, 32, 32))
    draw = ImageDraw.Draw(picture)
    for img, title, x in ((left, titles[0], 0), (right, titles[1], left.shape[1] + gap)):
        picture.paste(Image.fromarray(img), (x, bar))
        font = _fit(title, size, img.shape[1])
        draw.text((x + img.shape[1] / 2, bar / 2), title, fill="white", font=font, anchor="mm")
    return np.array(picture)


def sheet_columns(count: int) -> int:
    """The columns of a contact sheet: one row of up to 3 images, else about as many rows as columns."""
    return count if count <= 3 else math.ceil(math.sqrt(count))


def contact_sheet(imgs: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Images of any sizes in a grid of `sheet_columns`, each above its title, on white.

    `imgs` are (H, W, 3) uint8, at least one, and keep their size; a title that is wider than its column loses its
    middle. Returns (H', W', 3) uint8.
    """
    n_column, gap, font = sheet_columns(len(imgs)), 16, _font(14)
    bar = sum(font.getmetrics()) + gap  # below an image, for its title
    widths = [max(120, *(img.shape[1] for img in imgs[i::n_column])) for i in range(n_column)]
    heights = [max(img.shape[0] for img in imgs[i:i + n_column]) for i in range(0, len(imgs), n_column)]
    lefts = np.cumsum([gap, *(width + gap for width in widths)])
    tops = np.cumsum([gap, *(height + bar for height in heights)])
    sheet = Image.new("RGB", (int(lefts[-1]), int(tops[-1])), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (img, title) in enumerate(zip(imgs, titles, strict=True)):
        row, column = divmod(i, n_column)
        width, height, left, top = widths[column], heights[row], int(lefts[column]), int(tops[row])
        sheet.paste(Image.fromarray(img), (left + (width - img.shape[1]) // 2, top + (height - img.shape[0]) // 2))
        start, end = title, ""
        while font.getlength(start + end) > width:
            keep = len(start.rstrip("…") + end) - 1
            start, end = title[:(keep + 1) // 2] + "…", title[len(title) - keep // 2:]
        draw.text((left + width / 2, top + height + 3), start + end, fill="#444444", font=font, anchor="ma")
    return np.array(sheet)


def plot_recall(recall: np.ndarray, counts: Sequence[int], iou_threshs: Sequence[float], path: Path) -> None:
    """Draw the recall of proposals against the IoU, one line a count, into a PNG file.

    `recall` is (C, K), 0 to 1, NaN where there is none, for the `counts` (C,) of proposals and `iou_threshs` (K,)
    ascending, as from `proposal_recall`. The legend has the mean of each line over its thresholds. The file is
    written whole or not at all. Raises ValueError where the shapes do not fit.
    """
    recall = np.asarray(recall, dtype=float)
    if recall.shape != (len(counts), len(iou_threshs)):
        raise ValueError(f"recall is {recall.shape} for {len(counts)} counts and {len(iou_threshs)} IoU thresholds")
    figure = Figure(figsize=(8, 6), dpi=100, layout="constrained")
    axes = figure.subplots()
    colors = colormaps["viridis"](np.linspace(0, 0.9, len(counts)))  # from few proposals, dark, to many
    for count, line, color in zip(counts, recall, colors, strict=True):
        label = f"{count} proposals: average {line.mean():.4f}"
        axes.plot(iou_threshs, line, color=color, linewidth=1.8, marker="o", markersize=4, label=label)
    axes.set(xlim=(0.5, 1), ylim=(0, 1), xlabel="IoU", ylabel="recall", title="recall of proposals")
    axes.legend(loc="upper right", fontsize="small")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as partial:
        figure.savefig(partial, format="png")
