"""Data sets. `find_root` says where one lies, after drawing or fetching it; `class_names` what its classes are."""
from collections import Counter
from pathlib import Path

from data.check import DataError, roots_near
from data.voc import find_classes, read_lines

FOLDER = "datasets"  # what is drawn or fetched goes there


def find_root(data, voc_data_dir, download=False):
    """The folder in the VOC layout that the options `--data`, `--voc-data-dir` and `--download` mean."""
    if data == "shapes":
        from data.shapes import make_shapes

        return make_shapes(FOLDER)
    if download:
        from data.download import download_voc2007

        return download_voc2007(FOLDER)
    root = Path(voc_data_dir).expanduser()  # a shell leaves --voc-data-dir=~/... as it is
    missing = [name for name in ("ImageSets/Main", "Annotations", "JPEGImages") if not (root / name).is_dir()]
    near = roots_near(root) if missing else []
    if near:
        raise DataError(f"there is no data set in {root} (no {missing[0]}), but there is one in "
                        f"{', '.join(map(str, near[:5]))}: --voc-data-dir={near[0]}")
    if "ImageSets/Main" in missing:
        raise DataError(f"there is no data set in {root} (no ImageSets/Main): name a folder in the VOC layout "
                        "with --voc-data-dir, fetch VOC2007 with --download, or take the embedded one, --data=shapes")
    if missing:
        raise DataError(f"{root} has no folder {' and no folder '.join(missing)}: the VOC layout has "
                        "Annotations/ID.xml and JPEGImages/ID.jpg")
    return root


def class_names(classes, root, splits, findings=None):
    """The names that `--classes` means: see `read_names`; if it is empty, those in the annotations."""
    return read_names(classes) or find_classes(root, splits, findings)


def read_names(classes):
    """The names in `classes`, a list of them or of one file with one name a line."""
    where = f"--classes={','.join(classes)}"
    if len(classes) == 1 and Path(classes[0]).is_file():
        classes = [line for line in read_lines(classes[0]) if line]
        if not classes:
            raise DataError(f"{where} names no class: write one a line")
    elif len(classes) == 1 and classes[0].endswith(".txt"):
        raise DataError(f"{where}: there is no such file")
    twice = [name for name, n in Counter(classes).items() if n > 1]
    if twice:
        raise DataError(f"{where} names {', '.join(twice)} more than once: each class has one name, delete the others")
    return tuple(classes)


def find_splits(root):
    """The splits that a data set usually has, those that are there; if there are none, all that are there."""
    folder = Path(root, "ImageSets", "Main")
    there = sorted(path.stem for path in folder.glob("*.txt"))
    if not there:
        raise DataError(f"{folder} holds no split: write train.txt and val.txt there, one image id a line")
    return [split for split in ("train", "val", "trainval", "test") if split in there] or there
