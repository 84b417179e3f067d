"""The VOC reader on folders that the tests write: numbers, variants of the files, and a sentence for each fault."""
import numpy as np
import pytest
from PIL import Image

from data import class_names, find_root, read_names
from data.check import DataError
from data.voc import CLASSES, VOCDataset, find_classes, read_ids
from voc_files import RGB, message, thing, write_voc

# What is read


def test_sample(tmp_path):
    hard = thing("dog", (2, 3, 5, 9), "<difficult>1</difficult>")
    write_voc(tmp_path, {"b": [thing(), hard], "a": [thing("dog")]})
    dataset = VOCDataset(tmp_path, "trainval", ["cat", "dog"])
    assert len(dataset) == 2
    assert dataset.classes == ("cat", "dog")
    assert [dataset[i].id for i in range(2)] == ["b", "a"]  # the order of the split, not of the names
    sample = dataset[0]
    assert sample.img.shape == (40, 60, 3)
    assert sample.img.dtype == np.uint8
    np.testing.assert_allclose(sample.img[20, 30], RGB, atol=2)  # JPEG
    np.testing.assert_array_equal(sample.bbox, [[10, 6, 30, 57], [1, 2, 4, 8]])
    assert sample.bbox.dtype == np.float32
    np.testing.assert_array_equal(sample.label, [0, 1])
    assert sample.label.dtype == np.int64
    np.testing.assert_array_equal(sample.difficult, [False, True])
    assert sample.difficult.dtype == bool


def test_coordinates_may_be_fractions(tmp_path):
    write_voc(tmp_path, {"a": [thing(numbers=(1.5, "2.25", " 30.125 ", "4.75e1"))]})
    annotation = read_annotation(tmp_path / "Annotations/a.xml")
    np.testing.assert_array_equal(annotation.bbox, [[0.5, 1.25, 29.125, 46.5]])


def test_what_is_optional_may_be_missing(tmp_path):
    write_voc(tmp_path, {"a": [thing(extra=""), thing(extra="<difficult/>"), thing(extra="<difficult>1</difficult>"),
                               thing(extra="<pose>Left</pose><truncated>1</truncated>")]})
    assert read_annotation(tmp_path / "Annotations/a.xml").difficult.tolist() == [False, False, True, False]


def test_parts_of_an_object_are_no_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    write_voc(tmp_path, {"a": [thing(" cat\n", extra=part)]})
    annotation = read_annotation(tmp_path / "Annotations/a.xml")
    assert annotation.name == ["cat"]
    np.testing.assert_array_equal(annotation.bbox, [[10, 6, 30, 57]])


def test_image_without_objects(tmp_path):
    write_voc(tmp_path, {"empty": [], "a": [thing()]})
    dataset = VOCDataset(tmp_path, "trainval", ["cat"])
    sample = dataset[0]
    assert (sample.bbox.shape, sample.bbox.dtype) == ((0, 4), np.float32)
    assert (sample.label.shape, sample.label.dtype) == ((0,), np.int64)
    assert (sample.difficult.shape, sample.difficult.dtype) == ((0,), bool)
    assert [len(bbox) for bbox in dataset.objects()[0]] == [0, 1]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png"])
def test_suffixes(tmp_path, suffix):
    write_voc(tmp_path, {"a": [thing()], "b.2": [thing()]}, suffix=suffix)
    dataset = VOCDataset(tmp_path, "trainval", ["cat"])
    assert [dataset[i].img.shape for i in range(2)] == [(40, 60, 3)] * 2


@pytest.mark.parametrize(("mode", "color", "expected"), [
    ("L", 90, (90, 90, 90)), ("RGBA", (10, 20, 30, 128), (10, 20, 30)), ("1", 1, (255, 255, 255)),
    ("P", 0, (0, 0, 0))])
def test_every_kind_of_image_is_read_as_rgb(tmp_path, mode, color, expected):
    Image.new(mode, (5, 3), color).save(tmp_path / "a.png")
    img = read_image(tmp_path / "a.png")
    assert (img.shape, img.dtype) == ((3, 5, 3), np.uint8)
    np.testing.assert_array_equal(img, np.broadcast_to(np.uint8(expected), (3, 5, 3)))
    img[0, 0, 0] = 1  # may be written to


def test_difficult_objects_are_left_out_when_asked(tmp_path):
    hard = "<difficult>1</difficult>"
    write_voc(tmp_path, {"a": [thing(numbers=(1, 2, 3, 5), extra=hard), thing("dog"),
                               thing("dog", (1, 1, 9, 4), hard)]})
    bboxes, labels, difficults = VOCDataset(tmp_path, "trainval", ["cat", "dog"], use_difficult=False).objects()
    np.testing.assert_array_equal(bboxes[0], [[10, 6, 30, 57]])
    assert labels[0].tolist() == [1]
    assert difficults[0].tolist() == [False]
    assert len(VOCDataset(tmp_path, "trainval", ["cat", "dog"]).objects()[0][0]) == 3


def test_objects_are_those_of_the_samples(tmp_path):
    write_voc(tmp_path, {"a": [thing(), thing("dog", (1, 2, 3, 5), "<difficult>1</difficult>")], "b": [thing("dog")]})
    dataset = VOCDataset(tmp_path, "trainval", ["cat", "dog"])
    assert len(dataset.objects()) == 3
    for i in range(2):
        for column, name in zip(dataset.objects(), ("bbox", "label", "difficult"), strict=True):
            np.testing.assert_array_equal(column[i], getattr(dataset[i], name))


def test_second_column_and_blank_lines_of_a_split_are_ignored(tmp_path):
    write_voc(tmp_path, {"a": [thing()]})
    (tmp_path / "ImageSets/Main/cat_train.txt").write_text("2008_000008  1\n\n  a -1 \n")
    assert read_ids(tmp_path, "cat_train") == ["2008_000008", "a"]


# Boxes without area


@pytest.fixture
def flat(tmp_path):
    """Two images, five objects, of which three have no area."""
    return write_voc(tmp_path, {
        "a": [thing("dog", (5, 4, 5, 9)), thing(), thing("cat", (2.5, 8, 6, 3.5), "<difficult>1</difficult>")],
        "b": [thing("dog"), thing("cat", (7, 3, 6, 9))]})


def test_boxes_without_area_are_all_named(flat):
    text = message(VOCDataset, flat, "trainval", ["cat", "dog"])
    assert text.splitlines()[0] == "3 boxes have no area; mend them or pass --invalid-boxes=skip:"
    assert [line.strip() for line in text.splitlines()[1:]] == [
        f"{flat / 'Annotations/a.xml'} object 1 (dog): xmin 4, ymin 5, xmax 9, ymax 5",
        f"{flat / 'Annotations/a.xml'} object 3 (cat): xmin 8, ymin 2.5, xmax 3.5, ymax 6",
        f"{flat / 'Annotations/b.xml'} object 2 (cat): xmin 3, ymin 7, xmax 9, ymax 6"]


def test_boxes_without_area_are_skipped_when_asked(flat):
    dataset = VOCDataset(flat, "trainval", ["cat", "dog"], invalid_boxes="skip")
    assert dataset.n_skipped == 3
    bboxes, labels, difficults = dataset.objects()
    for bbox in bboxes:
        np.testing.assert_array_equal(bbox, [[10, 6, 30, 57]])
    assert [label.tolist() for label in labels] == [[0], [1]]
    assert [difficult.tolist() for difficult in difficults] == [[False], [False]]


@pytest.mark.parametrize("number", ["inf", "nan"])
def test_a_box_without_end_is_named(tmp_path, number):
    write_voc(tmp_path, {"a": [thing(numbers=(1, 2, 3, number))]})
    assert f"a.xml object 1 (cat): xmin 2, ymin 1, xmax {number}, ymax 3" in message(
        VOCDataset, tmp_path, "trainval", ["cat"])


def test_nothing_is_skipped_where_all_have_an_area(tmp_path):
    write_voc(tmp_path, {"a": [thing(numbers=(1, 1, 1.5, 1.5))]})
    assert VOCDataset(tmp_path, "trainval", ["cat"], invalid_boxes="skip").n_skipped == 0
    assert len(VOCDataset(tmp_path, "trainval", ["cat"]).objects()[0][0]) == 1


# Faults


def test_unknown_class(tmp_path):
    write_voc(tmp_path, {"a": [thing()], "b": [thing("cow")]})
    text = message(VOCDataset, tmp_path, "trainval", ["cat", "dog"])
    assert text.startswith(f"{tmp_path / 'Annotations/b.xml'} has an object of the class 'cow'")
    for words in ("none of cat, dog", "--classes"):
        assert words in text


def test_missing_split_names_those_that_are_there(tmp_path):
    for split in "fbeadc":
        write_voc(tmp_path, {"1": [thing()]}, split)
    path = tmp_path / "ImageSets/Main/test.txt"
    assert message(VOCDataset, tmp_path, "test", ["cat"]) == f"{path} is missing; splits found there: a, b, c, d, e, f"
    assert message(read_ids, tmp_path / "no", "test").endswith("splits found there: none")


def test_empty_split(tmp_path):
    write_voc(tmp_path, {})
    (tmp_path / "ImageSets/Main/trainval.txt").write_text(" \n\n")
    text = message(VOCDataset, tmp_path, "trainval", ["cat"])
    assert text.startswith(f"{tmp_path / 'ImageSets/Main/trainval.txt'} names no image")


def test_missing_image(tmp_path):
    write_voc(tmp_path, {"a": [thing()], "b.2": [thing()]})
    (tmp_path / "JPEGImages/b.2.jpg").unlink()
    text = message(VOCDataset, tmp_path, "trainval", ["cat"])
    assert text.startswith(f"{tmp_path / 'JPEGImages/b.2.jpg'} is missing")
    assert ".jpeg and .png" in text


def test_missing_annotation(tmp_path):
    write_voc(tmp_path, {"a": [thing()], "b": [thing()]})
    (tmp_path / "Annotations/b.xml").unlink()
    text = message(VOCDataset, tmp_path, "trainval", ["cat"])
    assert text.startswith(f"{tmp_path / 'Annotations/b.xml'} is missing: each image")


@pytest.mark.parametrize("content", [
    "", "<annotation>", "no xml",
    f"<annotation>{thing()}{thing().replace('<name>cat</name>', '')}</annotation>",
    f"<annotation>{thing()}{thing().replace('<xmax>58</xmax>', '')}</annotation>",
    f"<annotation>{thing()}{thing(numbers=(1, 2, 'three', 4))}</annotation>",
    f"<annotation>{thing()}{thing(extra='<difficult>maybe</difficult>')}</annotation>",
    f"<annotation>{thing()}<object><name>cat</name></object></annotation>",
], ids=["empty", "cut", "text", "no name", "no xmax", "word", "maybe", "no bndbox"])
def test_malformed_annotation(tmp_path, content):
    write_voc(tmp_path, {"a": [thing()]})
    (tmp_path / "Annotations/a.xml").write_text(content)
    text = message(VOCDataset, tmp_path, "trainval", ["cat"])
    where = f"{tmp_path / 'Annotations/a.xml'}" + (", object 2," if "object" in content else "")
    assert text.startswith(f"{where} is not an annotation in the VOC format (")
    for words in ("NoneType", "argument"):
        assert words not in text
    assert "xmin, ymin, xmax, ymax" in text


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"no image", lambda data: data[:len(data) // 2]],
                         ids=["empty", "text", "cut"])
def test_damaged_image(tmp_path, damage):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8))
    write_voc(tmp_path, {"a": [thing()]}, img=noise)
    path = tmp_path / "JPEGImages/a.jpg"
    path.write_bytes(damage(path.read_bytes()))
    dataset = VOCDataset(tmp_path, "trainval", ["cat"])
    assert message(dataset.__getitem__, 0).startswith(f"{path} is not an image that can be read: ")


# Classes and folders


def test_voc_names_keep_their_usual_order(tmp_path):
    write_voc(tmp_path, {"a": [thing("dog"), thing("cat")]})
    assert find_classes(tmp_path, ["trainval"]) == CLASSES
    assert len(CLASSES) == 20
    assert [CLASSES.index(name) for name in ("aeroplane", "person", "tvmonitor")] == [0, 14, 19]
    assert list(CLASSES) == sorted(CLASSES)


def test_other_names_are_sorted_over_all_splits(tmp_path):
    write_voc(tmp_path, {"a": [thing("dog"), thing("zebu"), thing("dog")], "c": []})
    write_voc(tmp_path, {"b": [thing("ant")]}, "test")
    assert find_classes(tmp_path, ["trainval"]) == ("dog", "zebu")
    assert find_classes(tmp_path, ["trainval", "test"]) == ("ant", "dog", "zebu")


def test_no_object_anywhere(tmp_path):
    write_voc(tmp_path, {"a": []})
    write_voc(tmp_path, {"b": []}, "test")
    text = message(find_classes, tmp_path, ["trainval", "test"])
    assert text.startswith(f"{tmp_path}: no image of trainval, test has an object")


def test_class_names_from_list_file_and_annotations(tmp_path):
    write_voc(tmp_path, {"a": [thing("zebu"), thing("ant")]})
    names = tmp_path / "names.txt"
    names.write_text("zebu\n\n dining table \nänt\n", encoding="utf-8")
    assert class_names((str(names),), tmp_path, ["trainval"]) == ("zebu", "dining table", "änt")
    assert class_names(("zebu", "ant"), tmp_path, ["trainval"]) == ("zebu", "ant")
    assert class_names(("zebu",), tmp_path, ["trainval"]) == ("zebu",)
    assert class_names((), tmp_path, ["trainval"]) == ("ant", "zebu")


def test_root_is_a_folder_in_the_layout(tmp_path):
    text = message(find_root, "voc", str(tmp_path))
    for word in (str(tmp_path), "--voc-data-dir", "--download", "--data=shapes"):
        assert word in text
    assert "\n" not in text
    write_voc(tmp_path, {"a": [thing()]})
    assert find_root("voc", str(tmp_path)) == tmp_path


def test_ids_may_hold_blanks_and_stand_beside_the_marks_of_a_class_file(tmp_path):
    folder = tmp_path / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    (folder / "cat_train.txt").write_bytes("\ufeffIMG 12 (1)\r\n000007 -1\r\n000009  1\r\n\r\n".encode())
    assert read_ids(tmp_path, "cat_train") == ["IMG 12 (1)", "000007", "000009"]


def test_a_file_of_names_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"nmaes\.txt: there is no such file"):
        read_names([str(tmp_path / "nmaes.txt")])
    assert read_names(["cat"]) == ("cat",)
