"""One XML file: its numbers, its variants, a sentence for each fault, and rubbish of all sorts."""
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from voc_files import thing

from data.annotation import read_annotation
from data.check import Findings


def read(tmp_path, *objects, size=""):
    """The annotation with the XML of some objects; nothing is wrong with it."""
    (tmp_path / "a.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>", encoding="utf-8")
    findings = Findings()
    annotation = read_annotation(tmp_path / "a.xml", findings)
    assert not findings.errors
    return annotation


def fault(path):
    """What is said of a file that is no annotation."""
    findings = Findings()
    assert read_annotation(path, findings) is None
    (offenders,) = findings.errors.values()
    (offender,) = offenders
    return offender


def test_1_is_subtracted_from_all_four(tmp_path):
    annotation = read(tmp_path, thing(), thing("dog", (2, 3, 5, 9)))
    np.testing.assert_array_equal(annotation.bbox, [[10, 6, 30, 57], [1, 2, 4, 8]])
    assert annotation.bbox.dtype == np.float32
    assert annotation.name == ["cat", "dog"]


def test_no_object(tmp_path):
    annotation = read(tmp_path)
    assert (annotation.bbox.shape, annotation.bbox.dtype) == ((0, 4), np.float32)
    assert (annotation.difficult.shape, annotation.difficult.dtype) == ((0,), bool)
    assert annotation.name == []


def test_coordinates_may_be_fractions(tmp_path):
    annotation = read(tmp_path, thing(numbers=(1.5, "2.25", " 30.125 ", "4.75e1")))
    np.testing.assert_array_equal(annotation.bbox, [[0.5, 1.25, 29.125, 46.5]])


def test_what_is_optional_may_be_missing(tmp_path):
    annotation = read(tmp_path, thing(extra=""), thing(extra="<difficult/>"), thing(extra="<difficult>1</difficult>"),
                      thing(extra="<pose>Left</pose><truncated>1</truncated>"))
    assert annotation.difficult.tolist() == [False, False, True, False]
    assert annotation.size is None


def test_parts_of_an_object_are_no_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>3</xmax><ymax>3</ymax></bndbox></part>"
    annotation = read(tmp_path, thing(" cat\n", extra=part))
    assert annotation.name == ["cat"]
    np.testing.assert_array_equal(annotation.bbox, [[10, 6, 30, 57]])


@pytest.mark.parametrize(("size", "expected"), [
    ("<width>60</width><height>40</height>", (40, 60)), ("<width>0</width><height>0</height>", None),
    ("<width>60</width>", None), ("", None), ("<width/><height>40</height>", None)])
def test_size(tmp_path, size, expected):
    assert read(tmp_path, size=f"<size>{size}</size>").size == expected


def test_names_need_not_be_ascii(tmp_path):
    assert read(tmp_path, thing("Bäume & 猫".replace("&", "&amp;"))).name == ["Bäume & 猫"]
    text = f'<?xml version="1.0" encoding="latin-1"?><annotation>{thing("Bäume")}</annotation>'
    (tmp_path / "a.xml").write_bytes(text.encode("latin-1"))
    assert read_annotation(tmp_path / "a.xml", Findings()).name == ["Bäume"]
    (tmp_path / "a.xml").write_bytes(f"\ufeff<annotation>{thing('Bäume')}</annotation>\r\n".encode())
    assert read_annotation(tmp_path / "a.xml", Findings()).name == ["Bäume"]


# Faults


def test_a_missing_file(tmp_path):
    findings = Findings()
    assert read_annotation(tmp_path / "a.xml", findings) is None
    assert findings.errors == {"no annotation": {str(tmp_path / "a.xml"): None}}


@pytest.mark.parametrize(("content", "where", "reason"), [
    ("", "", "no element found"),
    ("<annotation>", "", "no element found"),
    ("no xml", "", "syntax error"),
    ("<html></html>", "", "it holds <html>, not <annotation>"),
    (f"<annotation>{thing()}{thing().replace('<name>cat</name>', '')}</annotation>", " object 2", "it has no name"),
    (f"<annotation>{thing()}{thing().replace('cat', ' ')}{thing()}</annotation>",
     " object 2", "it has no name, or nothing in it"),
    (f"<annotation>{thing()}{thing().replace('<xmax>58</xmax>', '')}</annotation>",
     " object 2", "it has no bndbox/xmax"),
    (f"<annotation>{thing()}{thing(numbers=(1, 2, 'three', 4))}</annotation>",
     " object 2", "bndbox/ymax is 'three', not a number"),
    (f"<annotation>{thing()}{thing(extra='<difficult>maybe</difficult>')}</annotation>",
     " object 2", "difficult is 'maybe', not a number"),
    (f"<annotation>{thing()}<object><name>cat</name></object></annotation>", " object 2", "it has no bndbox/ymin"),
    ("<annotation><size><width>wide</width></size></annotation>", "", "size/width is 'wide', not a number"),
    ("<annotation><size><height>nan</height></size></annotation>", "", "size/height is 'nan', not a number"),
    (f"<annotation>{thing()}{thing(extra='<difficult>inf</difficult>')}</annotation>",
     " object 2", "difficult is 'inf'"),
    ('<?xml version="1.0" encoding="klingon"?><annotation/>', "", "unknown encoding"),
], ids=["empty", "cut", "text", "html", "no name", "blank name", "no xmax", "word", "maybe", "no bndbox", "wide", "nan",
        "endless", "encoding"])
def test_malformed(tmp_path, content, where, reason):
    (tmp_path / "a.xml").write_text(content)
    text = fault(tmp_path / "a.xml")
    assert text.startswith(f"{tmp_path / 'a.xml'}{where}: ")
    assert reason in text
    for word in ("NoneType", "argument"):
        assert word not in text


def test_every_object_at_fault_is_named(tmp_path):
    objects = thing(numbers=(1, 2, "a", 4)), thing(), thing(" "), thing(numbers=(1, "5,5", 3, 4))
    (tmp_path / "a.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    findings = Findings()
    assert read_annotation(tmp_path / "a.xml", findings) is None
    assert list(findings.errors["annotation"]) == [
        f"{tmp_path}/a.xml object 1: bndbox/ymax is 'a', not a number",
        f"{tmp_path}/a.xml object 3: it has no name, or nothing in it",
        f"{tmp_path}/a.xml object 4: bndbox/xmin is '5,5', not a number"]


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / "a.xml").mkdir()
    assert "Is a directory" in fault(tmp_path / "a.xml")


BOMB = '<!DOCTYPE x [<!ENTITY a "cat">' + "".join(
    f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)) + "]>"


@pytest.mark.parametrize("head", [
    BOMB, '<!DOCTYPE x [<!ENTITY j SYSTEM "file:///etc/hostname">]>', '<!DOCTYPE x [<!ENTITY j "cat">]>'],
    ids=["a thousand million cats", "file", "one cat"])
def test_entities_are_refused(tmp_path, head):
    (tmp_path / "a.xml").write_text(f"{head}<annotation>{thing('&j;')}</annotation>")
    assert "it declares entities" in fault(tmp_path / "a.xml")


# Rubbish

WHOLE = (f"<annotation><folder>f</folder><size><width>60</width><height>40</height></size>"
         f"{thing()}{thing('dog', (1.5, 2, 30, '4.75e1'), '<difficult>1</difficult>')}</annotation>").encode()
PIECES = (b"<", b">", b"</", b"&", b"&lt;", b"&#0;", b"&#x41;", b"<!--", b"-->", b"<![CDATA[", b"]]>", b"<?", b"\0",
          b"\xff\xfe", b"\xc3", b"nan", b"-inf", b"1e999", b"9" * 400, b"9" * 5000, b"", b"-", b"<object>",
          b"</object>", b"<name/>", b"<!DOCTYPE a [", b"<a xmlns='b'>", b"<size>", b"\xc2\xb2")
CHANGES = st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 30),
                             st.one_of(st.sampled_from(PIECES), st.binary(max_size=6))), min_size=1, max_size=4)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("rubbish") / "a.xml"


SETTINGS = settings(max_examples=400, deadline=None, derandomize=True, database=None)


@SETTINGS
@given(CHANGES)
@example([(WHOLE.index(b"60"), 2, b"9" * 400)])
@example([(WHOLE.index(b"60"), 2, b"inf")])
@example([(WHOLE.index(b"58"), 2, b"9" * 5000)])
@example([(WHOLE.index(b"<difficult>1") + 11, 1, b"9" * 5000)])
def test_mutated_bytes_give_an_annotation_or_a_sentence(place, changes):
    data = WHOLE
    for start, length, piece in changes:
        data = data[:start] + piece + data[start + length:]
    place.write_bytes(data)
    check_answer(place)


@SETTINGS
@given(st.dictionaries(st.sampled_from(("ymin", "xmin", "ymax", "xmax", "name", "difficult", "width", "height")),
                       st.text(st.characters(codec="utf-8", exclude_characters="<&"), max_size=8)
                       | st.floats().map(str) | st.integers().map(str), min_size=1))
def test_any_text_in_any_field_gives_an_annotation_or_a_sentence(place, texts):
    data = WHOLE.decode()
    for key, text in texts.items():
        data = data.replace(f"<{key}>", f"<{key}>{text}", 1)
    place.write_text(data, encoding="utf-8")
    check_answer(place)


def check_answer(path):
    """An annotation is whole, or there is a sentence for the file or for each object, which names the file."""
    findings, start = Findings(), time.process_time()
    annotation = read_annotation(path, findings)
    assert time.process_time() - start < 5  # of the processor: others may keep it busy
    if annotation is None:
        (offenders,) = findings.errors.values()
        assert all(offender.startswith(str(path)) for offender in offenders)
        return
    assert findings.errors == {}
    n = len(annotation.name)
    assert (annotation.bbox.shape, annotation.bbox.dtype) == ((n, 4), np.float32)
    assert (annotation.difficult.shape, annotation.difficult.dtype) == ((n,), bool)
    assert all(isinstance(name, str) and name == name.strip() != "" for name in annotation.name)
    assert annotation.size is None or all(type(side) is int and side != 0 for side in annotation.size)


def test_deep_nesting_is_no_hang(tmp_path):
    (tmp_path / "a.xml").write_text("<annotation>" + "<object>" * 100_000)
    assert "no element found" in fault(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text("<annotation>" + "<part>" * 20_000 + "</part>" * 20_000 + "</annotation>")
    assert read_annotation(tmp_path / "a.xml", Findings()).name == []
