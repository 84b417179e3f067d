"""Check a data set, print what it contains, draw some objects: `python -m tools.check_data --voc-data-dir=MYDATA`."""

import sys

import fire
import numpy as np
from tqdm.contrib.concurrent import thread_map

from data import build, read_class_names
from data.validate import DataError, ValidationReport, check_objects
from data.voc_layout import pair_splits
from utils.checkpoint import check_writable
from utils.command import command
from utils.config import DatasetConfig, Names, OptionError, PathText, as_words, counted, option
from utils.vis import contact_sheet, draw_bbox, save_picture, shrink

N_DRAWN, HEIGHT = 16, 300  # images of the picture; pixels, largest height of each
LEFT_OUT = {"no_box", "skipped", "ignored"}  # notes of objects, of which none may be left


class CheckConfig(DatasetConfig):
    """python -m tools.check_data: Check a data set, decode every image, list all errors, print and draw its content.

    example: python -m tools.check_data --voc-data-dir=MYDATA --splits=train,val
    """

    splits: Names = option((), "Data", "splits a,b; empty: those of train, val, trainval and test that exist, else all")
    out: PathText = option("runs/data.png", "Run", "file for a picture of some images with their objects")


def check_data(config: CheckConfig) -> None:
    """Print a summary and all notes; draw some images, or raise a DataError with all errors, if there are any."""
    check_writable(config.out)
    report = ValidationReport()
    datasets = build(config.data, config, config.splits, read_class_names(config.classes), report)
    if not datasets:
        raise OptionError(f"--data={config.data} does not say which splits it has: name them with --splits=a,b")
    unique = {(str(each.root), each.ids[i]): (each, i) for each in datasets for i in range(len(each))}
    unique = list(unique.values())

    def decode(image):
        try:
            image[0][image[1]]
        except DataError as error:
            report.error("image", error)

    thread_map(decode, unique, desc="decode", unit="image", leave=False)
    print(datasets[0].root, *summarize(datasets, unique), *report.format_notes(sys.maxsize), sep="\n")
    report.raise_errors(sys.maxsize)
    options = config.dataset_options() | pair_splits(datasets)
    train_set = next(dataset for dataset in datasets if dataset.split == options["train_split"])
    if LEFT_OUT & report.notes.keys():
        check_objects(train_set)
    n_drawn = draw_objects(unique, config.out)
    print(f"no errors found\n{counted(n_drawn, 'image')} with their objects: {config.out}")
    if any(map(len, train_set.without_difficult().bboxes)):
        print(f"next: python -m tools.fit_anchors {as_words(options)}")
    else:
        print(f"but nothing to train on: split {train_set.split} has no object that is not difficult")


def summarize(datasets, unique) -> list[str]:
    """Describe images, sizes, and objects per class, as lines; `unique` is (data set, index) of each image once."""
    lines = ["usable images: " + ", ".join(f"{dataset.split} {len(dataset)}" for dataset in datasets)]
    keys = "sizes", "bboxes", "labels", "difficults"
    sizes, bboxes, labels, difficults = ([getattr(dataset, key)[i] for dataset, i in unique] for key in keys)
    lines.append(f"different images: {len(sizes)}, of which without objects: {sum(len(bbox) == 0 for bbox in bboxes)}")
    if not any(map(len, bboxes)):
        return lines
    bbox, label, difficult = map(np.concatenate, (bboxes, labels, difficults))
    for what, sides in ("images", np.array(sizes)), ("boxes", bbox[:, 2:] - bbox[:, :2]):
        low, middle, high = ("{1:g}x{0:g}".format(*np.percentile(sides, share, axis=0)) for share in (0, 50, 100))
        lines.append(f"width x height of {what}: minimum {low}, median {middle}, maximum {high}")
    lines.append("objects  difficult  images  class")
    for i, name in enumerate(datasets[0].classes):
        n_image = sum(i in values for values in labels)
        lines.append(f"{(label == i).sum():7}  {difficult[label == i].sum():9}  {n_image:6}  {name}")
    return lines


def draw_objects(images, path) -> int:
    """Draw up to `N_DRAWN` of some (data set, index) with their objects into a file; return how many they are."""
    sheet, titles = [], []
    for dataset, i in images[:: -(-len(images) // N_DRAWN)]:
        sample = dataset[i]
        small = shrink(sample.img, sample.bbox, HEIGHT)
        sheet.append(draw_bbox(*small, sample.label, None, dataset.classes, sample.difficult))
        titles.append(sample.id)
    save_picture(path, contact_sheet(sheet, titles))
    return len(sheet)


if __name__ == "__main__":
    fire.Fire(command(CheckConfig, check_data, (DataError,)))
