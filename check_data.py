"""Looks for mistakes in a data set and says what is in it: `python train.py check --voc-data-dir=MYDATA`."""

import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from data import class_names, find_root, find_splits
from data.check import DataError, Findings, summary
from data.image import read_image
from data.voc import read_ids, read_items


def check(config):
    """Checks as a `CheckConfig` says; prints a summary, and raises DataError with every offender if there is one."""
    root = find_root(config.data, config.voc_data_dir)
    splits = config.splits or find_splits(root)
    start = time.monotonic()
    findings = Findings()
    ids = {split: read_ids(root, split, findings) for split in splits}
    classes = class_names(config.classes, root, splits, findings)
    every = list(dict.fromkeys(image_id for split in splits for image_id in ids[split]))  # once, though in two splits
    items = read_items(root, every, classes, config.invalid_boxes, findings)
    read = time.monotonic()
    decode([item.path for item in items], findings)
    print(
        root,
        summary(classes, items, {split: len(ids[split]) for split in splits}),
        f"annotations and headers read in {read - start:.1f} s, as training does at its start, "
        f"images decoded in {time.monotonic() - read:.1f} s",
        *findings.noted(sys.maxsize),
        sep="\n",
    )
    findings.raise_errors(sys.maxsize)
    print(
        "nothing that would stop a training was found\n"
        f"next: python train.py anchors --voc-data-dir={shlex.quote(str(root))} --train-split={splits[0]}"
    )


def decode(paths, findings):
    """Decodes the images `paths` in threads; those that cannot be go to `findings`."""

    def fault(path):
        try:
            read_image(path)
        except DataError as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        for text in tqdm(pool.map(fault, paths), total=len(paths), desc="decode", unit="img", leave=False):
            if text:
                findings.error("image", text)
