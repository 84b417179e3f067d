"""Draw boxes on images, arrange images on a sheet, plot the recall of proposals; text in a font that has its letters.

Shapes: H, W image height and width in pixels; N boxes of one image; S candidate positions of a tag;
T tags; C counts of proposals; K IoU thresholds.
"""

import contextlib
import math
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, findSystemFonts
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont
from skimage.color import deltaE_ciede2000, rgb2lab

from utils.checkpoint import replacing

_TAG = " 0123456789.(difficult)"  # what follows a class name
_SHADE = (0, 0, 0, 110)  # translucent black around a line: keeps it visible on an object of its own colour
_HEIGHT, _TITLE_WIDTH = 300, 120  # pixels, largest height of an image on a sheet of comparisons, least width of a title


@cache
def find_font(text: str) -> str | None:
    """Return a font file with all characters of `text`: matplotlib's DejaVu Sans, else one of the system, or None."""
    variants = ("Bold", "Black", "Heavy", "Italic", "Oblique", "Light", "Thin", "Mono")
    files = sorted(findSystemFonts(), key=lambda path: (sum(word in path for word in variants), path))
    for path in [findfont("DejaVu Sans"), *files] if text.isprintable() else ():
        with contextlib.suppress(Exception):  # a damaged file
            font = FT2Font(path)
            if font.scalable and all(font.get_char_index(ord(char)) for char in text):
                return path
    return None


def drawable(text: str, number: int | None = None) -> str:
    """Return `text` if a font has its characters (and those of a tag, with a `number`), else the number or escapes."""
    if (text.isascii() and text.isprintable()) or find_font(text + ("" if number is None else _TAG)):
        return text
    if number is None:
        return ascii(text)[1:-1]
    _warn_of_fonts()
    return str(number)


@cache
def _warn_of_fonts() -> None:
    """Warn once; `warnings` itself forgets what it has said when a library changes its filters."""
    warnings.warn("no installed font has the letters of some class names: pictures show their numbers", stacklevel=1)


@cache
def _font(size: int, text: str = "") -> ImageFont.FreeTypeFont:
    """Return a font of a size in pixels for the `drawable` text `text`."""
    return ImageFont.load_default(size) if text.isascii() else ImageFont.truetype(find_font(text), size)


@cache
def _palette() -> np.ndarray:
    """Return 256 vivid colours, (256, 3) uint8, each as far as possible from all before it (CIEDE2000)."""
    rgb = np.stack(np.meshgrid(*[np.linspace(0, 255, 11)] * 3), axis=-1).reshape(-1, 3)  # (1331, 3)
    lab = rgb2lab(rgb / 255)
    vivid = (lab[:, 0] > 45) & (lab[:, 0] < 92) & (np.hypot(lab[:, 1], lab[:, 2]) > 45)
    rgb, lab = rgb[vivid], lab[vivid]
    order = [int(np.abs(rgb - (255, 0, 0)).sum(axis=1).argmin())]
    distance = np.full(len(lab), np.inf)
    while len(order) < 256:
        distance = np.minimum(distance, deltaE_ciede2000(lab, lab[order[-1], None]))
        order.append(int(distance.argmax()))
    return rgb[order].round().astype(np.uint8)


def class_color(label: int) -> tuple[int, int, int]:
    """Return the (red, green, blue) of a class, 0 to 255: fixed per label, the first ones differ most."""
    return tuple(_palette()[int(label) % len(_palette())].tolist())


def _ink_color(color: tuple[int, int, int]) -> str:
    """Return black or white, whichever is readable on `color` (WCAG contrast of at least 3.9 to 1)."""
    return "black" if rgb2lab(np.array(color) / 255)[0] > 54 else "white"


def _covered(spot: np.ndarray, rect: np.ndarray) -> np.ndarray:
    """Return the fractions of the rectangles (T, 4) that each position (S, 4) covers, summed over them: (S,)."""
    shared = np.minimum(spot[:, None, 2:], rect[:, 2:]) - np.maximum(spot[:, None, :2], rect[:, :2])  # (S, T, 2)
    return (shared.clip(0).prod(axis=2) / (rect[:, 2:] - rect[:, :2]).prod(axis=1).clip(1)).sum(axis=1)


def _place_tag(box: np.ndarray, tag: np.ndarray, img_size: np.ndarray, rim: np.ndarray, taken: np.ndarray):
    """Choose the position along a box where its tag covers least of other tags and boxes.

    Args:
        box: (4,) of whole pixels.
        tag: (2,) height and width of the tag.
        img_size: (2,) height and width of the image.
        rim: (N, 4) all boxes.
        taken: (T, 4) tags placed before.

    Returns:
        (4,), or None if each position covers more than a quarter of a tag or more than one whole box in sum.
        Positions above the box are slightly preferred.
    """
    (y_min, x_min, y_max, x_max), (height, width) = box.tolist(), tag.tolist()
    tops = [y_min - height, y_max, *range(y_min, y_max - height + 1, height), y_max - height]
    corner = [(top, left) for top in tops for left in (x_min, x_max - width)]
    corner += [(top, left) for left in (x_max, x_min - width) for top in (y_min, y_max - height)]
    corner = np.array(corner).clip(0, img_size - tag)
    spot = np.concatenate([corner, corner + tag], axis=1)  # (S, 4)
    on_tags, on_boxes = _covered(spot, taken), _covered(spot, rim)
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
    """Draw boxes on a copy of an image, each in the colour of its class and with a tag that names it.

    A line runs around its box, so that tiny ones stay visible, and ends at the image border. Tags are placed in order
    of descending score; in a crowd, a tag that would cover others is left out.

    Args:
        img: (H, W, 3) uint8 RGB.
        bbox: (N, 4) in pixels of `img`; N may be 0.
        label: (N,) indices into `class_names`; None draws all boxes in one colour.
        score: (N,) in 0 ... 1.
        class_names: names on the tags; None writes the label itself.
        difficult: (N,) bool, noted on the tags.

    Returns:
        (H, W, 3) uint8.
    """
    img_size = np.array(img.shape[:2])
    size = max(11, round(img_size.sum() / 100))  # of the font: readable once the image is scaled to a screen
    line, pad = max(2, size // 6), max(2, size // 5)
    corners = bbox.reshape(-1, 2, 2).clip(0, img_size).round().astype(int) + np.array([[-line], [line]])
    rim = corners.clip([[0], [line]], [img_size - line, img_size]).reshape(-1, 4)  # (N, 4), with the line
    colors = [class_color(0 if label is None else label[i]) for i in range(len(bbox))]
    picture = Image.fromarray(img).copy()
    draw = ImageDraw.Draw(picture, "RGBA")
    for i in np.argsort(-(rim[:, 2:] - rim[:, :2]).prod(axis=1), kind="stable"):  # small ones on top
        top, left, bottom, right = rim[i].tolist()
        draw.rectangle((left - 1, top - 1, right, bottom), outline=_SHADE)
        draw.rectangle((left, top, right - 1, bottom - 1), outline=colors[i], width=line)
    taken = np.zeros((0, 4), int)
    for i in range(len(bbox)) if score is None else np.argsort(-np.asarray(score), kind="stable"):
        words = [] if label is None else [drawable(class_names[label[i]], label[i]) if class_names else str(label[i])]
        words += [] if score is None else [f"{score[i]:.2f}"]
        words += ["(difficult)"] if difficult is not None and difficult[i] else []
        text = " ".join(words)
        room, width = img.shape[1] - 2 * pad, _font(size, text).getlength(text)
        font = _font(size if width <= room else max(8, int(size * room / width)), text)
        tag = np.minimum([sum(font.getmetrics()) + pad, round(font.getlength(text)) + 2 * pad], img_size)
        spot = _place_tag(rim[i], tag, img_size, rim, taken) if text else None
        if spot is not None:
            taken = np.vstack([taken, spot])
            top, left, bottom, right = spot.tolist()
            draw.rectangle((left, top, right - 1, bottom - 1), fill=colors[i])
            draw.text((left + pad, (top + bottom) / 2), text, fill=_ink_color(colors[i]), font=font, anchor="lm")
    return np.array(picture)


def shrink(img: np.ndarray, bbox: np.ndarray, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Reduce an image (H, W, 3) and its boxes (N, 4) to at most `height` pixels, and twice as many in width."""
    small = Image.fromarray(img)
    small.thumbnail((2 * height, height), Image.Resampling.LANCZOS)
    return np.array(small), bbox * np.tile(np.divide(small.size[::-1], img.shape[:2]), 2)


def sheet_columns(count: int) -> int:
    """Return the number of columns of a contact sheet: one row of up to 3 images, else about a square."""
    return count if count <= 3 else math.ceil(math.sqrt(count))


def contact_sheet(imgs: Sequence[np.ndarray], titles: Sequence[str], n_column: int | None = None) -> np.ndarray:
    """Arrange images in rows on white, each above its title, with equal gaps.

    Args:
        imgs: (H, W, 3) uint8 each, at least one, of any sizes, which they keep.
        titles: one per image; one wider than its image loses its middle.
        n_column: images per row; None: `sheet_columns`.

    Returns:
        (H', W', 3) uint8.
    """
    titles, n_column, gap = [drawable(title) for title in titles], n_column or sheet_columns(len(imgs)), 16
    fonts, places, top, right = [_font(14, title) for title in titles], [], gap, 0
    bar = max(sum(font.getmetrics()) for font in fonts) + gap  # below an image, for its title
    for start in range(0, len(imgs), n_column):
        left, bottom = gap, top + max(img.shape[0] for img in imgs[start : start + n_column])
        for img in imgs[start : start + n_column]:
            places.append((left, bottom, max(_TITLE_WIDTH, img.shape[1])))
            left += places[-1][2] + gap
        top, right = bottom + bar, max(right, left)
    sheet = Image.new("RGB", (right, top), "white")
    draw = ImageDraw.Draw(sheet)
    for img, title, font, (left, bottom, width) in zip(imgs, titles, fonts, places, strict=True):
        sheet.paste(Image.fromarray(img), (left + (width - img.shape[1]) // 2, bottom - img.shape[0]))
        text, n_kept = title, len(title)
        while font.getlength(text) > width:
            n_kept -= 1
            text = title[: (n_kept + 1) // 2] + "…" + title[len(title) - n_kept // 2 :]
        draw.text((left + width / 2, bottom + 3), text, fill="#444444", font=font, anchor="ma")
    return np.array(sheet)


def comparison(samples: Sequence, detections: Sequence, class_names: Sequence[str]) -> np.ndarray:
    """Draw a sheet with the ground truth of each image on the left and its detections on the right.

    Args:
        samples: objects with img (H, W, 3) uint8, bbox (G, 4), label (G,), difficult (G,) and id; at least one.
        detections: bboxes (D, 4), labels (D,) and scores (D,), each a list with one array per image.
        class_names: names of the labels.

    Returns:
        (H', W', 3) uint8: two images per row, each reduced to a height of at most 300 pixels.
    """
    imgs, titles = [], []
    for sample, bbox, label, score in zip(samples, *detections, strict=True):
        left = draw_bbox(*shrink(sample.img, sample.bbox, _HEIGHT), sample.label, None, class_names, sample.difficult)
        imgs += [left, draw_bbox(*shrink(sample.img, bbox, _HEIGHT), label, score, class_names)]
        titles += [f"{sample.id}: ground truth", f"{sample.id}: detections"]
    return contact_sheet(imgs, titles, n_column=min(4, len(imgs)))


def plot_recall(recall: np.ndarray, counts: Sequence[int], iou_threshs: Sequence[float], path: Path) -> None:
    """Plot the recall of proposals against the IoU threshold, one line per count, into a PNG file.

    Args:
        recall: (C, K) in 0 ... 1, NaN where undefined, as returned by `proposal_recall`.
        counts: (C,) numbers of proposals per image.
        iou_threshs: (K,) ascending.
        path: the file, replaced only by a complete one.
    """
    recall = np.asarray(recall, float)  # None becomes NaN
    with plot_file(path, "recall of proposals", "IoU", "recall") as axes:
        axes.set(xlim=(0.5, 1), ylim=(0, 1))
        for count, line in zip(counts, recall, strict=True):
            axes.plot(iou_threshs, line, marker="o", label=f"{count} proposals: average {line.mean():.4f}")


@contextlib.contextmanager
def plot_file(path: str | Path, title: str, x_label: str, y_label: str):
    """Yield the axes of a figure, which is written to `path` at the end, with a legend."""
    axes = Figure(figsize=(8, 6), dpi=100, layout="constrained").subplots()
    yield axes
    axes.set(title=title, xlabel=x_label, ylabel=y_label)
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    save_figure(axes.figure, path)


def save_picture(path: str | Path, img: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 array in the format of the suffix, else as PNG, in a fourth of its usual time."""
    kind = Image.registered_extensions().get(Path(path).suffix.lower(), "PNG")
    with replacing(path) as partial:
        Image.fromarray(img).save(partial, kind, compress_level=1)


def set_log_scale(axes, name: str) -> None:
    """Make the axis "x" or "y" logarithmic, with the ticks 1, 2, 5, 10 ..., of many decades 1, 10 ...: none overlap."""
    getattr(axes, f"set_{name}scale")("log", nonpositive="mask")
    axis, (low, high) = getattr(axes, f"{name}axis"), getattr(axes, f"get_{name}lim")()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e5 * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the suffix, else as PNG; no text is markup, each has a font with its letters."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a class may be called $1_$5
        words = drawable(text.get_text())
        if not words.isascii():
            text.set_fontproperties(FontProperties(fname=find_font(words), size=text.get_fontsize()))
        text.set_text(words)
    kind = Path(path).suffix[1:].lower()
    with replacing(path) as partial:
        figure.savefig(partial, format=kind if kind in figure.canvas.get_supported_filetypes() else "png")
