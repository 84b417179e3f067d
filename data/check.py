"""What can be wrong with a data set, and how it is said: all offenders of a kind at once, and what to do.

Nothing here opens a file: voc.py and image.py do, and hand over what they read. Folders are listed where something
is missing.

G: objects of one image. H, W: its sides. Sides are written as VOC does, width x height.
"""
import difflib
import os
import re
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np

FAR = 0.1  # a box may end beyond its image by this share of the image's side and is clipped; or by SLACK pixels
SLACK = 2
COLUMN = re.compile(r"\s+(-1|0|1)$")  # the second one of VOC's class-wise split files
SHOWN = 20  # offenders of a kind; `train.py check` lists all

ERRORS = {  # kind -> what it is, what to do
    "split": ("split files without an image id", "write one image id a line, or name another split (--train-split and "
              "--eval-split of train.py, --splits of its check, --split of eval.py)"),
    "nothing": ("splits without an object to train on", "name another with --train-split; difficult objects count with "
                "--use-difficult only, and boxes that were left out do not"),
    "doubled id": ("image ids that come twice", "delete one of the lines; -1, 0 or 1 behind a blank is no part of an "
                   "id, but VOC's second column"),
    "path": ("image ids that are paths", "write the name of the image alone, without folders"),
    "no annotation": ("missing annotations", "each image needs one, without objects if it shows none"),
    "annotation": ("files that are not an annotation in the VOC format", "each object needs a name and a bndbox with "
                   "the numbers xmin, ymin, xmax, ymax"),
    "no image": ("missing images", "put them there, as .jpg, .jpeg or .png, or delete their ids from the split file"),
    "image": ("images that cannot be read", "replace them, or delete their ids from the split file"),
    "turned": ("images whose sides are swapped in <size>", "pixels are taken as they are stored: if the boxes fit the "
               "picture as EXIF turns it, turn the pixels (mogrify -auto-orient), else correct or delete <size>"),
    "size": ("images with other sides than <size> says", "take the images that the boxes were drawn on, or correct or "
             "delete <size> if the boxes fit"),
    "class": ("unknown classes", "mend the names, or pass --classes with all of them"),
    "alike": ("classes whose names differ only in case or blanks", "mend the names, or pass --classes with all of them "
              "if they are meant to be different"),
    "no area": ("boxes without area", "mend them or pass --invalid-boxes=skip"),
    "outside": ("boxes of which nothing lies in the image", "mend them or pass --invalid-boxes=skip"),
    "far": ("boxes that end far beyond the image", "look whether they belong to it and mend them, or pass "
            "--invalid-boxes=skip, which clips them"),
}
NOTES = {  # kind -> what was done
    "skipped": "boxes left out, without area or outside the image",
    "clipped": "boxes clipped to the image",
    "from 0": "boxes that begin at 0 and were clipped: VOC counts pixels from 1, and if these files count from 0, all "
              "boxes lie one pixel too far up and left",
    "exif": "images that EXIF turns: boxes are taken to fit the pixels as stored, look whether they do",
    "suffix": "images of another format than their name says, read all the same",
}


class DataError(ValueError):
    """Something is wrong with the files of a data set; the message says where and what to do."""

    def __str__(self):
        # a DataLoader passes on what happened in a worker as the text of a traceback
        return super().__str__().rpartition(f"{__name__}.DataError: ")[2].rstrip("\n")


class Findings:
    """What was found in a data set: errors, and notes of what was done about smaller things.

    Each is a dict: kind -> offenders, in the order in which they were found, none twice.
    """

    def __init__(self):
        self.errors, self.notes = {}, {}

    def error(self, kind, offender):
        """Remembers that `offender`, a text, is an error of the kind `kind` of `ERRORS`."""
        self.errors.setdefault(kind, {})[offender] = None

    def note(self, kind, offender):
        """Remembers that `offender` is something of the kind `kind` of `NOTES`."""
        self.notes.setdefault(kind, {})[offender] = None

    def raise_errors(self, shown=SHOWN):
        """Raises a DataError with all errors, if there are any, and the first `shown` offenders of each kind."""
        if self.errors:
            parts = [listed(f"{ERRORS[kind][0]} ({len(lines)}): {ERRORS[kind][1]}",
                            hinted(lines) if kind in ("no image", "no annotation") else lines, shown)
                     for kind, lines in self.errors.items()]
            raise DataError("\n".join(parts))

    def noted(self, shown=0):
        """The notes as texts, one a kind, with the first `shown` offenders of each."""
        return [listed(f"{NOTES[kind]}: {len(lines)}", lines, shown) for kind, lines in self.notes.items()]


def listed(head, lines, shown):
    """A text: `head`, and below it the first `shown` of `lines`."""
    lines = list(lines)
    more = [f"and {len(lines) - shown} more; python train.py check lists all"] * (0 < shown < len(lines))
    return "\n  ".join([head, *lines[:shown], *more])


def hinted(paths):
    """The paths of missing files of one folder, as texts, each with the file there that may be meant."""
    folder, there = Path(next(iter(paths))).parent, {}
    for name in sorted(os.listdir(folder)) if folder.is_dir() else ():
        stem = Path(name).stem
        there[_folded(stem)] = name
        there.setdefault(_folded(COLUMN.sub("", stem)), name)
    for path in paths:
        stem = Path(path).stem
        keys = map(_folded, (stem, Path(stem).stem, re.split(r"[\s,;]", stem)[0]))  # an id, with a suffix or a column
        near = next((there[key] for key in keys if key in there), None)
        if near is None:
            yield path
        elif COLUMN.search(Path(near).stem):
            yield f"{path}: there is {near!r}, but -1, 0 or 1 behind a blank is no part of an id: rename it"
        elif Path(near).stem != stem and unicodedata.normalize("NFC", Path(near).stem) == \
                unicodedata.normalize("NFC", stem):
            yield f"{path}: there is {near!r}, whose accents are composed otherwise: rename it"
        else:
            yield f"{path}: there is {near!r}"


def check_ids(path, lines, findings):
    """Checks the image ids of the split file `path`; `lines` are (number of the line, id). Returns the good ones."""
    first = {}
    for number, image_id in lines:
        if {"/", "\\", "\0"} & set(image_id) or image_id in (".", ".."):
            findings.error("path", f"{path} line {number}: {image_id!r}")
        elif image_id in first:
            findings.error("doubled id", f"{path} lines {first[image_id]} and {number}: {image_id}")
        else:
            first[image_id] = number
    return list(first)


def check_objects(bboxes, split, findings):
    """Checks that there is an object in a split to train on, unless what is wrong already may be the reason."""
    if not findings.errors and not any(map(len, bboxes)):
        findings.error("nothing", split)


def check_size(where, annotated, image, header, findings):
    """Compares the sides (H, W) of an annotation, or None, with those in the header of the image file `image`."""
    turned = header.orientation not in (0, 1)
    exif = f", EXIF orientation {header.orientation}" if turned else ""
    if annotated and annotated != header.size:
        kind = "turned" if annotated == header.size[::-1] else "size"
        findings.error(kind, f"{where}: <size> says {annotated[1]}x{annotated[0]}, {image} has "
                             f"{header.size[1]}x{header.size[0]} pixels{exif}")
    elif turned and (header.orientation < 5 or not annotated or annotated == annotated[::-1]):
        findings.note("exif", f"{image}{exif}")  # 5 to 8 swap the sides, so that <size> would have told


def check_boxes(where, annotation, size, skip, findings):
    """Clips the boxes of one image to it.

    Args:
        where: names the annotation in a message.
        annotation: `Annotation` of the image.
        size: (H, W) of the image.
        skip: whether boxes that cannot be used are left out and not an error.
        findings: takes what is wrong.

    Returns:
        Boxes (G, 4), and which of them can be used (G,).
    """
    edge = np.array([*size, *size], np.float32)
    bbox = annotation.bbox.clip(0, edge)  # (G, 4)
    area = (annotation.bbox[:, 2:] > annotation.bbox[:, :2]).all(1) & np.isfinite(annotation.bbox).all(1)  # (G,)
    left = area & (bbox[:, 2:] > bbox[:, :2]).all(1)  # (G,)
    for i in np.flatnonzero(~left | (bbox != annotation.bbox).any(1)):
        beyond = np.abs(annotation.bbox[i] - bbox[i])  # (4,)
        y_min, x_min, y_max, x_max = annotation.bbox[i] + 1
        offender = f"{where} object {i + 1} ({annotation.name[i]}): xmin {x_min:g}, ymin {y_min:g}, xmax {x_max:g}, " \
                   f"ymax {y_max:g}" + f", in an image of {size[1]}x{size[0]}" * bool(area[i])
        if not left[i]:
            kind, instead = "outside" if area[i] else "no area", "skipped"
        elif (beyond > np.maximum(FAR * edge, SLACK)).any():
            kind, instead = "far", "clipped"
        else:
            kind, instead = None, "from 0" if beyond.max() <= 1 and not beyond[2:].any() else "clipped"
        if kind and not skip:
            findings.error(kind, offender)
        else:
            findings.note(instead, offender)
    return bbox, left


def check_names(found, classes, findings):
    """Checks the names of classes in a data set against those that are known.

    Args:
        found: name -> where its objects are, one text an object.
        classes: the known names, or None: then the found names are checked against one another.
        findings: takes what is wrong.
    """
    if classes is None:
        alike = {}
        for name in sorted(found):
            alike.setdefault(_folded(name), []).append(f"{name!r} ({_places(found[name])})")
        for names in alike.values():
            if len(names) > 1:
                findings.error("alike", " and ".join(names))
        return
    for name in sorted(found.keys() - set(classes)):
        near = [known for known in classes if _folded(known) == _folded(name)] \
            or difflib.get_close_matches(name, classes, 1)
        known = f"did you mean {near[0]!r}?" if near else f"the known ones are {', '.join(classes)}"
        findings.error("class", f"{name!r} ({_places(found[name])}): {known}")


def _folded(name):
    """A name without what people forget: case, blanks, underscores, how an accent is composed."""
    return "".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())


def _places(places):
    return f"{len(places)} object{'s' * (len(places) > 1)}, the first in {places[0]}"


def roots_near(folder):
    """The folders one or two levels above and below `folder` that hold a data set in the VOC layout."""
    folder = Path(folder)
    above = [Path(os.path.normpath(folder / up)) for up in ("..", "../..")]
    below = [main.parent.parent for depth in ("*", "*/*") for main in sorted(folder.glob(f"{depth}/ImageSets/Main"))]
    return [root for root in dict.fromkeys(above + below) if (root / "ImageSets" / "Main").is_dir()]


def summary(classes, items, n_image):
    """What is in a data set, as a text: images, objects a class, sizes.

    Args:
        classes: names.
        items: what `read_items` found.
        n_image: split -> number of its images.
    """
    if not items:
        return "no image can be used"
    label = np.concatenate([item.label for item in items])
    difficult = np.concatenate([item.difficult for item in items])
    bbox = np.concatenate([item.bbox for item in items])
    sides = np.array([item.header.size for item in items])  # (images, 2)
    kinds = Counter(f"{item.header.format} {item.header.mode}" for item in items)
    lines = ["images: " + ", ".join(f"{split} {n}" for split, n in n_image.items()),
             f"of these, each once: {len(items)} can be used, "
             f"{sum(len(item.label) == 0 for item in items)} without objects, "
             f"{sum(len(item.label) > 0 and bool(item.difficult.all()) for item in items)} with difficult ones only",
             "formats: " + ", ".join(f"{kind} {n}" for kind, n in kinds.most_common()),
             f"sides of images: width {_range(sides[:, 1])}, height {_range(sides[:, 0])}"]
    if len(label):
        most = max(len(item.label) for item in items)
        lines += [f"objects in an image: at most {most}, {len(label) / len(items):.3g} on average",
                  f"sides of boxes: width {_range(bbox[:, 3] - bbox[:, 1])}, height {_range(bbox[:, 2] - bbox[:, 0])}"]
    width = max(map(len, [*classes, "class"]))
    lines.append(f"{'class':{width}}  objects  difficult  images")
    for i, name in enumerate(classes):
        n_with = sum(bool((item.label == i).any()) for item in items)
        lines.append(f"{name:{width}}  {(label == i).sum():7d}  {(difficult & (label == i)).sum():9d}  {n_with:6d}")
    return "\n".join(lines)


def _range(values):
    return f"{values.min():g} to {values.max():g} (median {np.median(values):g})"
