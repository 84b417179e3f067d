"""The VOC reader on folders that the tests write: numbers, variants of the files, and a sentence for each fault."""

import importlib
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import defusedxml.ElementTree
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, ExifTags, Image, ImageFile
from voc_files import ODD, RGB, fault, message, read, thing, write_odd, write_voc

from data import build, voc_dataset
from data.transforms import TrainDataset
from data.validate import KINDS, DataError, ValidationReport, check_objects
from data.voc_dataset import read_header, read_image, read_splits

HARD = "<difficult>1</difficult>"
HIGH = (1, 2, 40, 9)
NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
SETTINGS = settings(deadline=None, derandomize=True, database=None)

# What is read


def test_sample(tmp_path):
    write_voc(tmp_path, {"b": [thing(), thing("dog", (2, 3, 5, 9), HARD)], "a": [thing("dog")]})
    dataset = read(tmp_path, classes=["cat", "dog"])
    assert (len(dataset), dataset.classes, dataset.root, dataset.split) == (2, ("cat", "dog"), tmp_path, "trainval")
    assert [dataset[i].id for i in range(2)] == dataset.ids == ["b", "a"]  # the order of the split, not of the names
    assert dataset.sizes == [(40, 60)] * 2
    sample = dataset[0]
    assert (sample.img.shape, sample.img.dtype) == ((40, 60, 3), np.uint8)
    np.testing.assert_allclose(sample.img[20, 30], RGB, atol=2)  # JPEG
    np.testing.assert_array_equal(sample.bbox, [[10, 6, 30, 57], [1, 2, 4, 8]])  # 1 is subtracted from all four
    assert sample.bbox.dtype == np.float32
    assert (sample.label.tolist(), sample.label.dtype) == ([0, 1], np.int64)
    assert (sample.difficult.tolist(), sample.difficult.dtype) == ([False, True], bool)
    assert (sample.rng, sample.roi) == (None, None)


def test_lists_are_those_of_the_samples_and_difficult_objects_can_be_left_out(tmp_path):
    write_voc(
        tmp_path,
        {"a": [thing(numbers=(1, 2, 3, 5), extra=HARD), thing("dog"), thing("dog", (1, 1, 9, 4), HARD)], "empty": []},
    )
    dataset = read(tmp_path)
    easy = dataset.without_difficult()
    for some in (dataset, easy):
        for i in range(2):
            for column, name in (("bboxes", "bbox"), ("labels", "label"), ("difficults", "difficult")):
                value = getattr(some[i], name)
                np.testing.assert_array_equal(getattr(some, column)[i], value)
                assert value.dtype == {"bbox": np.float32, "label": np.int64, "difficult": bool}[name]
                assert value.shape == (len(some.bboxes[i]), 4)[: 1 + (name == "bbox")]
    np.testing.assert_array_equal(easy[0].bbox, [[10, 6, 30, 57]])
    assert [len(bbox) for bbox in dataset.bboxes] == [3, 0]
    assert (easy.ids, easy.sizes) == (dataset.ids, dataset.sizes)


def test_a_split_needs_an_object_to_train_on(tmp_path):
    dataset = read(write_voc(tmp_path, {"a": [thing(extra=HARD)], "b": []}))
    check_objects(dataset)
    assert message(check_objects, dataset.without_difficult()).startswith(
        f"{tmp_path}: split trainval contains no object to train on: "
    )


def test_each_annotation_is_parsed_once(tmp_path, monkeypatch):
    write_voc(tmp_path, {"a": [thing()], "b": [thing("dog")], "unused": [thing("cow")]}, "all")
    for split, ids in (("train", "a\nb\n"), ("val", "b\n")):
        (tmp_path / f"ImageSets/Main/{split}.txt").write_text(ids)
    parsed, parse = [], defusedxml.ElementTree.fromstring
    monkeypatch.setattr(defusedxml.ElementTree, "fromstring", lambda text: parsed.append(text) or parse(text))
    options = SimpleNamespace(voc_data_dir=str(tmp_path))
    train, val, again = build("voc", options, ["train", "val", "val"])
    assert len(parsed) == 2
    assert (train.ids, val.ids, again.ids) == (["a", "b"], ["b"], ["b"])
    assert train.classes == val.classes == ("cat", "dog")
    assert [d.split for d in build("voc", options, [])] == ["train", "val"]


@pytest.mark.parametrize(
    ("names", "classes"), [("dog cat", ("cat", "dog")), ("dog zebra", ("dog", "zebra")), ("Bäume 猫", ("Bäume", "猫"))]
)
def test_classes_are_found_in_all_splits(tmp_path, names, classes):
    first, second = names.split()
    write_voc(tmp_path, {"Übung 猫": [thing(first)]}, "train")
    write_voc(tmp_path, {"b": [thing(second)]}, "val")
    train, val = read_splits(tmp_path, ["train", "val"])
    assert train.classes == val.classes == classes
    assert [classes[d[0].label[0]] for d in (train, val)] == [first, second]


def test_odd_images(tmp_path):
    dataset = read(write_odd(tmp_path))
    assert dataset.ids == list(ODD)
    assert dataset.sizes == [size[::-1] for size, _ in ODD.values()]
    assert [len(bbox) for bbox in dataset.bboxes] == [0, 1, 1, 1, 1, 1, 500]
    assert [len(bbox) for bbox in dataset.without_difficult().bboxes] == [0, 0, 1, 1, 1, 1, 500]
    for i in range(len(ODD)):
        assert dataset[i].img.shape[:2] == dataset.sizes[i]


def test_several_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root, objects in (("VOC2007", [thing()]), ("in/VOC2012", [thing("dog", HIGH)])):
        write_voc(tmp_path / root, {"b": objects, "a": []})
    write_voc(tmp_path / "VOC2007", {"c": [thing("cow")]}, "test")
    both, test = read_splits("VOC2007, in/VOC2012", ["trainval", "test"])
    assert both.ids == ["VOC2007/b", "VOC2007/a", "VOC2012/b", "VOC2012/a"]
    assert [both.classes[both.labels[i][0]] for i in (0, 2)] == ["cat", "dog"]
    assert both[2].bbox.tolist() == [[0, 1, 39, 8]]
    assert (test.ids, str(test.root)) == (["VOC2007/c"], "VOC2007,in/VOC2012")  # VOC2012 has no such split
    assert (both.metric, test.metric) == ("voc", "voc07")  # of all images of the split
    assert [dataset.split for dataset in read_splits("VOC2007,in/VOC2012")] == ["trainval", "test"]
    assert [read(root, "trainval").metric for root in ("VOC2007", "in/VOC2012")] == ["voc07", "voc"]
    assert "in/VOC2012/ImageSets/Main/x.txt does not exist" in message(read, "VOC2007,in/VOC2012", "x")
    assert "nowhere does not exist" in message(read, "VOC2007,nowhere")
    write_voc(tmp_path / "VOC2012", {"b": [thing()]})
    assert read("in/VOC2012,VOC2012").ids == ["in/VOC2012/b", "in/VOC2012/a", "VOC2012/b"]
    (test,) = read_splits("VOC2007,in/VOC2012", ["test"])
    unused = "folders without the splits of the others: in/VOC2012, annotations: 2 (not used"
    assert any(note.startswith(unused) for note in test.notes)
    assert not any(note.startswith("folders without") for note in both.notes)
    for root in ("VOC2007", "in/VOC2012"):
        write_voc(tmp_path / root, {"d": [thing()]}, "gone")
        (tmp_path / root / "ImageSets/Main/gone.txt").unlink()
    unlisted = "annotated images in no split: 2 ("
    assert any(note.startswith(unlisted) for note in read_splits("VOC2007,in/VOC2012")[0].notes)
    write_voc(tmp_path / "a,b", {"b": [thing()]})
    assert read("a,b").ids == ["b"]


def test_a_split_drawn_from_several_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root, first in (("x", 0), ("y", 5)):
        write_voc(tmp_path / root, {f"{i}": [thing()] for i in range(first, first + 10)}, "all")
        (tmp_path / root / "ImageSets/Main/all.txt").unlink()
    train, val = read_splits("x,y", ["train", "val"], val_ratio=0.2)
    assert [sum(i.startswith("x/") for i in part.ids) for part in (train, val)] == [8, 2]
    stored = {"train": [i for i in train.ids + val.ids if i not in ("x/1", "y/13")], "val": ["x/1", "y/13"]}
    assert read_splits("x,y", ["train", "val"], val_ratio=0.5, split_ids=stored)[1].ids == ["x/1", "y/13"]
    fewer = stored | {"val": ["x/1"]}  # the image of y could not be read
    assert read_splits("x,y", ["train", "val"], val_ratio=0.5, split_ids=fewer)[1].ids == ["x/1"]
    for folder, ids in (("x", ["1"]), ("y", ["13"])):  # alone
        assert read(folder, "val", split_ids=stored).ids == ids
    shutil.move("y", "z")  # its images tell which it is
    assert read("z,x", "val", split_ids=stored).ids == ["z/13", "x/1"]
    one = {split: [i[2:] for i in ids if i[0] == "x"] for split, ids in stored.items()}
    assert read("x,z", "val", split_ids=one).ids == ["x/1", *(f"z/{i}" for i in (10, 11, 12, 13, 14, 5, 6, 7, 8, 9))]
    shutil.copytree("x", "w")  # x or v
    twice = {split: [f"{folder}/{i}" for i in ids for folder in "xv"] for split, ids in one.items()}
    assert read("x", "val", split_ids=twice).ids == ["1"]
    assert len(read("w", "val", split_ids=twice)) == 10


def test_folders_named_as_splits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for root, n in (("train", 4), ("valid", 3), ("more/train", 2)):
        write_voc(tmp_path / root, {f"{i}": [thing()] for i in range(n)}, "all")
        (tmp_path / root / "ImageSets/Main/all.txt").unlink()
    train, val = read_splits("train,valid", ["train", "val"], val_ratio=0.5)
    assert (len(train), len(val)) == (4, 3)
    assert {i[:6] for i in train.ids} == {"train/"}
    assert [len(dataset) for dataset in read_splits("train,valid", ["train", "valid"], val_ratio=0.5)] == [4, 3]
    assert {dataset.split: len(dataset) for dataset in read_splits("valid,train")} == {"train": 4, "val": 3}
    shutil.copytree("train", "train_val")
    train, val = read_splits("train_val,valid", ["trainval", "val"], val_ratio=0.5)
    assert (len(train), len(val)) == (4, 3)
    shutil.copytree("valid", "photos")
    two = read_splits("photos,train", ["train", "val"], val_ratio=0.5)
    assert [len(dataset) for dataset in two] == [3, 4]
    two = read_splits("train,more/train", ["train", "val"], val_ratio=0.5)  # of one split: divided
    assert [len(dataset) for dataset in two] == [3, 3]
    for split in ("train", "val"):  # a list says more
        (tmp_path / "train" / f"{split}.txt").write_text("0\n" if split == "train" else "1\n")
    train, val = read_splits("train,valid", ["train", "val"], val_ratio=0.5)
    assert (train.ids, val.ids) == (["train/0"], ["train/1", "valid/0", "valid/1", "valid/2"])


# Boxes


@pytest.fixture
def flat(tmp_path):
    """Two images, five objects, of which three have no area."""
    return write_voc(
        tmp_path,
        {
            "a": [thing("dog", (5, 4, 5, 9)), thing(), thing("cat", (2.5, 8, 6, 3.5), HARD)],
            "b": [thing("dog"), thing("cat", (7, 3, 6, 9))],
        },
    )


def test_boxes_without_area_are_all_named_or_skipped(flat):
    assert message(read, flat).splitlines() == [
        "boxes without area (3): correct them or pass --invalid-boxes=skip",
        f"  {flat}/Annotations/a.xml object 1 (dog): xmin 4, ymin 5, xmax 9, ymax 5, in an image of 60x40",
        f"  {flat}/Annotations/a.xml object 3 (cat): xmin 8, ymin 2.5, xmax 3.5, ymax 6, in an image of 60x40",
        f"  {flat}/Annotations/b.xml object 2 (cat): xmin 3, ymin 7, xmax 9, ymax 6, in an image of 60x40",
    ]
    (dataset,) = build(
        "voc", SimpleNamespace(voc_data_dir=flat, invalid_boxes="skip"), ["trainval"], classes=("cat", "dog")
    )
    assert [note.split(": ")[0] for note in dataset.notes] == ["skipped boxes"]
    assert [note.count(" object ") for note in dataset.notes] == [3]
    for bbox in dataset.bboxes:
        np.testing.assert_array_equal(bbox, [[10, 6, 30, 57]])
    assert [label.tolist() for label in dataset.labels] == [[0], [1]]
    assert [difficult.tolist() for difficult in dataset.difficults] == [[False], [False]]


@pytest.mark.parametrize("invalid_boxes", ["error", "skip"])
def test_valid_boxes_are_not_noted(tmp_path, invalid_boxes):
    write_voc(tmp_path, {"a": [thing(numbers=(1, 1, 1.5, 1.5)), thing(numbers=(1, 1, 40, 60))]})
    dataset = read(tmp_path, invalid_boxes=invalid_boxes)
    assert dataset.notes == []
    np.testing.assert_array_equal(dataset.bboxes[0], [[0, 0, 0.5, 0.5], [0, 0, 39, 59]])


def test_boxes_a_little_beyond_the_image_are_clipped(tmp_path):
    write_voc(tmp_path, {"a": [thing(numbers=(0, 7, 31, 58)), thing(numbers=(11, -1, 44, 63))]})
    dataset = read(tmp_path)
    np.testing.assert_array_equal(dataset[0].bbox, [[0, 6, 30, 57], [10, 0, 40, 60]])
    assert [note.split(":")[0] for note in dataset.notes] == ["clipped boxes that start at 0", "clipped boxes"]


# Faults of a data set


def test_every_kind_and_every_offender_is_named_at_once(tmp_path):
    """One image for each fault, two for some."""
    boxes = {
        "fine": (1, 2, 30, 50),
        "flat": (5, 4, 5, 9),
        "out": (50, 1, 60, 9),
        "far": (1, 2, 90, 50),
        "no jpg": (1, 2, 3, 4),
        "no jpg 2": (1, 2, 3, 4),
        "cut": (1, 2, 3, 4),
    }
    write_voc(
        tmp_path,
        {image_id: [thing(numbers=box)] for image_id, box in boxes.items()}
        | {
            "cow": [thing("Cat"), thing("cow")],
            "cow 2": [thing("cow")],
            "no xml": [],
            "bad": ["<object>"],
            "wide": ["<size><width>30</width><height>20</height></size>"],
            "high": ["<size><width>40</width><height>60</height></size>"],
        },
    )
    for image_id in ("no jpg", "no jpg 2"):
        (tmp_path / f"JPEGImages/{image_id}.jpg").unlink()
    path = tmp_path / "JPEGImages/cut.jpg"
    path.write_bytes(path.read_bytes()[:100])
    (tmp_path / "Annotations/no xml.xml").unlink()
    lines = message(read, tmp_path, classes=["cat", "dog"]).splitlines()
    assert {line.split(" (")[0] for line in lines if not line.startswith(" ")} == {
        KINDS[kind][0]
        for kind in (
            *("no_annotation", "xml", "no_image", "image", "swapped_size", "size"),
            *("class", "no_area", "outside", "far_outside"),
        )
    }
    text = "\n".join(lines).replace(f"{tmp_path}/", "")
    for part in (
        "missing images (2)",
        "\n  Annotations/no jpg.xml\n  Annotations/no jpg 2.xml\n",
        "\n  JPEGImages/no xml.jpg\n",
        "Annotations/bad.xml: mismatched tag",
        "JPEGImages/cut.jpg is not a readable image: ",
        "Annotations/wide.xml: annotated as 30x20, JPEGImages/wide.jpg has 60x40 pixels",
        "Annotations/high.xml: annotated as 40x60, JPEGImages/high.jpg has 60x40 pixels",
        "'Cat' (objects: 1, the first in Annotations/cow.xml): did you mean 'cat'?",
        "'cow' (objects: 2, the first in Annotations/cow.xml): ",
        "flat.xml object 1 (cat): xmin 4, ymin 5, xmax 9, ymax 5, in an image of 60x40\n",
        "out.xml object 1 (cat): xmin 1, ymin 50, xmax 9, ymax 60, in an image of 60x40\n",
        "far.xml object 1 (cat): xmin 2, ymin 1, xmax 50, ymax 90, in an image of 60x40",
    ):
        assert part in text
    assert "fine" not in text


def test_names_that_differ_only_in_case_or_spaces(tmp_path):
    write_voc(tmp_path, {"a": [thing("Cat"), thing("dining table")], "b": [thing("cat"), thing("Dining_Table")]})
    first, second = f"the first in {tmp_path}/Annotations/a.xml", f"the first in {tmp_path}/Annotations/b.xml"
    assert message(read, tmp_path).splitlines()[1:] == [
        f"  'Cat' (objects: 1, {first}) and 'cat' (objects: 1, {second})",
        f"  'Dining_Table' (objects: 1, {second}) and 'dining table' (objects: 1, {first})",
    ]
    assert read(tmp_path, classes=["Cat", "cat", "dining table", "Dining_Table"]).labels[1].tolist() == [1, 3]


def test_errors_of_all_splits_at_once(tmp_path):
    write_voc(tmp_path, {"a": [thing()], "b": [thing()]}, "train")
    write_voc(tmp_path, {}, "val")
    (tmp_path / "JPEGImages/b.jpg").unlink()
    report = ValidationReport()
    datasets = read_splits(tmp_path, ["train", "val", "test"], report=report)
    main = tmp_path / "ImageSets/Main"
    assert report.errors == {
        "split": dict.fromkeys(
            [
                f"{main}/val.txt contains no image id; splits in this folder: train, val",
                f"{main}/test.txt does not exist; splits in this folder: train, val",
            ]
        ),
        "no_image": {f"{tmp_path}/Annotations/b.xml": None},
    }
    assert [dataset.ids for dataset in datasets] == [["a"], [], []]


def test_a_split_in_another_encoding(tmp_path):
    path = write_voc(tmp_path, {"a": [thing()]}) / "ImageSets/Main/trainval.txt"
    path.write_bytes("a\r\n".encode("utf-16"))
    assert message(read, tmp_path) == f"{path} is not UTF-8 text: save it as UTF-8"


@pytest.mark.parametrize("odd", ["b" * 300, "..", "a\0b"])
def test_ids_that_no_file_can_have(tmp_path, odd):
    write_voc(tmp_path, {"a": [thing()]})
    (tmp_path / "ImageSets/Main/trainval.txt").write_text(f"a\n{odd}\n")
    assert f"{tmp_path}/{odd}" in message(read, tmp_path)


def test_an_image_that_breaks_later_is_named(tmp_path):
    """Only decoding can tell; in a worker's traceback as well."""
    path = write_voc(tmp_path, {"a": [thing()]}, img=Image.fromarray(NOISE), suffix=".png") / "JPEGImages/a.png"
    content = path.read_bytes()
    path.write_bytes(content[:1000] + bytes(100) + content[1100:])
    dataset = read(tmp_path)
    text = message(dataset.__getitem__, 0)
    assert text.startswith(f"{path} is not a readable image: broken")
    assert message(list, torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1)) == text
    loader = torch.utils.data.DataLoader(TrainDataset(dataset, 0, 0), batch_size=None, num_workers=1)
    assert message(list, loader) == f"{text}: replace it; python -m tools.check_data finds all such"


def test_images_that_cannot_be_read_can_be_left_out(tmp_path):
    noise = Image.fromarray(NOISE)
    write_voc(
        tmp_path, {name: [thing()] for name in ("empty", "text", "half", "broken", "fine")}, "train", noise, ".png"
    )
    main = write_voc(tmp_path, {"no more": [thing()]}, "val", noise, ".png") / "JPEGImages"
    content = (main / "fine.png").read_bytes()
    broken = content[:1000] + bytes(100) + content[1100:]
    for name, damaged in (("empty", b""), ("text", b"text"), ("half", content[:3000]), ("broken", broken)):
        (main / f"{name}.png").write_bytes(damaged)
    assert message(read, tmp_path, "train").startswith("unreadable images (3): replace them, ")
    (dataset,) = build("voc", SimpleNamespace(voc_data_dir=tmp_path, invalid_images="skip"), ["train"])
    assert dataset.ids == ["fine"]
    assert dataset.notes[0].startswith(f"skipped images (4, such as {main}/empty.png is not a readable image: the file")
    (main / "no more.png").write_bytes(b"")
    text = message(read, tmp_path, "val", invalid_images="skip")
    assert text.startswith(f"splits without a usable image (1): {KINDS['empty'][1]}\n  {tmp_path}, split val")


# Classes


def test_other_classes_can_be_left_out(tmp_path):
    write_voc(tmp_path, {"a": [thing("dog"), thing(), thing("cow", (1, 2, 3, 4))], "b": [thing("dog")]})
    advice = message(read, tmp_path, classes=["cat"]).splitlines()
    assert advice[0].endswith("pass --unknown-classes=ignore, or train anew with --classes of all")
    dataset = read(tmp_path, classes=["cat"], unknown_classes="ignore")
    assert (dataset.ids, dataset.classes) == (["a", "b"], ("cat",))
    np.testing.assert_array_equal(dataset[0].bbox, [[10, 6, 30, 57]])
    assert [len(values) for values in (dataset.bboxes[1], dataset.labels[1], dataset.difficults[1])] == [0, 0, 0]
    (note,) = dataset.notes
    assert note.startswith("ignored classes: 'cow' (objects: 1, the first in ")
    assert "; 'dog' (objects: 2, " in note
    assert read(tmp_path, unknown_classes="ignore").classes == ("cat", "cow", "dog")  # none is unknown


def test_classes_without_objects_are_noted(tmp_path):
    write_voc(tmp_path, {"a": [thing(), thing("dog", extra=HARD)]}, "train")
    write_voc(tmp_path, {"b": [thing("dog")]}, "val")
    write_voc(tmp_path, {"c": []}, "test")
    dataset, *_ = read_splits(tmp_path, ["train", "val", "test"])
    what, advice = KINDS["absent"]
    assert dataset.notes == [f"{what}: dog in train; cat in val; all in test ({advice})"]
    assert read(tmp_path, "train", classes=["cat", "N/A"], unknown_classes="ignore").notes[1:] == []


def test_classes_of_which_nothing_is_left_are_not_found(tmp_path):
    write_voc(tmp_path, {"a": [thing(), thing("flat", (1, 2, 1, 2)), "<object><name>ship</name></object>"]})
    dataset = read(tmp_path, invalid_boxes="skip")
    assert dataset.classes == ("cat",)
    assert [note.split(": ")[0] for note in dataset.notes] == ["skipped objects", "skipped boxes"]
    assert dataset.notes[0].count("a.xml object 3: no bndbox") == 1
    assert dataset.notes[1].count("a.xml object ") == dataset.notes[1].count("a.xml object 2 (flat)") == 1


# Download


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The archives of VOC2007, small, in place of the server: a list of the names that were asked for."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def download_and_extract_archive(url, root, filename, md5):
        assert url.endswith(f"/{filename}")
        assert len(md5) == 32
        split = "test" if "test" in filename else "trainval"
        write_voc(Path(root) / "VOCdevkit/VOC2007", {split: [thing()]}, split)
        asked.append(filename)

    monkeypatch.setattr("torchvision.datasets.voc.download_and_extract_archive", download_and_extract_archive)
    return asked


def download():
    return build("voc", SimpleNamespace(voc_data_dir="elsewhere", download=True), ["trainval", "test"])


def test_download(server):
    for _ in range(2):  # the second time everything is there
        trainval, test = download()
        assert (str(test.root), trainval.ids, test.ids) == ("datasets/VOCdevkit/VOC2007", ["trainval"], ["test"])
    assert server == ["VOCtrainval_06-Nov-2007.tar", "VOCtest_06-Nov-2007.tar"]


def test_a_failed_download_is_one_sentence(server, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr("torchvision.datasets.voc.download_and_extract_archive", fail)
    text = message(download)
    assert text.startswith("cannot download VOC2007 (no route)")
    assert "--voc-data-dir" in text
    assert "\n" not in text


# One image


def header(path):
    """Size and orientation of an image with which nothing is wrong."""
    report = ValidationReport()
    found = read_header(path, report)
    assert (report.errors, report.notes) == ({}, {})
    return found


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("RGB", (10, 20, 30), (10, 20, 30)),
        ("L", 90, (90, 90, 90)),
        ("LA", (90, 7), (90, 90, 90)),
        ("RGBA", (10, 20, 30, 128), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_every_kind_is_read_as_rgb(tmp_path, mode, color, expected):
    Image.new(mode, (5, 3), color).save(tmp_path / "a.png")
    img = read_image(tmp_path / "a.png")
    assert (img.shape, img.dtype) == ((3, 5, 3), np.uint8)
    np.testing.assert_array_equal(img, np.broadcast_to(np.uint8(expected), (3, 5, 3)))
    img[0, 0, 0] = 1  # may be written to
    assert header(tmp_path / "a.png") == ((3, 5), 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [1, b"\x80\x00\xff"])
def test_a_palette_keeps_its_colours_below_transparency(tmp_path, transparency):
    img = Image.new("P", (3, 2))
    img.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    img.putdata([0, 1, 2, 2, 1, 0])
    img.save(tmp_path / "a.png", transparency=transparency)
    a, b, c = (10, 20, 30), (40, 50, 60), (70, 80, 90)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[a, b, c], [c, b, a]])


def test_cmyk(tmp_path):
    Image.new("CMYK", (16, 8), (255, 51, 0, 0)).save(tmp_path / "a.jpg", quality=95)  # no red, four fifths of green
    img = read_image(tmp_path / "a.jpg")
    assert img.shape == (8, 16, 3)
    np.testing.assert_allclose(img[4, 4], (0, 204, 255), atol=4)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_and_not_cut_off(tmp_path, suffix):
    gray = np.array([[0, 255, 256], [0x1234, 0xFE00, 0xFFFF]], np.uint16)
    Image.fromarray(gray).save(tmp_path / f"a.{suffix}")
    img = read_image(tmp_path / f"a.{suffix}")
    assert img.dtype == np.uint8
    np.testing.assert_array_equal(img[:, :, 1], [[0, 0, 1], [0x12, 0xFE, 255]])
    assert (img == img[:, :, :1]).all()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.full((2, 3), 0.5, np.float32), "not integers of 8 or 16 bits"),
        (np.full((2, 3), 70_000, np.int32), "not integers of 8 or 16 bits"),
        (np.full((2, 3), -1, np.int32), "not integers of 8 or 16 bits"),
    ],
)
def test_what_has_no_sensible_bytes_is_refused(tmp_path, array, words):
    Image.fromarray(array).save(tmp_path / "a.tif")
    text = message(read_image, tmp_path / "a.tif")
    assert text.startswith(f"{tmp_path / 'a.tif'} is not a readable image: ")
    assert words in text
    assert fault(read_header, tmp_path / "a.tif", "image") == text  # before training


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_is_reported_and_not_applied(tmp_path, monkeypatch):
    exif = Image.Exif()
    for orientation, expected in ((6, 6), (9, 0)):  # EXIF has 1 to 8
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=exif)
        assert read_image(tmp_path / "a.jpg").shape == (40, 60, 3)
        assert header(tmp_path / "a.jpg") == ((40, 60), expected)
        img, turned = (read_image(tmp_path / "a.jpg", upright=upright) for upright in (False, True))
        np.testing.assert_array_equal(turned, np.rot90(img, -1) if expected else img)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data.replace(b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    assert header(tmp_path / "b.jpg") == ((40, 60), 0)
    assert read_image(tmp_path / "b.jpg", upright=True).shape == (40, 60, 3)
    monkeypatch.setattr(Image.Image, "getexif", lambda self: 1 / 0)
    assert header(tmp_path / "a.jpg") == ((40, 60), 0)


def test_headers_are_read_without_decoding(tmp_path, monkeypatch):
    exif, decoded = Image.Exif(), []
    exif[ExifTags.Base.Orientation] = 5
    for name, options in (("a.png", {}), ("b.png", {"exif": exif}), ("a.jpg", {}), ("b.jpg", {"exif": exif})):
        Image.fromarray(NOISE).save(tmp_path / name, **options)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self))
    assert [header(tmp_path / name)[1] for name in ("a.png", "b.png", "a.jpg", "b.jpg")] == [0, 5, 0, 5]
    assert not decoded


def test_images_of_several_cameras_are_jpeg(tmp_path):
    img = Image.fromarray(NOISE)
    img.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[img])
    assert read_image(tmp_path / "a.jpg").shape == (40, 60, 3)


LARGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (120, 160, 3), np.uint8))
CUT = {  # suffix: what is saved how, bytes that may be missing, too many of them
    ".jpg": (LARGE, {}, (2, 20, 60), (600, 9000)),
    ".JPG": (LARGE.convert("L"), {}, (2, 20), (600,)),
    ".jpeg": (LARGE, {"progressive": True}, (1, 2, 8), (600, 9000)),
    ".jfif": (LARGE.convert("CMYK"), {"format": "JPEG"}, (1, 2, 20), (1200,)),
    ".png": (LARGE, {}, (2, 20), (300, 9000)),
    ".bmp": (LARGE, {}, (), (20, 900)),
    ".gif": (LARGE, {}, (), (20, 900)),
    ".webp": (LARGE, {}, (), (20, 900)),
}


@pytest.mark.parametrize("suffix", CUT)
def test_an_image_cut_off_by_less_than_a_hundredth_is_read_with_a_note(tmp_path, suffix):
    img, options, fine, bad = CUT[suffix]
    path = tmp_path / f"a{suffix}"
    img.save(path, **options)
    content, whole = path.read_bytes(), read_image(path)
    for n in fine:
        path.write_bytes(content[:-n])
        report = ValidationReport()
        differs = (read_image(path, report) != whole).any(2).mean()
        assert differs < 0.02  # a block of JPEG has 256 of the 19200 pixels
        assert list(report.notes) == (["cut_off"] if suffix.lower() != ".png" else [])
        assert read_header(path, report)[0] == (120, 160)
        assert not report.errors
    for n in bad:
        path.write_bytes(content[:-n])
        assert "not a readable image" in message(read_image, path)
        assert read_header(path, ValidationReport(), skip=True) is None


def test_a_cut_off_jpeg_is_found_before_training(tmp_path):
    path = write_voc(tmp_path, {"a": [thing()], "b": [thing()]}, img=LARGE) / "JPEGImages/a.jpg"
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    assert read(tmp_path).notes == [f"images whose end is missing: {path} ({KINDS['cut_off'][1]})"]
    path.write_bytes(content[:-2000])
    assert message(read, tmp_path).startswith("unreadable images (1): ")
    path.write_bytes(content + bytes(3000))  # what some cameras append
    assert read(tmp_path).notes == []


@pytest.mark.parametrize("suffix", ["bmp", "tif", "gif", "webp", "ppm"])
def test_half_a_file_of_another_format_is_found_before_training(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(path)
    assert read_header(path, ValidationReport()) == (NOISE.shape[:2], 0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "is not a readable image: " in fault(read_header, path, "image")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "the file is empty"),
        (
            lambda data: b"no image",
            "it is none of JPEG, PNG, BMP, GIF, PPM, TIFF, WEBP, or its bands or bits are unusual",
        ),
        (lambda data: data[:20], ""),
        (lambda data: data[: len(data) // 2], ""),
        (lambda data: data[:-300], ""),
    ],
    ids=["empty", "text", "head", "half", "near the end"],
)
def test_damage(tmp_path, suffix, damage, reason):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(path)
    path.write_bytes(damage(path.read_bytes()))
    texts = [message(read_image, path)]
    if reason:
        texts.append(fault(read_header, path, "image"))
    for text in texts:
        assert text.startswith(f"{path} is not a readable image: {reason}")
        assert "\n" not in text
        assert text.count(str(path)) == 1


def test_a_missing_file(tmp_path):
    text = message(read_image, tmp_path / "a.jpg")
    assert text == f"{tmp_path / 'a.jpg'} is not a readable image: No such file or directory"


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("1", (300, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 29_999)  # Pillow refuses twice as many
    text = message(read_image, tmp_path / "a.png")
    assert text.startswith(f"{tmp_path / 'a.png'} is not a readable image: Image size (60000 pixels)")
    assert fault(read_header, tmp_path / "a.png", "image") == text


def test_a_photo_of_108_megapixels_is_read_without_a_warning(tmp_path, monkeypatch):
    Image.new("1", (300, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    with warnings.catch_warnings(record=True) as caught:
        importlib.reload(voc_dataset)  # the filters of pytest, too, are set after the first import
        assert read_image(tmp_path / "a.png").shape == (200, 300, 3)
    assert not caught


def test_another_format_than_the_name_says_is_read(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), NOISE)
    assert header(tmp_path / "a.jpg") == ((40, 60), 0)


def test_no_program_is_run_for_an_image(tmp_path, monkeypatch):
    """EPS is a program in PostScript, and Pillow would have Ghostscript run it."""
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: ran.append(args))
    (tmp_path / "a.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 60 40\n%%EndComments\nshowpage\n%%EOF\n"
    )
    for text in (fault(read_header, tmp_path / "a.png", "image"), message(read_image, tmp_path / "a.png")):
        assert text.startswith(f"{tmp_path / 'a.png'} is not a readable image: it is none of JPEG, PNG, ")
    assert not ran


@pytest.mark.parametrize("kind", ["BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_other_formats_of_pixels_are_read(tmp_path, kind):
    Image.new("RGB", (6, 4), (200, 200, 200)).save(tmp_path / "a.png", kind)
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), np.full((4, 6, 3), 200), atol=2)
    assert header(tmp_path / "a.png") == ((4, 6), 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("random") / "a"


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@settings(SETTINGS, max_examples=80)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=8)), min_size=1, max_size=3))
def test_mutated_bytes_give_an_image_or_a_sentence(place, suffix, changes):
    path = place.with_suffix(f".{suffix}")
    Image.fromarray(NOISE[:9, :14]).save(path)
    data = path.read_bytes()
    for share, length, piece in changes:
        start = int(share**2 * len(data))  # more often in the header
        data = data[:start] + piece + data[start + length :]
    path.write_bytes(data)
    report = ValidationReport()
    if read_header(path, report):
        try:
            img = read_image(path)
        except DataError as error:
            report.error("image", error)
        else:
            assert (img.shape[2], img.dtype) == (3, np.uint8)
            return
    (offender,) = report.errors["image"]
    assert offender.startswith(str(path))
