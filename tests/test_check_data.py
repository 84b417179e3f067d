"""`train.py check` on data sets with everything wrong and with nothing wrong, and a step of training on odd images."""
import copy
import re
import runpy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from voc_files import message, thing, write_voc

import train
from check_data import check
from data.check import ERRORS
from data.image import ORIENTATION
from data.transforms import TrainTransform
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.proposal_target_creator import ProposalTargetCreator
from trainer import FasterRCNNTrainer
from utils.config import CheckConfig, TrainConfig


@pytest.fixture
def broken(tmp_path):
    """Two splits with an image in common, a fault in each, and one that only decoding finds."""
    write_voc(tmp_path, {"a": [thing()], "broken": [thing()], "flat": [thing(numbers=(3, 4, 3, 9))]}, "train",
              suffix=".png")
    write_voc(tmp_path, {"a": [thing()], "twice": [thing("dog"), thing("dog", (0, 4, 9, 9))], "gone": [thing()]}, "val")
    (tmp_path / "JPEGImages/a.png").unlink()
    (tmp_path / "JPEGImages/gone.jpg").unlink()
    (tmp_path / "ImageSets/Main/val.txt").write_text("a\ntwice\ngone\ntwice\n../x\n")
    path = tmp_path / "JPEGImages/broken.png"
    data = path.read_bytes()
    where = data.index(b"IDAT") + 6
    path.write_bytes(data[:where] + b"\xff" * 8 + data[where + 8:])
    return tmp_path


def test_all_that_is_wrong_is_listed_and_the_rest_summed_up(broken, capsys):
    error = message(check, CheckConfig(voc_data_dir=str(broken)))
    printed = capsys.readouterr().out
    main = broken / "ImageSets/Main"
    assert [line.split(" is not an image")[0] for line in error.splitlines()[1::2]] == [
        f"  {main}/val.txt lines 2 and 4: twice", f"  {main}/val.txt line 5: '../x'",
        f"  {broken}/Annotations/flat.xml object 1 (cat): xmin 4, ymin 3, xmax 9, ymax 3",
        f"  {broken}/JPEGImages/gone.jpg",
        f"  {broken}/JPEGImages/broken.png"]
    assert all(re.search(r" \(1\): ", line) for line in error.splitlines()[::2])
    for line in (str(broken), "images: train 3, val 3", "of these, each once: 4 can be used, 1 without objects, 0 with",
                 "formats: JPEG RGB 2, PNG RGB 2", "\ncat                2          0       2\n",
                 "\ndog                2          0       1\n",
                 f"  {broken}/Annotations/twice.xml object 2 (dog): xmin 4, ymin 0, xmax 9, ymax 9, in an image of "
                 "60x40"):
        assert line in printed
    assert "nothing that would stop" not in printed


def test_training_refuses_all_of_both_splits_at_once(broken):
    (broken / "Annotations/gone.xml").write_text("<annotation>")
    text = message(train.open_data, TrainConfig(voc_data_dir=str(broken), train_split="train", eval_split="val"))
    assert [line.split(" (")[0] for line in text.splitlines()[::2]] == [
        ERRORS[kind][0] for kind in ("doubled id", "path", "annotation", "no area", "no image")]


@pytest.mark.parametrize(("extra", "options", "refused"), [
    ("<difficult>1</difficult>", {}, True), ("<difficult>1</difficult>", {"use_difficult": True}, False),
    ("", {}, False)])
def test_a_split_without_an_object_to_train_on_is_refused(tmp_path, extra, options, refused):
    write_voc(tmp_path, {"a": [], "b": [thing(extra=extra)]}, "train")
    write_voc(tmp_path, {"c": [thing()]}, "val")
    config = TrainConfig(voc_data_dir=str(tmp_path), train_split="train", eval_split="val", **options)
    if refused:
        assert message(train.open_data, config) == f"{ERRORS['nothing'][0]} (1): {ERRORS['nothing'][1]}\n  train"
    else:
        train.open_data(config)


def test_training_prints_what_it_did_about_smaller_things(broken, capsys):
    write_voc(broken, {"b": [thing(numbers=(0, 4, 9, 9))]}, "test")
    train.open_data(TrainConfig(voc_data_dir=str(broken), train_split="test", invalid_boxes="skip"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("tvmonitor")
    assert lines[1].startswith("boxes that begin at 0 and were clipped")
    assert lines[1].endswith(": 1")
    assert len(lines) == 2


def test_nothing_wrong(tmp_path, capsys):
    write_voc(tmp_path, {"a": [thing()], "b": [thing("dog")]})
    write_voc(tmp_path, {"c": [thing()]}, "mine")
    check(CheckConfig(voc_data_dir=str(tmp_path)))
    printed = capsys.readouterr().out
    assert "images: trainval 2\n" in printed
    assert re.search(r"\nannotations and headers read in \d+\.\d s, .* images decoded in \d+\.\d s\n", printed)
    assert printed.endswith("\nnothing that would stop a training was found\nnext: python train.py anchors "
                            f"--voc-data-dir={tmp_path} --train-split=trainval\n")
    check(CheckConfig(voc_data_dir=str(tmp_path), splits=("mine", "trainval"), classes=("cat", "dog", "eel")))
    printed = capsys.readouterr().out
    assert "images: mine 1, trainval 2\n" in printed
    assert "eel          0" in printed


def test_every_offender_is_listed_and_the_next_command_can_be_pasted(tmp_path, capsys):
    root = write_voc(tmp_path / "my data", {f"{i:02}": [thing(numbers=(0, 4, 9, 9))] for i in range(25)})
    check(CheckConfig(voc_data_dir=str(root)))
    printed = capsys.readouterr().out
    assert f" --voc-data-dir='{root}' --train-split=trainval\n" in printed
    assert printed.count(" object 1 (cat): ") == 25
    for path in sorted((root / "JPEGImages").iterdir())[:22]:
        path.unlink()
    assert len(message(check, CheckConfig(voc_data_dir=str(root))).splitlines()) == 1 + 22


def test_exif_that_nothing_confirms_is_noted(tmp_path, capsys):
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    write_voc(tmp_path, {"a": [thing()], "b": ["<size><width>60</width><height>40</height></size>", thing()]})
    for name in "ab":
        Image.new("RGB", (60, 40)).save(tmp_path / f"JPEGImages/{name}.jpg", exif=exif)
    check(CheckConfig(voc_data_dir=str(tmp_path)))
    printed = capsys.readouterr().out
    assert f"look whether they do: 1\n  {tmp_path}/JPEGImages/a.jpg, EXIF orientation 8\n" in printed


def test_the_command(broken, capsys, monkeypatch):
    words = ["check", f"--voc-data-dir={broken}", "--splits=train", "--invalid-boxes=skip"]
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(train.__file__, run_name="__main__")
    assert caught.value.code.startswith("error: images that cannot be read (1): ")
    assert "boxes left out, without area or outside the image: 1" in capsys.readouterr().out


# Odd, but nothing wrong: trained on and detected in


ODD = {  # size (width, height), objects
    "without objects": ((60, 40), []),
    "only difficult": ((60, 40), [thing(extra="<difficult>1</difficult>")]),
    "one pixel": ((1, 1), [thing(numbers=(1, 1, 2, 2))]),
    "one pixel wide": ((1, 70), [thing(numbers=(1, 1, 60, 2))]),
    "20000 pixels wide": ((20_000, 3), [thing(numbers=(1, 50, 3, 12_345))]),
    "all anchors outside": ((9, 7), [thing(numbers=(1, 2, 5, 7))]),
    "500 objects": ((60, 40), [thing(numbers=(1 + i % 20, 1 + i % 30, 3 + i % 20 + i // 50, 4 + i % 30 + i // 20))
                               for i in range(500)]),
}


def test_a_step_of_training_on_odd_images(tmp_path, tiny_model):
    write_voc(tmp_path, {image_id: objects for image_id, (_, objects) in ODD.items()})
    for image_id, (size, _) in ODD.items():
        img = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(img).save(tmp_path / f"JPEGImages/{image_id}.jpg")
    config = TrainConfig(voc_data_dir=str(tmp_path), eval_split="trainval", classes=("cat", "dog", "cow"))
    train_set, eval_set = train.open_data(config)
    assert [len(bbox) for bbox in train_set.objects()[0]] == [0, 0, 1, 1, 1, 1, 500]
    assert [len(bbox) for bbox in eval_set.objects()[0]] == [0, 1, 1, 1, 1, 1, 500]
    model = copy.deepcopy(tiny_model)
    trainer = FasterRCNNTrainer(model, AnchorTargetCreator(), ProposalTargetCreator(), lr=1e-4)
    transform = TrainTransform(model.prepare)
    for i, sample in enumerate(train_set):
        losses = trainer.train_step([transform(sample, np.random.default_rng(i))])
        assert torch.stack(losses).isfinite().all(), sample.id
        (bbox,), _, _ = model.predict([sample.img], 0.01)
        assert np.isfinite(bbox).all()
        assert (bbox >= 0).all()
        assert (bbox <= [*sample.img.shape[:2]] * 2).all()
