"""What can be wrong, each rule by itself; numbers are (y, x), texts are width x height."""
from pathlib import Path

import numpy as np
import pytest

from data.annotation import Annotation
from data.check import (
    ERRORS,
    SHOWN,
    DataError,
    Findings,
    check_boxes,
    check_ids,
    check_names,
    check_objects,
    check_size,
    hinted,
    roots_near,
    summary,
)
from data.image import Header
from data.voc import Item

# How it is said


def test_errors_are_raised_by_kind_and_in_order():
    findings = Findings()
    findings.raise_errors()  # nothing was found
    findings.note("clipped", "a")
    findings.raise_errors()
    for kind, offender in (("size", "b"), ("class", "x"), ("size", "a"), ("size", "b")):
        assert findings.error(kind, offender) is None
    with pytest.raises(DataError) as caught:
        findings.raise_errors()
    assert str(caught.value).splitlines() == [
        f"images with other sides than <size> says (2): {ERRORS['size'][1]}", "  b", "  a",
        f"unknown classes (1): {ERRORS['class'][1]}", "  x"]


def test_long_lists_end_and_say_where_the_rest_is():
    findings = Findings()
    for i in range(SHOWN + 3):
        findings.error("no image", f"{i}.jpg")
        findings.note("exif", f"{i}.jpg")
    for shown, last in ((SHOWN, "  and 3 more; python train.py check lists all"), (10**6, "  22.jpg")):
        with pytest.raises(DataError) as caught:
            findings.raise_errors(shown)
        lines = str(caught.value).splitlines()
        assert lines[0].startswith("missing images (23): ")
        assert lines[-1] == last
    assert [note.splitlines()[0][-4:] for note in findings.noted()] == [": 23"]
    assert len(findings.noted(10**6)[0].splitlines()) == 24


@pytest.mark.parametrize(("there", "missing", "hint"), [
    ("a.Jpg", "a.jpg", "there is 'a.Jpg'"), ("A.JPG", "a.jpg", "there is 'A.JPG'"),
    ("a_1.png", "A 1.jpg", "there is 'a_1.png'"),
    ("a.png", "a.png.jpg", "there is 'a.png'"), ("a.jpg", "a 2.jpg", "there is 'a.jpg'"),
    ("a.jpg", "a,1.jpg", "there is 'a.jpg'"), ("b.jpg", "a.jpg", None),
    ("photo 1.jpg", "photo.jpg",
     "there is 'photo 1.jpg', but -1, 0 or 1 behind a blank is no part of an id: rename it"),
    ("photo 2.jpg", "photo.jpg", None),
    ("mu\u0308ll.jpg", "m\u00fcll.jpg", "there is 'mu\u0308ll.jpg', whose accents are composed otherwise: rename it"),
    ("m\u00fcll.bmp", "m\u00fcll.jpg", "there is 'm\u00fcll.bmp'")])
@pytest.mark.parametrize("kind", ["no image", "no annotation"])
def test_what_is_there_instead_is_named(tmp_path, there, missing, hint, kind):
    (tmp_path / there).touch()
    findings = Findings()
    for path in (tmp_path / "quite another.jpg", tmp_path / missing):
        findings.error(kind, str(path))
    with pytest.raises(DataError) as caught:
        findings.raise_errors()
    assert str(caught.value).splitlines()[1:] == [
        f"  {tmp_path}/quite another.jpg", f"  {tmp_path}/{missing}{f': {hint}' if hint else ''}"]


def test_the_name_itself_comes_before_one_like_it(tmp_path):
    for name in ("a 1.jpg", "a.bmp", "a b.jpg", "A.xml 0.jpg"):
        (tmp_path / name).touch()
    assert list(hinted([f"{tmp_path}/a.jpg"])) == [f"{tmp_path}/a.jpg: there is 'a.bmp'"]
    assert list(hinted([f"{tmp_path}/no/a.jpg"])) == [f"{tmp_path}/no/a.jpg"]


def test_an_error_from_a_worker_is_its_sentence():
    traceback = 'Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n' \
                '  File "/x/data/image.py", line 3, in f\n    raise DataError(text)\n' \
                'data.check.DataError: a.jpg: no\n  good\n'
    assert str(DataError(traceback)) == "a.jpg: no\n  good"
    assert str(DataError("a.jpg: no")) == "a.jpg: no"


# Rules


def test_ids():
    findings = Findings()
    lines = [(1, "b"), (3, "a b (1)"), (4, "../a"), (5, "b"), (6, "."), (7, "a\\b"), (9, "..."), (10, "ä\0")]
    assert check_ids("s.txt", lines, findings) == ["b", "a b (1)", "..."]
    assert findings.errors == {
        "path": dict.fromkeys(["s.txt line 4: '../a'", "s.txt line 6: '.'", "s.txt line 7: 'a\\\\b'",
                               "s.txt line 10: 'ä\\x00'"]),
        "doubled id": {"s.txt lines 1 and 5: b": None}}


def test_nothing_to_learn_is_said_where_nothing_else_is_wrong():
    some, none = np.zeros((1, 4), np.float32), np.zeros((0, 4), np.float32)
    for bboxes, expected in (([none, some], {}), ([none, none], {"nothing": {"train": None}})):
        findings = Findings()
        check_objects(bboxes, "train", findings)
        assert findings.errors == expected
    findings = Findings()
    findings.error("no image", "a.jpg")
    check_objects([], "train", findings)
    assert list(findings.errors) == ["no image"]


@pytest.mark.parametrize(("annotated", "size", "orientation", "kind"), [
    ((40, 60), (40, 60), 0, None), ((40, 60), (40, 60), 1, None), (None, (40, 60), 0, None),
    ((40, 60), (60, 40), 0, "turned"), ((40, 60), (60, 40), 6, "turned"), ((40, 60), (60, 40), 1, "turned"),
    ((40, 61), (40, 60), 0, "size"), ((40, 61), (40, 60), 6, "size"), ((-40, 60), (40, 60), 0, "size"),
    ((40, 60), (40, 60), 6, None),  # <size> says that the boxes fit the pixels as stored
    ((40, 60), (40, 60), 3, "exif"), (None, (40, 60), 6, "exif"), ((50, 50), (50, 50), 6, "exif")])
def test_size(annotated, size, orientation, kind):
    findings = Findings()
    check_size("a.xml", annotated, "a.jpg", Header(size, "JPEG", "RGB", orientation), findings)
    assert list(findings.errors) == [kind] * (kind in ERRORS)
    assert list(findings.notes) == [kind] * (kind == "exif")
    if kind in ERRORS:
        exif = f", EXIF orientation {orientation}" if orientation > 1 else ""
        assert list(findings.errors[kind]) == [f"a.xml: <size> says {annotated[1]}x{annotated[0]}, a.jpg has "
                                               f"{size[1]}x{size[0]} pixels{exif}"]


BOXES = [  # y_min, x_min, y_max, x_max in an image of 40 x 60; what is left; kind of error, and of note with "skip"
    ((0, 0, 40, 60), (0, 0, 40, 60), None, None),
    ((3, 5, 3.5, 7), (3, 5, 3.5, 7), None, None),
    ((-1, 5, 9, 8), (0, 5, 9, 8), None, "from 0"),
    ((3, -0.5, 9, 8), (3, 0, 9, 8), None, "from 0"),
    ((-1, 5, 41, 8), (0, 5, 40, 8), None, "clipped"),
    ((-4, 5, 9, 8), (0, 5, 9, 8), None, "clipped"),
    ((3, -6, 9, 66), (3, 0, 9, 60), None, "clipped"),  # a tenth of the side
    ((3, 5, 9, 66.5), (3, 5, 9, 60), "far", "clipped"),
    ((-4.5, 5, 9, 8), (0, 5, 9, 8), "far", "clipped"),
    ((3, 5, 3, 9), None, "no area", "skipped"),
    ((9, 5, 3, 9), None, "no area", "skipped"),
    ((3, 9, 9, 5), None, "no area", "skipped"),
    ((3, 5, 9, np.nan), None, "no area", "skipped"),
    ((np.nan, 5, 9, 8), None, "no area", "skipped"),
    ((3, 5, 9, np.inf), None, "no area", "skipped"),
    ((40, 5, 42, 8), None, "outside", "skipped"),
    ((3, -9, 9, 0), None, "outside", "skipped"),
    ((3, 61, 9, 99), None, "outside", "skipped"),
    ((3, -1.5, 9, 8), (3, 0, 9, 8), None, "clipped")]


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize(("box", "left", "error", "note"), BOXES)
def test_one_box(box, left, error, note, skip):
    findings = Findings()
    annotation = Annotation(["cat"], np.array([box], np.float32), np.array([False]), None)
    bbox, valid = check_boxes("a.xml", annotation, (40, 60), skip, findings)
    assert bbox.dtype == np.float32
    assert valid.tolist() == [left is not None]
    if left:
        np.testing.assert_array_equal(bbox, [left])
    assert list(findings.errors) == [error] * (error is not None and not skip)
    assert list(findings.notes) == [note] * (note is not None and (error is None or skip))


def test_many_boxes():
    rows = [(box, left) for box, left, *_ in BOXES]
    annotation = Annotation(["cat"] * len(rows), np.array([box for box, _ in rows], np.float32), None, None)
    findings = Findings()
    bbox, valid = check_boxes("a.xml", annotation, (40, 60), True, findings)
    np.testing.assert_array_equal(bbox[valid], [left for _, left in rows if left])
    assert {kind: len(lines) for kind, lines in findings.notes.items()} == {"from 0": 2, "clipped": 6, "skipped": 9}
    assert "a.xml object 8 (cat): xmin 6, ymin 4, xmax 67.5, ymax 10, in an image of 60x40" in findings.notes["clipped"]
    assert "a.xml object 13 (cat): xmin 6, ymin 4, xmax nan, ymax 10" in findings.notes["skipped"]


def test_a_small_image_lets_two_pixels_pass():
    for beyond, kinds in ((2, []), (2.5, ["far"])):
        findings = Findings()
        annotation = Annotation(["cat"], np.array([(0, 0, 4, 5 + beyond)], np.float32), None, None)
        check_boxes("a.xml", annotation, (4, 5), False, findings)
        assert list(findings.errors) == kinds


def test_no_box():
    findings = Findings()
    annotation = Annotation([], np.zeros((0, 4), np.float32), np.zeros(0, bool), None)
    bbox, valid = check_boxes("a.xml", annotation, (40, 60), False, findings)
    assert (bbox.shape, valid.shape, valid.dtype) == ((0, 4), (0,), bool)
    assert not findings.errors


@pytest.mark.parametrize(("name", "advice"), [
    ("Cat", "did you mean 'cat'?"), ("dining table", "did you mean 'diningtable'?"),
    ("Dining_Table", "did you mean 'diningtable'?"), ("cst", "did you mean 'cat'?"),
    ("\uff43\uff41\uff54", "did you mean 'cat'?"), ("ba\u0308r", "did you mean 'bär'?"),
    ("zebra", "the known ones are cat, diningtable, bär")])
def test_an_unknown_class_and_the_nearest(name, advice):
    findings = Findings()
    check_names({name: ["a.xml", "a.xml", "b.xml"], "cat": ["a.xml"]}, ("cat", "diningtable", "bär"), findings)
    assert findings.errors == {"class": {f"{name!r} (3 objects, the first in a.xml): {advice}": None}}


def test_names_among_themselves():
    findings = Findings()
    check_names({"cat": ["a.xml"], "cats": ["a.xml"], "dog": ["a.xml"]}, None, findings)
    assert not findings.errors
    check_names({"cat": ["a.xml"], "CAT": ["b.xml", "b.xml"], "c at": ["c.xml"]}, None, findings)
    assert findings.errors == {"alike": {
        "'CAT' (2 objects, the first in b.xml) and 'c at' (1 object, the first in c.xml) and "
        "'cat' (1 object, the first in a.xml)": None}}


def test_roots_near(tmp_path, monkeypatch):
    root = tmp_path / "devkit/VOC2007"
    (root / "ImageSets/Main").mkdir(parents=True)
    monkeypatch.chdir(root)
    assert roots_near(tmp_path) == roots_near(tmp_path / "devkit") == roots_near(root / "JPEGImages") == [root]
    assert roots_near("ImageSets/Main") == roots_near("JPEGImages") == [Path(".")]
    assert roots_near(tmp_path / "a/b/c/d") == roots_near(root) == []
    monkeypatch.chdir(root / "ImageSets")
    assert roots_near(".") == [Path("..")]


# What is there


def item(size, bbox, label, difficult, kind="JPEG"):
    return Item(None, np.array(bbox, np.float32).reshape(-1, 4), np.array(label, np.int64),
                np.array(difficult, bool), "", Header(size, kind, "RGB", 0))


def test_summary():
    items = [item((40, 60), [(1, 2, 4, 9), (0, 0, 8, 30)], [1, 1], [False, True]), item((50, 20), [], [], [], "PNG"),
             item((90, 20), [(5, 6, 7, 9)], [0], [True]), item((40, 60), [(1, 2, 11, 9)], [1], [False])]
    assert summary(("ant", "butterfly", "cow"), items, {"train": 3, "val": 2}).splitlines() == [
        "images: train 3, val 2",
        "of these, each once: 4 can be used, 1 without objects, 1 with difficult ones only",
        "formats: JPEG RGB 3, PNG RGB 1",
        "sides of images: width 20 to 60 (median 40), height 40 to 90 (median 45)",
        "objects in an image: at most 2, 1 on average",
        "sides of boxes: width 3 to 30 (median 7), height 2 to 10 (median 5.5)",
        "class      objects  difficult  images",
        "ant              1          1       1",
        "butterfly        3          1       2",
        "cow              0          0       0"]


def test_summary_of_nothing():
    assert summary(("ant",), [], {"train": 3}) == "no image can be used"
    assert "of boxes" not in summary(("ant",), [item((4, 5), [], [], [])], {"train": 3})
