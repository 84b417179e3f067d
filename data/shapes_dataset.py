"""The built-in data set: shapes with patterned surfaces, drawn below datasets/ in the layout of PASCAL VOC.

Objects are drawn in fine pixels, FINE per pixel in each direction, and averaged, which smooths their edges.

H, W: sides of the image. G: its objects. P: fine pixels of one object. V: corners of an outline.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from skimage.color import hsv2rgb
from skimage.draw import polygon
from skimage.filters import gaussian
from skimage.transform import resize

from data.voc_dataset import FOLDER, VOCDataset, read_splits

FORMAT_VERSION = 2  # part of the name of the folder: increase it when images or files change
IMAGE_SIDES = (200, 240, 280, 320)  # pixels; few, because a CPU prepares anew for each new size
N_OBJECT = (3, 5)  # smallest and largest number of objects per image
BOX_SIDE = (1 / 12, 2 / 3)  # shortest and longest side of a box, relative to the shorter side of its image
DIFFICULT_BELOW = 0.45  # an object is difficult if a smaller fraction of it is visible
LEAST_VISIBLE = 0.25  # smallest visible fraction of an object
BORDER_SHARE = 0.3  # fraction of the objects that may cross the border
ODD_COLOR = 0.05  # fraction of the objects whose hue is not the usual one of their class
FINE = 2


def build(options, splits, classes=(), report=None) -> list[VOCDataset]:
    """Draw the data set, unless it is there, and open splits (trainval, test) of it: see `data.build`."""
    return read_splits(make_shapes(FOLDER), splits, classes, report=report)


class _Kind(NamedTuple):
    """What distinguishes a class; outline and pattern have a coordinate frame of their own, centered on (0, 0)."""

    outline: np.ndarray  # (V, 2) corners (y, x)
    pattern: Callable[[np.ndarray, np.ndarray], np.ndarray]  # y (P,), x (P,) -> 0 ... 1, weight of the second color
    ratio: tuple[float, float]  # range of width / height in that frame
    tilt: float  # largest rotation in radians, in addition to quarter turns
    gloss: float = 0.0  # 0 flat ... 1 a shining bulge


def _regular(n_corner, inner=1.0):
    """(n_corner, 2) corners on the unit circle, the first one at the top, every second one at the radius `inner`."""
    angle = np.arange(n_corner) * (2 * np.pi / n_corner)
    radius = np.where(np.arange(n_corner) % 2 == 0, 1.0, inner)
    return np.stack([-radius * np.cos(angle), radius * np.sin(angle)], axis=1)


_SQUARE = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [1.0, -1.0]])


def _checkers(y, x):
    return (np.floor((y + x + 1) * 2) + np.floor((y - x + 1) * 2)) % 2


_KINDS = {
    "ball": _Kind(_regular(96), lambda y, x: np.zeros_like(y), (0.87, 1.15), tilt=0.0, gloss=1.0),
    "bar": _Kind(_SQUARE, lambda y, x: np.floor((x + 1) * 3.5) % 2, (1.5, 2.2), tilt=0.1),
    "diamond": _Kind(_regular(4), _checkers, (0.7, 1.4), tilt=0.2),
    "star": _Kind(_regular(10, 0.5), lambda y, x: np.floor(np.hypot(y, x) * 4) % 2, (0.85, 1.18), tilt=0.6),
}
CLASSES: tuple[str, ...] = tuple(_KINDS)


class _Object(NamedTuple):
    """One placed object, as far as it lies within the image."""

    label: int
    row: np.ndarray  # (P,) fine
    col: np.ndarray  # (P,) fine
    own: np.ndarray  # (2, P) y and x in the frame of outline and pattern
    upright: np.ndarray  # (2, P) y and x, -1 ... 1 across the box: for the light
    n_pixel: int  # fine pixels of the whole object, including those beyond the border

    @property
    def bbox(self):
        """The tight box of what lies within the image, in pixels."""
        return self.row.min() / FINE, self.col.min() / FINE, (self.row.max() + 1) / FINE, (self.col.max() + 1) / FINE


def _shape(label, center, side, angle, img_size):
    """Turn the outline of a class, stretch it to a box of `side` (height, width) pixels at `center`, fill it."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corner = _KINDS[CLASSES[label]].outline @ turn.T
    low, high = corner.min(axis=0), corner.max(axis=0)
    zoom = FINE * side / (high - low)
    shift = FINE * center - zoom * (low + high) / 2
    corner = corner * zoom + shift
    first = np.floor(corner.min(axis=0)).astype(int)  # skimage drops what lies below 0
    pixel = np.stack(polygon(*(corner - first - 0.5).T)) + first[:, None]  # (2, P); pixel 0 covers 0 ... 1
    inside = pixel[:, ((pixel >= 0) & (pixel < FINE * img_size[:, None])).all(axis=0)]
    own = turn.T @ ((inside + 0.5 - shift[:, None]) / zoom[:, None])
    upright = (inside + 0.5 - FINE * center[:, None]) / (FINE * side[:, None] / 2)
    return _Object(label, *inside, own, upright, pixel.shape[1])


def _attempt(rng, label, img_size):
    """Return an object of random size, proportions, orientation and position."""
    kind = _KINDS[CLASSES[label]]
    ratio = np.exp(rng.uniform(*np.log(kind.ratio)))
    share = rng.uniform(BOX_SIDE[0] / min(ratio, 1), BOX_SIDE[1] / max(ratio, 1), size=2)
    height = img_size.min() * share.max()  # of two, to compensate that small objects are accepted more often
    n_quarter = rng.integers(4)
    side = np.roll([height, height * ratio], n_quarter)  # an odd number of quarter turns swaps them
    margin = side * (0.1 if rng.random() < BORDER_SHARE else 0.5)
    center = rng.uniform(margin, img_size - margin)
    angle = n_quarter * np.pi / 2 + rng.uniform(-kind.tilt, kind.tilt)
    return _shape(label, center, side, angle, img_size)


def _pile(rng, img_size):
    """Return objects in the order of painting, and the visible fraction (G,) of each."""
    shortest, longest = img_size.min() * np.array(BOX_SIDE)
    owner = np.full(FINE * img_size, -1)
    pile, area, visible = [], np.zeros(0), np.zeros(0)
    # each class once before any repeats: an image then teaches to tell classes apart, not which one is frequent
    label = np.concatenate([rng.permutation(len(CLASSES)) for _ in range(2)])
    label = label[: rng.integers(N_OBJECT[0], N_OBJECT[1] + 1)]
    while len(pile) < len(label):
        new = _attempt(rng, label[len(pile)], img_size)
        hidden = np.bincount(owner[new.row, new.col] + 1, minlength=len(pile) + 1)[1:]
        new_area, new_visible = np.append(area, new.n_pixel), np.append(visible - hidden, len(new.row))
        side = np.subtract(new.bbox[2:], new.bbox[:2])
        if (new_visible < LEAST_VISIBLE * new_area).any() or side.min() < shortest or side.max() > longest:
            continue
        owner[new.row, new.col] = len(pile)
        pile.append(new)
        area, visible = new_area, new_visible
    return pile, visible / area


def _rgb(hue, saturation, value):
    """Return a color, (3,) float32; hues repeat with period 1."""
    return hsv2rgb([hue % 1, saturation, value]).astype(np.float32)


def _noise(rng, height, width, cell):
    """Smooth noise (height, width), 0 ... 1, with features of about `cell` (height, width) pixels."""
    grid = rng.random((int(height / cell[0]) + 2, int(width / cell[1]) + 2), dtype=np.float32)
    return resize(grid, (height, width), order=1)


def _background(rng, height, width):
    """One of five textures between two muted colors: (height, width, 3) float32, about 0 ... 1."""
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    slope = rng.uniform(-0.5, 0.5, 2)
    light = slope[0] * (y / height - 0.5) + slope[1] * (x / width - 0.5)
    match rng.integers(5):
        case 0:  # clouds
            tone = 1.2 * _noise(rng, height, width, (60, 60)) + 0.5 * _noise(rng, height, width, (18, 18)) - 0.35
        case 1:  # gradient
            tone = 0.5 + 1.5 * light
        case 2:  # grain
            tone = 0.5 + 1.2 * gaussian(rng.standard_normal((height, width), dtype=np.float32), 1.3)
        case 3:  # weave
            period = rng.uniform(9, 16) / (2 * np.pi)
            tone = 0.5 + 0.4 * np.sin(y / period) * np.sin(x / period) + 0.2 * _noise(rng, height, width, (3, 3))
        case _:  # boards
            board = rng.random(12)[(y / rng.uniform(30, 50)).astype(int)]
            tone = 0.6 * board + 0.5 * _noise(rng, height, width, (1.5, 60))
    hue, value = rng.random(), rng.uniform(0.25, 0.6)
    low, high = _rgb(hue, 0.3, value), _rgb(hue + rng.uniform(-0.15, 0.15), 0.2, value + 0.2)
    return low + np.float32(tone + light)[..., None] * (high - low)


def _surface(rng, obj):
    """Colors (P, 3) of an object: its class's pattern in two colors, lit from the upper left.

    The hue is only a hint: near that of the class, but arbitrary for every twentieth object. The second color is a
    light or a dark one of about the same hue.
    """
    kind = _KINDS[CLASSES[obj.label]]
    hue = rng.random() if rng.random() < ODD_COLOR else (obj.label + rng.uniform(-0.3, 0.3)) / len(CLASSES)
    first = _rgb(hue, rng.uniform(0.65, 0.9), rng.uniform(0.85, 1))
    second = _rgb(hue + rng.uniform(-0.1, 0.1), *((0.15, 1.0) if rng.random() < 0.5 else (0.85, 0.35)))
    color = first + kind.pattern(*obj.own)[:, None] * (second - first)
    distance = ((obj.upright + 0.4) ** 2).sum(axis=0)[:, None]
    color *= 1.1 - (0.1 + 0.2 * kind.gloss) * distance
    return color + kind.gloss * np.exp(-distance / 0.06) * (1 - color)


def _paint(img, obj, color):
    """Draw the soft shadow of an object on img (H, W, 3), then its colors (P, 3), in place."""
    drop = 2 + int(obj.n_pixel**0.5) // 40
    top, left = obj.row.min() // FINE, obj.col.min() // FINE
    bottom, right = obj.row.max() // FINE + 3 * drop, obj.col.max() // FINE + 3 * drop
    part = img[top:bottom, left:right]
    height, width = part.shape[:2]
    pixel = (obj.row // FINE - top) * width + obj.col // FINE - left
    total = [np.bincount(pixel, weight, height * width) for weight in (None, *color.T)]
    cover, *layer = np.reshape(total, (4, height, width)) / FINE**2
    shadow = np.zeros_like(cover)
    shadow[drop:, drop:] = cover[:-drop, :-drop]
    part *= (1 - cover[..., None]) * (1 - 0.5 * gaussian(shadow, drop / 2)[..., None])
    part += np.stack(layer, axis=-1)


def draw_scene(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Draw one image; later objects lie on top.

    Returns:
        img: (H, W, 3) uint8 RGB.
        bbox: (G, 4) float32, tight around the part of each object within the image, hidden or not.
        label: (G,) int64, an index into `CLASSES`.
        difficult: (G,) bool, less than DIFFICULT_BELOW of the object is visible.
        truncated: (G,) bool, the object crosses the border.
    """
    img_size = rng.choice(IMAGE_SIDES, size=2)
    pile, visible = _pile(rng, img_size)
    img = _background(rng, *img_size)
    for obj in pile:
        _paint(img, obj, _surface(rng, obj))
    bbox = np.array([obj.bbox for obj in pile], np.float32)
    label = np.array([obj.label for obj in pile])
    truncated = np.array([len(obj.row) < obj.n_pixel for obj in pile])
    return (img.clip(0, 1) * 255).round().astype(np.uint8), bbox, label, visible < DIFFICULT_BELOW, truncated


def _write(folder, name, rng):
    """Draw the image `name` and write its JPEG and XML files below `folder`."""
    img, bbox, label, difficult, truncated = draw_scene(rng)
    height, width = img.shape[:2]
    lines = ["<annotation>", f"<folder>{folder.name}</folder>", f"<filename>{name}.jpg</filename>"]
    lines.append(f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    # VOC counts pixels from 1 and gives the first and the last one that the object covers
    corners = np.hstack([np.floor(bbox[:, :2]) + 1, np.ceil(bbox[:, 2:])]).astype(int).tolist()
    for (top, left, bottom, right), k, cut, hard in zip(corners, label, truncated, difficult, strict=True):
        lines += [f"<object><name>{CLASSES[k]}</name><truncated>{cut:d}</truncated><difficult>{hard:d}</difficult>"]
        lines += [f"<bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox>"]
        lines += ["</object>"]
    (folder / "Annotations" / f"{name}.xml").write_text("\n".join([*lines, "</annotation>\n"]), encoding="utf-8")
    Image.fromarray(img).save(folder / "JPEGImages" / f"{name}.jpg", quality=92)


def make_shapes(root: str | Path, n_trainval: int = 240, n_test: int = 60, seed: int = 0) -> Path:
    """Draw the data set below `root`, unless it is there already, and return its folder in the VOC layout.

    The folder is `shapes-v<format version>-<n_trainval>-<n_test>-<seed>`. It appears only when it is complete.
    Image i of split s (0 trainval, 1 test) is `draw_scene(np.random.default_rng([seed, s, i]))`.
    """
    final = Path(root) / f"shapes-v{FORMAT_VERSION}-{n_trainval}-{n_test}-{seed}"
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{final.name}-", dir=final.parent) as scratch:
        folder = Path(scratch) / final.name
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True)
        for number, (split, count) in enumerate((("trainval", n_trainval), ("test", n_test))):
            names = [f"{split}_{index:04d}" for index in range(count)]
            for index, name in enumerate(names):
                _write(folder, name, np.random.default_rng([seed, number, index]))
            text = "".join(f"{name}\n" for name in names)
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(text, encoding="utf-8")
        folder.rename(final)
    return final
