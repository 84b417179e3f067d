"""The VOC reader on folders that the tests write: numbers, variants of the files, and a sentence for each fault."""

from pathlib import Path
from types import SimpleNamespace

import defusedxml.ElementTree
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, ExifTags, Image, ImageFile
from voc_files import ODD, RGB, message, read, thing, write_odd, write_voc

from data import build
from data.validate import KINDS, DataError, ValidationReport, check_objects
from data.voc_dataset import VOC_CLASSES, find_splits, read_annotation, read_header, read_ids, read_image, read_splits

HARD = "<difficult>1</difficult>"
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


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".JPG", ".Jpg"])
def test_suffixes(tmp_path, suffix):
    write_voc(tmp_path, {"a": [thing()], "b.2": [thing()]}, suffix=suffix)
    assert [sample.img.shape for sample in map(read(tmp_path).__getitem__, range(2))] == [(40, 60, 3)] * 2


def test_of_two_files_the_first_suffix_wins(tmp_path):
    for suffix in (".png", ".jpg", ".JPEG"):
        write_voc(tmp_path, {"a": [thing()]}, suffix=suffix)
    assert read(tmp_path).paths == [tmp_path / "JPEGImages/a.jpg"]


def test_each_annotation_is_parsed_once(tmp_path, monkeypatch):
    write_voc(tmp_path, {"a": [thing()], "b": [thing("dog")], "unused": [thing("cow")]}, "all")
    for split, ids in (("train", "a\nb\n"), ("val", "b\n")):
        (tmp_path / f"ImageSets/Main/{split}.txt").write_text(ids)
    parsed, parse = [], defusedxml.ElementTree.parse
    monkeypatch.setattr(defusedxml.ElementTree, "parse", lambda path: parsed.append(path.stem) or parse(path))
    options = SimpleNamespace(voc_data_dir=str(tmp_path))
    train, val, again = build("voc", options, ["train", "val", "val"])
    assert sorted(parsed) == ["a", "b"]
    assert (train.ids, val.ids, again.ids) == (["a", "b"], ["b"], ["b"])
    assert train.classes == val.classes == VOC_CLASSES
    assert [d.split for d in build("voc", options, [])] == ["train", "val"]


@pytest.mark.parametrize(
    ("names", "classes"), [("dog cat", VOC_CLASSES), ("dog zebra", ("dog", "zebra")), ("Bäume 猫", ("Bäume", "猫"))]
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
    assert dataset.notes == ["skipped boxes (3): they have no area or lie outside their image"]
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
    assert [note.split(":")[0] for note in dataset.notes] == ["clipped boxes that start at 0 (1)", "clipped boxes (1)"]


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
            *("no_annotation", "annotation", "no_image", "image", "swapped_size", "size"),
            *("class", "no_area", "outside", "far_outside"),
        )
    }
    text = "\n".join(lines).replace(f"{tmp_path}/", "")
    for part in (
        "missing images (2)",
        "\n  JPEGImages/no jpg.jpg\n  JPEGImages/no jpg 2.jpg\n",
        "\n  Annotations/no xml.xml\n",
        "Annotations/bad.xml: mismatched tag",
        "JPEGImages/cut.jpg is not a readable image: ",
        "Annotations/wide.xml: <size> is 30x20, JPEGImages/wide.jpg has 60x40 pixels",
        "Annotations/high.xml: <size> is 40x60, JPEGImages/high.jpg has 60x40 pixels",
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
        "no_image": {f"{tmp_path}/JPEGImages/b.jpg": None},
    }
    assert [dataset.ids for dataset in datasets] == [["a"], [], []]


@pytest.mark.parametrize("text", ["", " \n\n", "\ufeff\r\n"])
def test_empty_split(tmp_path, text):
    write_voc(tmp_path, {})
    (tmp_path / "ImageSets/Main/trainval.txt").write_text(text, encoding="utf-8")
    assert message(read, tmp_path).endswith("trainval.txt contains no image id; splits in this folder: trainval")


def test_ids_and_the_second_column_of_a_split(tmp_path):
    folder = tmp_path / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    (folder / "cat_train.txt").write_bytes("\ufeffIMG 12 (1)\r\n000007 -1\r\n\r\n  000009  1 \r\n".encode())
    assert read_ids(tmp_path, "cat_train", ValidationReport()) == ["IMG 12 (1)", "000007", "000009"]
    (folder / "bad.txt").write_text("a\n\n../b\nb\na\nJPEGImages\\b.jpg\nb\n/etc/x\na\n")
    report, path = ValidationReport(), folder / "bad.txt"
    assert read_ids(tmp_path, "bad", report) == ["a", "b"]
    assert report.errors == {
        "path": dict.fromkeys(
            [f"{path} line 3: '../b'", f"{path} line 6: 'JPEGImages\\\\b.jpg'", f"{path} line 8: '/etc/x'"]
        ),
        "duplicate_id": dict.fromkeys(
            [f"{path} lines 1 and 5: a", f"{path} lines 4 and 7: b", f"{path} lines 1 and 9: a"]
        ),
    }


def test_a_split_in_another_encoding(tmp_path):
    path = write_voc(tmp_path, {"a": [thing()]}) / "ImageSets/Main/trainval.txt"
    path.write_bytes("a\r\n".encode("utf-16"))
    assert message(read, tmp_path) == f"{path} is not UTF-8 text: save it as UTF-8"


@pytest.mark.parametrize("odd", ["b" * 300, "..", "a\0b"])
def test_ids_that_no_file_can_have(tmp_path, odd):
    write_voc(tmp_path, {"a": [thing()]})
    (tmp_path / "ImageSets/Main/trainval.txt").write_text(f"a\n{odd}\n")
    assert f"JPEGImages/{odd}.jpg" in message(read, tmp_path)


def test_an_image_that_breaks_later_is_named(tmp_path):
    """Only decoding can tell; in a worker's traceback as well."""
    write_voc(tmp_path, {"a": [thing()]}, img=Image.fromarray(NOISE))
    path = tmp_path / "JPEGImages/a.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    dataset = read(tmp_path)
    text = message(dataset.__getitem__, 0)
    assert text.startswith(f"{path} is not a readable image: image file is truncated")
    assert message(list, torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1)) == text


# Folders


def test_root_is_a_folder_in_the_layout(tmp_path, monkeypatch):
    text = message(read_splits, tmp_path)
    for word in (str(tmp_path), "--voc-data-dir", "--download", "--data=shapes"):
        assert word in text
    assert "\n" not in text
    write_voc(tmp_path / "mine", {"a": [thing()]})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("~/mine").root == tmp_path / "mine"
    (tmp_path / "mine/JPEGImages/a.jpg").unlink()
    (tmp_path / "mine/JPEGImages").rmdir()
    assert "(no JPEGImages): " in message(read, tmp_path / "mine")


@pytest.mark.parametrize("wrong", [".", "devkit", "devkit/VOC2007/JPEGImages", "devkit/VOC2007/ImageSets/Main"])
def test_a_level_too_high_or_too_low(tmp_path, wrong):
    right = write_voc(tmp_path / "devkit/VOC2007", {"a": [thing()]})
    text = message(read_splits, tmp_path / wrong)
    assert text.startswith(f"{tmp_path / wrong} contains no data set in the VOC layout (no ImageSets/Main")
    assert text.endswith(f", but found {right}: pass --voc-data-dir={right}")


def test_splits_are_the_usual_ones_or_all(tmp_path):
    for split in ("val", "cat_train", "train"):
        write_voc(tmp_path, {"a": [thing()]}, split)
    assert find_splits(tmp_path) == ["train", "val"]
    for split in ("val", "train"):
        (tmp_path / f"ImageSets/Main/{split}.txt").unlink()
    assert find_splits(tmp_path) == ["cat_train"]
    (tmp_path / "ImageSets/Main/cat_train.txt").unlink()
    assert "train.txt does not exist; splits in this folder: none" in message(read_splits, tmp_path)


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


# One annotation


def parse(tmp_path, *objects, size=""):
    """The annotation with the XML of some objects; nothing is wrong with it."""
    (tmp_path / "a.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>", encoding="utf-8")
    report = ValidationReport()
    annotation = read_annotation(tmp_path / "a.xml", report)
    assert not report.errors
    return annotation


def fault(reader, path, kind):
    """What is said of a file that cannot be read."""
    report = ValidationReport()
    assert reader(path, report) is None
    (offender,) = report.errors.pop(kind)
    assert not report.errors
    return offender


def test_coordinates_may_be_fractions(tmp_path):
    annotation = parse(tmp_path, thing(numbers=(1.5, "2.25", " 30.125 ", "4.75e1")))
    np.testing.assert_array_equal(annotation.bbox, [[0.5, 1.25, 29.125, 46.5]])


def test_what_is_optional_may_be_missing(tmp_path):
    annotation = parse(
        tmp_path,
        thing(extra=""),
        thing(extra="<difficult/>"),
        thing(extra="<difficult>1</difficult>"),
        thing(extra="<pose>Left</pose><truncated>1</truncated>"),
    )
    assert annotation.difficult.tolist() == [False, False, True, False]
    assert annotation.size is None


def test_parts_of_an_object_are_no_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    annotation = parse(tmp_path, thing(" cat\n", extra=part))
    assert annotation.names.tolist() == ["cat"]
    np.testing.assert_array_equal(annotation.bbox, [[10, 6, 30, 57]])


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("<width>60</width><height>40</height>", (40, 60)),
        ("<width>0</width><height>0</height>", None),
        ("<width>60</width>", None),
        ("", None),
        ("<width/><height>40</height>", None),
    ],
)
def test_size(tmp_path, size, expected):
    assert parse(tmp_path, size=f"<size>{size}</size>").size == expected


def test_names_need_not_be_ascii(tmp_path):
    assert parse(tmp_path, thing("Bäume & 猫".replace("&", "&amp;"))).names.tolist() == ["Bäume & 猫"]
    text = f'<?xml version="1.0" encoding="latin-1"?><annotation>{thing("Bäume")}</annotation>'
    (tmp_path / "a.xml").write_bytes(text.encode("latin-1"))
    assert read_annotation(tmp_path / "a.xml", ValidationReport()).names.tolist() == ["Bäume"]
    (tmp_path / "a.xml").write_bytes(f"\ufeff<annotation>{thing('Bäume')}</annotation>\r\n".encode())
    assert read_annotation(tmp_path / "a.xml", ValidationReport()).names.tolist() == ["Bäume"]


@pytest.mark.parametrize(
    ("content", "where", "reason"),
    [
        ("", "", "no element found"),
        ("<annotation>", "", "no element found"),
        ("no xml", "", "syntax error"),
        ("<html></html>", "", "the root element is <html>, not <annotation>"),
        (
            f"<annotation>{thing()}{thing().replace('<name>cat</name>', '')}</annotation>",
            " object 2",
            "name is missing or empty",
        ),
        (
            f"<annotation>{thing()}{thing().replace('cat', ' ')}{thing()}</annotation>",
            " object 2",
            "name is missing or empty",
        ),
        (
            f"<annotation>{thing()}{thing().replace('<xmax>58</xmax>', '')}</annotation>",
            " object 2",
            "bndbox/xmax is missing or empty",
        ),
        (
            f"<annotation>{thing()}{thing(numbers=(1, 2, 'three', 4))}</annotation>",
            " object 2",
            "could not convert string to float: 'three'",
        ),
        (
            f"<annotation>{thing()}{thing(extra='<difficult>maybe</difficult>')}</annotation>",
            " object 2",
            "could not convert string to float: 'maybe'",
        ),
        (
            f"<annotation>{thing()}<object><name>cat</name></object></annotation>",
            " object 2",
            "bndbox/ymin is missing or empty",
        ),
        ("<annotation><size><width>wide</width></size></annotation>", "", "could not convert string to float: 'wide'"),
        ("<annotation><size><height>nan</height></size></annotation>", "", "cannot convert float NaN to integer"),
        ('<?xml version="1.0" encoding="klingon"?><annotation/>', "", "unknown encoding"),
    ],
    ids=[
        "empty",
        "cut",
        "text",
        "html",
        "no name",
        "blank name",
        "no xmax",
        "word",
        "maybe",
        "no bndbox",
        "wide",
        "nan",
        "encoding",
    ],
)
def test_malformed(tmp_path, content, where, reason):
    (tmp_path / "a.xml").write_text(content)
    text = fault(read_annotation, tmp_path / "a.xml", "annotation")
    assert text.startswith(f"{tmp_path / 'a.xml'}{where}: ")
    assert reason in text
    for word in ("NoneType", "argument"):
        assert word not in text


def test_every_object_at_fault_is_named(tmp_path):
    objects = thing(numbers=(1, 2, "a", 4)), thing(), thing(" "), thing(numbers=(1, "5,5", 3, 4))
    (tmp_path / "a.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    report = ValidationReport()
    assert read_annotation(tmp_path / "a.xml", report) is None
    assert list(report.errors["annotation"]) == [
        f"{tmp_path}/a.xml object 1: could not convert string to float: 'a'",
        f"{tmp_path}/a.xml object 3: name is missing or empty",
        f"{tmp_path}/a.xml object 4: could not convert string to float: '5,5'",
    ]


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / "a.xml").mkdir()
    assert "Is a directory" in fault(read_annotation, tmp_path / "a.xml", "annotation")


BOMB = (
    '<!DOCTYPE x [<!ENTITY a "cat">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True))
    + "]>"
)


@pytest.mark.parametrize(
    "head",
    [BOMB, '<!DOCTYPE x [<!ENTITY j SYSTEM "file:///etc/hostname">]>', '<!DOCTYPE x [<!ENTITY j "cat">]>'],
    ids=["a thousand million cats", "file", "one cat"],
)
def test_entities_are_refused(tmp_path, head):
    (tmp_path / "a.xml").write_text(f"{head}<annotation>{thing('&j;')}</annotation>")
    assert "it declares XML entities" in fault(read_annotation, tmp_path / "a.xml", "annotation")


# Random damage

WHOLE = (
    f"<annotation><folder>f</folder><size><width>60</width><height>40</height></size>"
    f"{thing()}{thing('dog', (1.5, 2, 30, '4.75e1'), '<difficult>1</difficult>')}</annotation>"
).encode()
PIECES = (
    b"<",
    b">",
    b"</",
    b"&",
    b"&lt;",
    b"&#0;",
    b"&#x41;",
    b"<!--",
    b"-->",
    b"<![CDATA[",
    b"]]>",
    b"<?",
    b"\0",
    b"\xff\xfe",
    b"\xc3",
    b"nan",
    b"-inf",
    b"1e999",
    b"9" * 400,
    b"9" * 5000,
    b"",
    b"-",
    b"<object>",
    b"</object>",
    b"<name/>",
    b"<!DOCTYPE a [",
    b"<a xmlns='b'>",
    b"<size>",
    b"\xc2\xb2",
)
CHANGES = st.lists(
    st.tuples(
        st.integers(0, len(WHOLE)), st.integers(0, 30), st.one_of(st.sampled_from(PIECES), st.binary(max_size=6))
    ),
    min_size=1,
    max_size=4,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("random") / "a.xml"


@settings(SETTINGS, max_examples=250)
@given(CHANGES)
@example([(WHOLE.index(b"60"), 2, b"9" * 400)])
@example([(WHOLE.index(b"60"), 2, b"inf")])
@example([(WHOLE.index(b"58"), 2, b"9" * 5000)])
@example([(WHOLE.index(b"<difficult>1") + 11, 1, b"9" * 5000)])
def test_mutated_bytes_give_an_annotation_or_a_sentence(place, changes):
    data = WHOLE
    for start, length, piece in changes:
        data = data[:start] + piece + data[start + length :]
    place.write_bytes(data)
    check_answer(place)


@settings(SETTINGS, max_examples=250)
@given(
    st.dictionaries(
        st.sampled_from(("ymin", "xmin", "ymax", "xmax", "name", "difficult", "width", "height")),
        st.text(st.characters(codec="utf-8", exclude_characters="<&"), max_size=8)
        | st.floats().map(str)
        | st.integers().map(str),
        min_size=1,
    )
)
def test_any_text_in_any_field_gives_an_annotation_or_a_sentence(place, texts):
    data = WHOLE.decode()
    for key, text in texts.items():
        data = data.replace(f"<{key}>", f"<{key}>{text}", 1)
    place.write_text(data, encoding="utf-8")
    check_answer(place)


def check_answer(path):
    """An annotation is whole, or there is a sentence for the file or for each object, which names the file."""
    report = ValidationReport()
    annotation = read_annotation(path, report)
    if annotation is None:
        (offenders,) = report.errors.values()
        assert all(offender.startswith(str(path)) for offender in offenders)
        return
    assert report.errors == {}
    n = len(annotation.names)
    assert (annotation.bbox.shape, annotation.bbox.dtype) == ((n, 4), np.float32)
    assert (annotation.difficult.shape, annotation.difficult.dtype) == ((n,), bool)
    assert all(isinstance(name, str) and name == name.strip() != "" for name in annotation.names)
    assert annotation.size is None or all(type(side) is int and side != 0 for side in annotation.size)


def test_deep_nesting_is_no_hang(tmp_path):
    (tmp_path / "a.xml").write_text("<annotation>" + "<object>" * 100_000)
    assert "no element found" in fault(read_annotation, tmp_path / "a.xml", "annotation")
    (tmp_path / "a.xml").write_text("<annotation>" + "<part>" * 20_000 + "</part>" * 20_000 + "</annotation>")
    assert read_annotation(tmp_path / "a.xml", ValidationReport()).names.tolist() == []


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


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_is_reported_and_not_applied(tmp_path, monkeypatch):
    exif = Image.Exif()
    for orientation, expected in ((6, 6), (9, 0)):  # EXIF has 1 to 8
        exif[ExifTags.Base.Orientation] = orientation
        Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=exif)
        assert read_image(tmp_path / "a.jpg").shape == (40, 60, 3)
        assert header(tmp_path / "a.jpg") == ((40, 60), expected)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data.replace(b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    assert header(tmp_path / "b.jpg") == ((40, 60), 0)
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


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: b"", "the file is empty"),
        (lambda data: b"no image", "cannot identify image file"),
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
        assert text == f"{tmp_path / 'a.png'} is not a readable image: cannot identify image file"
    assert not ran


@pytest.mark.parametrize("kind", ["BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_other_formats_of_pixels_are_read(tmp_path, kind):
    Image.new("RGB", (6, 4), (200, 200, 200)).save(tmp_path / "a.png", kind)
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), np.full((4, 6, 3), 200), atol=2)
    assert header(tmp_path / "a.png") == ((4, 6), 0)


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
