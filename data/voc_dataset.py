"""Data sets in the layout of PASCAL VOC or a similar one, checked before use; voc_layout.py finds the files.

The files count pixels from 1, both ends included. The reader subtracts 1 from all four numbers and takes the result as
continuous coordinates (y_min, x_min, y_max, x_max), as py-faster-rcnn does.

G: objects in one image. H, W: sides of the image as its pixels are stored; the EXIF orientation is not applied.
"""

import copy
import filecmp
import io
import re
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torchvision.datasets import VOCDetection
from tqdm import tqdm

from data import Sample
from data.validate import CUT_OFF, UNUSED, DataError, ValidationReport, check_boxes, check_class_names, check_size
from data.voc_annotation import Annotation, read_annotation
from data.voc_layout import Layout, named_splits

# fmt: off
VOC_CLASSES = ("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
               "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor")
# fmt: on
# formats that are decoded, whatever the suffix says; not EPS, for which Pillow runs Ghostscript
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
IMAGE_END = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}  # near the end of a complete file; others: none
DEFAULTS = {"invalid_boxes": "error", "invalid_images": "error", "unknown_classes": "error"}
DEFAULTS |= {"val_ratio": 0.0, "seed": 0, "split_ids": None, "n_bytes": ()}  # of the options of `read_splits`
AREA_METRIC = re.compile(r"VOC201\d")  # folders whose devkit takes the area under the curve
FOLDER = Path("datasets")  # for what is downloaded or drawn

warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # above 89 megapixels; above 179 it is an error


def build(options, splits, classes=(), report=None) -> list["VOCDataset"]:
    """Open splits of the folder `options.voc_data_dir`, or of VOC2007 with `options.download`: see `data.build`."""
    root = _download(FOLDER) if getattr(options, "download", False) else options.voc_data_dir
    return read_splits(root, splits, classes, report, **{n: getattr(options, n, d) for n, d in DEFAULTS.items()})


def read_splits(root, splits=(), classes=(), report=None, **options) -> list["VOCDataset"]:
    """Read all annotations and image headers of some splits and check them together.

    Args:
        root: folder of the data set, or several, a,b: then an id starts with the name of its folder, and a split is
            that of the folders that have it.
        splits: names of the splits; none: see `Layout.find_splits`.
        classes: names of the classes; none: those found, sorted.
        report: `ValidationReport` that receives the errors; without, they are raised.
        options: `invalid_boxes`, "error", or "skip" to leave out objects without a box, without area or outside their
            image, and to clip the others; `invalid_images`, "error", or "skip" to decode all images and leave out
            those that are missing or cannot be read; `unknown_classes`, "error", or "ignore" to leave out objects of
            other classes than `classes`; `val_ratio`, `seed`, see `draw`; `split_ids`, `n_bytes`, see `drawn_earlier`.

    Returns:
        One data set per split, without the images that have errors.

    Raises:
        DataError: no data set in `root`; without `report`, any other error, all offenders at once.
    """
    options, raises, report = DEFAULTS | options, report is None, report or ValidationReport()
    layouts = _open(root)
    everything = not splits
    splits = splits or [*dict.fromkeys(s for layout in layouts.values() for s in layout.find_splits())]
    ids, entries, found, n_unlisted = {split: [] for split in splits}, {}, {}, 0
    listed = {split for split in splits if any(layout.has(split) for layout in layouts.values())}
    for prefix, layout in layouts.items():
        own = [split for split in splits if layout.has(split) or split not in listed]
        if not own:
            report.note("unused", f"{layout.root}, annotations: {len(layout.annotations)}")
        parts = layout.split_ids(own, options, report)
        for split, names in parts.items():
            ids[split] += [prefix + name for name in names]
            entries |= {prefix + name: (layout, name) for name in names}
        n_unlisted += layout.count_unlisted({*()}.union(*parts.values()))
        if layout.others:
            report.note("others", layout.others)
        if bare := len(layout.images.keys() - layout.annotations.keys()):
            report.note("bare", bare)
    if everything and n_unlisted:
        report.note("unlisted", n_unlisted)

    def read(image_id):
        layout, name = entries[image_id]
        where, image = layout.locate(name, report, options["invalid_images"] == "skip")
        return where, image, where and read_annotation(where, report, options["invalid_boxes"] == "skip")

    records = check_images(entries, read, options, report, found, ({}, {}))
    check_class_names(found, tuple(classes), report, options["unknown_classes"] == "ignore")
    root = Path(",".join(str(layout.root) for layout in layouts.values()))
    datasets = [VOCDataset(root, split, tuple(classes or sorted(found)), ids[split], records) for split in splits]
    for dataset in datasets:
        years = {entries[image_id][0].root.resolve().name for image_id in dataset.ids}
        dataset.metric = "voc" if any(map(AREA_METRIC.fullmatch, years)) else "voc07"
        dataset.drawn = dataset.split not in listed
    return finish(datasets, options, report, raises)


def _open(root):
    """Return prefix of ids -> `Layout` of each folder; a single one has no prefix, others the name of the folder.

    X/train,X/valid: names of folders that are splits, not all the same, are the splits of what no list says.
    """
    parts = [root] if Path(root).expanduser().is_dir() else map(str.strip, str(root).split(","))
    roots = [Path(part).expanduser() for part in parts if part]
    if len(roots) == 1:
        return {"": Layout(roots[0])}
    names = [str(folder) if [other.name for other in roots].count(folder.name) > 1 else folder.name for folder in roots]
    words = ["".join(sorted(named_splits(folder.name))) for folder in roots]
    splits = words if all(words) and len({*words}) > 1 else [""] * len(roots)
    return {f"{name}/": Layout(*each) for name, *each in zip(names, roots, splits, strict=True)}


def check_images(ids, read, options, report: ValidationReport, found: dict, known: tuple, origin: int = 1) -> dict:
    """Check images and their objects.

    Args:
        ids: ids of the images.
        read: id -> file of the annotation for messages, file of the image, `Annotation`; None for what is missing.
        options: see `read_splits`.
        report: receives errors and notes.
        found: class name -> where it was found, one entry per object; filled.
        known: two dicts that are filled, image -> id, and (name, bytes) of images -> images, which may be copies.
        origin: number of the first pixel in the files.

    Returns:
        id -> file of the image, `Annotation` with clipped boxes and the size of the image; of usable images only.
    """
    skip_boxes, skip_images = options["invalid_boxes"] == "skip", options["invalid_images"] == "skip"
    records, (users, alike) = {}, known
    for image_id in tqdm(ids, "check", unit="image", leave=False, delay=1):
        where, image, annotation = read(image_id)
        if users.setdefault(image, image_id) != image_id and image:
            report.error("duplicate_id", f"{image_id} and {users[image]} are both {image}")
        header = image and read_header(image, report, skip_images)
        like = alike.setdefault((Path(image).name, Path(image).stat().st_size), []) if header else []
        if twin := next((o for o in like if o != image and filecmp.cmp(o, image, shallow=False)), None):
            report.note("copy", f"{image} of {twin}")
        like.append(image)
        if annotation and header:
            check_size(where, annotation.size, image, header, report)
            bbox, usable = check_boxes(where, annotation.names, annotation.bbox, header[0], skip_boxes, report, origin)
            columns = (column[usable] for column in (annotation.names, bbox, annotation.difficult, annotation.area))
            records[image_id] = image, Annotation(*columns, header[0])
            for name in annotation.names[usable]:
                found.setdefault(name, []).append(where)
    return records


def finish(datasets: list, options: dict, report: ValidationReport, raises: bool) -> list:
    """Note what is not used, raise the errors with `raises`, and return the data sets with all notes.

    A split of which nothing is left is an error, unless other errors say why.
    """
    for dataset in [] if report.errors else datasets:
        if not dataset.ids:
            report.error("empty", f"{dataset.root}, split {dataset.split}")
    if options["split_ids"] and any(dataset.drawn for dataset in datasets) and "kept" not in report.notes:
        report.note("lost", datasets[0].root)
    for dataset in datasets:
        labels = np.concatenate([[], *dataset.without_difficult().labels])
        absent = [name for i, name in enumerate(dataset.classes) if i not in labels and name != UNUSED]
        if absent:
            report.note("absent", f"{', '.join(absent) if len(labels) else 'all'} in {dataset.split}")
    if raises:
        report.raise_errors()
    for dataset in datasets:
        dataset.notes = report.format_notes()
    return datasets


class VOCDataset:
    """The images of one split and their objects; `read_splits` makes it, `data.build` lists the attributes."""

    def __init__(self, root, split, classes, ids, records) -> None:
        self.root, self.split, self.classes, self.notes = root, split, classes, []
        self.ids = [image_id for image_id in ids if image_id in records]
        self.paths, annotations = [records[i][0] for i in self.ids], [records[i][1] for i in self.ids]
        self.bboxes, self.difficults = [a.bbox for a in annotations], [a.difficult for a in annotations]
        self.areas, self.sizes = [a.area for a in annotations], [a.size for a in annotations]
        index = {name: i for i, name in enumerate(classes)}
        self.labels = [np.array([index.get(name, -1) for name in a.names], np.int64) for a in annotations]
        self._keep([label >= 0 for label in self.labels])

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Sample:
        return Sample(read_image(self.paths[i]), self.bboxes[i], self.labels[i], self.difficults[i], self.ids[i])

    def without_difficult(self) -> "VOCDataset":
        """Return the same data set without the objects marked difficult."""
        other = copy.copy(self)
        other._keep([~difficult for difficult in self.difficults])
        return other

    def _keep(self, masks):
        """Keep these objects: one (G,) mask per image."""
        for key in ("bboxes", "labels", "difficults", "areas"):
            setattr(self, key, [values[mask] for values, mask in zip(getattr(self, key), masks, strict=True)])


def read_image(path: str | Path, report: ValidationReport | None = None, upright: bool = False) -> np.ndarray:
    """Read an image file as an (H, W, 3) uint8 RGB array.

    The EXIF orientation is applied only with `upright`. Gray, palette and CMYK images become RGB; of 16 bits the upper
    8 are kept; transparency is dropped, the colors below it stay. A JPEG that is cut off is read, and noted in
    `report`, if less than `CUT_OFF` of its pixels are affected.

    Raises:
        DataError: the file is missing, no image or damaged.
    """
    try:
        return _decode(path, upright=upright)
    except DataError:
        with suppress(DataError, OSError):
            content, end = Path(path).read_bytes().rstrip(b"\xff"), IMAGE_END["JPEG"]
            img, other = (_decode(path, content + part + end, upright) for part in (b"", b"\x55" * len(content)))
            if (img != other).any(2).mean() < CUT_OFF:  # what is missing looks as the bytes in its place say
                if report:
                    report.note("cut_off", path)
                return img
        raise


def _decode(path, content=None, upright=False):
    with _open_image(path, content and io.BytesIO(content)) as img:
        with suppress(Exception):  # damaged EXIF does no harm to the pixels
            if upright:
                ImageOps.exif_transpose(img, in_place=True)
        if img.mode[0] in "IF":  # 16 bits of gray, which Pillow would clip at 255
            gray = np.asarray(img)
            if img.mode == "F" or gray.min() < 0 or gray.max() > 65535:
                raise ValueError("its pixels are not integers of 8 or 16 bits: save it with such")
            return np.repeat((gray >> 8).astype(np.uint8)[:, :, None], 3, 2)
        return np.array((img.convert("RGBA") if "transparency" in img.info else img).convert("RGB"))


def read_header(path: Path, report: ValidationReport, skip: bool = False) -> tuple[tuple[int, int], int] | None:
    """Return (H, W) and EXIF orientation (0: none) of an image file, or None after reporting that it is unreadable.

    It is decoded only if it seems to be cut off, if only decoding tells whether 8 bits hold its pixels, or with `skip`,
    which reports unreadable files as notes.
    """
    try:
        with _open_image(path) as img:
            size, orientation = (img.height, img.width), 0
            with suppress(Exception):
                if "exif" in img.info:  # otherwise Pillow decodes a PNG to look for EXIF behind the pixels
                    orientation = img.getexif().get(ExifTags.Base.Orientation, 0)
            img.fp.seek(max(0, path.stat().st_size - 4096))
            complete = img.format in IMAGE_END and IMAGE_END[img.format] in img.fp.read()
        if skip or not complete or img.mode in ("I", "F"):
            read_image(path, report)
        return size, orientation if orientation in range(1, 9) else 0
    except DataError as error:
        return report.note("skipped_image", error) if skip else report.error("image", error)


@contextmanager
def _open_image(path, file=None):
    try:
        with Image.open(file or path, formats=IMAGE_FORMATS) as img:
            yield img
    except Exception as error:  # a damaged file makes Pillow raise errors of many types
        empty = Path(path).is_file() and Path(path).stat().st_size == 0
        reason = "the file is empty" if empty else getattr(error, "strerror", None) or str(error) or repr(error)
        if isinstance(error, UnidentifiedImageError) and not empty:
            reason = f"it is none of {', '.join(IMAGE_FORMATS)}, or its bands or bits are unusual: save it as RGB"
        reason = " ".join(reason.replace(f" {str(path)!r}", "").split())
        raise DataError(f"{path} is not a readable image: {reason}") from None


def _download(folder):
    """Download VOC2007 into `folder`, unless it is there, and return its root."""
    root = folder / "VOCdevkit" / "VOC2007"
    if not (root / "ImageSets" / "Main" / "test.txt").is_file():
        try:
            for image_set in ("trainval", "test"):
                VOCDetection(folder, "2007", image_set, download=True)
        except Exception as error:  # of the network, the server, the disk or the archive
            raise DataError(f"cannot download VOC2007 ({error}): name a copy with --voc-data-dir") from None
    return root
