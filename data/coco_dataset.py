"""Data sets in COCO's format: an instances JSON as COCO, CVAT, Roboflow and Label Studio write it, checked before use.

    {"images": [{"id", "file_name", "width", "height"}, ...],
     "categories": [{"id", "name", "supercategory"}, ...],
     "annotations": [{"image_id", "category_id", "bbox": [x, y, width, height], "iscrowd", "ignore", "area"}, ...]}

Boxes are continuous and count from 0; polygons and masks are ignored. A crowd, or an object with `ignore`, is a
difficult object: left out in training, and the metric ignores what is detected in it. Labels are the categories in the
order of the file.

G: objects in one image.
"""

import json
import math
import unicodedata
from collections import Counter
from functools import cached_property
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from data.drawn_splits import draw, drawn_earlier, part_of
from data.validate import IMAGE_SUFFIXES, DataError, ValidationReport, check_class_names
from data.voc_annotation import as_annotation, as_number, is_turned
from data.voc_dataset import DEFAULTS, VOCDataset, check_images, finish
from data.voc_layout import UNREAD, named_splits, visible_files


def build(options, splits, classes=(), report=None) -> list["COCODataset"]:
    """Open splits of one or two COCO files: see `data.build`.

    A split with "train" in its name, as a word, is `options.coco_images` and `coco_annotations`, any other
    `coco_eval_images` and `coco_eval_annotations`. Without these, it is drawn from the first, as `val_ratio` says; then
    only images in the splits are checked, but all objects.
    """
    values = DEFAULTS | {name: getattr(options, name) for name in DEFAULTS if hasattr(options, name)}
    raises, report = report is None, report or ValidationReport()
    one = not (options.coco_eval_images or options.coco_eval_annotations)
    splits = splits or ("train", "eval")
    train = [split for split in splits if min(map(part_of, (split, *named_splits(split)))) < 0]
    prefixes = ["coco" if one or split in train else "coco_eval" for split in splits]
    files, ids, records, found, known = {}, {}, {}, {}, ({}, {})
    for prefix in dict.fromkeys(prefixes):
        paths = getattr(options, f"{prefix}_images"), getattr(options, f"{prefix}_annotations")
        files[prefix] = file = _File(*paths, prefix.replace("_", "-"), values, report)
        own = [split for split, of in zip(splits, prefixes, strict=True) if of == prefix]
        ids |= _draw(own, file, values, report) if one else dict.fromkeys(own, file.images)
        used = dict.fromkeys(image_id for split in own for image_id in ids[split] if image_id in file.images)
        records[prefix] = check_images(used, file.read, values, report, found, known, origin=0)
    check_class_names(found, tuple(classes), report, values["unknown_classes"] == "ignore")
    classes = tuple(classes) or tuple(dict.fromkeys(name for file in files.values() for name in file.classes(found)))
    datasets = [COCODataset(files[p], s, classes, ids[s], records[p]) for s, p in zip(splits, prefixes, strict=True)]
    for dataset in datasets:
        dataset.drawn = one
    return finish(datasets, values, report, raises)


def _draw(splits, file, options, report):
    """Return split -> ids of the only file: as drawn earlier, else drawn at random."""
    every = [*file.images]
    stored = drawn_earlier(file.root, splits, options, every, file.find, report)
    for gone in sorted({image_id for ids in stored.values() for image_id in ids}.difference(every)):
        skip = options["invalid_images"] == "skip"
        report.note("skipped_image", gone) if skip else report.error("gone", gone)
    ids = stored or draw(splits, options, every, report)
    folders = {"/".join(sorted(named_splits(_path(entry).parent))) for entry in file.images.values()} - {""}
    if len(folders) > 1 and not stored and any(len(part) < len(every) for part in ids.values()):
        report.error("coco_split", f"its images are in folders {', '.join(sorted(folders))}")
    return dict.fromkeys(splits, every) | ids


class COCODataset(VOCDataset):
    """Images of one COCO file and their objects; `data.build` lists the attributes."""

    metric = "coco"

    def __init__(self, file, split, classes, ids, records) -> None:
        super().__init__(file.root, split, classes, ids, records)
        category_ids = {name: category_id for category_id, name in file.names.items()}
        self.image_ids = [file.images[image_id]["id"] for image_id in self.ids]
        self.category_ids = [category_ids.get(name) for name in classes]


class _File:
    """The entries of a file, checked.

    Attributes:
        root: folder of the images.
        images: id in this library -> entry. The id is the path of the file below `root`, without its suffix where that
            tells it from others; `file_name`, where there is none.
        found: id in the file -> files that may be the image: one, or none or several.
        names: category id -> name.
        groups: ids of the categories that group others, such as Roboflow's category 0, which may be named as a class.
    """

    def __init__(self, images, annotations, prefix, options, report) -> None:
        if not (images and annotations):
            raise DataError(f"--data=coco needs --{prefix}-images=DIR and --{prefix}-annotations=FILE")
        self.root, self.path, self.report = Path(images).expanduser(), Path(annotations).expanduser(), report
        self.skip_images, skip_boxes = options["invalid_images"] == "skip", options["invalid_boxes"] == "skip"
        if not self.root.is_dir():
            raise DataError(f"--{prefix}-images={images} is not a folder: name the one that holds the images")
        content = _parse(self.path)
        entries = self._by_id(content, "images", "file_name")
        self.categories = self._by_id(content, "categories", "name")
        self.found = {i: self._find(_path(entry)) for i, entry in entries.items()}
        paths = {i: PurePosixPath(_composed(self._below(i, _path(entry)))) for i, entry in entries.items()}
        stems = {i: str(path.parent / path.stem) for i, path in paths.items()}
        count = Counter(stems.values())
        ids = {i: stem if count[stem] == 1 else str(paths[i]) for i, stem in stems.items()}
        self.images = {ids[i]: entry for i, entry in entries.items()}
        self.names = {i: _composed(entry["name"]).strip() for i, entry in self.categories.items()}
        groups = [i for i, entry in self.categories.items() if entry.get("supercategory") == "none"]
        self.groups = groups if len(groups) < len(self.categories) else []
        names = [f"category {name}" for i, name in self.names.items() if i not in self.groups]
        names += [f"image {image_id}" for image_id in ids.values()]
        for name, number in Counter(names).items():
            if number > 1:
                report.error("coco", f"{self.path}: {number} times {name}")
        self.objects = {image_id: [] for image_id in entries}
        self.by_text = {str(i): i for i in entries}, {str(i): i for i in self.names}  # "1" for 1
        for i, entry in enumerate(content["annotations"]):
            try:
                image_id, *row = self._read_object(entry, i)
                self.objects[image_id].append(row)
            except ValueError as error:
                offender = f"{self.path} annotations[{i}]: {error}"
                report.note("no_box", offender) if skip_boxes else report.error("object", offender)
        rows = [row for rows in self.objects.values() for row in rows]
        if crowds := [row for row in rows if row[2]]:
            report.note("crowd", f"{len(crowds)} of {len(rows)} in {self.path}")
        if len(crowds) == len(rows):
            for row in crowds:
                row[2] = False

    def _by_id(self, content, key, text):
        """Return id -> entry of those in a list that have an id of their own and a text."""
        known = {}
        for i, entry in enumerate(content[key]):
            name = entry.get(text) if isinstance(entry, dict) else None
            if not (type(name) in (str, int) and str(name).strip() and isinstance(entry.get("id"), int | float | str)):
                self.report.error("coco", f"{self.path} {key}[{i}]: it needs an id and a {text}")
            elif known.setdefault(entry["id"], entry) is not entry:
                self.report.error("coco", f"{self.path} {key}[{i}]: an earlier one has the id {entry['id']!r}")
        return known

    def _read_object(self, entry, number):
        """Return image id, name, box, crowd and area of an object; raise a ValueError that says what is wrong."""
        try:
            image_id, category_id = entry["image_id"], entry["category_id"]
            image_id = image_id if image_id in self.objects else self.by_text[0].get(str(image_id))
            category_id = category_id if category_id in self.names else self.by_text[1].get(str(category_id))
            if image_id is None:
                raise ValueError(f"no image has the id {entry['image_id']!r}")
            if category_id is None:
                raise ValueError(f"no category has the id {entry['category_id']!r}")
            y, x, height, width = _bbox(entry["bbox"])
        except KeyError as error:
            raise ValueError(f"{error.args[0]} is missing") from None
        except TypeError as error:
            raise ValueError(f"a value is not as in COCO's format ({error})") from None
        attributes = entry["attributes"] if isinstance(entry.get("attributes"), dict) else {}
        if is_turned(attributes.get("rotation")):  # CVAT's
            raise ValueError(f"its box is rotated by {attributes['rotation']} degrees")
        values = {key: as_number(entry.get(key)) for key in ("iscrowd", "ignore", "area")}
        for key in [key for key, value in values.items() if math.isnan(value)]:
            self.report.note("unusual", f"{self.path} annotations[{number}]: {key} {entry[key]!r:.40}")
        hard = values["iscrowd"], values["ignore"], as_number(attributes.get("difficult"))  # TinyPerson's; Datumaro's
        crowd = any(abs(value) > 0 for value in hard)
        area = values["area"] if values["area"] > 0 else math.nan  # below: a polygon drawn the other way round
        return image_id, self.names[category_id], (y, x, y + height, x + width), crowd, area

    @cached_property
    def files(self):
        """Name without suffix -> file in the folder of the images, at any depth -> its name and folders, upwards.

        The names are those of `_folded`.
        """
        files = {}
        for path in visible_files(self.root):
            files.setdefault(_folded(path.stem), {})[self.root / path] = [*map(_folded, reversed(path.parts))]
        return files

    @cached_property
    def folders(self):
        """Names of the folders below that of the images."""
        return {name for files in self.files.values() for _, *folders in files.values() for name in folders}

    def _alike(self, path):
        """Return the files of a name, of any format."""
        return self.files.get(_folded(path.stem), {})

    def classes(self, found):
        """Return the names of the categories, without those that only group others."""
        own = [name for i, name in self.names.items() if i not in self.groups]
        return [name for name in self.names.values() if name in own or name in found]

    def find(self, image_id):
        """Return the files that may be an image."""
        return self.found[self.images[image_id]["id"]]

    def _below(self, i, path):
        """Return the path of an image below `root`; `path`, where there is no such file."""
        inside = [file.relative_to(self.root) for file in self.found[i] if file.is_relative_to(self.root)]
        return inside[0].as_posix() if len(self.found[i]) == len(inside) == 1 else path

    def _find(self, path):
        """Return the files that `file_name` means, at any depth; it may name more folders.

        A folder that it names is left out only if no folder has that name: cam1/1.jpg is not cam2/1.jpg.
        """
        return self._look_up(path) or self._look_up(PurePosixPath(unquote(str(path))))  # my%20photo.jpg

    def _look_up(self, path):
        if (self.root / path).is_file():
            return [self.root / path]
        beside = self.root.parent / path  # cam2/1.jpg, with img/cam1 as root
        ways = [beside] * (len(path.parts) > 1 and beside.is_file())
        ways += filter(Path.is_file, self._shortened(path))
        if files := {file.resolve(): file for file in ways}:
            return [*files.values()]
        parts = [*map(_folded, reversed(path.parts))]
        return [file for file, own in self._alike(path).items() if own[0] == parts[0] and self._fits(own, parts)]

    def _shortened(self, path):
        """Yield the paths below `root` without the first folders of `path`, up to one whose name a folder has."""
        for i, folder in enumerate(path.parts[:-1]):
            if _folded(folder) in self.folders:
                return
            yield self.root.joinpath(*path.parts[i + 1 :])

    def _fits(self, own, parts):
        """Whether the folders of a file are the last ones of a file_name, as far as folders of their names exist."""
        return next((part for mine, part in zip_longest(own, parts) if mine != part), None) not in self.folders

    def read(self, image_id):
        """Return the name of an image for messages, its file, None if it is missing, and its `Annotation`."""
        entry = self.images[image_id]
        path, rows, files = _path(entry), self.objects[entry["id"]], self.find(image_id)
        image = files[0] if len(files) == 1 else None
        if len(files) > 1:
            self.report.error("coco_files", f"{self.root / path}: {', '.join(map(str, files))}")
        elif not image and self.skip_images:
            self.report.note("skipped_image", f"{self.root / path}: no image")
        elif not image:
            alike = [file for file in self._alike(path) if file.suffix.lower() in IMAGE_SUFFIXES + UNREAD]
            self.report.error("coco_image", ", only ".join(map(str, (self.root / path, *alike[:1]))))
        size = as_number(entry.get("height")), as_number(entry.get("width"))
        if not all(map(math.isfinite, size)):
            sides = f"width {entry.get('width')!r:.40}, height {entry.get('height')!r:.40}"
            self.report.note("unusual", f"{self.path}: {path}: {sides}")
            size = 0, 0
        return f"{self.path}: {path}", image, as_annotation(rows, size, origin=0)


def _bbox(values):
    """Return y, x, height and width of a box; raise a ValueError that says what is wrong."""
    try:
        x, y, width, height = map(float, values)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"bbox {values!r:.60} is not four numbers") from None
    if 0 < max(x, y, width, height) <= 1:
        raise ValueError(f"bbox {values} is in fractions of the sides: write pixels")
    return y, x, height, width


def _path(image):
    name = str(image["file_name"]).strip()
    if "://" in name or "?d=" in name:  # an address; Label Studio's local files
        name = unquote(name.rpartition("?d=")[2].partition("?")[0])
    path = PurePosixPath(name.replace("\\", "/"))  # a\b.jpg: written on Windows
    return PurePosixPath(*(part for part in path.parts if part not in ("/", "//", "..")))  # below the folder of images


def _composed(name):
    """A name with letters and accents composed: some systems store é as e and an accent."""
    return unicodedata.normalize("NFC", str(name))


def _folded(name):
    return _composed(name).casefold()


def _parse(path):
    """Return the content of a file; raise a DataError unless it is in COCO's format."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        found = ", ".join(map(str, sorted((path if path.is_dir() else path.parent).glob("*.json"))[:10]))
        raise DataError(f"{path} cannot be read: {error.strerror}; files .json there: {found or 'none'}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path} is not UTF-8 text: unpack it, or save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no valid JSON ({error}): export it again") from None
    lists = ("images", "categories", "annotations")
    content = {key: value for key, value in content.items() if value is not None} if isinstance(content, dict) else {}
    found = ", ".join([*content][:10]) or "something else"
    if not any(isinstance(value, list) for key, value in content.items() if key not in (*lists, "licenses")):
        content.setdefault("annotations", [])  # COCO's test images have none
    if not all(isinstance(content.get(key), list) for key in lists):
        raise DataError(f"{path} is not in COCO's format, which has the lists {', '.join(lists)}: it has {found}")
    return content
