"""Data sets. `find_root` says where one lies, after drawing or fetching it; `class_names` what its classes are."""
from pathlib import Path

from data.voc import DataError, find_classes

FOLDER = "datasets"  # what is drawn or fetched goes there


def find_root(data, voc_data_dir, download=False):
    """The folder in the VOC layout that the options `--data`, `--voc-data-dir` and `--download` mean."""
    if data == "shapes":
        from data.shapes import make_shapes

        return make_shapes(FOLDER)
    if download:
        from data.download import download_voc2007

        return download_voc2007(FOLDER)
    if not Path(voc_data_dir, "ImageSets", "Main").is_dir():
        raise DataError(f"there is no data set in {voc_data_dir} (no ImageSets/Main): name a folder in the VOC layout "
                        "with --voc-data-dir, fetch VOC2007 with --download, or take the embedded one, --data=shapes")
    return Path(voc_data_dir)


def class_names(classes, root, splits):
    """The names that `--classes` means: see `read_names`; if it is empty, those in the annotations."""
    return read_names(classes) or find_classes(root, splits)


def read_names(classes):
    """The names in `classes`, a list of them or of one file with one name a line."""
    if len(classes) == 1 and Path(classes[0]).is_file():
        lines = Path(classes[0]).read_text(encoding="utf-8").splitlines()
        classes = tuple(line.strip() for line in lines if line.strip())
    elif len(classes) == 1 and classes[0].endswith(".txt"):
        raise DataError(f"--classes={classes[0]}: there is no such file")
    return tuple(classes)
