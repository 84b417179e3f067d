"""Data sets in the VOC layout, written for a test."""
import pytest
from PIL import Image

from data.check import DataError

NUMBERS = (11, 7, 31, 58)  # ymin, xmin, ymax, xmax as in a file
RGB = (200, 100, 50)


def thing(name="cat", numbers=NUMBERS, extra="<difficult>0</difficult>"):
    """The XML of one object; `numbers` in the order of our boxes, written in another one."""
    y_min, x_min, y_max, x_max = numbers
    return (f"<object><name>{name}</name>{extra}<bndbox><xmax>{x_max}</xmax><xmin>{x_min}</xmin>"
            f"<ymax>{y_max}</ymax><ymin>{y_min}</ymin></bndbox></object>")


def write_voc(root, things, split="trainval", img=None, suffix=".jpg"):
    """Writes a data set: `things` is image id -> XML of its objects; all images look the same."""
    img = img or Image.new("RGB", (60, 40), RGB)
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in things))
    for image_id, objects in things.items():
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
        img.save(root / "JPEGImages" / f"{image_id}{suffix}")
    return root


def message(call, *args, **kwargs):
    """The text of the DataError that a call raises."""
    with pytest.raises(DataError) as caught:
        call(*args, **kwargs)
    return str(caught.value)
