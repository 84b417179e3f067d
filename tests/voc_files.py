"""Data sets in the VOC layout, written for a test."""

import numpy as np
import pytest
from PIL import Image

from data.validate import DataError, ValidationReport
from data.voc_dataset import read_splits

NUMBERS = (11, 7, 31, 58)  # ymin, xmin, ymax, xmax as in a file
RGB = (200, 100, 50)


def thing(name="cat", numbers=NUMBERS, extra="<difficult>0</difficult>"):
    """The XML of one object; `numbers` in the order of our boxes, written in another one."""
    y_min, x_min, y_max, x_max = numbers
    return (
        f"<object><name>{name}</name>{extra}<bndbox><xmax>{x_max}</xmax><xmin>{x_min}</xmin>"
        f"<ymax>{y_max}</ymax><ymin>{y_min}</ymin></bndbox></object>"
    )


def write_voc(root, things, split="trainval", img=None, suffix=".jpg"):
    """Write a data set: `things` is image id -> XML of its objects; all images look the same."""
    img = img or Image.new("RGB", (60, 40), RGB)
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in things))
    for image_id, objects in things.items():
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
        img.save(root / "JPEGImages" / f"{image_id}{suffix}")
    return root


ODD = {  # unusual, but valid: size (width, height), objects
    "without objects": ((60, 40), []),
    "only difficult": ((60, 40), [thing(extra="<difficult>1</difficult>")]),
    "one pixel": ((1, 1), [thing(numbers=(1, 1, 2, 2))]),
    "one pixel wide": ((1, 70), [thing(numbers=(1, 1, 60, 2))]),
    "20000 pixels wide": ((20_000, 3), [thing(numbers=(1, 50, 3, 12_345))]),
    "all anchors outside": ((9, 7), [thing(numbers=(1, 2, 5, 7))]),
    "500 objects": (
        (60, 40),
        [thing(numbers=(1 + i % 20, 1 + i % 30, 3 + i % 20 + i // 50, 4 + i % 30 + i // 20)) for i in range(500)],
    ),
}


def write_odd(root):
    """Write the images of `ODD` as the split trainval, with random pixels."""
    write_voc(root, {image_id: objects for image_id, (_, objects) in ODD.items()})
    for image_id, (size, _) in ODD.items():
        img = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(img).save(root / f"JPEGImages/{image_id}.jpg")
    return root


def read(root, split="trainval", classes=(), **options):
    """One split of a data set."""
    (dataset,) = read_splits(root, [split], classes, **options)
    return dataset


def message(call, *args, **kwargs):
    """The text of the DataError that a call raises."""
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def fault(reader, path, kind):
    """What is said of a file that cannot be read."""
    report = ValidationReport()
    assert reader(path, report) is None
    (offender,) = report.errors.pop(kind)
    assert not report.errors
    return offender
