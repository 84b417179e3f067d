"""Where annotations, images and splits are found: layouts that people have, in small."""

import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from voc_files import message, read, thing, write_voc

from data import build
from data.drawn_splits import ids_below
from data.validate import IMAGE_SUFFIXES, KINDS, ValidationReport
from data.voc_dataset import read_splits
from data.voc_layout import Layout

IMG = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
A = "apple"


def write(root, files):
    """Write files: path below `root` -> text, XML of objects for .xml; for images whatever."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix.lower() == ".xml":
            path.write_text(f"<annotation>{content}</annotation>", encoding="utf-8")
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            IMG.save(path, "JPEG" if path.suffix.lower() == ".jfif" else None)
        else:
            path.write_text(content.replace("{root}", root.name), encoding="utf-8")
    return root


def pairs(ids, xml="Annotations/{}.xml", image="JPEGImages/{}.jpg"):
    """Files of these ids, with an apple in each."""
    return {form.format(image_id): thing(A) for image_id in ids for form in (xml, image)}


def lists(folder="ImageSets/Main/", **texts):
    return {f"{folder}{name}.txt": text for name, text in texts.items()}


ABCD = "abcd"
USUAL = lists(train="a\nb\n", val="c\nd\n")
TWO = {"train": ["a", "b"], "val": ["c", "d"]}
DRAWN = {"train": ["a", "b", "d"], "val": ["c"]}
LAYOUTS = {  # files, ids of the splits train and val
    "blank and digit": (
        pairs(["img", "img 1", "img 0", "x", "y"]) | lists(train="img 1\nx\nimg\n", val="y  1\nimg  1\nimg 0\n"),
        {"train": ["img 1", "x", "img"], "val": ["y", "img", "img 0"]},
    ),
    "class-wise": (pairs(ABCD) | lists(train="a  1\nb -1\n", val="c  0\nd  1\n", apple_train="c  1\n"), TWO),
    "VoTT": (
        pairs(ABCD)
        | lists(
            a_train="a.jpg 1\nb.jpg -1\n",
            a_val="c.jpg 1\nd.jpg 0\n",
            b_train="b.jpg 1\na.jpg -1\n",
            b_val="# by a tool\nd.jpg 1\n",
        ),
        TWO,
    ),
    "suffixes": (pairs(ABCD) | lists(train="a.jpg\nb.JPG\n", val="c.xml\nd\n"), TWO),
    "suffixes in names": (pairs(ABCD, "Annotations/{}.jpg.xml") | lists(train="a\nb.jpg\n", val="c\nd\n"), TWO),
    "folders in ids": (
        pairs(["cam1/a", "cam2/a", "c"]) | lists(train="cam1/a\ncam2\\a.jpg\n", val="./c\n"),
        {"train": ["cam1/a", "cam2/a"], "val": ["c"]},
    ),
    "paths in lists": (
        pairs(ABCD) | lists(train="JPEGImages/a.jpg\nb\n", val="Annotations/c.xml\nimages/d.png\n"),
        TWO,
    ),
    "images in folders": (pairs(["a", "b"], image="JPEGImages/cam1/{}.jpg") | pairs(["c", "d"]) | USUAL, TWO),
    "the image beside": (
        pairs(["cam1/a", "b", "c", "d"]) | USUAL | {"JPEGImages/cam9/a.jpg": ""},  # which is not annotated
        TWO,
    ),
    "copies below": (
        pairs(ABCD)
        | USUAL
        | {"Annotations/old/a.xml": "", "JPEGImages/small/a.jpg": "", "old/a.xml": "", "old/a.jpg": ""},
        TWO,
    ),
    "comments": (
        pairs(["a", "b", "c", "#d"]) | lists(train="# by a tool\n#a\na\nb\n", val="c\n#d\n"),
        {"train": ["a", "b"], "val": ["c", "#d"]},
    ),
    "no Main": (pairs(ABCD) | lists("ImageSets/", train="a\nb", val="c\nd"), TWO),
    "lists in the root": (pairs(ABCD) | lists("", train="a\nb", val="c\nd", notes="x"), TWO),
    "lists in several places": (
        pairs(ABCD) | USUAL | lists("", train="d", val="a") | lists("ImageSets/", train="c", val="b"),
        TWO,
    ),
    "lower case": (
        pairs(ABCD, "annotations/{}.xml", "images/{}.png") | lists("imagesets/main/", train="a\nb", val="c\nd"),
        TWO,
    ),
    "valid": (pairs(ABCD) | lists(train="a\nb", valid="c\nd"), TWO),
    "in quotes": (pairs(ABCD) | lists(train="\"a.jpg\"\n'b'\n", val='"c"  1\n"JPEGImages/d.jpg"'), TWO),
    "no lists": (pairs(ABCD), DRAWN),
    "CVAT": (pairs(ABCD + "e") | lists(default="d\nb\nc\na\n"), DRAWN),
    "Datumaro": (pairs(ABCD) | lists(default="a\nb\nc\nd\n", apple_default="a  1\nb -1\n", default_pear="c\n"), DRAWN),
    "empty ImageSets": (pairs(ABCD) | {"ImageSets/Main/.keep": ""}, DRAWN),
    "kangaroo": (pairs(ABCD, "annots/{}.xml", "images/{}.jpg"), DRAWN),
    "pets": (pairs(ABCD, "annotations/xmls/{}.xml", "images/{}.jpg") | {"annotations/trimaps/a.png": ""}, DRAWN),
    "labelImg": (pairs(ABCD, "{}.xml", "{}.jpg") | {"classes.txt": "apple", "new.jpg": ""}, DRAWN),
    "some beside": (
        pairs("abc", "annotations/{}.xml", "images/{}.jpg") | pairs("d", "images/{}.xml", "more/{}.jpg"),
        DRAWN,
    ),
    "words": (pairs(ABCD) | {"contest.txt": "", "trains/x.jpg": "", "photos/train_1.jpg": "", "valley.csv": ""}, DRAWN),
    "two cameras": (
        pairs(ABCD, image="rgb/train/{}.jpg")
        | pairs(ABCD, image="ir/train/{}.png")
        | lists(train="rgb/a\nir/b.png\n", val="rgb/train/c\nir/d"),
        {"train": ["rgb/a", "ir/b"], "val": ["rgb/train/c", "ir/d"]},
    ),
    "DIOR": (
        pairs("ab", "Annotations/Horizontal Bounding Boxes/{}.xml", "JPEGImages-trainval/{}.jpg")
        | pairs("cd", "Annotations/Horizontal Bounding Boxes/{}.xml", "JPEGImages-test/{}.jpg")
        | {f"Annotations/Oriented Bounding Boxes/{i}.xml": "" for i in ABCD}
        | lists(train="Horizontal Bounding Boxes/a\nHorizontal Bounding Boxes/b", val="Horizontal Bounding Boxes/c")
        | lists(test="Horizontal Bounding Boxes/d"),
        {"train": [f"Horizontal Bounding Boxes/{i}" for i in "ab"], "val": ["Horizontal Bounding Boxes/c"]},
    ),
    "in a folder": (pairs(ABCD, "photos/{}.xml", "photos/{}.tif"), DRAWN),
    "hidden files": (pairs(ABCD) | {"JPEGImages/._a.jpg": "", "Annotations/._a.xml": "", ".git/x.xml": ""}, DRAWN),
    "Roboflow": (pairs(["train/a", "train/b", "valid/c", "valid/d", "test/e"], "{}.xml", "{}.jpg"), TWO),
    "the same names": (
        pairs(["train/a", "train/b", "val/a"], "{}.xml", "{}.jpg"),
        {"train": ["train/a", "b"], "val": ["val/a"]},
    ),
    "splits in splits": (
        pairs(["train/x/val/a", "train/b", "val/train/c"], "{}.xml", "{}.jpg"),
        {"train": ["b", "a"], "val": ["c"]},
    ),
    "folders of a split": (
        pairs("ab", "Annotations_train/{}.xml", "JPEGImages-train/{}.jpg")
        | pairs("cd", "val_annots/{}.xml", "val images/{}.jpg"),
        TWO,
    ),
    "labels beside annotations": (
        pairs(["train_1", "train_2", "c"]) | {"labels/train_1.txt": "0", "JPEGImages/train_2.json": "{}"},
        {"train": ["c", "train_1"], "val": ["train_2"]},
    ),
    "photographs to try": (pairs(ABCD) | {"test/x.jpg": "", "images-test/y.jpg": "", "testing/look.py": ""}, DRAWN),
    "runs of programs": (
        pairs(ABCD) | {"runs/a/train.txt": "a", "runs/detect/train/args.yaml": "", "train/x.cfg": ""},
        DRAWN,
    ),
    "one format of annotations": (
        pairs(ABCD, "Annotations/HBB/{}.xml", "JPEGImages/day/{}.jpg") | lists(train="day/a\nb", val="c\nHBB/d"),
        {"train": ["day/a", "b"], "val": ["c", "d"]},
    ),
    "two folders": (pairs(ABCD, "notes/{}.xml", "photos/{}.jpg"), DRAWN),
    "annotators and cameras": (
        pairs("ab", "annotations/anna/{}.xml", "images/cam1/{}.jpg")
        | pairs("cd", "annotations/ben/{}.xml", "images/cam2/{}.jpg")
        | lists("", train="a\nimages/cam1/b.jpg", val="ben/c\nd"),
        {"train": ["a", "cam1/b"], "val": ["ben/c", "d"]},
    ),
    "splits above": (
        {f"{split}/images/{i}.jpg": "" for split in ("Train", "Val") for i in "ab"}
        | {f"{split}/annotations/{i}.xml": thing(A) for split in ("Train", "Val") for i in "ab"},
        {"train": ["Train/a", "Train/b"], "val": ["Val/a", "Val/b"]},
    ),
    "a second tree": (
        pairs("ab", "xml/{}.xml", "images/train/{}.jpg")
        | pairs("ab", "more/xml/{}.xml", "more/img/{}.jpg")
        | pairs("cd", "xml/{}.xml", "images/val/{}.jpg")
        | lists("ImageSets/", train="a\nb", val="c\nd"),
        TWO,
    ),
    "a copy": (pairs(ABCD) | pairs("ab", "old/{}.xml", "old/{}.jpg"), DRAWN),
    "copies of annotations in folders of splits": (
        {f"Annotations/{i}.xml": thing(A) for i in ABCD}
        | pairs("ab", "Annotations_train/{}.xml", "JPEGImages/train/{}.jpg")
        | pairs("cd", "Annotations_val/{}.xml", "JPEGImages/val/{}.jpg"),
        {"train": ["train/a", "train/b"], "val": ["val/c", "val/d"]},
    ),
    "copies in folders of splits": (
        pairs(ABCD, "annotations/{}.xml", "images/{}.bmp")
        | pairs(["train/a", "train/b", "val/c", "val/d"], "{}.xml", "{}.jpg"),
        {"train": ["train/a", "train/b"], "val": ["val/c", "val/d"]},
    ),
    "splits below": (
        pairs(["train/a", "val/a", "val/b"], "annotations/{}.xml", "images/{}.bmp"),
        {"train": ["train/a"], "val": ["val/a", "b"]},
    ),
    "lists win over folders": (
        pairs(["train/a", "val/b"], "{}.xml", "{}.jpg") | lists("", train="b", val="a"),
        {"train": ["b"], "val": ["a"]},
    ),
    "image and annotation": (
        pairs(ABCD)
        | lists(train="JPEGImages/a.jpg Annotations/a.xml\nb.jpg\tb.xml\n", val="c.jpg  c.xml\nd.jpg d.xml\n"),
        TWO,
    ),
    "accents": (
        pairs(["e\u0301", "b"]) | pairs(["o\u0308"], image="JPEGImages/ö.jpg") | lists(train="é\nb", val="ö"),
        {"train": ["é", "b"], "val": ["ö"]},
    ),
    "lists with the folder of the data": (
        pairs(ABCD)
        | lists(
            train="#{root}/d\n# x/{root}/d.jpg\n{root}/JPEGImages/a.jpg\ndata\\{root}\\b.jpg", val="x/{root}/c.jpg 1\nd"
        ),
        TWO,
    ),
    "no suffix": (
        {f"Annotation/x-cat/{i}": f"<annotation>{thing(A)}</annotation>" for i in ABCD}
        | {f"Images/x-cat/{i}.jpg": "" for i in ABCD}
        | {"Images/README": ""},
        DRAWN,
    ),
    "one annotation apart": (pairs(["b", "c", "d"], "JPEGImages/{}.xml") | pairs("a") | USUAL, TWO),
    "QGIS": (pairs(ABCD, "labels/{}.xml", "images/{}.tif") | {"images/a.tif.aux.xml": "", "x.AUX.XML": ""}, DRAWN),
    "a logo": (pairs(ABCD, "{}.xml", "{}.jpg") | {"images/logo.png": "", "images/a.png.txt": ""}, DRAWN),
    "other files": (
        pairs(ABCD) | USUAL | {"JPEGImages/a.heic": "", "JPEGImages/Thumbs.db": "", "JPEGImages/b.heic": ""},
        TWO,
    ),
    "masks": (pairs(ABCD) | USUAL | {"SegmentationClass/a.png": "", "SegmentationObject/a.png": ""}, TWO),
    **{
        suffix: (pairs(ABCD, image="JPEGImages/{}" + suffix) | USUAL, TWO)
        for suffix in (*IMAGE_SUFFIXES, ".JPG", ".Jpg", ".WebP")
    },
}


@pytest.mark.parametrize(("files", "ids"), LAYOUTS.values(), ids=LAYOUTS)
def test_layouts(tmp_path, files, ids):
    write(tmp_path, files)
    before = sorted(tmp_path.rglob("*"))
    options = SimpleNamespace(voc_data_dir=str(tmp_path), val_ratio=0.2)
    datasets = build("voc", options, ["train", "val"])
    assert {dataset.split: dataset.ids for dataset in datasets} == ids
    for dataset in datasets:
        assert [sample.img.shape for sample in (dataset[i] for i in range(len(dataset)))] == [(40, 60, 3)] * len(
            dataset
        )
        names = [unicodedata.normalize("NFC", path.name.split(".")[0]) for path in dataset.paths]
        assert names == [i.split("/")[-1] for i in dataset.ids]
        assert not any({"cam9", "old", "small"} & {*path.parts} for path in dataset.paths)
        assert [label.tolist() for label in dataset.labels] == [[0]] * len(dataset)
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written there
    found = build("voc", options, [])
    assert [dataset.split for dataset in found][:2] == ["train", "val"]
    assert found[0].ids == ids["train"]


def test_the_class_wise_list_itself_can_be_read(tmp_path):
    write(tmp_path, LAYOUTS["class-wise"][0] | lists(apple_val="a\nb\n"))
    assert read(tmp_path, "apple_train").ids == ["c"]
    assert read(tmp_path, "apple_val").ids == ["a", "b"]


@pytest.mark.parametrize(
    "files",
    [
        pairs(ABCD) | lists(Train="a", Validation="b"),
        pairs(ABCD) | lists(training="a", VALID="b"),
        pairs(ABCD) | lists(cat_Train="a 1", cat_Val="b 1"),
        pairs(["training/a", "Validation/b"], "{}.xml", "{}.jpg"),
        {"annotations/a.xml": "", "annotations/b.xml": "", "images/train/a.jpg": "", "images/val/b.jpg": ""},
    ],
    ids=["CVAT", "other words", "per class", "folders", "folders of images"],
)
def test_other_names_of_splits(tmp_path, files):
    datasets = read_splits(write(tmp_path, files), [])
    assert {dataset.split: dataset.ids for dataset in datasets} == {"train": ["a"], "val": ["b"]}
    assert [dataset.ids for dataset in read_splits(tmp_path, ["Train", "VAL"])] == [["a"], ["b"]]


def test_the_list_of_all_images_can_be_asked_for(tmp_path):
    write(tmp_path, pairs("abc") | lists(default="b\na", cat_default="a  1\nb -1"))
    assert read(tmp_path, "default", val_ratio=0.2).ids == ["b", "a"]


def test_lists_without_a_column_are_not_united(tmp_path):
    write(tmp_path, pairs(ABCD) | lists(old_train="a\nb\n", new_train="c 1\nd 1\n", best="a"))
    assert read(tmp_path, "train").ids == ["c", "d"]
    (tmp_path / "ImageSets/Main/new_train.txt").write_text("c\nd 1\n")
    text = message(read, tmp_path, "train")
    assert text.endswith("train.txt does not exist; splits in this folder: best, new_train, old_train")


def test_a_split_is_drawn_by_seed_and_ratio_and_can_be_given_back(tmp_path):
    write(tmp_path, pairs(map(str, range(10, 40))))
    drawn = {}
    for seed, ratio in ((0, 0.2), (0, 0.2), (1, 0.2), (0, 0.5)):
        train, val = read_splits(tmp_path, ["train", "val"], seed=seed, val_ratio=ratio)
        assert sorted(train.ids + val.ids) == [str(i) for i in range(10, 40)]
        assert len(val) == ratio * 30
        assert train.notes == [
            f"splits drawn at random: train {len(train)} of 30 images in {tmp_path.name}; "
            f"val {len(val)} of 30 images in {tmp_path.name} ({KINDS['drawn'][1]})"
        ]
        assert drawn.setdefault((seed, ratio), (train.ids, val.ids)) == (train.ids, val.ids)
    assert len(set(map(str, drawn.values()))) == 3
    first, _ = drawn[0, 0.2]
    assert read_splits(tmp_path, ["train"], val_ratio=0.2)[0].ids == first  # tools.fit_anchors
    words = (
        "rest.txt does not exist, and none is drawn for it with --val-ratio=0.2 of 30 images; splits in this folder: "
    )
    assert words in message(read, tmp_path, "rest", val_ratio=0.2)
    stored = {"fit": [*map(str, range(10, 24))], "rest": ["30", "31"]}  # 16 of the 30
    gone = {"fit": [f"f{i}" for i in range(16)], "rest": [*map(str, range(10, 25))]}
    assert "rest.txt does not" in message(read, tmp_path, "rest", val_ratio=0.2, split_ids=gone)
    assert len(read(tmp_path, "fit")) == 30  # eval.py on another folder
    text = message(read, tmp_path, "rest", split_ids=stored | {"rest": ["30", "gone"]})  # an image was deleted
    assert "missing images (1)" in text
    assert text.endswith("/gone")
    options = SimpleNamespace(voc_data_dir=tmp_path, split_ids=stored, val_ratio=0.2)
    rest, fit = build("voc", options, ["rest", "fit"])
    assert (rest.ids, fit.ids) == (stored["rest"], stored["fit"])
    new = f"images that the drawn splits lack: 14 of 30 in {tmp_path.name}, such as 24 ("
    where = f"in {tmp_path.name}"
    lost = read(tmp_path, "val", split_ids={"train": ["x"], "val": ["y"]}).notes
    assert f"splits of the training that are not used: {tmp_path} ({KINDS['lost'][1]})" in lost
    kept = f"splits of the training: rest 2 of 30 images {where}; fit 14 of 30 images {where} ("
    assert [note.startswith(text) for note, text in zip(rest.notes, (kept, new), strict=True)] == [True, True]
    text = message(build, "voc", options, ["other"])
    assert text.endswith(
        "other.txt does not exist, and none is drawn for it with --val-ratio=0.2 of 30 images; splits in "
        "this folder: none"
    )
    write(tmp_path, lists("", rest="20\n"))
    assert build("voc", options, ["rest"])[0].ids == ["20"]  # what the folder says goes first
    assert [d.ids for d in build("voc", options, ["rest", "fit"])] == [["20"], stored["fit"]]  # of each what is there
    options.split_ids = None  # a new run
    assert "fit.txt does not exist; splits in this folder: rest" in message(build, "voc", options, ["rest", "fit"])


@pytest.mark.parametrize(
    "splits",
    [("train", "val"), ("val", "train"), ("test", "trainval"), ("fit", "Test"), ("train", "rest"), ("x", "train")],
)
def test_names_say_which_part_of_a_drawn_split_is_held_out(tmp_path, splits):
    write(tmp_path, pairs(map(str, range(10, 40))))
    larger = {"train", "trainval", "fit"}
    drawn = {d.split: d.ids for d in read_splits(tmp_path, splits, val_ratio=0.2)}
    assert {split: len(ids) for split, ids in drawn.items()} == {s: 24 if s in larger else 6 for s in splits}
    for split in {*splits} & {"train", "trainval", "val", "test", "Test"}:  # tools that read one of them
        assert read(tmp_path, split, val_ratio=0.2).ids == drawn[split]


def test_other_names_of_a_split_that_was_drawn(tmp_path):
    write(tmp_path, pairs(map(str, range(10, 40))))
    drawn = {d.split: d.ids for d in read_splits(tmp_path, ["trainval", "test"], val_ratio=0.2)}
    for split, own in (("train", "trainval"), ("Training", "trainval"), ("val", "test"), ("valid", "test")):
        assert read(tmp_path, split, split_ids=drawn).ids == drawn[own]
    two = {"val": ["10"], "test": ["11"], "train": [*map(str, range(12, 40))]}
    assert len(read(tmp_path, "valid", split_ids=two)) == 30  # either
    assert len(read(tmp_path, "x", split_ids=drawn | {"y": ["10"]})) == 30


def test_others_of_the_drawn_names_came_above_their_folder():
    drawn = {"val": ["cam1/1", "cam1/2"]}
    assert ids_below(Path("x"), drawn, ["1", "2", "cam1/1", "cam1/2"]) == drawn


def test_a_split_of_a_list_has_no_other_name(tmp_path):
    write(tmp_path, pairs(ABCD) | USUAL)
    assert "test.txt does not exist; splits in this folder: train, val" in message(
        read, tmp_path, "test", split_ids=TWO
    )


def test_other_names_are_told_apart_by_position(tmp_path):
    write(tmp_path, pairs(map(str, range(10, 40))))
    for splits in (("x", "y"), ("y", "x"), ("val", "test"), ("test", "val")):
        assert [len(d) for d in read_splits(tmp_path, splits, val_ratio=0.2)] == [24, 6]


def test_one_split_named_twice_has_all_images(tmp_path):
    write(tmp_path, pairs(ABCD))
    for name in ("train", "val", "x"):
        assert [d.ids for d in read_splits(tmp_path, [name, name], val_ratio=0.2)] == [[*ABCD]] * 2


@pytest.mark.parametrize(("ratio", "empty"), [(0, "val"), (0.999, "train"), (1, "train")])
def test_a_part_without_images_names_the_option(tmp_path, ratio, empty):
    write(tmp_path, pairs(ABCD))
    text = message(read_splits, tmp_path, ["train", "val"], val_ratio=ratio)
    assert f"{empty}.txt does not exist, and none is drawn for it with --val-ratio={ratio:g} of 4 images" in text


def test_missing_images_can_be_left_out(tmp_path):
    write(tmp_path, pairs(ABCD) | lists(train="a\nb\nlost"))
    (tmp_path / "JPEGImages/b.jpg").unlink()
    dataset = read(tmp_path, "train", invalid_images="skip")
    assert dataset.ids == ["a"]
    missing = f"{tmp_path}/Annotations/b.xml: no image; {tmp_path}/lost: no image"
    assert dataset.notes[0] == f"skipped images: {missing} ({KINDS['skipped_image'][1]})"


def test_images_in_formats_that_are_not_read_are_named(tmp_path):
    write(tmp_path, pairs(ABCD) | {"JPEGImages/a.HEIC": "", "JPEGImages/b.heic": ""} | lists(train="a\nb\nc.avif"))
    (tmp_path / "JPEGImages/a.jpg").unlink()
    title, offender = message(read, tmp_path, "train").splitlines()
    assert title.startswith("missing images (1): add them (.jpg .jpeg ")
    assert offender == f"  {tmp_path}/Annotations/a.xml, only {tmp_path}/JPEGImages/a.HEIC"


def test_a_folder_of_another_name_is_named(tmp_path):
    write(tmp_path, {"labels/cam1/a.xml": thing(A), "images/cam2/a.jpg": "", "images/cam1/c.jpg": ""})
    write(tmp_path, pairs(["cam2/b"], "labels/{}.xml", "images/{}.jpg"))
    title, offender = message(read, tmp_path, "train").splitlines()
    assert "each named as its annotation, in folders of the same names" in title
    assert offender == f"  {tmp_path}/labels/cam1/a.xml, only {tmp_path}/images/cam2/a.jpg"


def test_copies_of_images_are_noted(tmp_path):
    write(tmp_path, pairs(["1", "2", "backup/1", "camera/1"], "{}.xml", "{}.bmp"))
    write(tmp_path, pairs(["copy/1"], "{}.xml", "{}.bmp"))
    for folder in ("camera", "copy"):  # of as many bytes
        IMG.transpose(Image.Transpose.ROTATE_180).save(tmp_path / folder / "1.bmp")
    notes = [note for note in read(tmp_path, "train").notes if note.startswith("copies")]
    copies = f"{tmp_path}/backup/1.bmp of {tmp_path}/1.bmp; {tmp_path}/copy/1.bmp of {tmp_path}/camera/1.bmp"
    assert notes == [f"copies of images: {copies} ({KINDS['copy'][1]})"]


@pytest.mark.parametrize(
    ("files", "split", "paths"),
    [
        (
            pairs("abc", "labels/{}.xml", "images/{}.png") | pairs("a", "test/labels/{}.xml", "test/images/{}.png"),
            "test",
            ["test/images/a.png"],
        ),
        (
            pairs(["train/a", "train/b", "val/c"], "{}.xml", "{}.png") | {f"images/{i}.png": "" for i in ABCD},
            "train",
            ["train/a.png", "train/b.png"],
        ),
        (pairs("ab", "labels/{}.xml", "images/{}.jpg") | {"labels/a.png": ""}, "all", ["images/a.jpg", "images/b.jpg"]),
        (
            pairs("ab", "Labels/train/{}.xml", "images/{}.jpg") | {"Labels/train/a.png": ""},
            "train",
            ["images/a.jpg", "images/b.jpg"],
        ),
        (
            pairs("ab", "labels/train/{}.xml", "images/{}.jpg") | {"train/a.jpg": "", "train/b.png": ""},
            "train",
            ["images/a.jpg", "images/b.jpg"],
        ),
        (
            pairs("ab", "labels/{}.xml", "images/{}.jpg") | pairs("a", "train/ann/{}.xml", "train/img/{}.jpg"),
            "train",
            ["train/img/a.jpg"],
        ),
        (
            pairs(ABCD) | pairs("ab", "annotations/cam/{}.xml", "images/cam/{}.png") | lists(train="cam/a"),
            "train",
            ["images/cam/a.png"],
        ),
        (pairs(["cam/a", "cam/b"]) | {"images/cam/a.png": ""}, "all", ["JPEGImages/cam/a.jpg", "JPEGImages/cam/b.jpg"]),
        (pairs("a", "xml_img/{}.xml", "images/train/{}.jpg") | {"xml_img/a.png": ""}, "train", ["images/train/a.jpg"]),
    ],
    ids=[
        "another part",
        "originals",
        "masks",
        "masks in folders",
        "thumbnails",
        "img and ann",
        "two trees",
        "one tree",
        "masks beside folders",
    ],
)
def test_the_image_of_the_annotations_folder_is_taken(tmp_path, files, split, paths):
    write(tmp_path, files)
    (dataset,) = build("voc", SimpleNamespace(voc_data_dir=tmp_path), [split])
    assert [path.relative_to(tmp_path).as_posix() for path in dataset.paths] == paths


def test_what_is_left_out_is_counted(tmp_path):
    write(tmp_path, LAYOUTS["labelImg"][0] | {"a.json": "", "b.json": "", "bare.jpg": ""})
    train, _ = read_splits(tmp_path, ["train", "val"], val_ratio=0.2)
    assert f"other files: 2 .json, 1 .txt ({KINDS['others'][1]})" in train.notes
    assert f"images without annotation: 2 ({KINDS['bare'][1]})" in train.notes
    assert "no split" not in "".join(read_splits(tmp_path, val_ratio=0.2)[0].notes)
    write(tmp_path, {f"{name}": "" for name in ("LICENSE", "README", *(f"part.{i}" for i in range(10, 20)))})
    note = next(note for note in read(tmp_path, "train").notes if note.startswith("other files"))
    assert note.startswith("other files: 2 without suffix, 2 .json, 1 .txt, 1 .10, ")
    assert "1 .16, more (" in note
    write(tmp_path / "three", LAYOUTS["no suffix"][0] | lists(train="a", val="b"))
    assert "other files: 1 without suffix (" in "".join(read(tmp_path / "three", "train").notes)
    notes = "".join(read_splits(tmp_path / "three")[0].notes)
    assert f"annotated images in no split: 2 ({KINDS['unlisted'][1]})" in notes
    write(tmp_path / "four", pairs(["cam1/a", "cam2/a", "cam2/b"]) | lists(train="cam1/a"))
    notes = "".join(read_splits(tmp_path / "four")[0].notes)
    assert "annotated images in no split: 2 (" in notes
    listed = build("voc", SimpleNamespace(voc_data_dir=tmp_path / "four", split_ids={"train": ["x"]}), ["train"])[0]
    assert "splits of the training" not in "".join(listed.notes)
    write(tmp_path / "five", pairs("a") | pairs(["train/a"], "{}.xml", "{}.jpg"))
    assert "annotated images in no split" not in "".join(read_splits(tmp_path / "five")[0].notes)
    write(tmp_path / "two", pairs("ab") | pairs("a", "Annotations_dog/{}.xml"))
    assert "other files: 1 .xml whose names are in Annotations, too (" in "".join(read(tmp_path / "two", "train").notes)
    write(tmp_path / "lists", pairs(ABCD) | lists("", train="a", val="b", notes="x"))
    assert f"other files: 1 .txt ({KINDS['others'][1]})" in read(tmp_path / "lists", "train").notes


FAULTS = {  # files, splits, kind of error, words
    "no such split": (
        pairs(ABCD) | USUAL,
        "train test",
        "split",
        "test.txt does not exist; splits in this folder: train, val",
    ),
    "no such folder": (
        pairs(["train/a", "test/b"], "{}.xml", "{}.jpg"),
        "train val",
        "split",
        "splits in this folder: test, train",
    ),
    "all beside another list": (pairs(ABCD) | lists(default="a", fold="b"), "train", "split", "folder: default, fold"),
    "train and val in one": (pairs(ABCD) | lists(trainval="a"), "train val", "split", "folder: trainval"),
    "empty list": (
        pairs(ABCD) | lists(train="\ufeff \n\r\n"),
        "train",
        "split",
        "train.txt contains no image id; splits",
    ),
    "three drawn": (pairs(ABCD), "x y z", "split", "z.txt does not exist, and none is drawn for it"),
    "one image drawn": (pairs("a"), "x y", "split", "y.txt does not exist"),
    "twice": (pairs(ABCD) | lists(train="a\nb\na\n"), "train", "duplicate_id", "train.txt lines 1 and 3: a"),
    "twice by suffix": (pairs(ABCD) | lists(train="a\na.jpg"), "train", "duplicate_id", "train.txt lines 1 and 2: a"),
    "twice by column": (pairs(["img"]) | lists(train="img\nimg 1"), "train", "duplicate_id", "lines 1 and 2: img"),
    "twice by folder": (pairs(["x/a"]) | lists(train="a\nx/a"), "train", "duplicate_id", "x/a and a are both"),
    "two images": (pairs("a") | {"JPEGImages/a.png": ""}, "train", "ambiguous", "JPEGImages/a.jpg, "),
    "two folders": (pairs(["x/a", "y/a"]) | lists(train="a"), "train", "ambiguous", "Annotations/y/a.xml"),
    "two annotations": (pairs("a", "annots/{}.xml") | {"labels/a.xml": ""}, "train", "ambiguous", "labels/a.xml"),
    "a longer name": (pairs("a") | lists(train="x{root}/a"), "train", "no_image", "/a"),
    "another folder": (pairs(["x/a"]) | lists(train="y/a"), "train", "no_image", "/y/a"),
    "no annotation": (
        pairs("a") | {"JPEGImages/b.jpg": ""} | lists(train="b"),
        "train",
        "no_annotation",
        "JPEGImages/b.jpg",
    ),
    "annotation of another image": (
        pairs("a") | {"JPEGImages/x/a.jpg": ""} | lists(train="x/a"),
        "train",
        "no_annotation",
        "JPEGImages/x/a.jpg",
    ),
    "annotation of one of two images": (
        {"Annotations/cam1_voc/a.xml": thing(A), "JPEGImages/cam1/a.jpg": "", "JPEGImages/cam2/a.jpg": ""}
        | pairs("b", "Annotations/cam2_voc/{}.xml", "JPEGImages/cam2/{}.jpg")
        | lists(train="cam2/a"),
        "train",
        "no_annotation",
        "JPEGImages/cam2/a.jpg",
    ),
    "annotations of two": (
        pairs("a", "Annotations/anna/{}.xml", "JPEGImages/cam1/{}.jpg")
        | {"Annotations/ben/a.xml": thing(A), "JPEGImages/cam2/b.jpg": ""}
        | lists(train="cam1/a"),
        "train",
        "no_annotation",
        "JPEGImages/cam1/a.jpg",
    ),
    "images of one of two videos": (
        pairs(["v1/1", "v1/3"]) | {"JPEGImages/v1/2.jpg": "", "Annotations/v2/2.xml": thing(A)},
        "train",
        "no_image",
        "Annotations/v2/2.xml, only ",
    ),
    "image of an annotation above": (
        pairs("a") | {"Annotations/cam1/a.xml": thing(A)} | pairs(["cam2/b"]) | lists(train="cam1/a\ncam2/b"),
        "train",
        "no_image",
        "Annotations/cam1/a.xml",
    ),
    "annotation in a folder of images": (
        {"Annotations/Cam1/a.xml": thing(A), "JPEGImages/cam1/b.jpg": "", "JPEGImages/cam2/a.jpg": ""}
        | lists(train="cam2/a"),
        "train",
        "no_annotation",
        "JPEGImages/cam2/a.jpg",
    ),
    **{
        line: (pairs("a") | lists(train=f"a\n{line}"), "train", "above", f"Main/train.txt line 2: {line}")
        for line in ("/x/JPEGImages/a.jpg", "C:\\x\\a.jpg", "../a", "..\\a.jpg", "x/../../a")
    },
    "missing with a column": (pairs("a") | lists(train="b  1"), "train", "no_image", "/b"),
    "image of another split": (
        pairs(["train/b"], "{}.xml", "{}.jpg") | {"train/a.xml": "", "valid/a.jpg": ""},
        "train",
        "no_image",
        "/a.xml",
    ),
    "image of another folder": (
        {"Annotations/cam1/a.xml": "", "JPEGImages/cam1/b.jpg": "", "JPEGImages/cam2/a.jpg": ""},
        "train",
        "no_image",
        "/a.xml",
    ),
    **{
        path: (pairs(ABCD) | {path: "a"}, "train val", "split", f"none is drawn because {path} may say what it is: if")
        for path in (
            *("annotations/trainval.txt", "splits/train.txt", "x/Test/a.csv"),
            *(
                "train_list.txt",
                "data/test_labels.csv",
                "val.csv",
                "train2017/a.csv",
                "trainIds.lst",
                "ImageSets/train",
                "2007_train.txt",
            ),
            *("coin_train/x.jpg", "Train Set/x.jpg", "images-val/x.jpg", "01_val/x.xml", "test/a.jpg"),
        )
    },
    "splits of annotations, cameras of images": (
        pairs("a", "annotations/train/{}.xml", "images/day/{}.jpg"),
        "train",
        "no_image",
        "annotations/train/a.xml, only",
    ),
    "annotations in folders of splits": (
        pairs(ABCD) | {"Annotations_val/a.xml": thing(A), "JPEGImages_train/a.jpg": ""},
        "train val",
        "split",
        "Annotations_val/a.xml may say what it is: if so, write that list, else move it away; splits in this",
    ),
    "training": (pairs(["training/a", "testing/b"], "{}.xml", "{}.jpg"), "train val", "split", "folder: test, train"),
    "no image": (pairs(ABCD, "{}.xml", "{}.jpg") | {"e.xml": ""}, "train", "no_image", "/e.xml"),
    "a mask in its place": (
        pairs(["b", "c", "d"]) | {"Annotations/a.xml": thing(A), "SegmentationClass/a.png": ""},
        "train",
        "no_image",
        "/Annotations/a.xml",
    ),
    "another case": (pairs(["IMG_1", "b"]) | lists(train="img_1"), "train", "no_image", "/img_1, only "),
    "too long": (pairs("a") | lists(train="b" * 300), "train", "no_image", "/bbb"),
    "a zero byte": (pairs("a") | lists(train="a\0b"), "train", "no_image", "/a\0b"),
}


@pytest.mark.parametrize(("files", "splits", "kind", "words"), FAULTS.values(), ids=FAULTS)
def test_faults(tmp_path, files, splits, kind, words):
    report = ValidationReport()
    read_splits(write(tmp_path, files), splits.split(), report=report)
    assert any(words in offender for offender in report.errors[kind])


def test_splits_of_other_data_with_the_same_names_are_not_used(tmp_path):
    write(tmp_path, pairs(map(str, range(10, 40))))
    few = {"fit": [*map(str, range(10, 22))], "rest": ["30", "31"]}  # before 16 of the 30 came
    assert read(tmp_path, "rest", split_ids=few).ids == ["30", "31"]
    assert len(read(tmp_path, "val", val_ratio=0.1, split_ids=few)) == 3
    drawn = {"train": [*map(str, range(10, 34))], "val": [*map(str, range(34, 40))]}
    size = (tmp_path / "JPEGImages/10.jpg").stat().st_size
    assert read(tmp_path, "val", split_ids=drawn, n_bytes=[7, size]).ids == drawn["val"]
    assert len(read(tmp_path, "val", split_ids=drawn, n_bytes=[7, size + 1])) == 30  # frames of another video
    for i in range(10, 25):
        (tmp_path / f"JPEGImages/{i}.jpg").write_bytes(bytes(i))
    assert read(tmp_path, "val", split_ids=drawn, n_bytes=[size]).ids == drawn["val"]
    (tmp_path / "JPEGImages/25.jpg").write_bytes(b"")  # more than half
    assert "unreadable images (16)" in message(read, tmp_path, "val", split_ids=drawn, n_bytes=[size])


@pytest.mark.parametrize("more", [{}, {"test_images/x.jpg": ""}])
@pytest.mark.parametrize(
    "forms", [("train_annots/{}.xml", "train_images/{}.jpg"), ("Images_Train/{}.xml", "Images_Train/{}.jpg")]
)
def test_one_folder_is_one_split(tmp_path, forms, more):
    (dataset,) = read_splits(write(tmp_path, pairs("ab", *forms) | more))
    assert (dataset.split, dataset.ids) == ("train", ["a", "b"])


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (pairs(["Train_Set/a", "Val_Set/b"], "{}.xml", "{}.jpg"), "Train_Set Val_Set"),
        (pairs(["Train_Set/a", "Val_Set/b"], "{}.xml", "{}.jpg"), "train_set VAL_SET"),
        (pairs("ab") | lists("", Train_list="a", val_list="b"), "train_list val_list"),
        (pairs("ab") | lists(TRAIN="a") | {"val.TXT": "b"}, "Training validation"),
        (pairs("abc") | lists(train="a", val="b", valid="c"), "train val"),
        (pairs("abc") | lists(train="a", val="c", valid="b"), "train valid"),
        (
            {"Annotations_T1/a.xml": thing(A), "JPEGImages_T1/a.jpg": "", "Annotations_T2/b.xml": thing(A)}
            | {"JPEGImages_T2/b.jpg": ""},
            "t1 T2",
        ),
    ],
)
def test_splits_by_the_name_of_their_list_or_folder(tmp_path, files, splits):
    first, second = read_splits(write(tmp_path, files), splits.split())
    assert ([first.split, second.split], first.ids, second.ids) == (splits.split(), ["a"], ["b"])


def test_a_list_in_another_encoding(tmp_path):
    path = write(tmp_path, pairs("a") | lists(train="a")) / "ImageSets/Main/train.txt"
    path.write_bytes("a\r\n".encode("utf-16"))
    assert message(read, tmp_path, "train") == f"{path} is not UTF-8 text: save it as UTF-8"


def test_a_folder_without_a_data_set(tmp_path, monkeypatch):
    text = message(read_splits, tmp_path / "x")
    for word in (f"{tmp_path}/x ", "--voc-data-dir", "--download", "--data=shapes", "docs/own-data.md"):
        assert word in text
    assert "\n" not in text
    write(tmp_path, pairs("ab", "{}.txt", "{}.jpg") | {"a.heic": ""})
    text = message(read_splits, tmp_path)
    assert "(0 annotations .xml, 2 images .jpg .jpeg " in text
    assert " .ppm, other files: 2 .txt, 1 .heic)" in text
    text = message(read_splits, write(tmp_path / "xml", {"Annotations/a.xml": "", "a.heic": ""}))
    assert "(1 annotations .xml, 0 images .jpg" in text
    assert ", other files: 1 .heic): put the images that the annotations describe below it, .jpg" in text
    write_voc(tmp_path / "mine", {"a": [thing()]})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read("~/mine").root == tmp_path / "mine"


def test_a_folder_in_an_advice_is_quoted(tmp_path):
    right = write_voc(tmp_path / "my data/VOC", {"a": [thing()]})
    assert f": pass --voc-data-dir='{right}', found {right}" in message(read_splits, tmp_path / "my data")


def test_three_levels_too_high(tmp_path):
    right = write_voc(tmp_path / "a/VOCtrainval/VOCdevkit/VOC2007", {"a": [thing()]})
    assert message(read_splits, tmp_path / "a").endswith(f": pass --voc-data-dir={right}, found {right}")


@pytest.mark.parametrize("wrong", [".", "devkit", "devkit/VOC2007/JPEGImages", "devkit/VOC2007/ImageSets/Main"])
def test_a_level_too_high_or_too_low(tmp_path, wrong):
    right = write_voc(tmp_path / "devkit/VOC2007", {"a": [thing()]})
    text = message(read_splits, tmp_path / wrong)
    assert text.startswith(f"{tmp_path / wrong} contains no data set in the VOC layout")
    assert text.endswith(f": pass --voc-data-dir={right}, found {right}")


@pytest.mark.parametrize("wrong", ["images", "annots"])
def test_a_level_too_low_without_lists(tmp_path, monkeypatch, wrong):
    write(tmp_path, pairs("a", "annots/{}.xml", "images/{}.jpg"))
    assert message(read_splits, tmp_path / wrong).endswith(f": pass --voc-data-dir={tmp_path}, found {tmp_path}")
    assert message(read_splits, f"{tmp_path / wrong},").endswith(f", found {tmp_path}")
    deep = write(tmp_path / "deep", pairs("a", "Annots/train/{}.xml", "Images/train/{}.jpg"))
    assert message(read_splits, deep / wrong.title()).endswith(f", found {deep}")
    monkeypatch.chdir(tmp_path / wrong)
    assert message(read_splits, ".").endswith(f", found {tmp_path}")
    write(tmp_path / "alone", {".idea/misc.xml": ""})
    for folder in ("alone/images", "photos"):
        assert " found " not in message(read_splits, write(tmp_path / folder, {"a.jpg": ""}))


def test_splits_are_the_usual_ones_or_all(tmp_path):
    for split in ("val", "cat_train", "train"):
        write_voc(tmp_path, {"a": [thing()]}, split)
    (tmp_path / "ImageSets/Main/test.txt").write_text("# none\n\n")  # as by a script that splits 100 : 0
    assert Layout(tmp_path).find_splits() == ["train", "val"]
    for split in ("val", "train"):
        (tmp_path / f"ImageSets/Main/{split}.txt").write_text("")
    assert Layout(tmp_path).find_splits() == ["train", "val", "test"]
    for split in ("val", "train", "test"):
        (tmp_path / f"ImageSets/Main/{split}.txt").unlink()
    assert Layout(tmp_path).find_splits() == ["cat_train"]
    (tmp_path / "ImageSets/Main/cat_train.txt").unlink()
    assert Layout(tmp_path).find_splits() == ["train", "val"]


def test_a_folder_that_links_reach_again_is_read_once(tmp_path):
    write(tmp_path, pairs(["batch1/a", "batch2/b", "batch2/c"], "{}.xml", "{}.jpg"))
    (tmp_path / "latest").symlink_to("batch2")
    (tmp_path / "mydata").symlink_to(tmp_path)
    train, val = read_splits(tmp_path, ["train", "val"], val_ratio=0.4)
    assert sorted(train.ids + val.ids) == ["a", "b", "c"]


def test_links_are_followed(tmp_path):
    write(tmp_path / "else", pairs(ABCD, "{}.xml", "{}.jpg"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train").symlink_to(tmp_path / "else")
    assert read(tmp_path / "mine", "train").ids == [*ABCD]
