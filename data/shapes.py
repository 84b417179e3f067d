"""The embedded default data set: shapes with patterned surfaces, drawn on the spot, in the PASCAL VOC layout.

Objects are drawn in fine pixels, FINE to a pixel in each direction, and averaged, which smooths their edges.
Letters: H, W height and width of the image; G its objects; P fine pixels of one object; V corners of an outline.
"""

import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.color import hsv2rgb
from skimage.filters import gaussian
from skimage.transform import resize

FORMAT_VERSION = 2  # part of the folder's name: raise it when pictures or files change
IMAGE_SIDES = (200, 240, 280, 320)  # of an image, pixels; a few, because a CPU prepares anew for each new size
N_OBJECT = (3, 5)  # fewest and most objects of an image
BOX_SIDE = (1 / 12, 2 / 3)  # shortest and longest side of a box, as a share of its image's shorter side
DIFFICULT_BELOW = 0.45  # an object of which a smaller share is visible is difficult
LEAST_VISIBLE = 0.25  # no object shows a smaller share of itself
BORDER_SHARE = 0.3  # of the objects, about: the others keep off the border
ODD_COLOR = 0.05  # of the objects, about, have a hue that is not usual for their class
FINE = 2


@dataclass(frozen=True)
class _Kind:
    """What makes a class; outline and pattern live in a frame of their own, centred on (0, 0).

    `outline` (V, 2) holds corners (y, x); `pattern` maps y (P,), x (P,) to the share 0..1 of the second colour;
    `ratio` bounds width / height in that frame; `tilt` bounds the turn, in radians, that comes on top of quarter
    turns; `gloss` 0..1 goes from flat to a shining bulge.
    """

    outline: np.ndarray
    pattern: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ratio: tuple[float, float]
    tilt: float
    gloss: float = 0.0


def _regular(n_corner: int, inner: float = 1.0) -> np.ndarray:
    """Corners (n_corner, 2) on the unit circle, the first one up, every second one at the radius `inner`."""
    angle = np.arange(n_corner) * (2 * np.pi / n_corner)
    radius = np.where(np.arange(n_corner) % 2 == 0, 1.0, inner)
    return np.stack([-radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _plain(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.zeros_like(y)


def _stripes(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.floor((x + 1) * 3.5) % 2


def _checkers(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (np.floor((y + x + 1) * 2) + np.floor((y - x + 1) * 2)) % 2


def _rings(y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.floor(np.hypot(y, x) * 4) % 2


_SQUARE = np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0], [1.0, -1.0]])
_KINDS = {
    "ball": _Kind(_regular(96), _plain, ratio=(0.87, 1.15), tilt=0.0, gloss=1.0),
    "bar": _Kind(_SQUARE, _stripes, ratio=(1.5, 2.2), tilt=0.1),
    "diamond": _Kind(_regular(4), _checkers, ratio=(0.7, 1.4), tilt=0.2),
    "star": _Kind(_regular(10, 0.5), _rings, ratio=(0.85, 1.18), tilt=0.6),
}
CLASSES: tuple[str, ...] = tuple(_KINDS)


@dataclass(frozen=True)
class _Object:
    """One placed object, as far as it lies within the image."""

    label: int
    row: np.ndarray  # (P,) fine
    col: np.ndarray  # (P,) fine
    own: np.ndarray  # (2, P), y and x in the frame of outline and pattern
    upright: np.ndarray  # (2, P), y and x, -1..1 across the box: for the light
    n_pixel: int  # fine pixels of the whole object, those beyond the border included

    @property
    def bbox(self) -> tuple[float, float, float, float]:
        """The tight box of what lies within the image, in pixels."""
        row, col = self.row, self.col
        return row.min() / FINE, col.min() / FINE, (row.max() + 1) / FINE, (col.max() + 1) / FINE


def _fill(corner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and column (P,) of the pixels whose centres lie in a polygon; pixel 0 spans 0..1 of corner (V, 2).

    Row by row between the crossings with the edges: skimage.draw.polygon tests every pixel against every edge
    and takes ten times as long.
    """
    after = np.roll(corner, -1, axis=0)
    low, high = np.floor(corner.min(axis=0)).astype(int), np.ceil(corner.max(axis=0)).astype(int)
    row, col = np.arange(low[0], high[0]), np.arange(low[1], high[1])
    y = row[:, None] + 0.5
    crossed = (corner[:, 0] <= y) != (after[:, 0] <= y)
    rise = np.where(corner[:, 0] == after[:, 0], 1, after[:, 0] - corner[:, 0])
    crossing = corner[:, 1] + (y - corner[:, 0]) * (after[:, 1] - corner[:, 1]) / rise
    crossing = np.sort(np.where(crossed, crossing, np.inf), axis=1)[:, : crossed.sum(axis=1).max()]
    mask = np.zeros((len(row), len(col)), bool)
    for border in crossing.T:
        mask ^= col + 0.5 > border[:, None]
    i, j = np.nonzero(mask)
    return row[i], col[j]


def _shape(label: int, center: np.ndarray, side: np.ndarray, angle: float, img_size: np.ndarray) -> _Object:
    """Turn the outline of a class, stretch it to a box of `side` (height, width) pixels at `center`, fill it."""
    kind = _KINDS[CLASSES[label]]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corner = kind.outline @ turn.T
    low, high = corner.min(axis=0), corner.max(axis=0)
    zoom = FINE * side / (high - low)
    shift = FINE * center - zoom * (low + high) / 2
    pixel = np.stack(_fill(corner * zoom + shift))
    inside = pixel[:, ((pixel >= 0) & (pixel < FINE * img_size[:, None])).all(axis=0)]
    own = turn.T @ ((inside + 0.5 - shift[:, None]) / zoom[:, None])
    upright = (inside + 0.5 - FINE * center[:, None]) / (FINE * side[:, None] / 2)
    return _Object(label, *inside, own, upright, pixel.shape[1])


def _attempt(rng: np.random.Generator, label: int, img_size: np.ndarray) -> _Object:
    """An object of random size, proportions, direction and place."""
    kind = _KINDS[CLASSES[label]]
    ratio = np.exp(rng.uniform(*np.log(kind.ratio)))
    share = rng.uniform(BOX_SIDE[0] / min(ratio, 1), BOX_SIDE[1] / max(ratio, 1), size=2)
    height = img_size.min() * share.max()  # of two: small objects fit in more often, which this makes up for
    side = np.array([height, height * ratio])
    n_quarter = rng.integers(4)
    if n_quarter % 2:
        side = side[::-1]
    margin = side * (0.1 if rng.random() < BORDER_SHARE else 0.5)
    center = rng.uniform(margin, img_size - margin)
    angle = n_quarter * np.pi / 2 + rng.uniform(-kind.tilt, kind.tilt)
    return _shape(label, center, side, angle, img_size)


def _pile(rng: np.random.Generator, img_size: np.ndarray) -> tuple[list[_Object], np.ndarray]:
    """Objects in the order of painting, and the share (G,) of each that stays visible."""
    shortest, longest = img_size.min() * np.array(BOX_SIDE)
    owner = np.full(FINE * img_size, -1)
    pile: list[_Object] = []
    area = visible = np.zeros(0)
    # each class once before any comes twice: an image then teaches what tells them apart, not which is frequent
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


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    """A colour, (3,) float32; the hue is a circle of length 1."""
    return hsv2rgb([hue % 1, saturation, value]).astype(np.float32)


def _noise(rng: np.random.Generator, height: int, width: int, cell: tuple[float, float]) -> np.ndarray:
    """Smooth noise (height, width), 0..1, whose features are about `cell` (height, width) pixels large."""
    grid = rng.random((int(height / cell[0]) + 2, int(width / cell[1]) + 2), dtype=np.float32)
    return resize(grid, (height, width), order=1)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One of five textures between two muted colours: (height, width, 3) float32, about 0..1."""
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


def _surface(rng: np.random.Generator, obj: _Object) -> np.ndarray:
    """Colours (P, 3) of an object: its class's pattern in two colours, lit from the upper left.

    The hue is a hint, as in nature: near that of the class, but for every twentieth object any. The second colour is a
    light or a dark one of about that hue.
    """
    kind = _KINDS[CLASSES[obj.label]]
    hue = rng.random() if rng.random() < ODD_COLOR else (obj.label + rng.uniform(-0.3, 0.3)) / len(CLASSES)
    first = _rgb(hue, rng.uniform(0.65, 0.9), rng.uniform(0.85, 1))
    second = _rgb(hue + rng.uniform(-0.1, 0.1), *((0.15, 1.0) if rng.random() < 0.5 else (0.85, 0.35)))
    color = first + kind.pattern(*obj.own)[:, None] * (second - first)
    distance = ((obj.upright + 0.4) ** 2).sum(axis=0)[:, None]
    color *= 1.1 - (0.1 + 0.2 * kind.gloss) * distance
    return color + kind.gloss * np.exp(-distance / 0.06) * (1 - color)


def _paint(img: np.ndarray, obj: _Object, color: np.ndarray) -> None:
    """Drop the soft shadow of an object on img (H, W, 3), then lay its colours (P, 3) over it, in place."""
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


def draw_scene(
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Draw one picture and return `img, bbox, label, difficult, truncated`.

    img (H, W, 3) uint8 RGB; bbox (G, 4) float32, tight around what of each object lies within the image, other
    objects on top or not; label (G,) int64, an index of CLASSES; difficult (G,) bool, less than DIFFICULT_BELOW
    of the object is visible; truncated (G,) bool, the object reaches over the border. Later objects lie on top.
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


def _element(tag: str, content: object) -> ET.Element:
    """An XML element that holds a list of (tag, content) pairs, or a text or number."""
    element = ET.Element(tag)
    if isinstance(content, list):
        element.extend(_element(*pair) for pair in content)
    else:
        element.text = str(content)
    return element


def _write(folder: Path, name: str, rng: np.random.Generator) -> None:
    """Draw the image `name` and write its JPEG and XML files below `folder`."""
    img, bbox, label, difficult, truncated = draw_scene(rng)
    content: list[tuple[str, object]] = [
        ("folder", folder.name),
        ("filename", f"{name}.jpg"),
        ("size", [("width", img.shape[1]), ("height", img.shape[0]), ("depth", 3)]),
    ]
    # VOC counts pixels from 1 and names the first and the last one that the object touches
    first, last = np.floor(bbox[:, :2]).astype(int) + 1, np.ceil(bbox[:, 2:]).astype(int)
    for (y_min, x_min), (y_max, x_max), g_label, g_difficult, g_truncated in zip(
        first, last, label, difficult, truncated, strict=True
    ):
        detail = [
            ("name", CLASSES[g_label]),
            ("pose", "Unspecified"),
            ("truncated", int(g_truncated)),
            ("difficult", int(g_difficult)),
            ("bndbox", [("xmin", x_min), ("ymin", y_min), ("xmax", x_max), ("ymax", y_max)]),
        ]
        content.append(("object", detail))
    annotation = _element("annotation", content)
    ET.indent(annotation)
    ET.ElementTree(annotation).write(folder / "Annotations" / f"{name}.xml")
    Image.fromarray(img).save(folder / "JPEGImages" / f"{name}.jpg", quality=92)


def make_shapes(root: str | Path, n_trainval: int = 240, n_test: int = 60, seed: int = 0) -> Path:
    """Draw the data set below `root`, unless it is there already, and return its folder in the VOC layout.

    The folder is `shapes-v<format version>-<n_trainval>-<n_test>-<seed>`, with JPEGImages, Annotations and
    ImageSets/Main. It appears only when it is complete; of two processes that draw it, the later uses the other's.
    Image i of split s (0 trainval, 1 test) is `draw_scene(np.random.default_rng([seed, s, i]))`.
    Raises ValueError where a count or the seed is negative.
    """
    if min(n_trainval, n_test, seed) < 0:
        raise ValueError(f"make_shapes: {n_trainval=}, {n_test=} and {seed=} must all be 0 or more")
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
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        try:
            folder.rename(final)
        except OSError:
            if not final.is_dir():  # not merely drawn by another process in the meantime
                raise
    return final
