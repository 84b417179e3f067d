"""Pictures for people: boxes on an image, two images side by side, the recall of proposals.

Shapes: H, W image height and width in pixels; N boxes of one image; S spots for a tag;
T tags; C counts of proposals; K IoU thresholds.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from skimage.color import rgb2lab

from utils.files import replacing

_N_COLOR = 256
_font = cache(ImageFont.load_default)


@cache
def _palette() -> np.ndarray:
    """(256, 3) uint8: each colour is the vivid one that the eye tells best from all before it."""
    rgb = np.stack(np.meshgrid(*[np.linspace(0, 255, 11)] * 3), axis=-1).reshape(-1, 3)  # (1331, 3)
    lab = rgb2lab(rgb / 255)
    vivid = (lab[:, 0] > 40) & (lab[:, 0] < 90) & (np.hypot(lab[:, 1], lab[:, 2]) > 35)
    rgb, lab = rgb[vivid], lab[vivid]
    order = [int(np.abs(rgb - (255, 0, 0)).sum(axis=1).argmin())]
    distance = np.full(len(lab), np.inf)
    while len(order) < _N_COLOR:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[order[-1]], axis=1))
        order.append(int(distance.argmax()))
    return rgb[order].round().astype(np.uint8)


def class_color(label: int) -> tuple[int, int, int]:
    """The (red, green, blue) of a class, 0 to 255: always the same, and the first ones differ most."""
    red, green, blue = _palette()[int(label) % _N_COLOR].tolist()
    return red, green, blue


def _font_size(height: int, width: int) -> int:
    """A font size that reads well once the picture is scaled to a screen."""
    return max(11, round((height + width) / 100))


def _fit(text: str, size: int, room: int) -> ImageFont.FreeTypeFont:
    """The font at `size`, or as small as 8 where `text` would be wider than `room` pixels."""
    width = _font(size).getlength(text)
    return _font(size) if width <= room else _font(max(8, int(size * room / width)))


def _place_tag(box: tuple, tag: tuple, img_size: tuple, taken: np.ndarray) -> np.ndarray:
    """(4,) where a tag of (height, width) goes: at its box, in the image, least on those `taken` (T, 4)."""
    (y_min, x_min, y_max, x_max), (height, width) = box, tag
    along = range(y_min + height, y_max - height, height)
    tops = [y_min - height, y_min, y_max + 1, y_max + 1 - height, *along]
    corner = np.array([(top, left) for top in tops for left in (x_min, x_max + 1 - width)])
    corner = corner.clip(0, (img_size[0] - height, img_size[1] - width))
    spot = np.concatenate([corner, corner + tag], axis=1)  # (S, 4)
    shared = np.minimum(spot[:, None, 2:], taken[:, 2:]) - np.maximum(spot[:, None, :2], taken[:, :2])
    return spot[shared.clip(0).prod(axis=2).sum(axis=1).argmin()]  # shared is (S, T, 2)


def draw_bbox(
    img: np.ndarray,
    bbox: np.ndarray,
    label: Sequence[int] | None = None,
    score: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    difficult: Sequence[bool] | None = None,
) -> np.ndarray:
    """A copy of an image with its boxes, each in the colour of its class and with a tag that names it.

    `img` is (H, W, 3) uint8 RGB and stays as it is. `bbox` is (N, 4) in pixels of `img`, N may be 0; a box
    that leaves the image ends at its border. `label`, `score` and `difficult` are (N,), each may be None.
    Returns (H, W, 3) uint8. Raises ValueError where the shapes do not fit or a coordinate is NaN.
    """
    bbox = np.asarray(bbox)
    if img.ndim != 3 or img.shape[2] != 3 or img.dtype != np.uint8:
        raise ValueError(f"img is {img.shape} {img.dtype}; draw_bbox wants (H, W, 3) uint8")
    if bbox.ndim != 2 or bbox.shape[1] != 4 or np.isnan(bbox).any():
        raise ValueError(f"bbox is {bbox.shape}; draw_bbox wants (N, 4) without NaN")
    for name, values in (("label", label), ("score", score), ("difficult", difficult)):
        if values is not None and len(values) != len(bbox):
            raise ValueError(f"{name} has {len(values)} entries for {len(bbox)} boxes; give one each")
    height, width = img.shape[:2]
    size = _font_size(height, width)
    border = np.array([height - 1, width - 1] * 2)
    boxes = [tuple(box) for box in np.clip(bbox, 0, border).round().astype(int).tolist()]
    colors = [class_color(0 if label is None else label[i]) for i in range(len(boxes))]
    picture = Image.fromarray(img).copy()
    draw = ImageDraw.Draw(picture)
    for (y_min, x_min, y_max, x_max), color in zip(boxes, colors, strict=True):
        draw.rectangle((x_min, y_min, x_max, y_max), outline=color, width=max(2, size // 6))
    taken = np.zeros((0, 4), int)
    for i, (box, color) in enumerate(zip(boxes, colors, strict=True)):
        words = [] if label is None else [class_names[label[i]] if class_names else str(label[i])]
        words += [] if score is None else [f"{score[i]:.2f}"]
        words += ["(difficult)"] if difficult is not None and difficult[i] else []
        if words:
            text, pad = " ".join(words), max(2, size // 5)
            font = _fit(text, size, width - 2 * pad)
            tag = min(height, sum(font.getmetrics()) + pad), min(width, round(font.getlength(text)) + 2 * pad)
            spot = _place_tag(box, tag, (height, width), taken)
            taken = np.vstack([taken, spot])
            top, left, bottom, right = spot.tolist()
            ink = "white" if np.dot(color, (0.299, 0.587, 0.114)) < 128 else "black"
            draw.rectangle((left, top, right - 1, bottom - 1), fill=color)
            draw.text((left + pad, (top + bottom) / 2), text, fill=ink, font=font, anchor="lm")
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
