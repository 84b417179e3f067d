"""What can be wrong with a data set, and how it is reported: all offenders of a kind at once, and what to do.

Nothing here opens a file; readers such as voc_dataset.py pass in what they read. Sizes are written as width x height.

G: objects in one image. H, W: sides of the image.
"""

import unicodedata
from difflib import get_close_matches
from pathlib import Path

import numpy as np

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm")  # in any case
FORMATS = " ".join(IMAGE_SUFFIXES)
FAR, SLACK = 0.1, 2  # a box may extend beyond its image by this fraction of the side or by these pixels; it is clipped
UNUSED = "N/A"  # torchvision's name of a label without a class
CUT_OFF = 0.01  # an image file is read if a smaller fraction is missing
SHOWN, FEW = 20, 3  # offenders per kind that errors and notes show; tools.check_data lists all

AS_XML = "each named as its annotation, in folders of the same names"
SKIP = "leave them out with --invalid-images=skip"
OR_SKIP = "correct them or pass --invalid-boxes=skip"
STORED = "pixels as stored (EXIF is not applied), otherwise rotate the images: mogrify -auto-orient"
KINDS = {  # kind -> what it is, what to do or what was done; recorded as an error or as a note
    "split": (
        "unusable splits",
        "write a list of image ids for each, or name another; or name a folder without lists, such as "
        "--voc-data-dir=MYDATA/train, if it holds images and annotations: splits are drawn from it",
    ),
    "empty": ("splits without a usable image", "name another, or leave out --invalid-images=skip to see what is wrong"),
    "duplicate_id": (
        "duplicate image ids",
        "delete all but one: in a list, or of two annotations or two COCO files that have the image; a last column of "
        "-1, 0 or 1 is no part of the id",
    ),
    "above": ("lines that lead out of the data set", "write names of images, after their folders in the data set"),
    "ambiguous": ("ids that mean several files", "write the folder before the id, or delete all files but one"),
    "no_annotation": ("images without annotation", "every image needs one; without objects if the image shows none"),
    "annotation": ("annotations that are not in the VOC format", "convert them: see docs/own-data.md"),
    "coco": (
        "entries that are not in COCO's format",
        "correct them, or export the file again; of an image that two people annotated, keep one entry",
    ),
    "xml": ("annotations that are no valid XML", "correct them, or export them again"),
    "encoding": ("annotations in an unknown encoding", "save them as UTF-8 and declare that in the first line"),
    "object": ("unusable objects", f"each needs a class and one box: {OR_SKIP}"),
    "no_image": (
        "missing images",
        f"add them ({FORMATS}), {AS_XML}, delete their ids (a run keeps those that it drew), or {SKIP}",
    ),
    "coco_image": (
        "missing images",
        f"name their folder with --coco-images, add them, correct their file_name, or {SKIP}",
    ),
    "coco_files": (
        "images of which there are several",
        "name their folder with --coco-images, correct file_name, or keep one file of each",
    ),
    "gone": (
        "images of a split that was drawn",
        "their entries are gone from the file: put them back, or evaluate without them, --invalid-images=skip",
    ),
    "image": ("unreadable images", f"replace them, delete their ids, or {SKIP}"),
    "swapped_size": ("images with swapped sides", f"correct or delete that size if the boxes fit the {STORED}"),
    "size": ("images of another size than annotated", "use those that were annotated, or correct or delete that size"),
    "class": ("unknown classes", "correct them, pass --unknown-classes=ignore, or train anew with --classes of all"),
    "similar_classes": ("class names that differ only in case or spaces", "correct them, or pass --classes with all"),
    "no_area": ("boxes without area", OR_SKIP),
    "outside": ("boxes outside their image", OR_SKIP),
    "far_outside": ("boxes that extend far beyond their image", "correct them or clip them with --invalid-boxes=skip"),
    "no_box": ("skipped objects", "they need a class and one box"),
    "skipped": ("skipped boxes", "they have no area or lie outside their image"),
    "skipped_image": ("skipped images", "they are missing or cannot be read"),
    "cut_off": ("images whose end is missing", f"less than {CUT_OFF:.0%}, which is gray or blurred"),
    "copy": ("copies of images", "in training and evaluation they make mAP too high: delete all but one of each"),
    "ignored": ("ignored classes", "their objects are left out"),
    "clipped": ("clipped boxes", "they extend beyond their image"),
    "from_0": ("clipped boxes that start at 0", "VOC counts from 1; if these files count from 0, all are off by 1"),
    "exif": ("images rotated by EXIF", "boxes are taken to fit the pixels as stored; check that they do"),
    "crowd": (
        "objects with iscrowd, ignore or difficult",
        "they count as difficult, unless all have it; masks of single objects need 0, CVAT writes 1",
    ),
    "unusual": ("unusual values of difficult, sizes, iscrowd, ignore or area", "they count as absent"),
    "absent": ("classes without objects", "not learned in training, no AP in evaluation; difficult ones do not count"),
    "drawn": ("splits drawn at random", "nothing says what the splits are; a training keeps the ids"),
    "kept": ("splits of the training", "the ids that it drew; eval.py --val-ratio draws others"),
    "lost": ("splits of the training that are not used", "their names or most of their images are others"),
    "new": ("images that the drawn splits lack", "not used: they came later, or were left out then"),
    "unused": ("folders without the splits of the others", "not used: write lists for them, or delete all lists"),
    "coco_split": ("splits in one file", "write a file each, for --coco-annotations and --coco-eval-annotations"),
    "others": ("other files", "not read"),
    "unlisted": ("annotated images in no split", "not used: add them to a list or a folder of a split"),
    "bare": ("images without annotation", "not used; one without objects needs an annotation, too"),
}


class DataError(ValueError):
    """A data set cannot be used; the message names the files and says what to do."""

    def __str__(self) -> str:
        # a DataLoader re-raises the error of a worker with the text of its traceback as message
        return super().__str__().rpartition(f"{__name__}.DataError: ")[2].rstrip("\n")


class ValidationReport:
    """Errors and notes found in a data set: dicts of kind -> offenders, in order of discovery, without duplicates."""

    def __init__(self) -> None:
        self.errors, self.notes = {}, {}

    def error(self, kind: str, offender: object) -> None:
        """Record `offender`, converted to text, as an error of a kind in `KINDS`."""
        self.errors.setdefault(kind, {})[str(offender)] = None

    def note(self, kind: str, offender: object) -> None:
        """Record `offender`, converted to text, as a note of a kind in `KINDS`."""
        self.notes.setdefault(kind, {})[str(offender)] = None

    def raise_errors(self, shown: int = SHOWN) -> None:
        """Raise a DataError with the first `shown` offenders of each kind, if there are errors."""
        if self.errors:
            raise DataError("\n".join(_format(self.errors, shown)))

    def format_notes(self, shown: int = 0) -> list[str]:
        """Return a text per kind of note: one line with all of a few offenders; of more, the first `shown` or one."""
        return _format(self.notes, shown, FEW)


def _format(kinds, shown, few=0):
    texts = []
    for kind, offenders in kinds.items():
        (what, advice), listed = KINDS[kind], list(offenders)
        if len(listed) <= few:
            texts.append(f"{what}: {'; '.join(listed)} ({advice})")
            continue
        example = "" if shown else f", such as {listed[0]}"
        lines = [f"{what} ({len(listed)}{example}): {advice}", *listed[:shown]]
        if 0 < shown < len(listed):
            lines.append(f"and {len(listed) - shown} more; python -m tools.check_data lists all")
        texts.append("\n  ".join(lines))
    return texts


def check_objects(dataset) -> None:
    """Raise a DataError unless a data set has an object to train on."""
    if not any(map(len, dataset.bboxes)):
        hint = "name another split, correct --classes, or pass --use-difficult if all are difficult"
        what = f"{dataset.root}: split {dataset.split} contains no object to train on: {hint}"
        raise DataError("\n".join([what, *dataset.notes]))  # they say what was left out


def check_size(where, annotated, image, header, report: ValidationReport) -> None:
    """Compare the size in an annotation with the image.

    Args:
        where: file of the annotation, for messages.
        annotated: (H, W) in the annotation, or None.
        image: file of the image, for messages.
        header: (H, W) of the image, and its EXIF orientation (0: none).
        report: receives errors and notes.
    """
    size, orientation = header
    rotated = orientation not in (0, 1)
    exif = f", EXIF orientation {orientation}" if rotated else ""
    if annotated and annotated != size:
        sizes = f"annotated as {annotated[1]}x{annotated[0]}, {image} has {size[1]}x{size[0]} pixels"
        report.error("swapped_size" if annotated == size[::-1] else "size", f"{where}: {sizes}{exif}")
    elif rotated and (orientation < 5 or not annotated or annotated == annotated[::-1]):
        report.note("exif", f"{image}{exif}")  # 5 to 8 swap the sides: then <size> confirms the pixels as stored


def check_boxes(where, names, bbox, size, skip: bool, report: ValidationReport, origin: int = 1) -> tuple:
    """Clip the boxes of one image to it.

    Args:
        where: file of the annotation, for messages.
        names: G class names, for messages; None: an object that is left out.
        bbox: (G, 4) boxes as annotated.
        size: (H, W) of the image.
        skip: skip unusable boxes instead of reporting an error.
        report: receives errors and notes.
        origin: number of the first pixel in the files.

    Returns:
        (G, 4) clipped boxes, and a (G,) mask of those that are usable.
    """
    edge = np.array([*size, *size], np.float32)
    clipped = bbox.clip(0, edge)
    has_area = (bbox[:, 2:] > bbox[:, :2]).all(1) & np.isfinite(bbox).all(1)
    usable = has_area & (clipped[:, 2:] > clipped[:, :2]).all(1)
    for i in np.flatnonzero(~usable | (clipped != bbox).any(1)):
        if names[i] is None:  # noted already
            continue
        beyond = np.abs(bbox[i] - clipped[i])
        numbers = "xmin {1:g}, ymin {0:g}, xmax {3:g}, ymax {2:g}".format(*bbox[i] + origin)  # as in VOC's files
        offender = f"{where} object {i + 1} ({names[i]}): {numbers}, in an image of {size[1]}x{size[0]}"
        if not usable[i]:
            error, note = "outside" if has_area[i] else "no_area", "skipped"
        elif (beyond > np.maximum(FAR * edge, SLACK)).any():
            error, note = "far_outside", "clipped"
        else:
            from_0 = origin == 1 and beyond.max() <= 1 and not beyond[2:].any()
            error, note = None, "from_0" if from_0 else "clipped"
        report.error(error, offender) if error and not skip else report.note(note, offender)
    return clipped, usable


def check_class_names(found: dict, classes: tuple[str, ...], report: ValidationReport, ignore: bool = False) -> None:
    """Check the class names found in a data set against the known ones, or against one another if none are known.

    Args:
        found: name -> where it was found, one entry per object.
        classes: known names, or none.
        report: receives the errors.
        ignore: note unknown classes instead of reporting errors.
    """
    similar, known = {}, ", ".join(name for name in classes if name != UNUSED)
    if UNUSED in found and not (classes and ignore):
        where = f"{len(found[UNUSED])}, the first in {found[UNUSED][0]}"
        report.error("class", f"{UNUSED!r} (objects: {where}): outputs without a class are called so: rename it")
    for name in sorted(found.keys() - set(classes)):
        offender = f"{name!r} (objects: {len(found[name])}, the first in {found[name][0]})"
        similar.setdefault(_fold(name), []).append(offender)
        if classes:
            near = [other for other in classes if _fold(other) == _fold(name)] or get_close_matches(name, classes, 1)
            advice = f"did you mean {near[0]!r}?" if near else f"the known classes are {known}"
            report.note("ignored", offender) if ignore else report.error("class", f"{offender}: {advice}")
    for offenders in similar.values():
        if len(offenders) > 1 and not classes:
            report.error("similar_classes", " and ".join(offenders))


def _fold(name):
    """A name without case, spaces, underscores, invisible characters and differences of Unicode composition."""
    return "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if c.isprintable() and c not in " _")


def roots_near(folder: Path) -> list[Path]:
    """Return the folders up to two levels above and three below `folder` that hold a data set in the VOC layout."""
    above = [root for root in folder.resolve().parents[:2] if (root / "ImageSets" / "Main").is_dir()]
    return above + [
        main.parent.parent for up in ("*", "*/*", "*/*/*") for main in sorted(folder.glob(f"{up}/ImageSets/Main"))
    ]
