"""Sizes of images from the headers of their files."""
import pytest
from PIL import Image

from data.image_sizes import image_sizes
from data.voc import DataError


def write(root, ids):
    for folder in ("ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("\n".join(ids))
    return root / "JPEGImages"


def test_height_comes_first_in_the_order_of_the_split(tmp_path):
    folder = write(tmp_path, ["b", "a"])
    Image.new("RGB", (60, 40)).save(folder / "a.jpg")
    Image.new("L", (30, 70)).save(folder / "b.png")
    assert image_sizes(tmp_path, "train") == [(70, 30), (40, 60)]


def test_only_the_header_is_read(tmp_path):
    path = write(tmp_path, ["a"]) / "a.jpg"
    Image.effect_noise((300, 200), 90).save(path)
    path.write_bytes(path.read_bytes()[:700])
    assert image_sizes(tmp_path, "train") == [(200, 300)]


def test_faults_are_named(tmp_path):
    folder = write(tmp_path, ["a"])
    with pytest.raises(DataError, match=r"a\.jpg is missing"):
        image_sizes(tmp_path, "train")
    (folder / "a.png").write_text("no image")
    with pytest.raises(DataError, match=r"a\.png is not an image"):
        image_sizes(tmp_path, "train")
