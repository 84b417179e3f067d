"""Any data set in the VOC layout, checked before it is used.

    ROOT/ImageSets/Main/SPLIT.txt     one image id a line
    ROOT/Annotations/ID.xml           its objects
    ROOT/JPEGImages/ID.jpg            the image; .jpeg and .png do as well

Boxes are continuous (y_min, x_min, y_max, x_max), see annotation.py. G: objects in the image. H, W: its sides.
"""
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.annotation import read_annotation
from data.check import COLUMN, DataError, Findings, check_boxes, check_ids, check_names, check_size
from data.image import Header, read_header, read_image

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


class Item(NamedTuple):
    """A `Sample` whose image is still to be read."""

    path: Path
    bbox: np.ndarray  # (G, 4) float32, inside the image
    label: np.ndarray  # (G,) int64
    difficult: np.ndarray  # (G,) bool
    id: str
    header: Header  # of the image file


def read_ids(root, split, findings=None):
    """The image ids of a split, in the order of its file. VOC's class-wise files have a second column: ignored.

    Ids that cannot be used go to `findings`, or are raised without.
    """
    path, report = Path(root, "ImageSets", "Main", f"{split}.txt"), findings or Findings()
    lines = enumerate(read_lines(path) if path.is_file() else (), start=1)
    ids = [(number, COLUMN.sub("", line)) for number, line in lines if line]
    if not ids:
        there = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))[:20]) or "none"
        report.error("split", f"{path}{' is missing' * (not path.is_file())}; splits found there: {there}")
    ids = check_ids(path, ids, report)
    if findings is None:
        report.raise_errors()
    return ids


def read_lines(path):
    """The lines of a text file, without blanks around them; a byte order mark and Windows line ends do no harm."""
    try:
        return [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise DataError(f"{path} is not a text in UTF-8: save it as such") from None


def find_classes(root, splits, findings=None):
    """The class names of a data set: VOC's in their usual order if there are no others, else those found, sorted.

    What is wrong with the annotations goes to `findings`, or is raised without.
    """
    report, found = findings or Findings(), {}
    for image_id in dict.fromkeys(image_id for split in splits for image_id in read_ids(root, split, findings)):
        path = Path(root, "Annotations", f"{image_id}.xml")
        annotation = read_annotation(path, report)
        for name in annotation.name if annotation else []:
            found.setdefault(name, []).append(path)
    check_names(found, None, report)
    if findings is None or not found:
        report.raise_errors()
    if not found:
        raise DataError(f"{root}: no image of {', '.join(splits)} has an object, so there is nothing to learn")
    return CLASSES if found.keys() <= set(CLASSES) else tuple(sorted(found))


def read_items(root, ids, classes, invalid_boxes, findings):
    """The `Item`s of the images `ids`: annotations and headers of images are read, and all that is wrong is told.

    Arguments are as for `VOCDataset`; what goes to `findings` as an error is not among the items.
    """
    items, found, index = [], {}, {name: i for i, name in enumerate(classes)}
    for image_id in ids:
        where = Path(root, "Annotations", f"{image_id}.xml")
        annotation, path = read_annotation(where, findings), find_image(root, image_id, findings)
        header = path and read_header(path, findings)
        if not (annotation and header):
            continue
        check_size(where, annotation.size, path, header, findings)
        bbox, valid = check_boxes(where, annotation, header.size, invalid_boxes == "skip", findings)
        for name in annotation.name:
            found.setdefault(name, []).append(where)
        label = np.array([index.get(name, -1) for name in annotation.name], np.int64)  # (G,)
        items.append(Item(path, bbox[valid], label[valid], annotation.difficult[valid], image_id, header))
    check_names(found, classes, findings)
    return items


def find_image(root, image_id, findings):
    """The image file of an id, or None after telling `findings` that there is none."""
    paths = [Path(root, "JPEGImages", f"{image_id}{suffix}") for suffix in SUFFIXES]
    return next(filter(os.path.isfile, paths), None) or findings.error("no image", str(paths[0]))


class VOCDataset:
    """The images of one split and their objects, all annotations and headers of images read and checked at once.

    Args:
        root: the folder in the VOC layout.
        split: name of a file in ImageSets/Main.
        classes: names of the classes; a label is an index into them.
        use_difficult: whether objects marked difficult are there.
        invalid_boxes: "error", or "skip" to leave out boxes without area or outside the image.
        findings: takes what `data.check` calls an error; without, it is raised. The attribute of that name has notes
            of what was done about smaller things, too.

    Raises:
        DataError: there is no split; and, without `findings`, what they would have taken, all offenders at once.
    """

    def __init__(self, root, split, classes, use_difficult=True, invalid_boxes="error", findings=None):
        self.classes = tuple(classes)
        self.findings = findings or Findings()
        ids = read_ids(root, split, self.findings)
        items = read_items(root, ids, self.classes, invalid_boxes, self.findings)
        if findings is None:
            self.findings.raise_errors()
        self._items = []
        for item in items:
            keep = use_difficult | ~item.difficult  # (G,)
            self._items.append(item._replace(bbox=item.bbox[keep], label=item.label[keep],
                                             difficult=item.difficult[keep]))

    def __len__(self):
        return len(self._items)

    def __getitem__(self, index):
        """The `Sample` at `index`."""
        item = self._items[index]
        return Sample(read_image(item.path), item.bbox, item.label, item.difficult, item.id)

    def objects(self):
        """(bboxes, labels, difficults): lists of the objects of all images, without reading an image."""
        return tuple([getattr(item, name) for item in self._items] for name in ("bbox", "label", "difficult"))

    def sizes(self):
        """(H, W) of every image, without decoding one."""
        return [item.header.size for item in self._items]
