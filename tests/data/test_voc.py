"""The VOC reader on folders that the tests write: numbers, variants of the files, and a sentence for each fault."""
import numpy as np
import pytest
import torch
from PIL import Image
from voc_files import RGB, message, thing, write_voc

from data import class_names, find_root, find_splits, read_names
from data.check import ERRORS, Findings
from data.voc import CLASSES, VOCDataset, find_classes, read_ids

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
    assert text.splitlines()[0] == "boxes without area (3): mend them or pass --invalid-boxes=skip"
    assert [line.strip() for line in text.splitlines()[1:]] == [
        f"{flat / 'Annotations/a.xml'} object 1 (dog): xmin 4, ymin 5, xmax 9, ymax 5",
        f"{flat / 'Annotations/a.xml'} object 3 (cat): xmin 8, ymin 2.5, xmax 3.5, ymax 6",
        f"{flat / 'Annotations/b.xml'} object 2 (cat): xmin 3, ymin 7, xmax 9, ymax 6"]


def test_boxes_without_area_are_skipped_when_asked(flat):
    dataset = VOCDataset(flat, "trainval", ["cat", "dog"], invalid_boxes="skip")
    assert dataset.findings.noted() == ["boxes left out, without area or outside the image: 3"]
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


@pytest.mark.parametrize("invalid_boxes", ["error", "skip"])
def test_nothing_is_noted_where_nothing_is_wrong(tmp_path, invalid_boxes):
    write_voc(tmp_path, {"a": [thing(numbers=(1, 1, 1.5, 1.5)), thing(numbers=(1, 1, 40, 60))]})
    dataset = VOCDataset(tmp_path, "trainval", ["cat"], invalid_boxes=invalid_boxes)
    assert dataset.findings.noted() == []
    np.testing.assert_array_equal(dataset.objects()[0][0], [[0, 0, 0.5, 0.5], [0, 0, 39, 59]])


def test_boxes_a_little_beyond_the_image_are_clipped(tmp_path):
    write_voc(tmp_path, {"a": [thing(numbers=(0, 7, 31, 58)), thing(numbers=(11, -1, 44, 63))]})
    dataset = VOCDataset(tmp_path, "trainval", ["cat"])
    np.testing.assert_array_equal(dataset[0].bbox, [[0, 6, 30, 57], [10, 0, 40, 60]])
    assert [note.split(":")[0].split(",")[0] for note in dataset.findings.noted()] == [
        "boxes that begin at 0 and were clipped", "boxes clipped to the image"]


# Faults


def test_every_kind_and_every_offender_is_named_at_once(tmp_path):
    """One image for each fault, two for some."""
    boxes = {"fine": (1, 2, 30, 50), "flat": (5, 4, 5, 9), "out": (50, 1, 60, 9), "far": (1, 2, 90, 50),
             "no jpg": (1, 2, 3, 4), "no jpg 2": (1, 2, 3, 4), "cut": (1, 2, 3, 4)}
    write_voc(tmp_path, {image_id: [thing(numbers=box)] for image_id, box in boxes.items()} | {
        "cow": [thing("Cat"), thing("cow")], "cow 2": [thing("cow")], "no xml": [], "bad": ["<object>"],
        "wide": ["<size><width>30</width><height>20</height></size>"],
        "high": ["<size><width>40</width><height>60</height></size>"]})
    for image_id in ("no jpg", "no jpg 2"):
        (tmp_path / f"JPEGImages/{image_id}.jpg").unlink()
    path = tmp_path / "JPEGImages/cut.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    (tmp_path / "Annotations/no xml.xml").unlink()
    lines = message(VOCDataset, tmp_path, "trainval", ["cat", "dog"]).splitlines()
    kinds = {line.split(" (")[0] for line in lines if not line.startswith(" ")}
    assert kinds == {ERRORS[kind][0] for kind in ("no annotation", "annotation", "no image", "image", "turned", "size",
                                                  "class", "no area", "outside", "far")}
    text = "\n".join(lines).replace(f"{tmp_path}/", "")
    for part in ("missing images (2)", "\n  JPEGImages/no jpg.jpg\n  JPEGImages/no jpg 2.jpg\n",
                 "\n  Annotations/no xml.xml\n", "Annotations/bad.xml: mismatched tag",
                 "JPEGImages/cut.jpg is not an image that can be read: ",
                 "Annotations/wide.xml: <size> says 30x20, JPEGImages/wide.jpg has 60x40 pixels",
                 "Annotations/high.xml: <size> says 40x60, JPEGImages/high.jpg has 60x40 pixels",
                 "'Cat' (1 object, the first in Annotations/cow.xml): did you mean 'cat'?",
                 "'cow' (2 objects, the first in Annotations/cow.xml): ",
                 "flat.xml object 1 (cat): xmin 4, ymin 5, xmax 9, ymax 5\n",
                 "out.xml object 1 (cat): xmin 1, ymin 50, xmax 9, ymax 60, in an image of 60x40\n",
                 "far.xml object 1 (cat): xmin 2, ymin 1, xmax 50, ymax 90, in an image of 60x40"):
        assert part in text
    assert "fine" not in text


def test_one_offender_is_one_kind(tmp_path):
    write_voc(tmp_path, {"a": [thing()], "b": [thing()]})
    (tmp_path / "Annotations/b.xml").unlink()
    assert message(VOCDataset, tmp_path, "trainval", ["cat"]) == (
        f"missing annotations (1): each image needs one, without objects if it shows none\n"
        f"  {tmp_path / 'Annotations/b.xml'}")


def test_missing_split_names_those_that_are_there(tmp_path):
    for split in "fbeadc":
        write_voc(tmp_path, {"1": [thing()]}, split)
    path = tmp_path / "ImageSets/Main/test.txt"
    head = f"{ERRORS['split'][0]} (1): {ERRORS['split'][1]}\n  "
    assert message(VOCDataset, tmp_path, "test", ["cat"]) == (
        f"{head}{path} is missing; splits found there: a, b, c, d, e, f")
    assert message(read_ids, tmp_path / "no", "test").endswith("test.txt is missing; splits found there: none")
    for option in ("--train-split", "--eval-split", "--splits", "--split "):
        assert option in head


def test_missing_and_empty_splits_are_named_with_all_the_rest(tmp_path):
    write_voc(tmp_path, {"a": [thing()], "b": [thing()]}, "train")
    write_voc(tmp_path, {}, "val")
    (tmp_path / "JPEGImages/b.jpg").unlink()
    findings = Findings()
    assert [read_ids(tmp_path, split, findings) for split in ("val", "test")] == [[], []]
    VOCDataset(tmp_path, "train", find_classes(tmp_path, ["train", "val", "test"], findings), findings=findings)
    main = tmp_path / "ImageSets/Main"
    assert findings.errors == {
        "split": dict.fromkeys([f"{main}/val.txt; splits found there: train, val",
                                f"{main}/test.txt is missing; splits found there: train, val"]),
        "no image": {f"{tmp_path}/JPEGImages/b.jpg": None}}


@pytest.mark.parametrize("text", ["", " \n\n", "\ufeff\r\n"])
def test_empty_split(tmp_path, text):
    write_voc(tmp_path, {})
    (tmp_path / "ImageSets/Main/trainval.txt").write_text(text, encoding="utf-8")
    text = message(VOCDataset, tmp_path, "trainval", ["cat"])
    assert text.splitlines() == [f"{ERRORS['split'][0]} (1): {ERRORS['split'][1]}",
                                 f"  {tmp_path / 'ImageSets/Main/trainval.txt'}; splits found there: trainval"]


def test_ids_that_come_twice_or_lead_elsewhere(tmp_path):
    write_voc(tmp_path, {"a": [thing()], "b": [thing()]})
    path = tmp_path / "ImageSets/Main/trainval.txt"
    path.write_text("a\n\n../b\nb\na\nJPEGImages\\b.jpg\nb\n..\n/etc/x\na\n")
    lines = message(VOCDataset, tmp_path, "trainval", ["cat"]).splitlines()
    assert lines == [
        "image ids that are paths (4): write the name of the image alone, without folders", f"  {path} line 3: '../b'",
        f"  {path} line 6: 'JPEGImages\\\\b.jpg'", f"  {path} line 8: '..'", f"  {path} line 9: '/etc/x'",
        f"image ids that come twice (3): {ERRORS['doubled id'][1]}", f"  {path} lines 1 and 5: a",
        f"  {path} lines 4 and 7: b", f"  {path} lines 1 and 10: a"]


def test_a_split_in_another_encoding(tmp_path):
    write_voc(tmp_path, {"a": [thing()]})
    path = tmp_path / "ImageSets/Main/trainval.txt"
    path.write_bytes("a\r\n".encode("utf-16"))
    assert message(VOCDataset, tmp_path, "trainval", ["cat"]) == f"{path} is not a text in UTF-8: save it as such"


def test_an_id_too_long_for_a_file(tmp_path):
    write_voc(tmp_path, {"a": [thing()]})
    (tmp_path / "ImageSets/Main/trainval.txt").write_text("a\n" + "b" * 300)
    text = message(VOCDataset, tmp_path, "trainval", ["cat"])
    assert f"Annotations/{'b' * 300}.xml: File name too long\n" in text
    assert f"JPEGImages/{'b' * 300}.jpg" in text


def test_an_image_that_breaks_later_is_named(tmp_path):
    """Here the end is whole, so only decoding can tell; in a worker's traceback as well."""
    write_voc(tmp_path, {"a": [thing()]}, img=Image.fromarray(np.zeros((40, 60, 3), np.uint8)), suffix=".png")
    path = tmp_path / "JPEGImages/a.png"
    data = path.read_bytes()
    where = data.index(b"IDAT") + 6
    path.write_bytes(data[:where] + b"\xff" * 8 + data[where + 8:])
    dataset = VOCDataset(tmp_path, "trainval", ["cat"])
    text = message(dataset.__getitem__, 0)
    assert text.startswith(f"{path} is not an image that can be read: ")
    loader = torch.utils.data.DataLoader(dataset, batch_size=None, collate_fn=list, num_workers=1)
    assert message(list, loader) == text


def test_names_that_are_not_ascii(tmp_path):
    write_voc(tmp_path, {"Übung 猫": [thing("Bäume"), thing("猫")]})
    classes = find_classes(tmp_path, ["trainval"])
    sample = VOCDataset(tmp_path, "trainval", classes)[0]
    assert (classes, sample.id, sample.img.shape) == (("Bäume", "猫"), "Übung 猫", (40, 60, 3))
    assert sample.label.tolist() == [0, 1]


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


def test_names_that_people_mix_up_are_named(tmp_path):
    write_voc(tmp_path, {"a": [thing("Cat"), thing("dining table"), thing("cat"), thing("dog")],
                         "b": [thing("cat"), thing("Dining_Table"), thing("dog")]})
    path = tmp_path / "Annotations"
    assert message(find_classes, tmp_path, ["trainval"]).splitlines() == [
        "classes whose names differ only in case or blanks (2): mend the names, or pass --classes with all of them if "
        "they are meant to be different",
        f"  'Cat' (1 object, the first in {path / 'a.xml'}) and 'cat' (2 objects, the first in {path / 'a.xml'})",
        f"  'Dining_Table' (1 object, the first in {path / 'b.xml'}) and 'dining table' (1 object, the first in "
        f"{path / 'a.xml'})"]


def test_classes_are_not_found_in_files_that_cannot_be_read(tmp_path):
    write_voc(tmp_path, {"a": [thing()], "b": ["<object>"]})
    write_voc(tmp_path, {"c": ["</x>"]}, "test")
    lines = message(find_classes, tmp_path, ["trainval", "test"]).splitlines()
    assert lines[0].startswith("files that are not an annotation in the VOC format (2): ")
    assert [line.split(":")[0] for line in lines[1:]] == [f"  {tmp_path}/Annotations/{name}.xml" for name in "bc"]


def test_files_that_cannot_be_read_are_said_before_a_lack_of_objects(tmp_path):
    write_voc(tmp_path, {"a": ["<object>"]})
    for findings in (None, Findings()):
        assert message(find_classes, tmp_path, ["trainval"], findings).startswith(ERRORS["annotation"][0])


def test_root_is_a_folder_in_the_layout(tmp_path):
    text = message(find_root, "voc", str(tmp_path))
    for word in (str(tmp_path), "--voc-data-dir", "--download", "--data=shapes"):
        assert word in text
    assert "\n" not in text
    write_voc(tmp_path, {"a": [thing()]})
    assert find_root("voc", str(tmp_path)) == tmp_path


@pytest.mark.parametrize("wrong", [".", "devkit", "devkit/VOC2007/JPEGImages", "devkit/VOC2007/ImageSets",
                                   "devkit/VOC2007/ImageSets/Main"])
def test_a_level_too_high_or_too_low(tmp_path, wrong):
    right = write_voc(tmp_path / "devkit/VOC2007", {"a": [thing()]})
    text = message(find_root, "voc", str(tmp_path / wrong))
    assert text.startswith(f"there is no data set in {tmp_path / wrong} (no ImageSets/Main)")
    assert text.endswith(f": --voc-data-dir={right}")
    assert "\n" not in text


def test_the_sign_for_home_is_taken_as_a_shell_would(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_voc(tmp_path / "mine", {"a": [thing()]})
    assert find_root("voc", "~/mine") == tmp_path / "mine"


def test_several_roots_below(tmp_path):
    roots = [write_voc(tmp_path / name, {"a": [thing()]}) for name in ("VOC2007", "VOC2012")]
    assert f"there is one in {roots[0]}, {roots[1]}: " in message(find_root, "voc", str(tmp_path))


@pytest.mark.parametrize("folder", ["Annotations", "JPEGImages"])
def test_a_root_without_one_of_its_folders(tmp_path, folder):
    (write_voc(tmp_path, {}) / folder).rmdir()
    assert message(find_root, "voc", str(tmp_path)).startswith(f"{tmp_path} has no folder {folder}: ")


def test_splits_are_the_usual_ones_or_all(tmp_path):
    for split in ("val", "cat_train", "train"):
        write_voc(tmp_path, {}, split)
    assert find_splits(tmp_path) == ["train", "val"]
    for split in ("val", "train"):
        (tmp_path / f"ImageSets/Main/{split}.txt").unlink()
    assert find_splits(tmp_path) == ["cat_train"]
    (tmp_path / "ImageSets/Main/cat_train.txt").unlink()
    assert message(find_splits, tmp_path).startswith(f"{tmp_path / 'ImageSets/Main'} holds no split: ")


def test_ids_may_hold_blanks_and_stand_beside_the_marks_of_a_class_file(tmp_path):
    folder = tmp_path / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    (folder / "cat_train.txt").write_bytes("\ufeffIMG 12 (1)\r\n000007 -1\r\n000009  1\r\n\r\n".encode())
    assert read_ids(tmp_path, "cat_train") == ["IMG 12 (1)", "000007", "000009"]


def test_a_file_of_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffzebu\r\n\r\n dining table \r\nänt\r\n".encode())
    assert read_names([str(path)]) == ("zebu", "dining table", "änt")
    path.write_bytes(b"\r\n \r\n")
    assert message(read_names, [str(path)]) == f"--classes={path} names no class: write one a line"
    path.write_bytes("änt".encode("latin-1"))
    assert message(read_names, [str(path)]) == f"{path} is not a text in UTF-8: save it as such"
    assert message(read_names, [str(tmp_path / "nmaes.txt")]).endswith("nmaes.txt: there is no such file")
    assert read_names(["cat"]) == ("cat",)


def test_two_classes_with_one_name(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\ndog\ncat \nDog\n")
    assert message(read_names, [str(path)]).startswith(f"--classes={path} names cat more than once: ")
    assert message(read_names, ("a", "b", "a", "b", "c")).startswith("--classes=a,b,a,b,c names a, b more than once")
    assert read_names(("cat", "Cat")) == ("cat", "Cat")
