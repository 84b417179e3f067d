"""`python -m tools.check_data` on data sets with everything wrong and with nothing wrong."""

import json
import runpy
import shlex
import sys

import fire
import numpy as np
import pytest
from coco_files import write_coco
from PIL import ExifTags, Image
from voc_files import message, thing, write_voc

import model
from data.validate import KINDS
from data.voc_dataset import read_splits
from tools import check_data, fit_anchors
from tools.check_data import CheckConfig
from tools.fit_anchors import AnchorConfig
from utils.command import command
from utils.config import OptionError, TrainConfig


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """The current folder, in which pictures are written."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def broken(tmp_path):
    """Two splits with an image in common, a fault in each, one that only decoding finds, and files of no use."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    things = {"a": [thing()], "cut": [thing()], "flat": [thing(numbers=(3, 4, 3, 9))]}
    write_voc(tmp_path, things, "train", noise, ".png")
    write_voc(tmp_path, {"a": [thing()], "twice": [thing("dog"), thing("dog", (0, 4, 9, 9))], "gone": [thing()]}, "val")
    (tmp_path / "JPEGImages/a.png").unlink()
    (tmp_path / "JPEGImages/gone.jpg").unlink()
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\ntwice\ngone\ntwice\n../x\n")
    path = tmp_path / "JPEGImages/cut.png"
    content = path.read_bytes()
    path.write_bytes(content[:1000] + bytes(100) + content[1100:])
    for name in ("a.heic", "b.HEIC", "Thumbs.db"):
        (tmp_path / "JPEGImages" / name).write_text("")
    return tmp_path


def test_all_that_is_wrong_is_listed_and_the_rest_summed_up(broken, capsys):
    error = message(check_data.check_data, CheckConfig(voc_data_dir=str(broken)))
    printed = capsys.readouterr().out
    main = broken / "ImageSets/Main"
    assert [line.split(": broken data stream")[0] for line in error.splitlines()] == [
        f"duplicate image ids (1): {KINDS['duplicate_id'][1]}",
        f"  {main}/val.txt lines 2 and 4: twice",
        f"lines that lead out of the data set (1): {KINDS['above'][1]}",
        f"  {main}/val.txt line 5: ../x",
        "boxes without area (1): correct them or pass --invalid-boxes=skip",
        f"  {broken}/Annotations/flat.xml object 1 (cat): xmin 4, ymin 3, xmax 9, ymax 3, in an image of 60x40",
        f"missing images (1): {KINDS['no_image'][1]}",
        f"  {broken}/Annotations/gone.xml",
        f"unreadable images (1): {KINDS['image'][1]}",
        f"  {broken}/JPEGImages/cut.png is not a readable image",
    ]
    assert printed.splitlines()[:6] == [
        str(broken),
        "usable images: train 3, val 2",
        "different images: 4, of which without objects: 1",
        "width x height of images: minimum 60x40, median 60x40, maximum 60x40",
        "width x height of boxes: minimum 5x8, median 51x20, maximum 51x20",
        "objects  difficult  images  class",
    ]
    assert "\n      2          0       2  cat\n" in printed
    assert "\n      2          0       1  dog\n" in printed
    assert f" {broken}/Annotations/twice.xml object 2 (dog): xmin 4, ymin 0, xmax 9, ymax 9, in an image" in printed
    assert "\nother files: 2 .heic, 1 .db (not read)\n" in printed
    assert "no errors" not in printed


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("train val trainval test", "trainval test"),
        ("train val trainval", "train val"),
        ("train test", "train test"),
        ("trainval val", "trainval val"),
        ("train", "train train"),
        ("my_test my_train", "my_train my_test"),
        ("a_fold1 a_train1 b_train2 c_val1 d_val2", "a_train1 c_val1"),
        ("my_test", "my_test my_test"),
        ("a b", "b a"),  # the larger one
        ("a b_test", "a b_test"),
        ("x_train_val y_test", "x_train_val y_test"),
    ],
)
def test_the_splits_of_the_next_command_are_there(tmp_path, capsys, there, wanted):
    for i, split in enumerate(there.split()):
        write_voc(tmp_path, {f"i{i}_{k}": [thing()] for k in range(i + 1)}, split)
    check_data.check_data(CheckConfig(voc_data_dir=str(tmp_path)))
    train, held_out = wanted.split()
    assert capsys.readouterr().out.endswith(f" --train-split={train} --eval-split={held_out}\n")


def test_nothing_wrong(tmp_path, capsys):
    write_voc(tmp_path, {"a": [thing(extra="<difficult>1</difficult>")], "b": [thing("dog")]})
    write_voc(tmp_path, {"c": [thing()]}, "mine")
    check_data.check_data(CheckConfig(voc_data_dir=str(tmp_path)))
    printed = capsys.readouterr().out
    assert "usable images: trainval 2\n" in printed
    assert "\n      1          1       1  cat\n" in printed
    assert printed.endswith(
        f"\nnext: python -m tools.fit_anchors --voc-data-dir={tmp_path} --train-split=trainval --eval-split=trainval\n"
    )
    check_data.check_data(CheckConfig(voc_data_dir=str(tmp_path), invalid_boxes="skip", val_ratio=0.5))
    assert capsys.readouterr().out.endswith(
        " --invalid-boxes=skip --val-ratio=0.5 --train-split=trainval --eval-split=trainval\n"
    )
    classes = tmp_path / "classes.txt"
    classes.write_text("cat\ndog\neel\n")
    check_data.check_data(CheckConfig(voc_data_dir=str(tmp_path), splits=("mine", "trainval"), classes=(str(classes),)))
    printed = capsys.readouterr().out
    assert printed.endswith(" --train-split=trainval --eval-split=mine\n")
    assert "usable images: mine 1, trainval 2\ndifferent images: 3," in printed
    assert "\n      0          0       0  eel\n" in printed


@pytest.mark.parametrize("n_image", [1, 16, 40])
def test_the_objects_of_some_images_are_drawn(tmp_path, capsys, monkeypatch, n_image):
    colors = {}
    for name in [f"{i:02}" for i in range(n_image)]:
        colors[name] = (10 + int(name), 100, 50)
        write_voc(
            tmp_path, {name: [thing(numbers=(11, 7, 31, 58))]}, "x", Image.new("RGB", (60, 40), colors[name]), ".png"
        )
    (tmp_path / "ImageSets/Main/x.txt").write_text("\n".join(colors))
    sheets = []
    monkeypatch.setattr(check_data, "contact_sheet", lambda imgs, titles: sheets.append((imgs, titles)) or imgs[0])
    check_data.check_data(CheckConfig(voc_data_dir=str(tmp_path), out="new/look.jpg"))
    ((imgs, titles),) = sheets
    step = {1: 1, 16: 1, 40: 3}[n_image]
    assert titles == list(colors)[::step]
    for img, title in zip(imgs, titles, strict=True):
        assert tuple(img[38, 58]) == colors[title]  # outside the box
        assert tuple(img[31, 30]) != colors[title] == tuple(img[20, 30])  # its lower side, and inside
    with Image.open("new/look.jpg") as picture:
        assert (picture.format, picture.size) == ("JPEG", (60, 40))
    assert f"no errors found\n{len(titles)} image" in capsys.readouterr().out


def test_wrong_classes_leave_nothing(tmp_path):
    write_voc(tmp_path, {"a": thing("cat")})
    config = CheckConfig(voc_data_dir=str(tmp_path), classes=("cut",), unknown_classes="ignore")
    assert "contains no object to train on: name another split, correct --classes" in message(
        check_data.check_data, config
    )


def test_nothing_left_to_train_on(tmp_path, capsys):
    write_voc(tmp_path, {"a": ["<object><name>cat</name><robndbox/></object>"]}, "train")
    write_voc(tmp_path, {"b": [thing()]}, "val")
    config = CheckConfig(voc_data_dir=str(tmp_path), invalid_boxes="skip")
    text = message(check_data.check_data, config)
    assert text.startswith(f"{tmp_path}: split train contains no object to train on")
    assert f"\nskipped objects: {tmp_path}/Annotations/a.xml" in text
    for objects in ([], [thing(extra="<difficult>1</difficult>")]):  # as the images of a test may be
        write_voc(tmp_path, {"a": objects}, "train")
        check_data.check_data(config)
        printed = capsys.readouterr().out
        assert "no errors found\n2 images" in printed
        assert printed.endswith("\nbut nothing to train on: split train has no object that is not difficult\n")


def test_a_data_set_of_unknown_splits(monkeypatch):
    monkeypatch.setattr(check_data, "build", lambda *args: [])  # of a file that returns those that are asked for
    with pytest.raises(OptionError, match=r"^--data=shapes does not say which splits it has: name them with --spli"):
        check_data.check_data(CheckConfig(data="shapes"))


def test_every_offender_is_listed_and_the_next_command_can_be_pasted(tmp_path, capsys):
    root = write_voc(tmp_path / "my data", {f"{i:02}": [thing(numbers=(0, 4, 9, 9))] for i in range(25)})
    check_data.check_data(CheckConfig(voc_data_dir=str(root)))
    printed = capsys.readouterr().out
    assert f" --voc-data-dir='{root}' --train-split=trainval --eval-split=trainval\n" in printed
    assert printed.count(" object 1 (cat): ") == 25
    for path in sorted((root / "JPEGImages").iterdir())[:22]:
        path.unlink()
    assert len(message(check_data.check_data, CheckConfig(voc_data_dir=str(root))).splitlines()) == 1 + 22


def test_no_usable_image(tmp_path, capsys):
    write_voc(tmp_path, {"a": ["<object>"]})
    assert message(check_data.check_data, CheckConfig(voc_data_dir=str(tmp_path))).startswith(
        "annotations that are no valid XML"
    )
    assert "usable images: trainval 0\n" in capsys.readouterr().out


def test_exif_that_nothing_confirms_is_noted(tmp_path, capsys):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 8
    write_voc(tmp_path, {"a": [thing()], "b": ["<size><width>60</width><height>40</height></size>", thing()]})
    for name in "ab":
        Image.new("RGB", (60, 40)).save(tmp_path / f"JPEGImages/{name}.jpg", exif=exif)
    check_data.check_data(CheckConfig(voc_data_dir=str(tmp_path)))
    printed = capsys.readouterr().out
    what, advice = KINDS["exif"]
    assert f"\n{what}: {tmp_path}/JPEGImages/a.jpg, EXIF orientation 8 ({advice})\n" in printed


def test_the_command(broken, capsys, monkeypatch):
    options = [f"--voc-data-dir={broken}", "--splits=train", "--invalid-boxes=skip"]
    monkeypatch.setattr(sys, "argv", ["check_data", *options])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(check_data.__file__, run_name="__main__")
    assert caught.value.code.startswith("error: unreadable images (1): ")
    assert "skipped boxes: " in capsys.readouterr().out


def test_coco_files_and_the_commands_that_follow(tmp_path, capsys):
    write_voc(tmp_path, {"a": [thing()], "b": [thing("dog")]}, "train")
    write_voc(tmp_path, {"c": [thing()]}, "val")
    options = write_coco(tmp_path, *read_splits(tmp_path, ["train", "val"]))
    check_data.check_data(CheckConfig(data="coco", **options))
    printed = capsys.readouterr().out
    assert f"{tmp_path}/JPEGImages\nusable images: train 2, eval 1\ndifferent images: 3," in printed
    line = printed.splitlines()[-1]
    assert line.startswith("next: python -m tools.fit_anchors --data=coco --coco-images=")
    for config_class, main in ((AnchorConfig, fit_anchors.main), (TrainConfig, None)):
        calls = []
        fire.Fire(command(config_class, calls.append, defaults=model.defaults), command=shlex.split(line)[4:])
        assert {name: getattr(calls[0], name) for name in options} == options
        assert calls[0].data == "coco"
        if main:
            main(calls[0].model_copy(update={"out": str(tmp_path / "fit.png")}))
            line = capsys.readouterr().out.splitlines()[-1]


def test_images_of_one_name_in_two_folders_are_two(tmp_path, capsys):
    options = {"data": "coco"}
    for i, prefix in enumerate(("coco", "coco_eval")):
        (tmp_path / prefix).mkdir()
        Image.new("RGB", (60, 40 + i)).save(tmp_path / prefix / "a.png")
        path = tmp_path / f"{prefix}.json"
        path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "categories": []}))
        options |= {f"{prefix}_images": str(tmp_path / prefix), f"{prefix}_annotations": str(path)}
    check_data.check_data(CheckConfig(**options))
    assert "\ndifferent images: 2," in capsys.readouterr().out
