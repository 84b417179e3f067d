"""The code of docs/own-data.md does what the page says; tests/test_readme.py tests its command lines."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import data

PAGE = (Path(__file__).parent.parent.parent / "docs/own-data.md").read_text(encoding="utf-8")
(YOLO,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
BOXES = {"a": [("key", 4, 6, 30, 16)], "b": [("coin", 0, 0, 20, 10), ("key", 10, 5, 40.5, 30)], "none": []}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with three images of 40 x 80, x_min y_min x_max y_max as in BOXES, in YOLO's format."""
    monkeypatch.chdir(tmp_path)
    names, raw = ["key", "coin"], Path("raw")
    for folder in ("images", "labels"):
        (raw / folder).mkdir(parents=True)
    (raw / "classes.txt").write_text("\n".join(names))
    for image_id, objects in BOXES.items():
        Image.new("RGB", (80, 40), (90, 120, 150)).save(raw / "images" / f"{image_id}.png")
        lines = []
        for name, x, y, x_max, y_max in objects:
            shares = (x + x_max) / 160, (y + y_max) / 80, (x_max - x) / 80, (y_max - y) / 40
            lines.append(" ".join(map(str, (names.index(name), *shares))))
        (raw / "labels" / f"{image_id}.txt").write_text("\n".join(lines))
    return tmp_path


def check_voc():
    """MYDATA holds BOXES, continuous and from 0."""
    Path("MYDATA/ImageSets/Main/train.txt").write_text("\n".join(BOXES))
    dataset = data.build("voc", SimpleNamespace(voc_data_dir="MYDATA"), ["train"])[0]
    assert dataset.classes == ("coin", "key")
    for sample, (image_id, objects) in zip((dataset[i] for i in range(3)), BOXES.items(), strict=True):
        assert (sample.id, sample.img.shape) == (image_id, (40, 80, 3))
        assert [dataset.classes[label] for label in sample.label] == [name for name, *_ in objects]
        want = np.array([(y, x, y_max, x_max) for _, x, y, x_max, y_max in objects]).reshape(-1, 4)
        np.testing.assert_allclose(sample.bbox, want, atol=0.006)


def test_from_yolo(place):
    exec(YOLO, {})
    check_voc()


def test_from_yolo_as_tools_leave_it(place, capsys):
    raw = place / "raw"
    (raw / "labels/none.txt").unlink()  # of an image without objects
    (raw / "classes.txt").write_text("\ufeffkey\r\ncoin\r\n", encoding="utf-8")
    for label in (raw / "labels/a.txt", raw / "labels/b.txt"):  # with scores
        lines = [f"{line} 0.9" for line in label.read_text().splitlines()]
        label.write_text("\n".join(["\ufeff" + lines[0], *lines[1:], "", ""]), encoding="utf-8")
    for name in ("Thumbs.db", ".DS_Store", "._a.png"):
        (raw / "images" / name).touch()
    (raw / "images/labels.bak").mkdir()
    exec(YOLO, {})
    assert capsys.readouterr().out == "3 images with 3 objects\n"
    check_voc()
    (raw / "labels/a.txt").write_text("0 0.1 0.1 0.2 0.4 0.3 0.4")
    with pytest.raises(SystemExit, match=r"labels/a\.txt: a polygon or keypoints"):
        exec(YOLO, {})
    (raw / "labels/a.txt").write_text("2 0.1 0.1 0.2 0.2")
    with pytest.raises(SystemExit, match=r"labels/a\.txt: classes\.txt has no name for 2"):
        exec(YOLO, {})
