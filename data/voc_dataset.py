"""Data sets in the layout of PASCAL VOC, checked before use.

    ROOT/ImageSets/Main/SPLIT.txt     one image id per line
    ROOT/Annotations/ID.xml           its objects
    ROOT/JPEGImages/ID.jpg            the image; see IMAGE_SUFFIXES for others

The files count pixels from 1, both ends included. The reader subtracts 1 from all four numbers and takes the result as
continuous coordinates (y_min, x_min, y_max, x_max), as py-faster-rcnn does.

G: objects in one image. H, W: sides of the image as its pixels are stored; the EXIF orientation is not applied.
"""

import copy
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import defusedxml.ElementTree
import numpy as np
from PIL import ExifTags, Image
from torchvision.datasets import VOCDetection

from data import Sample, read_lines
from data.validate import DataError, ValidationReport, check_boxes, check_class_names, check_size, roots_near

# fmt: off
VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
               "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
# fmt: on
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # in any case; the first one wins if an id has several files
# formats that are decoded, whatever the suffix says; not EPS, for which Pillow runs Ghostscript
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
COLUMN = re.compile(r"\s+(-1|0|1)$")  # the second one of VOC's split files per class
FOLDER = Path("datasets")  # for what is downloaded or drawn
USE_SHAPES = "or use the built-in data set with --data=shapes"


def build(options, splits, classes=(), report=None) -> list["VOCDataset"]:
    """Open splits of the folder `options.voc_data_dir`, or of VOC2007 with `options.download`: see `data.build`."""
    root = _download(FOLDER) if getattr(options, "download", False) else options.voc_data_dir
    return read_splits(root, splits, classes, getattr(options, "invalid_boxes", "error"), report)


def read_splits(root, splits=(), classes=(), invalid_boxes="error", report=None) -> list["VOCDataset"]:
    """Read all annotations and image headers of some splits and check them together.

    Args:
        root: folder in the VOC layout.
        splits: names of files in ImageSets/Main; none: see `find_splits`.
        classes: names of the classes; none: VOC's if the annotations name no others, else those found, sorted.
        invalid_boxes: "error", or "skip" to leave out boxes without area or outside their image and to clip the others.
        report: `ValidationReport` that receives the errors; without, they are raised.

    Returns:
        One data set per split, without the images that have errors.

    Raises:
        DataError: no data set in `root`; without `report`, any other error, all offenders at once.
    """
    root, raises, report = _check_root(Path(root).expanduser()), report is None, report or ValidationReport()
    splits = splits or find_splits(root)
    ids = {split: read_ids(root, split, report) for split in splits}
    annotations, images = find_files(root / "Annotations", (".xml",)), find_files(root / "JPEGImages", IMAGE_SUFFIXES)
    records, found = {}, {}
    for image_id in dict.fromkeys(image_id for split in splits for image_id in ids[split]):
        where, image = annotations.get(image_id), images.get(image_id)
        if not where:
            report.error("no_annotation", root / "Annotations" / f"{image_id}.xml")
        if not image:
            report.error("no_image", root / "JPEGImages" / f"{image_id}{IMAGE_SUFFIXES[0]}")
        annotation, header = where and read_annotation(where, report), image and read_header(image, report)
        for name in annotation.names if annotation else ():
            found.setdefault(name, []).append(where)
        if annotation and header:
            check_size(where, annotation.size, image, header, report)
            names, size, skip = annotation.names, header[0], invalid_boxes == "skip"
            bbox, usable = check_boxes(where, names, annotation.bbox, size, skip, report)
            records[image_id] = image, Annotation(names[usable], bbox[usable], annotation.difficult[usable], size)
    check_class_names(found, tuple(classes), report)
    if raises:
        report.raise_errors()
    classes = tuple(classes or (VOC_CLASSES if found.keys() <= set(VOC_CLASSES) else sorted(found)))
    return [VOCDataset(root, split, classes, ids[split], records, report.format_notes()) for split in splits]


class VOCDataset:
    """The images of one split and their objects; `read_splits` makes it, `data.build` lists the attributes."""

    def __init__(self, root, split, classes, ids, records, notes) -> None:
        self.root, self.split, self.classes, self.notes = root, split, classes, notes
        self.ids = [image_id for image_id in ids if image_id in records]
        self.paths, annotations = [records[i][0] for i in self.ids], [records[i][1] for i in self.ids]
        self.bboxes, self.difficults = [a.bbox for a in annotations], [a.difficult for a in annotations]
        self.sizes, index = [a.size for a in annotations], {name: i for i, name in enumerate(classes)}
        self.labels = [np.array([index.get(name, -1) for name in a.names], np.int64) for a in annotations]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        return Sample(read_image(self.paths[i]), self.bboxes[i], self.labels[i], self.difficults[i], self.ids[i])

    def without_difficult(self) -> "VOCDataset":
        """Return the same data set without the objects marked difficult."""
        other = copy.copy(self)
        for key in ("bboxes", "labels", "difficults"):
            pairs = zip(getattr(self, key), self.difficults, strict=True)
            setattr(other, key, [values[~difficult] for values, difficult in pairs])
        return other


def find_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Map the ids of the files in `folder` with one of `suffixes`, in any case, to their paths; earlier ones win."""
    paths = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
    paths.sort(key=lambda path: (suffixes.index(path.suffix.lower()), path.name), reverse=True)
    return {path.stem: path for path in paths}


def find_splits(root: str | Path) -> list[str]:
    """Return those of train, val, trainval and test that `root` has; if it has none of them, all of its splits."""
    names = sorted(path.stem for path in Path(root, "ImageSets", "Main").glob("*.txt"))
    return [split for split in ("train", "val", "trainval", "test") if split in names] or names or ["train"]


def read_ids(root: Path, split: str, report: ValidationReport) -> list[str]:
    """Return the image ids of a split in the order of its file, without the second column of VOC's files per class."""
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    lines = [COLUMN.sub("", line) for line in read_lines(path)] if path.is_file() else []
    if not any(lines):
        others = ", ".join(sorted(file.stem for file in path.parent.glob("*.txt"))[:20]) or "none"
        fault = "contains no image id" if path.is_file() else "does not exist"
        report.error("split", f"{path} {fault}; splits in this folder: {others}")
    first = {}
    for number, image_id in enumerate(lines, start=1):
        if "/" in image_id or "\\" in image_id:
            report.error("path", f"{path} line {number}: {image_id!r}")
        elif image_id in first:
            report.error("duplicate_id", f"{path} lines {first[image_id]} and {number}: {image_id}")
        elif image_id:
            first[image_id] = number
    return list(first)


class Annotation(NamedTuple):
    """The objects of one XML file."""

    names: np.ndarray  # (G,) str, names of classes
    bbox: np.ndarray  # (G, 4) float32, 1 subtracted
    difficult: np.ndarray  # (G,) bool
    size: tuple[int, int] | None  # (H, W), if given


def read_annotation(path: Path, report: ValidationReport) -> Annotation | None:
    """Read an XML file in the VOC format; return None after reporting all errors in it.

    A missing `difficult` counts as 0; coordinates may be fractions. XML entities are refused.
    """
    try:
        root = defusedxml.ElementTree.parse(path).getroot()
        if root.tag != "annotation":
            raise ValueError(f"the root element is <{root.tag[:40]}>, not <annotation>")
        size = tuple(int(float(_text(root, f"size/{side}", "0"))) for side in ("height", "width"))
    except defusedxml.DefusedXmlException:
        return report.error("annotation", f"{path}: it declares XML entities: replace them with their text")
    except (OSError, defusedxml.ElementTree.ParseError, ValueError, LookupError, OverflowError) as error:
        return report.error("annotation", f"{path}: {getattr(error, 'strerror', None) or error}")
    names, corners, difficult, objects = [], [], [], root.findall("object")
    for number, obj in enumerate(objects, start=1):
        try:
            corners.append([float(_text(obj, f"bndbox/{key}")) for key in ("ymin", "xmin", "ymax", "xmax")])
            difficult.append(float(_text(obj, "difficult", "0")) != 0)
            names.append(_text(obj, "name"))
        except ValueError as error:
            report.error("annotation", f"{path} object {number}: {error}")
    if len(names) < len(objects):
        return None
    with np.errstate(over="ignore"):  # inf, which is reported as a box without area
        bbox = np.array(corners, np.float32).reshape(-1, 4) - 1
    return Annotation(np.array(names, object), bbox, np.array(difficult, bool), size if all(size) else None)


def _text(node, key, default=""):
    text = (node.findtext(key) or default).strip()
    if not text:
        raise ValueError(f"{key} is missing or empty")
    return text


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as an (H, W, 3) uint8 RGB array.

    The EXIF orientation is not applied. Gray, palette and CMYK images become RGB; of 16 bits the upper 8 are kept;
    transparency is dropped, the colors below it stay.

    Raises:
        DataError: the file is missing, no image or damaged.
    """
    with _open_image(path) as img:
        if img.mode[0] in "IF":  # 16 bits of gray, which Pillow would clip at 255
            gray = np.asarray(img)
            if img.mode == "F" or gray.min() < 0 or gray.max() > 65535:
                raise ValueError("its pixels are not integers of 8 or 16 bits: save it with such")
            return np.repeat((gray >> 8).astype(np.uint8)[:, :, None], 3, 2)
        return np.array((img.convert("RGBA") if "transparency" in img.info else img).convert("RGB"))


def read_header(path: Path, report: ValidationReport) -> tuple[tuple[int, int], int] | None:
    """Return (H, W) and EXIF orientation (0: none) of an image file without decoding it, or None after reporting."""
    try:
        with _open_image(path) as img:
            size, orientation = (img.height, img.width), 0
            with suppress(Exception):  # damaged EXIF does no harm to the pixels
                if "exif" in img.info:  # otherwise Pillow decodes a PNG to look for EXIF behind the pixels
                    orientation = img.getexif().get(ExifTags.Base.Orientation, 0)
            return size, orientation if orientation in range(1, 9) else 0
    except DataError as error:
        return report.error("image", error)


@contextmanager
def _open_image(path):
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as img:
            yield img
    except Exception as error:  # a damaged file makes Pillow raise errors of many types
        empty = Path(path).is_file() and Path(path).stat().st_size == 0
        reason = "the file is empty" if empty else getattr(error, "strerror", None) or str(error) or repr(error)
        reason = " ".join(reason.replace(f" {str(path)!r}", "").split())
        raise DataError(f"{path} is not a readable image: {reason}") from None


def _check_root(root):
    """Return `root` if it is a folder in the VOC layout; otherwise raise a DataError that says where one may be."""
    missing = [name for name in ("ImageSets/Main", "Annotations", "JPEGImages") if not (root / name).is_dir()]
    if not missing:
        return root
    near, fault = roots_near(root), f"{root} contains no data set in the VOC layout (no {', no '.join(missing)})"
    if near:
        raise DataError(f"{fault}, but found {', '.join(map(str, near[:5]))}: pass --voc-data-dir={near[0]}")
    raise DataError(f"{fault}: name its folder with --voc-data-dir, download VOC2007 with --download, {USE_SHAPES}")


def _download(folder):
    """Download VOC2007 into `folder`, unless it is there, and return its root."""
    root = folder / "VOCdevkit" / "VOC2007"
    if not (root / "ImageSets" / "Main" / "test.txt").is_file():
        try:
            for image_set in ("trainval", "test"):
                VOCDetection(folder, "2007", image_set, download=True)
        except Exception as error:  # of the network, the server, the disk or the archive
            raise DataError(
                f"cannot download VOC2007 ({error}): name a copy with --voc-data-dir, {USE_SHAPES}"
            ) from None
    return root
