"""What can be wrong, each rule by itself; numbers are (y, x), texts are width x height."""

from pathlib import Path

import numpy as np
import pytest
from voc_files import message

from data import build, read_class_names
from data.validate import (
    KINDS,
    SHOWN,
    DataError,
    ValidationReport,
    check_boxes,
    check_class_names,
    check_size,
    roots_near,
)

# How it is reported


def test_errors_are_raised_by_kind_and_in_order():
    report = ValidationReport()
    report.raise_errors()  # nothing was found
    report.note("clipped", "a")
    report.raise_errors()
    for kind, offender in (("size", "b"), ("class", "x"), ("size", "a"), ("size", "b")):
        assert report.error(kind, offender) is None
    assert message(report.raise_errors).splitlines() == [
        f"{KINDS['size'][0]} (2): {KINDS['size'][1]}",
        "  b",
        "  a",
        f"unknown classes (1): {KINDS['class'][1]}",
        "  x",
    ]


def test_long_lists_end_and_say_where_the_rest_is():
    report = ValidationReport()
    for i in range(SHOWN + 3):
        report.error("no_image", f"{i}.jpg")
        report.note("exif", f"{i}.jpg")
    for shown, last in ((SHOWN, "  and 3 more; python -m tools.check_data lists all"), (10**6, "  22.jpg")):
        lines = message(report.raise_errors, shown).splitlines()
        assert lines[0].startswith("missing images (23): ")
        assert lines[-1] == last
    assert [note.split(":")[0] for note in report.format_notes()] == ["images rotated by EXIF (23, such as 0.jpg)"]
    assert len(report.format_notes(10**6)[0].splitlines()) == 24


def test_a_few_notes_are_a_line():
    report, (what, advice) = ValidationReport(), KINDS["exif"]
    for name in "abc":
        report.note("exif", name)
    assert report.format_notes() == report.format_notes(10**6) == [f"{what}: a; b; c ({advice})"]


def test_an_error_from_a_worker_is_its_sentence():
    traceback = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "/x/data/voc_dataset.py", line 3, in f\n    raise DataError(text)\n'
        "data.validate.DataError: a.jpg: no\n  good\n"
    )
    assert str(DataError(traceback)) == "a.jpg: no\n  good"
    assert str(DataError("a.jpg: no")) == "a.jpg: no"


def test_an_unknown_reader():
    assert message(build, "cocoa", None, []) == (
        "--data=cocoa: data/cocoa_dataset.py does not exist; choose one of coco, shapes, voc"
    )
    assert "--data=../x: " in message(build, "../x", None, [])


# Rules


@pytest.mark.parametrize(
    ("annotated", "size", "orientation", "kind"),
    [
        ((40, 60), (40, 60), 0, None),
        ((40, 60), (40, 60), 1, None),
        (None, (40, 60), 0, None),
        ((40, 60), (60, 40), 0, "swapped_size"),
        ((40, 60), (60, 40), 6, "swapped_size"),
        ((40, 60), (60, 40), 1, "swapped_size"),
        ((40, 61), (40, 60), 0, "size"),
        ((40, 61), (40, 60), 6, "size"),
        ((-40, 60), (40, 60), 0, "size"),
        ((40, 60), (40, 60), 6, None),  # <size> says that the boxes fit the pixels as stored
        ((40, 60), (40, 60), 3, "exif"),
        (None, (40, 60), 6, "exif"),
        ((50, 50), (50, 50), 6, "exif"),
    ],
)
def test_size(annotated, size, orientation, kind):
    report = ValidationReport()
    check_size("a.xml", annotated, "a.jpg", (size, orientation), report)
    assert list(report.errors) == [kind] * (kind in ("size", "swapped_size"))
    assert list(report.notes) == [kind] * (kind == "exif")
    exif = f", EXIF orientation {orientation}" if orientation > 1 else ""
    if report.notes:
        assert list(report.notes[kind]) == [f"a.jpg{exif}"]
    if report.errors:
        assert list(report.errors[kind]) == [
            f"a.xml: annotated as {annotated[1]}x{annotated[0]}, a.jpg has {size[1]}x{size[0]} pixels{exif}"
        ]


BOXES = [  # y_min, x_min, y_max, x_max in an image of 40 x 60; what is left; kind of error, and of note with "skip"
    ((0, 0, 40, 60), (0, 0, 40, 60), None, None),
    ((3, 5, 3.5, 7), (3, 5, 3.5, 7), None, None),
    ((-1, 5, 9, 8), (0, 5, 9, 8), None, "from_0"),
    ((3, -0.5, 9, 8), (3, 0, 9, 8), None, "from_0"),
    ((-1, 5, 41, 8), (0, 5, 40, 8), None, "clipped"),
    ((-4, 5, 9, 8), (0, 5, 9, 8), None, "clipped"),
    ((3, -6, 9, 66), (3, 0, 9, 60), None, "clipped"),  # a tenth of the side
    ((3, 5, 9, 66.5), (3, 5, 9, 60), "far_outside", "clipped"),
    ((-4.5, 5, 9, 8), (0, 5, 9, 8), "far_outside", "clipped"),
    ((3, 5, 3, 9), None, "no_area", "skipped"),
    ((9, 5, 3, 9), None, "no_area", "skipped"),
    ((3, 9, 9, 5), None, "no_area", "skipped"),
    ((3, 5, 9, np.nan), None, "no_area", "skipped"),
    ((np.nan, 5, 9, 8), None, "no_area", "skipped"),
    ((3, 5, 9, np.inf), None, "no_area", "skipped"),
    ((40, 5, 42, 8), None, "outside", "skipped"),
    ((3, -9, 9, 0), None, "outside", "skipped"),
    ((3, 61, 9, 99), None, "outside", "skipped"),
    ((3, -1.5, 9, 8), (3, 0, 9, 8), None, "clipped"),
]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("box", "left", "error", "note"), BOXES)
def test_one_box(box, left, error, note, skip):
    report = ValidationReport()
    bbox, valid = check_boxes("a.xml", ["cat"], np.array([box], np.float32), (40, 60), skip, report)
    assert bbox.dtype == np.float32
    assert valid.tolist() == [left is not None]
    if left:
        np.testing.assert_array_equal(bbox, [left])
    assert list(report.errors) == [error] * (error is not None and not skip)
    assert list(report.notes) == [note] * (note is not None and (error is None or skip))


def test_many_boxes():
    rows = [(box, left) for box, left, *_ in BOXES]
    report = ValidationReport()
    boxes = np.array([box for box, _ in rows], np.float32)
    bbox, valid = check_boxes("a.xml", ["cat"] * len(rows), boxes, (40, 60), True, report)
    np.testing.assert_array_equal(bbox[valid], [left for _, left in rows if left])
    assert {kind: len(lines) for kind, lines in report.notes.items()} == {"from_0": 2, "clipped": 6, "skipped": 9}
    assert "a.xml object 8 (cat): xmin 6, ymin 4, xmax 67.5, ymax 10, in an image of 60x40" in report.notes["clipped"]
    assert "a.xml object 13 (cat): xmin 6, ymin 4, xmax nan, ymax 10, in an image of 60x40" in report.notes["skipped"]


def test_a_small_image_lets_two_pixels_pass():
    for beyond, kinds in ((2, []), (2.5, ["far_outside"])):
        report = ValidationReport()
        check_boxes("a.xml", ["cat"], np.array([(0, 0, 4, 5 + beyond)], np.float32), (4, 5), False, report)
        assert list(report.errors) == kinds


def test_no_box():
    report = ValidationReport()
    bbox, valid = check_boxes("a.xml", [], np.zeros((0, 4), np.float32), (40, 60), False, report)
    assert (bbox.shape, valid.shape, valid.dtype) == ((0, 4), (0,), bool)
    assert not report.errors


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("Cat", "did you mean 'cat'?"),
        ("dining table", "did you mean 'diningtable'?"),
        ("Dining_Table", "did you mean 'diningtable'?"),
        ("cst", "did you mean 'cat'?"),
        ("\uff43\uff41\uff54", "did you mean 'cat'?"),
        ("ba\u0308r", "did you mean 'bär'?"),
        ("zebra", "the known classes are cat, diningtable, bär"),
    ],
)
def test_an_unknown_class_and_the_nearest(name, advice):
    report = ValidationReport()
    classes = ("cat", "diningtable", "N/A", "bär")
    check_class_names({name: ["a.xml", "a.xml", "b.xml"], "cat": ["a.xml"]}, classes, report)
    assert report.errors == {"class": {f"{name!r} (objects: 3, the first in a.xml): {advice}": None}}


def test_a_class_is_not_called_as_outputs_without_a_class():
    report, found = ValidationReport(), {"N/A": ["a.xml", "b.xml"], "cat": ["a.xml"]}
    check_class_names(found, (), report)
    assert list(report.errors["class"]) == [
        "'N/A' (objects: 2, the first in a.xml): outputs without a class are called so: rename it"
    ]
    report = ValidationReport()
    check_class_names(found, ("cat",), report, ignore=True)
    assert not report.errors


def test_unknown_classes_can_be_ignored():
    report = ValidationReport()
    check_class_names({"Cat": ["a.xml"], "cat": ["a.xml"]}, ("cat",), report, ignore=True)
    assert report.errors == {}
    assert report.notes == {"ignored": {"'Cat' (objects: 1, the first in a.xml)": None}}


def test_names_among_themselves():
    report = ValidationReport()
    check_class_names({"cat": ["a.xml"], "cats": ["a.xml"], "dog": ["a.xml"]}, (), report)
    assert not report.errors
    check_class_names({"cow": ["a.xml"], "cow\u200b": ["b.xml"]}, (), report)
    words = r"'cow' (objects: 1, the first in a.xml) and 'cow\u200b' (objects: 1, the first in b.xml)"
    assert report.errors.pop("similar_classes") == {words: None}
    check_class_names({"cat": ["a.xml"], "CAT": ["b.xml", "b.xml"], "c at": ["c.xml"]}, (), report)
    assert report.errors == {
        "similar_classes": {
            "'CAT' (objects: 2, the first in b.xml) and 'c at' (objects: 1, the first in c.xml) and "
            "'cat' (objects: 1, the first in a.xml)": None
        }
    }


def test_roots_near(tmp_path, monkeypatch):
    root = tmp_path / "devkit/VOC2007"
    (root / "ImageSets/Main").mkdir(parents=True)
    monkeypatch.chdir(root)
    for folder in (tmp_path, tmp_path / "devkit", root / "JPEGImages", Path("ImageSets/Main"), Path("JPEGImages")):
        assert roots_near(folder) == [root]
    assert roots_near(tmp_path / "a/b/c/d") == roots_near(root) == []


# Class names


def test_a_file_of_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffzebu\r\n\r\n dining table \r\nänt\r\n".encode())
    assert read_class_names([str(path)]) == ("zebu", "dining table", "änt")
    path.write_bytes(b"\r\n \r\n")
    assert message(read_class_names, [str(path)]) == f"--classes={path} contains no class name: write one per line"
    path.write_bytes("änt".encode("latin-1"))
    assert message(read_class_names, [str(path)]) == f"{path} is not UTF-8 text: save it as UTF-8"
    assert message(read_class_names, [str(tmp_path / "nmaes.txt")]).endswith("nmaes.txt: the file does not exist")
    assert read_class_names(["cat"]) == ("cat",)
    assert read_class_names(()) == ()


def test_two_classes_with_one_name(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("cat\ndog\ncat \nDog\n")
    assert read_class_names([str(path)]) == ("cat", "dog", "Dog")
    assert read_class_names(("a", "b", "a", "b", "c")) == ("a", "b", "c")
    assert read_class_names(("cat", "Cat")) == ("cat", "Cat")
    assert read_class_names(("e\u0301t\u00e9",)) == ("\u00e9t\u00e9",)  # as in annotations
