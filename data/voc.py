"""Any data set in the VOC layout, checked before it is used.

    ROOT/ImageSets/Main/SPLIT.txt     one image id a line
    ROOT/Annotations/ID.xml           its objects
    ROOT/JPEGImages/ID.jpg            the image; .jpeg and .png do as well

The files count pixels from 1, both ends included. This reader subtracts 1 from all four numbers and takes the
result as continuous coordinates (y_min, x_min, y_max, x_max), as the reference does.

G: objects in the image. H, W: its sides.
"""
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
           "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")


class Sample(NamedTuple):
    """One image and its objects."""

    img: np.ndarray  # (H, W, 3) uint8 RGB
    bbox: np.ndarray  # (G, 4) float32
    label: np.ndarray  # (G,) int64, 0 ... L - 1
    difficult: np.ndarray  # (G,) bool
    id: str


class Annotation(NamedTuple):
    """The objects of one XML file, as they stand there."""

    name: list[str]  # G names of classes
    bbox: np.ndarray  # (G, 4) float32, 1 subtracted
    difficult: np.ndarray  # (G,) bool


class DataError(ValueError):
    """Something is wrong with the files of a data set; the message says where and what to do."""


def read_image(path):
    """The image file `path` as an (H, W, 3) uint8 RGB array."""
    try:
        with Image.open(path) as img:
            return np.array(img.convert("RGB"))
    except OSError as error:
        raise DataError(f"{path} is not an image that can be read: {error}") from None


def read_ids(root, split):
    """The image ids of a split, in the order of its file. VOC's class-wise files have a second column: ignored."""
    path = Path(root, "ImageSets", "Main", f"{split}.txt")
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))[:20]) or "none"
        raise DataError(f"{path} is missing; splits found there: {there}")
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    ids = [re.sub(r"\s+(-1|0|1)$", "", line.strip()) for line in lines if line.strip()]
    if not ids:
        raise DataError(f"{path} names no image: write one image id a line")
    return ids


def read_annotation(path):
    """The `Annotation` in the XML file `path`. A missing `difficult` counts as 0; coordinates may be fractions."""
    number, name, corner, difficult = 0, [], [], []
    try:
        for obj in ET.parse(path).getroot().findall("object"):
            number += 1
            name.append(obj.findtext("name").strip())
            corner.append([float(obj.findtext(f"bndbox/{key}")) for key in ("ymin", "xmin", "ymax", "xmax")])
            difficult.append(bool(int(obj.findtext("difficult") or 0)))
    except FileNotFoundError:
        raise DataError(f"{path} is missing: each image needs one, without objects if it shows none") from None
    except (ET.ParseError, AttributeError, TypeError, ValueError) as error:
        where = f"{path}, object {number}," if number else path
        reason = "something is missing" if isinstance(error, AttributeError | TypeError) else error
        raise DataError(f"{where} is not an annotation in the VOC format ({reason}): each object needs a name and a "
                        "bndbox with the numbers xmin, ymin, xmax, ymax") from None
    return Annotation(name, np.array(corner, np.float32).reshape(-1, 4) - 1, np.array(difficult, bool))  # (G, 4), (G,)


def find_classes(root, splits):
    """The class names of a data set: VOC's in their usual order if there are no others, else those found, sorted."""
    root = Path(root)
    ids = {image_id for split in splits for image_id in read_ids(root, split)}
    found = {name for image_id in ids for name in read_annotation(root / "Annotations" / f"{image_id}.xml").name}
    if not found:
        raise DataError(f"{root}: no image of {', '.join(splits)} has an object, so there is nothing to learn")
    return CLASSES if found <= set(CLASSES) else tuple(sorted(found))


class VOCDataset:
    """The images of one split and their objects, all annotations read and checked at once.

    Args:
        root: the folder in the VOC layout.
        split: name of a file in ImageSets/Main.
        classes: names of the classes; a label is an index into them.
        use_difficult: whether objects marked difficult are there.
        invalid_boxes: "error", or "skip" to leave out boxes without area; `n_skipped` counts them.

    Raises:
        DataError: a file is missing or unreadable, a class is unknown, a box has no area. Names all such boxes.
    """

    def __init__(self, root, split, classes, use_difficult=True, invalid_boxes="error"):
        root = Path(root)
        self.classes = tuple(classes)
        self.n_skipped = 0
        self._items = []  # (path of the image, bbox, label, difficult, id) each
        offenders = []
        for image_id in read_ids(root, split):
            path = root / "Annotations" / f"{image_id}.xml"
            name, bbox, difficult = read_annotation(path)
            valid = (bbox[:, 2:] > bbox[:, :2]).all(1) & np.isfinite(bbox).all(1)  # (G,)
            for i in np.flatnonzero(~valid):
                y_min, x_min, y_max, x_max = bbox[i] + 1
                offenders.append(f"{path} object {i + 1} ({name[i]}): "
                                 f"xmin {x_min:g}, ymin {y_min:g}, xmax {x_max:g}, ymax {y_max:g}")
            keep = valid & (use_difficult | ~difficult)
            label = np.array([self._label(n, path) for n in name], np.int64)
            self._items.append((self._image_path(root, image_id), bbox[keep], label[keep], difficult[keep], image_id))
        if invalid_boxes == "skip":
            self.n_skipped = len(offenders)
        elif offenders:
            raise DataError(f"{len(offenders)} boxes have no area; mend them or pass --invalid-boxes=skip:\n  "
                            + "\n  ".join(offenders))

    def _label(self, name, path):
        if name not in self.classes:
            raise DataError(f"{path} has an object of the class {name!r}, which is none of {', '.join(self.classes)}: "
                            "mend it or pass --classes with all names")
        return self.classes.index(name)

    @staticmethod
    def _image_path(root, image_id):
        for suffix in SUFFIXES:
            path = root / "JPEGImages" / f"{image_id}{suffix}"
            if path.is_file():
                return path
        raise DataError(f"{root / 'JPEGImages' / image_id}.jpg is missing (.jpeg and .png are not there either)")

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        """The `Sample` at `index`."""
        path, bbox, label, difficult, image_id = self._items[index]
        return Sample(read_image(path), bbox, label, difficult, image_id)

    def objects(self):
        """(bboxes, labels, difficults): lists of the objects of all images, without reading an image."""
        return tuple([item[i] for item in self._items] for i in (1, 2, 3))
