"""Find the annotations, images and splits below a folder, in VOC's layout and in those of annotation tools.

    ROOT/ImageSets/Main/SPLIT.txt     one image id per line; else ROOT/ImageSets/SPLIT.txt, ROOT/SPLIT.txt, or
                                      a folder SPLIT of annotations; else a split is drawn
    ROOT/Annotations/ID.xml           or annotations/; else anywhere below ROOT
    ROOT/JPEGImages/ID.jpg            or images/; else anywhere below ROOT; see IMAGE_SUFFIXES for other formats

An id is the name of an image without its suffix, after the folders that tell it from others of that name: cam1/0001.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath

import numpy as np

from data import read_lines
from data.validate import DataError, ValidationReport, roots_near

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm")  # in any case
SUFFIX = re.compile(rf"(\.xml|{'|'.join(map(re.escape, IMAGE_SUFFIXES))})+$", re.IGNORECASE)
COLUMN = re.compile(r"\s+(-1|0|1)$")  # the second one of VOC's and VoTT's split files per class
CONTAINERS = {"annotations", "annots", "labels", "xml", "xmls", "jpegimages", "images", "imgs"}  # no part of an id
SPLITS, ALIASES = ("train", "val", "trainval", "test"), {"val": ("val", "valid", "validation")}
NAMES = {*SPLITS, *ALIASES["val"], "training", "testing"}


class Layout:
    """The files of a data set.

    Args:
        root: folder of the data set.

    Raises:
        DataError: no annotations, no images, or the data set is in another folder.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.others = root, set()  # others: files that are neither image nor annotation
        self.annotations, self.annotation_base = self._index((".xml",), "annotations")
        self.images, self.image_base = self._index(IMAGE_SUFFIXES, "jpegimages", "images")
        self.image_sets, near = _subfolder(root, "imagesets"), roots_near(root)
        bases = (self.annotations, self.annotation_base), (self.images, self.image_base)
        every = [[{*folders} for found in files.values() for folders, _ in found] for files, b in bases if b == root]
        self.tops = {top for each in every if each for top in set.intersection(*each) if top.lower() not in NAMES}
        self.folders = {}  # lower-case folder of annotations -> ids; "" -> all ids
        for stem, files in self.annotations.items():
            for folders, _ in files:
                names = [folder.lower() for folder in folders]
                for folder in {"", *names} - NAMES | {*[name for name in names if name in NAMES][:1]}:
                    self.folders.setdefault(folder, []).append(_join(folders, stem) if len(files) > 1 else stem)
        fault = f"{root} {'' if root.is_dir() else 'does not exist and '}contains no data set in the VOC layout"
        if not self.annotations or not self.images:
            counts = [sum(map(len, files.values())) for files in (self.annotations, self.images)]
            fault += f" ({counts[0]} annotations, {counts[1]} images, other files: {self.count_others() or 'none'})"
        elif self.image_sets or not any(root in other.parents for other in near):
            return
        if near:
            raise DataError(f"{fault}, but found {', '.join(map(str, near[:5]))}: pass --voc-data-dir={near[0]}")
        ways = "name its folder with --voc-data-dir, convert YOLO or COCO as docs/own-data.md shows, download VOC2007"
        raise DataError(f"{fault}: {ways} with --download, or use the built-in data set with --data=shapes")

    def _index(self, suffixes, *names):
        """Return stem -> (folders, path) of each file with these suffixes, and the folder that holds them all."""
        for base in (_subfolder(self.root, *names), self.root):
            files = {}
            for path in _walk(base) if base else ():
                if path.suffix.lower() in suffixes:
                    folders, stem = _key(path.relative_to(self.root))
                    files.setdefault(stem, []).append((folders, path))
                elif not SUFFIX.search(path.name):
                    self.others.add(path)
            if files or base == self.root:
                return files, base

    def count_others(self) -> str:
        """Return the numbers of files that are neither image nor annotation, by suffix."""
        counts = Counter(path.suffix.lower() or path.name for path in sorted(self.others))
        return ", ".join(f"{n} {suffix}" for suffix, n in counts.most_common())

    def _candidates(self, image_id):
        folders, stem = _key(PurePosixPath(image_id))
        where = _match(self.annotations, folders, stem)
        images = _match(self.images, folders, stem)
        if where:
            own, _ = _key(where[0].relative_to(self.root))
            pairs = [({*own} - self.tops, {*f} - self.tops, p) for f, p in self.images.get(stem, ()) if p in images]
            images = _match(self.images, own, stem) or [p for one, other, p in pairs if one <= other or other <= one]
        return where, images

    def locate(self, image_id: str, report: ValidationReport) -> list[Path | None]:
        """Return annotation and image of an id, each None after reporting that it is missing or ambiguous."""
        found = self._candidates(image_id)
        missing = f"{self.annotation_base / image_id}.xml", f"{self.image_base / image_id}.jpg"
        for paths, kind, path in zip(found, ("no_annotation", "no_image"), missing, strict=True):
            if len(paths) > 1:
                report.error("ambiguous", f"{image_id}: {', '.join(map(str, paths))}")
            elif not paths:
                report.error(kind, path)
        return [paths[0] if len(paths) == 1 else None for paths in found]

    def find_splits(self) -> list[str]:
        """Return those of `SPLITS` that are there; if none is, all that have a file; if none has, train and val."""
        lists = self._lists(())
        there = lists.keys() | self.folders.keys()
        return [s for s in SPLITS if there & {s, *ALIASES.get(s, ())}] or sorted(lists) or ["train", "val"]

    def split_ids(self, splits: Sequence[str], report: ValidationReport, val_ratio=0.0, seed=0, split_ids=None) -> dict:
        """Return split -> image ids.

        Args:
            splits: names of the splits.
            report: receives errors and notes.
            val_ratio: fraction drawn for the second split if nothing says what the splits are; the first is the rest.
                A single split is the rest if its name starts with train, all if this is 0, otherwise an error.
            seed: seed of the drawing.
            split_ids: split -> ids, as they were drawn earlier; used if all are there.
        """
        lists, ids, every, fault = self._lists(splits), {}, sorted(self.folders[""]), "does not exist"
        there = lists.keys() | self.folders.keys() & NAMES
        for split in dict.fromkeys(splits):
            name = next((n for n in ALIASES.get(split, (split,)) if n in lists or n in self.folders), None)
            if name in lists:
                ids[split] = list(dict.fromkeys(i for path in lists[name] for i in self._read_ids(path, report)))
            elif name:
                ids[split] = self.folders[name]
        if not ids and not there:
            stored = {split: split_ids[split] for split in splits if split in (split_ids or ())}
            ids = {s: stored[s] for s in stored if all(all(self._candidates(i)) for i in stored[s])}
            there = ids.keys()
        if not ids and not there:
            names = (str(path.relative_to(self.root)) for path in _walk(self.root))
            hint = next((n for n in names if NAMES & {*n.lower().removesuffix(".txt").split(os.sep)}), None)
            fault += f", and none is drawn because of {hint}" if hint else ", and nothing says which images it has"
            order = np.random.default_rng(seed).permutation(len(every))
            n_val = max(len({*splits}) > 1 or val_ratio > 0, round(val_ratio * len(every)))
            guess = len({*splits}) == 1 and val_ratio and not splits[0].startswith("train")
            parts = () if hint or guess else (order[n_val:], order[:n_val])
            for split, part in zip(dict.fromkeys(splits), parts, strict=False):
                ids[split] = [every[i] for i in sorted(part)]
                report.note("drawn", f"{split} {len(part)} of {len(every)} images")
        if ids.keys() - lists.keys():
            for stem in self.images.keys() - self.annotations.keys():
                report.note("unannotated", self.images[stem][0][1])
        others = ", ".join(sorted(there)[:20]) or "none"
        for split in splits:
            if not ids.setdefault(split, []):
                path = lists.get(split, [self.root / "ImageSets" / "Main" / f"{split}.txt"])[0]
                what = "contains no image id" if split in lists else fault
                report.error("split", f"{path} {what}; splits in this folder: {others}")
        return ids

    def _lists(self, splits):
        """Return split -> its files; files per class with a column are united, as VoTT writes them."""
        main = self.image_sets and _subfolder(self.image_sets, "main")
        found = [self.root / f"{name}.txt" for name in {*splits, *NAMES}]
        found += [path for folder in (self.image_sets, main) if folder for path in sorted(folder.glob("*.txt"))]
        files = {path.stem: path for path in found if path.is_file()}
        lists = {name: [path] for name, path in files.items()}
        for name, path in files.items():
            split = name.rpartition("_")[2]
            wanted = split in {*splits, *NAMES} - files.keys()
            if wanted and all(line[:1] in "#" or COLUMN.search(line) for line in read_lines(path)):
                lists.setdefault(split, []).append(path)
        return lists

    def _read_ids(self, path, report):
        first = {}
        for number, line in enumerate(read_lines(path), start=1):
            ids = [_join(*_key(PurePosixPath(text.replace("\\", "/")))) for text in (line, COLUMN.sub("", line))]
            image_id = next((i for i in ids if any(self._candidates(i))), "" if line.startswith("#") else ids[1])
            if image_id in first:
                report.error("duplicate_id", f"{path} lines {first[image_id]} and {number}: {image_id}")
            elif image_id:
                first[image_id] = number
        return list(first)


def _subfolder(folder, *names):
    """Return the first of the subfolders `names`, which are in lower case, in any case, or None."""
    found = {path.name.lower(): path for path in sorted(folder.glob("*"), reverse=True) if path.is_dir()}
    return next((found[name] for name in names if name in found), None)


def _walk(base):
    """Yield the files below a folder, through links, without hidden ones."""
    seen = set()
    for folder, below, names in os.walk(base, followlinks=True):
        visible = [] if os.path.realpath(folder) in seen else [name for name in (*below, *names) if name[0] != "."]
        seen.add(os.path.realpath(folder))
        below[:] = sorted({*below} & {*visible})
        yield from (Path(folder, name) for name in sorted({*names} & {*visible}))


def _key(path: PurePath):
    """Return the folders of a path that are part of an id, and its name without suffix."""
    return tuple(part for part in path.parts[:-1] if part.lower() not in CONTAINERS), SUFFIX.sub("", path.name)


def _join(folders, stem):
    return "/".join((*folders, stem))


def _match(files, folders, stem):
    """Return the paths in exactly these folders; if there are none, those that have them among theirs."""
    found = files.get(stem, ())
    return [path for f, path in found if f == folders] or [path for f, path in found if set(folders) <= set(f)]
