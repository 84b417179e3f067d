"""The code and the command lines of docs/own-data.md do what the page says."""
import json
import re
import shlex
from pathlib import Path

import fire
import numpy as np
import pytest
from PIL import Image

from data import find_classes
from data.voc import VOCDataset
from utils.config import AnchorConfig, EvalConfig, PredictConfig, TrainConfig, command

PAGE = (Path(__file__).parent.parent.parent / "docs/own-data.md").read_text(encoding="utf-8")
YOLO, COCO = re.findall(r"```python\n(.*?)```", PAGE, re.S)
LOOK = re.search(r"python - <<'END'\n(.*?)END\n", PAGE, re.S)[1]
COMMANDS = {"train.py train": (TrainConfig, False), "train.py anchors": (AnchorConfig, False),
            "eval.py": (EvalConfig, False), "predict.py": (PredictConfig, True)}
LINES = re.findall(r"^python ((?:train.py \w+|\w+\.py) .*)", PAGE.replace("\\\n", ""), re.M)
BOXES = {"a": [("key", 4, 6, 30, 16)], "b": [("coin", 0, 0, 20, 10), ("key", 10, 5, 40.5, 30)], "none": []}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with three images of 40 x 80, x_min y_min x_max y_max as in BOXES, in YOLO's and COCO's formats."""
    monkeypatch.chdir(tmp_path)
    names, raw = ["key", "coin"], Path("raw")
    coco = {"images": [], "annotations": [], "categories": [{"id": 7 + i, "name": n} for i, n in enumerate(names)]}
    for folder in ("images", "labels"):
        (raw / folder).mkdir(parents=True)
    (raw / "classes.txt").write_text("\n".join(names))
    for i, (image_id, objects) in enumerate(BOXES.items()):
        Image.new("RGB", (80, 40), (90, 120, 150)).save(raw / "images" / f"{image_id}.png")
        coco["images"].append({"id": i, "file_name": f"{image_id}.png"})
        lines = []
        for name, x, y, x_max, y_max in objects:
            shares = (x + x_max) / 160, (y + y_max) / 80, (x_max - x) / 80, (y_max - y) / 40
            lines.append(" ".join(map(str, (names.index(name), *shares))))
            coco["annotations"].append({"image_id": i, "category_id": 7 + names.index(name),
                                        "bbox": [x, y, x_max - x, y_max - y]})
        (raw / "labels" / f"{image_id}.txt").write_text("\n".join(lines))
    (raw / "instances.json").write_text(json.dumps(coco))
    return tmp_path


def check_voc():
    """MYDATA holds BOXES, continuous and from 0."""
    Path("MYDATA/ImageSets/Main/train.txt").write_text("\n".join(BOXES))
    dataset = VOCDataset("MYDATA", "train", ["coin", "key"])
    for sample, (image_id, objects) in zip((dataset[i] for i in range(3)), BOXES.items(), strict=True):
        assert (sample.id, sample.img.shape) == (image_id, (40, 80, 3))
        assert [dataset.classes[label] for label in sample.label] == [name for name, *_ in objects]
        want = np.array([(y, x, y_max, x_max) for _, x, y, x_max, y_max in objects]).reshape(-1, 4)
        np.testing.assert_allclose(sample.bbox, want, atol=0.006)


def test_from_yolo(place):
    exec(YOLO, {})
    check_voc()


def test_from_coco(place):
    functions = YOLO[:YOLO.index("names = ")]
    exec(functions + COCO, {})
    check_voc()


def test_looking_at_it(place):
    exec(YOLO, {})
    (place / "MYDATA/ImageSets/Main/train.txt").write_text("a\nb\nnone")
    (place / "MYDATA/ImageSets/Main/val.txt").write_text("b")
    assert find_classes("MYDATA", ["train", "val"]) == ("coin", "key")
    exec(LOOK, {})
    assert sorted(path.name for path in Path().glob("look_*.png")) == ["look_a.png", "look_b.png", "look_none.png"]
    with Image.open("look_b.png") as img:
        assert img.size == (80, 40)


def test_there_are_commands_of_each_kind():
    assert {next(name for name in COMMANDS if line.startswith(name)) for line in LINES} == set(COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_is_one(line):
    name = next(name for name in COMMANDS if line.startswith(name))
    config_class, positional = COMMANDS[name]
    words = shlex.split(line[len(name):], comments=True)
    calls = []
    fire.Fire(command(config_class, lambda config, *paths: calls.append(config), positional=positional), command=words)
    assert len(calls) == 1
