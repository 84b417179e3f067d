"""What is in some images beside what a detector sees in them, on one sheet.

Shapes: H, W image height and width in pixels; G objects and D detections of one image.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from utils.vis import draw_bbox, side_by_side

_SIDE = 420  # pixels, the longer side of an image on a sheet
_GREY = 32  # between the images


def comparison(samples: Sequence, detections: Sequence, class_names: Sequence[str]) -> np.ndarray:
    """One sheet: of each image the objects on its left, the detections on its right; two images a row.

    `samples` have `img` (H, W, 3) uint8, `bbox` (G, 4), `label` and `difficult` (G,); `detections` are bboxes (D, 4),
    labels (D,) and scores (D,), each a list with one array an image. Returns an (H, W, 3) uint8 image. Images larger
    than 420 pixels are shrunk.
    """
    pairs = []
    for sample, bbox, label, score in zip(samples, *detections, strict=True):
        img, factor = _shrink(sample.img)
        pairs.append(
            side_by_side(
                draw_bbox(img, sample.bbox * factor, sample.label, None, class_names, sample.difficult),
                draw_bbox(img, bbox * factor, label, score, class_names),
                ("ground truth", "prediction"),
            )
        )
    rows = [pairs[i : i + 2] for i in range(0, len(pairs), 2)]
    return _join([_join(row, axis=1) for row in rows], axis=0)


def _shrink(img: np.ndarray) -> tuple[np.ndarray, float]:
    """An image no longer than `_SIDE` pixels, and the factor by which it was resized."""
    factor = min(1, _SIDE / max(img.shape[:2]))
    if factor == 1:
        return img, factor
    height, width = (max(1, round(side * factor)) for side in img.shape[:2])
    return np.array(Image.fromarray(img).resize((width, height), Image.Resampling.LANCZOS)), factor


def _join(imgs: list[np.ndarray], axis: int) -> np.ndarray:
    """Images of several sizes below (`axis` 0) or beside (1) one another, on grey, with a gap."""
    sides = np.array([img.shape[:2] for img in imgs])  # (images, 2)
    most = sides.max(axis=0)
    parts = []
    for img in imgs:
        room = list(most)
        room[axis] = img.shape[axis] + 8 * (img is not imgs[-1])
        part = np.full((*room, 3), _GREY, np.uint8)
        part[: img.shape[0], : img.shape[1]] = img
        parts.append(part)
    return np.concatenate(parts, axis=axis)
