"""Find the annotations, images and splits below a folder, in VOC's layout and in those of annotation tools.

    ROOT/ImageSets/Main/SPLIT.txt     one image id per line; else ROOT/ImageSets/SPLIT.txt, ROOT/SPLIT.txt, or
                                      a folder SPLIT of annotations; else a split is drawn
    ROOT/Annotations/ID.xml           or annotations/; else anywhere below ROOT
    ROOT/JPEGImages/ID.jpg            or images/; else anywhere below ROOT; see IMAGE_SUFFIXES for other formats

An id is the name of an image without its suffix, after the folders that tell it from others of that name: cam1/0001.
"""

import os
import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePath, PurePosixPath

from data import read_lines
from data.drawn_splits import draw, drawn_earlier, part_of
from data.validate import FORMATS, IMAGE_SUFFIXES, DataError, ValidationReport, roots_near

UNREAD = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".pgm", ".pbm", ".pnm", ".tga", ".dng", ".svg")  # but images
READ = (".xml", *IMAGE_SUFFIXES)
SUFFIX = re.compile(rf"({'|'.join(map(re.escape, READ + UNREAD))})+$", re.IGNORECASE)
COLUMN = re.compile(r"\s+(-1|0|1|\S+\.xml)$")  # the second one of VOC's and VoTT's files per class; the annotation
LISTS = (".txt", ".csv", ".lst", ".json", "")  # files that may say what a split is
PLACES = ("imagesets/main", "imagesets", ".")  # of lists, in any case; an earlier one wins
PAIRS = [("trainval", "test"), ("train", "val"), ("train", "test"), ("trainval", "val")]  # to train, to evaluate on
ABOVE = re.compile(r"/|\w:/|(.*/)?\.\./")  # how paths start that lead out of the data set
LABELS = {"annotation", "annot", "anno", "ann", "label", "xml"}  # folders of annotations
LABELS |= {f"{name}s" for name in LABELS}
CONTAINERS = LABELS | {"jpegimage", "jpegimages", "image", "images", "img", "imgs"}  # no part of an id
CONTAINER = re.compile(rf"(^|[ _.-])({'|'.join(CONTAINERS)})(?=$|[ _.-])", re.IGNORECASE)  # Annotations_train is train
SPLITS = ("train", "val", "trainval", "test")
USUAL = {"training": "train", "valid": "val", "validation": "val", "testing": "test"} | {s: s for s in SPLITS}
NAMED = re.compile(rf"(?<![a-z])({'|'.join(USUAL)})(set|list)?(?![a-z])")  # train_list, train2017, 1_train
WAYS = (
    "name its folder with --voc-data-dir, read COCO's format with --data=coco, or convert yours as docs/own-data.md "
    "shows; without data: python train.py train --download (VOC2007) or --data=shapes"
)


class Layout:
    """The files of a data set.

    Args:
        root: folder of the data set.
        split: split of what no list or folder in it says.

    Raises:
        DataError: no annotations, no images, or the data set is in another folder.
    """

    def __init__(self, root: Path, split: str = "") -> None:
        self.root, self.split, self.files = root, split, visible_files(root)
        self.containers = CONTAINERS
        xml, images = self._choose()
        self.containers = CONTAINERS | more_containers(xml, images)
        self.annotations, self.images = self._index(xml), self._index(images)
        annotators = folder_names(self.annotations)  # if no image lies in a folder of these names
        self.annotators = annotators if annotators.isdisjoint(folder_names(self.images)) else set()
        self._find = cache(self._find)  # it compares all files of a name, of which videos have many
        others = self._of(UNREAD)[0] + images  # of another format or case
        self.alike = {self._key(path)[1].casefold(): root / path for path in others}
        lists = self._lists(())
        self.others = self._count_others(xml, lists)
        near = roots_near(root)
        if not (xml and images) or (not lists and any(root in other.parents for other in near)):
            raise DataError(self._refusal(xml, images, near))

    def _count_others(self, xml, lists):
        """Return how many files of each suffix are not read, as text."""
        read = {*xml, *(path.relative_to(self.root) for paths in lists.values() for path in paths)}
        others = [path for path in self.files if path not in read and path.parts[0].lower() != "imagesets"]
        count = Counter(path.suffix.lower() or "without suffix" for path in others)
        counts = [f"{n} {suffix}" for suffix, n in count.most_common() if suffix not in READ]
        counts += [f"{count['.xml']} .xml whose names are in Annotations, too"] * (count[".xml"] > 0)
        return ", ".join(counts[:10] + ["more"] * (len(counts) > 10))

    def _refusal(self, xml, images, near):
        """Return why the folder is no data set, and what to do: to name one of `near` or its parent, if they may be."""
        root, here, lacking = self.root, self.root.resolve(), IMAGE_SUFFIXES if xml else (".xml",)
        if here.name.lower() in CONTAINERS:
            beside = (path for deep in ("*", "*/*") for path in here.parent.glob(f"[!.]*/{deep}"))
            beside = [path for path in beside if path.suffix.lower() in lacking and here not in path.parents]
            near = near or [here.parent] * bool(beside)
        found = f"{len(xml)} annotations .xml, {len(images)} images {FORMATS}, other files: {self.others or 'none'}"
        fault = "is a file" if root.is_file() else "does not exist"
        fault = f"contains no data set in the VOC layout ({found})" if root.is_dir() else fault
        found = ", ".join(map(str, near[:5]))
        ways = f"put the images that the annotations describe below it, {FORMATS}" if xml and not images else WAYS
        ways = f"pass --voc-data-dir={shlex.quote(near[0].as_posix())}, found {found}" if near else ways
        return f"{root} {fault}: {ways}"

    def _choose(self):
        """Return the files that are annotations and images, without copies and masks.

        Of other folders than Annotations and JPEGImages, if these hold most: annotations of other names, annotations
        with their images in folders of splits, and images beside the annotations of such a folder.
        """
        xml, other_xml = self._of((".xml",), "annotations")
        images, other_images = self._of(IMAGE_SUFFIXES, "jpegimages", "images")
        stems, image_stems = ({path.stem for path in paths} for paths in (xml, images))
        xml = xml or [path for path in self.files if not path.suffix and path.name in image_stems]  # of Stanford Dogs
        keys = {*map(self._key, images + other_images)}
        of_split = {path for path in other_xml if named_splits(path.parent) and self._key(path) in keys}
        more = [path for path in other_xml if path.stem not in stems or path in of_split]
        xml, named = xml + more, {path.stem for path in more} - image_stems
        own, taken = {*map(self._place, xml)}, {*map(self._key, images)}
        beside = [path for path in other_images if self._place(path) in own and self._key(path) not in taken]
        beside = {path for path in beside if self._key(path)[0] and not LABELS & {part.lower() for part in path.parts}}
        return xml, images + [path for path in other_images if path.stem in named or path in beside]

    def _of(self, suffixes, *folders):
        """Return the files with these suffixes: those in the first of `folders` that holds most, and the others.

        Without such a folder: all, and none.
        """
        files = [path for path in self.files if path.suffix.lower() in suffixes]
        for folder in folders:
            inside = [path for path in files if path.parts[0].lower() == folder]
            stems = {path.stem for path in inside}
            if 2 * len(stems) > len({path.stem for path in files}):
                return inside, [path for path in files if path.parts[0].lower() != folder]
        return files, []

    def _place(self, path):
        """Return whether a path starts with a folder such as Annotations or images, and its key."""
        return path.parts[0].lower() in CONTAINERS, self._key(path)

    def _key(self, path):
        """Return the folders of a path that are part of an id, and its name without suffix."""
        path = PurePosixPath(unicodedata.normalize("NFC", str(path)))  # some systems store é as e and an accent
        folders = [_bare(folder) for folder in path.parts[:-1] if folder.lower() not in self.containers]
        return tuple(filter(None, folders)), SUFFIX.sub("", path.name)

    def _index(self, files):
        """Return stem -> (folders, path) of each file."""
        index = {}
        for path in files:
            folders, stem = self._key(path)
            index.setdefault(stem, []).append((folders, self.root / path))
        return index

    def _find(self, image_id):
        """Return annotations and images of an id: those in its folders; else those in more; else one of them in fewer.

        visible/a is annotated by a.xml, unless an image a lies beside it; cam1/a by ben/a.xml, if there is no other a.
        """
        folders, stem = self._key(image_id)
        annotations, images = self.annotations.get(stem, ()), self.images.get(stem, ())
        found = _nearest(annotations, folders)
        own = found[0][0] if found else folders
        others = {of for of, _ in annotations} - {own}
        near = _nearest([image for image in images if image[0] not in others], own, bool(found))
        if found:
            near = near or _nearest(images, self._shared(own))
        else:
            beside, only = {of for of, _ in images}, len(annotations) == len(images) == 1
            above = [(self._shared(of) if only else of, path) for of, path in annotations if of not in beside]
            found = [(of, path) for of, path in above if {*folders}.issuperset(of)]
        return [path for _, path in found], [path for _, path in near]

    def _shared(self, folders):
        """Return the folders of an annotation without those of annotators."""
        return tuple(name for name in folders if name.casefold() not in self.annotators)

    def locate(self, image_id: str, report: ValidationReport, skip: bool = False) -> list[Path | None]:
        """Return annotation and image of an id, None for what is missing or ambiguous, which is reported.

        With `skip`, a missing image is a note.
        """
        found, stem = self._find(image_id), self._key(image_id)[1]
        paths = [str(path) for paths in found for path in paths] or [str(self.root / image_id)]
        if max(map(len, found)) > 1:
            report.error("ambiguous", f"{image_id}: {', '.join(paths)}")
        elif not found[1]:
            other = self.alike.get(stem.casefold())
            there = f"{paths[0]}, only {other}" if other else paths[0]
            report.note("skipped_image", f"{there}: no image") if skip else report.error("no_image", there)
        elif not found[0]:
            report.error("no_annotation", paths[0])
        return [paths[0] if len(paths) == 1 else None for paths in found]

    def find_splits(self) -> list[str]:
        """Return those of `SPLITS` that have ids, else those there; else all that have a file; else train and val."""
        lists, folders = self._lists(()), self._folders(())
        lines = {split: [line for path in paths for line in read_lines(path)] for split, paths in lists.items()}
        filled = [s for s in SPLITS if s in folders or any(line[:1] not in "#" for line in lines.get(s, ()))]
        return filled or [*filter(self.has, SPLITS)] or sorted(filter(None, lists)) or ["train", "val"]

    def has(self, split: str) -> bool:
        """Whether a file or a folder says what is in a split."""
        return bool({split, _usual(split)} & (self._lists((split,)).keys() | self._folders((split,)).keys()))

    def split_ids(self, splits: Sequence[str], options: dict, report: ValidationReport) -> dict:
        """Return split -> image ids; where nothing says what they are, as drawn earlier, else drawn at random.

        Args:
            splits: names of the splits.
            options: see `drawn_earlier` and `draw`.
            report: receives errors and notes.
        """
        lists, folders, ids = self._lists(splits), self._folders(splits), {}
        everything, in_none = lists.pop("", None), folders.pop("", ())
        every = sorted(self._read_ids(everything, report) if everything else in_none)
        there, fault = lists.keys() | folders.keys(), "does not exist"
        for split in splits:
            name = split if split in there else _usual(split)
            ids[split] = self._read_ids(lists[name], report) if name in lists else folders.get(name, [])
        drawn, where = options["split_ids"] or (), f" in {self.root.resolve().name}"
        lacking = [s for s in splits if not {s, _usual(s)} & there and (s in drawn or not there)]
        stored = drawn_earlier(self.root, lacking, options, every, lambda i: self._find(i)[1], report, where)
        ids, there = ids | stored, there | stored.keys()
        if not there:
            hints = [path for path in self.files if self._may_name(path, {*splits, *map(_usual, splits)})]
            why = f"for it with --val-ratio={options['val_ratio']:g} of {len(every)} images"
            why = f"because {hints[0]} may say what it is: if so, write that list, else move it away" if hints else why
            fault += f", and none is drawn {why}"
            ids |= {} if hints else draw(splits, options, every, report, where)
        for split in splits:
            if not ids[split] and split not in stored:
                path = lists.get(split, [self.root / "ImageSets" / "Main" / f"{split}.txt"])[0]
                what = "contains no image id" if split in lists else fault
                others = ", ".join(sorted(there)[:20]) or "none"
                report.error("split", f"{path} {what}; splits in this folder: {others}")
        return ids

    def count_unlisted(self, ids: set[str]) -> int:
        """Count the annotations that none of some ids means, without those in no folder that others are named as."""
        meant = {path for image_id in ids for path in self._find(image_id)[0]}
        every = {path for files in self.annotations.values() for folders, path in files if folders or len(files) == 1}
        return len(every - meant)

    def _may_name(self, path, splits):
        """Whether a file may say what a split is: a list, an annotation in train/, an image in one of `splits`."""
        if path.parts[0] == "runs":  # of this library, where the data lie in its folder
            return False
        if path.suffix.lower() in LISTS:
            return bool(named_splits(path.parent if path.stem in self.annotations else path))  # labels/train_1.txt
        if path.suffix.lower() not in READ + UNREAD:
            return False
        names, annotated = named_splits(path.parent), self._key(path)[1] in self.annotations
        return bool(names if annotated else splits & {*map(_usual, names)})

    def _folders(self, splits):
        """Return split -> ids of the annotations in a folder of this name, in any case; "" for those in none."""
        ids = {}
        for stem, files in self.annotations.items():
            for folders, _ in files:
                images = self.images.get(stem, ()) if len(files) == 1 else ()
                near = [_usual(folder, splits) for of in (folders, *(of for of, _ in images)) for folder in of]
                split = next((folder for folder in near if folder in {*splits, *SPLITS}), _usual(self.split, splits))
                ids.setdefault(split, []).append("/".join((*folders, stem)) if len(files) > 1 else stem)
        return ids

    def _lists(self, splits):
        """Return split -> its files; files per class with a column are united, as VoTT writes them.

        "" for the list of all images, default.txt, that CVAT writes (and Datumaro, beside those per class).
        """
        wanted, files, lists = {*splits, *SPLITS}, {}, {}
        texts = [path for path in self.files if path.suffix.lower() == ".txt"]
        for folder in PLACES:
            for path in [path for path in texts if path.parent.as_posix().lower() == folder]:  # val before validation
                name = _usual(path.stem, splits)
                if name in wanted or folder != ".":
                    files.setdefault(name, self.root / path)
        for name, path in files.items():
            split = _usual(name.rpartition("_")[2], splits)
            per_class = split in wanted - files.keys()
            if per_class and all(line[:1] in "#" or COLUMN.search(line) for line in read_lines(path)):
                lists.setdefault(split, []).append(path)
        lists |= {name: [path] for name, path in files.items()}
        if "default" in lists.keys() - splits and all("default" in name.split("_") for name in lists):
            return {"": lists["default"]}
        return lists

    def _read_ids(self, paths, report):
        first, own = {}, f"/{self.root.resolve().name}/"  # file and id -> line
        for path in paths:
            for number, line in enumerate(read_lines(path), start=1):
                texts = [text.replace("\\", "/") for text in (line, COLUMN.sub("", line).strip("\"'"))]
                texts += [] if line.startswith("#") else [f"/{texts[1]}".partition(own)[2]]  # MYDATA/JPEGImages/a.jpg
                ids = ["/".join((*folders, stem)) for folders, stem in map(self._key, texts)]
                image_id = next((i for i in ids if any(self._find(i))), "" if line.startswith("#") else ids[1])
                if ABOVE.match(texts[0]):
                    report.error("above", f"{path} line {number}: {line}")
                elif image_id and first.setdefault((path, image_id), number) != number:
                    report.error("duplicate_id", f"{path} lines {first[path, image_id]} and {number}: {image_id}")
        return list(dict.fromkeys(image_id for _, image_id in first))


def folder_names(index: dict) -> set[str]:
    """Return the names, in one case, of the folders of an index that do not name a split."""
    names = {name for files in index.values() for folders, _ in files for name in folders}
    return {name.casefold() for name in names if not named_splits(name)}


def visible_files(root: Path) -> list[Path]:
    """Return the paths, relative to `root`, of its files at any depth, below links as well, but no folder twice.

    Neither hidden ones, nor .aux.xml, which GDAL (QGIS, ArcGIS) writes beside images.
    """
    found, seen = [], {os.path.realpath(root)}
    for folder, folders, names in os.walk(root, followlinks=True):
        folders.sort()  # the order in which a system lists them must not decide which of two ways is taken
        for name in [*folders]:
            real = os.path.realpath(os.path.join(folder, name))
            if name.startswith(".") or real in seen:
                folders.remove(name)
            seen.add(real)
        names = [name for name in names if not name.startswith(".") and not name.lower().endswith(".aux.xml")]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in names]
    return [Path(name) for name in sorted(found) if (root / name).is_file()]


def more_containers(xml: list[Path], images: list[Path]) -> set[str]:
    """Return other folders, in lower case, that are no part of an id: those that all annotations or all images share.

    notes/ and photos/; Annotations/voc/, if no image is in a voc/; not train_images/, which names a split.
    """
    of_xml, of_images = (os.path.commonpath([path.parent for path in paths] or [""]).lower() for paths in (xml, images))
    shared = [{*of_xml.split(os.sep)}, {*of_images.split(os.sep)}]
    shared.append(shared[0] - CONTAINERS - {folder.lower() for path in images for folder in path.parts})
    return {name for names in shared if not names & CONTAINERS for name in names if not named_splits(name)}


def named_splits(path: PurePath) -> set[str]:
    """Return the names of splits that are words of a path without its suffix."""
    return {name for name, _ in NAMED.findall(re.sub("([a-z])([A-Z])", r"\1 \2", str(path)).lower())}


def pair_splits(datasets: Sequence) -> dict[str, str]:
    """Return the `train_split` and `eval_split` that the names of some data sets suggest, else their sizes.

    A single one is both, which a training notes.
    """
    splits = [dataset.split for dataset in datasets]
    pair = next((pair for pair in PAIRS if {*pair} <= {*splits}), None)
    if not pair:
        parts = {split: {part_of(name) for name in named_splits(split)} for split in splits}
        train, held_out = ([split for split in splits if parts[split] == {part}] for part in (-1, 1))
        by_size = [dataset.split for dataset in sorted(datasets, key=len, reverse=True)]
        first = [*train, *(split for split in by_size if split not in held_out), *splits][0]
        pair = first, [*held_out, *(split for split in by_size if split != first), first][0]
    return dict(zip(("train_split", "eval_split"), pair, strict=True))


def _bare(folder):
    """Return the name of a folder without Annotations, images and the like."""
    return CONTAINER.sub("", folder).strip(" _.-")


def _usual(name, splits=()):
    """Return which of `splits` or `SPLITS` a name in any case means; one that means none as it is."""
    return next((split for split in splits if split.lower() == name.lower()), USUAL.get(name.lower(), name))


def _nearest(files, folders, fewer=False):
    """Return the files that lie in exactly these folders; else those in more; else, with `fewer`, those in fewer."""
    tests = [folders.__eq__, {*folders}.issubset] + [{*folders}.issuperset] * fewer
    return next((found for test in tests if (found := [file for file in files if test(file[0])])), [])
