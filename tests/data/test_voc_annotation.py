"""Reading one annotation: variants that are read, and a sentence for each fault."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from voc_files import fault, thing

from data.validate import ValidationReport
from data.voc_annotation import read_annotation

SETTINGS = settings(deadline=None, derandomize=True, database=None)


def parse(tmp_path, *objects, size=""):
    """The annotation with the XML of some objects; nothing is wrong with it."""
    (tmp_path / "a.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>", encoding="utf-8")
    report = ValidationReport()
    annotation = read_annotation(tmp_path / "a.xml", report)
    assert not report.errors
    return annotation


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


@pytest.mark.parametrize(
    "more",
    [
        "<weather>sunny</weather>",
        "<meta a='1'><rows>9</rows><at>2 x4</at></meta>",
        "<filename>Scan (2) 2020 11 05 b.jpg</filename>",
    ],
)
def test_other_elements_are_ignored_with_and_without_objects(tmp_path, more):
    assert [len(parse(tmp_path, objects + more).names) for objects in ("", thing())] == [0, 1]


@pytest.mark.parametrize("rotation", ["0.0", "None", "", "360.0", "-0.4"])
def test_attributes_of_cvat_are_no_rotation(tmp_path, rotation):
    values = ("rotation", rotation), ("occluded", "True"), ("age", "30")
    texts = [f"<attribute><name>{name}</name><value>{value}</value></attribute>" for name, value in values]
    assert parse(tmp_path, thing(extra=f"<attributes>{''.join(texts)}</attributes>")).names.tolist() == ["cat"]


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


def test_a_name_is_the_same_however_its_accents_are_stored(tmp_path):
    assert parse(tmp_path, thing("caf\u00e9"), thing("cafe\u0301")).names.tolist() == ["caf\u00e9"] * 2


def test_names_need_not_be_ascii(tmp_path):
    assert parse(tmp_path, thing("Bäume & 猫".replace("&", "&amp;"))).names.tolist() == ["Bäume & 猫"]
    text = f'<?xml version="1.0" encoding="latin-1"?><annotation>{thing("Bäume")}</annotation>'
    (tmp_path / "a.xml").write_bytes(text.encode("latin-1"))
    assert read_annotation(tmp_path / "a.xml", ValidationReport()).names.tolist() == ["Bäume"]
    (tmp_path / "a.xml").write_bytes(f"\ufeff<annotation>{thing('Bäume')}</annotation>\r\n".encode())
    assert read_annotation(tmp_path / "a.xml", ValidationReport()).names.tolist() == ["Bäume"]


XML, OBJECT = "xml", "object"
MALFORMED = {
    "empty": ("", XML, "", "no element found: line 1, column 0: the file is empty or cut off"),
    "cut": ("<annotation>", XML, "", "no element found: line 1, column 12: the file is empty or cut off"),
    "text": ("no xml", "annotation", "", "it starts with 'no', not with <"),
    "JSON": ('{"shapes": ["a & b"]}', "annotation", "", """it starts with '{"shapes":', not with <"""),
    "control": (
        "<annotation><folder>a\x08&b</folder></annotation>",
        XML,
        "",
        "column 21: delete the control characters",
    ),
    "two roots": ("<annotation/><annotation/>", XML, "", "junk after document element"),
    "blank first": ('\n<?xml version="1.0"?><annotation/>', XML, "", ": delete what stands before <?xml"),
    "ampersand": ("<annotation><folder>a & b</folder></annotation>", XML, "", ": write &amp; for &"),
    "less": ("<annotation><folder>a < b</folder></annotation>", XML, "", "column 23: write &lt; for <"),
    "html entity": ("<annotation><folder>a&nbsp;b</folder></annotation>", XML, "", ": write the character itself, "),
    "html": ("<html></html>", "annotation", "", "the root element is <html>, not <annotation>"),
    "no name": (thing() + thing().replace("<name>cat</name>", ""), OBJECT, " object 2", "name is missing or empty"),
    "blank name": (thing() + thing(" ") + thing(), OBJECT, " object 2", "name is missing or empty"),
    "two names": (thing(extra="<Name>dog</Name>"), OBJECT, " object 1", "name is there 2 times"),
    "no xmax": (thing().replace("<xmax>58</xmax>", ""), OBJECT, " object 1", "xmax is missing or empty"),
    "two xmax": (thing().replace("<xmax>", "<xmax>9</xmax><xmax>"), OBJECT, " object 1", "xmax is there 2 times"),
    "word": (thing(numbers=(1, 2, "three", 4)), OBJECT, " object 1", "could not convert string to float: 'three'"),
    "rotated": (
        thing(extra="<attributes><attribute><name>rotation</name><value>1.5</value></attribute></attributes>"),
        OBJECT,
        " object 1",
        "its box is rotated by 1.5 degrees",
    ),
    "empty object": (thing() + "<object/>", OBJECT, " object 2", "no bndbox among its tags: none"),
    "polygon": (
        "<object><name>a</name><polygon/></object>",
        OBJECT,
        " object 1",
        "no bndbox among its tags: name, poly",
    ),
    "two boxes": (
        thing().replace("</object>", "<bndbox/></object>"),
        OBJECT,
        " object 1",
        "2 bndbox among its tags: name, difficult, bndbox, bndbox",
    ),
    "no object": (
        f"<annotation>{thing().replace('object>', 'item>')}</annotation>",
        "annotation",
        "",
        "<item> in <annotation>, not in <object>",
    ),
    "two difficult": (
        thing(extra="<difficult>0</difficult><difficult>1</difficult>"),
        OBJECT,
        " object 1",
        "difficult",
    ),
    "points": (
        "<annotation><size/><weather/><shape points='1,2.5;-3,4'/></annotation>",
        "annotation",
        "",
        "<shape> in <annotation>, not in <object>",
    ),
    "flat": ("<annotation><name>a</name><x1>1</x1><y1>2</y1></annotation>", "annotation", "", "<x1> in <annotation>"),
    "list": ("<annotation><cat>[1, 2, 30, 40]</cat></annotation>", "annotation", "", "<cat> in <annotation>"),
    "bare": ("<annotation><xmin>1</xmin><robndbox/></annotation>", "annotation", "", "<xmin> in <annotation>, not in "),
    "klingon": ('<?xml version="1.0" encoding="klingon"?><annotation/>', "encoding", "", "unknown encoding: klingon"),
    "hex": ('<?xml version="1.0" encoding="hex"?><annotation/>', "encoding", "", "'hex' is not a text encoding"),
}


@pytest.mark.parametrize(("content", "kind", "where", "reason"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(tmp_path, content, kind, where, reason):
    whole = kind != OBJECT
    (tmp_path / "a.xml").write_text(content if whole else f"<annotation>{content}</annotation>")
    text = fault(read_annotation, tmp_path / "a.xml", kind)
    assert text.startswith(f"{tmp_path / 'a.xml'}{where}: ")
    assert reason in text
    for word in ("NoneType", "argument"):
        assert word not in text
    if kind != OBJECT or not where:
        return
    report = ValidationReport()
    annotation = read_annotation(tmp_path / "a.xml", report, skip=True)
    assert (report.errors, list(report.notes["no_box"])) == ({}, [text])
    left_out = [name is None for name in annotation.names]
    assert left_out.index(True) == int(where[-1]) - 1
    np.testing.assert_array_equal(np.isnan(annotation.bbox).all(1), left_out)


@pytest.mark.parametrize(
    "content",
    [
        f"<annotation><objects>{thing()}</objects></annotation>",
        f"<annotation>{thing().replace('object', 'Object').replace('box>', 'Box>').replace('min', 'MIN')}</annotation>",
        f"<Annotation xmlns='http://a/b'><a><b>{thing()}</b></a></Annotation>",
        f"<!DOCTYPE annotation><!-- a --><annotation verified='yes'><?b?>{thing()}</annotation>\n\n",
    ],
)
def test_objects_are_found_in_any_case_and_at_any_depth(tmp_path, content):
    (tmp_path / "a.xml").write_text(content)
    annotation = read_annotation(tmp_path / "a.xml", ValidationReport())
    assert annotation.names.tolist() == ["cat"]
    np.testing.assert_array_equal(annotation.bbox, [[10, 6, 30, 57]])


@pytest.mark.parametrize(
    ("word", "difficult", "noted"),
    [
        *(("1", True, False), ("0", False, False), (" 1 ", True, False), ("True", True, False), ("yes", True, False)),
        *(("false", False, False), ("no", False, False), ("", False, False), ("Unspecified", False, True)),
        *(("maybe", False, True), ("nan", False, True), ("1e999", False, True)),
    ],
)
def test_words_for_difficult(tmp_path, word, difficult, noted):
    (tmp_path / "a.xml").write_text(f"<annotation>{thing(extra=f'<difficult>{word}</difficult>')}</annotation>")
    report = ValidationReport()
    assert read_annotation(tmp_path / "a.xml", report).difficult.tolist() == [difficult]
    assert report.notes == ({"unusual": {f"{tmp_path}/a.xml object 1: <difficult>{word}": None}} if noted else {})


@pytest.mark.parametrize("side", ["None", "wide", "nan", "inf", "9" * 400, "6</width><width>5"])
def test_a_size_that_is_no_number_is_absent(tmp_path, side):
    (tmp_path / "a.xml").write_text(f"<annotation><size><width>{side}</width><height>4</height></size></annotation>")
    report = ValidationReport()
    assert read_annotation(tmp_path / "a.xml", report).size is None
    (note,) = report.notes["unusual"]
    assert note.startswith(f"{tmp_path}/a.xml: <size>")


TEXT = "苹果"
HEAD = '<?xml version="1.0" encoding="{}" standalone="no"?>'


@pytest.mark.parametrize(
    ("head", "codec"),
    [
        ("", "utf-8"),
        ("", "utf-8-sig"),
        ("", "utf-16"),
        *(("", name) for name in ("utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")),
        *((HEAD.format(name), name) for name in ("gb2312", "GBK", "gb18030", "big5", "shift_jis", "UTF-8")),
        *((HEAD.format(name), name) for name in ("utf-16", "utf-32")),
        (HEAD.format("utf-16"), "utf-8"),  # by .NET
        (HEAD.format("latin-1"), "utf-8-sig"),
        (HEAD.format("gb2312").replace('"', "'"), "gb2312"),
        ("<?xml version = '1.0' encoding = 'big5' ?>\r\n", "big5"),
    ],
)
def test_encodings(tmp_path, head, codec):
    name = TEXT if codec not in ("big5", "shift_jis") else "中"
    (tmp_path / "a.xml").write_bytes(f"{head}<annotation>{thing(name)}</annotation>".encode(codec))
    assert read_annotation(tmp_path / "a.xml", ValidationReport()).names.tolist() == [name]


def test_bytes_that_are_utf_8_as_well_are_read_as_declared(tmp_path):
    raw = f"{HEAD.format('gb2312')}<annotation>{thing('猫')}</annotation>".encode("gb2312")
    assert raw.decode("utf-8")  # è
    (tmp_path / "a.xml").write_bytes(raw)
    assert read_annotation(tmp_path / "a.xml", ValidationReport()).names.tolist() == ["猫"]


def test_gb2312_may_hold_more_than_it_declares(tmp_path):
    (tmp_path / "a.xml").write_bytes(f"{HEAD.format('gb2312')}<annotation>{thing('镕')}</annotation>".encode("gbk"))
    assert read_annotation(tmp_path / "a.xml", ValidationReport()).names.tolist() == ["镕"]


@pytest.mark.parametrize(
    ("head", "words"),
    [("", "is not utf-8, and it declares no encoding"), (HEAD.format("utf-8"), "is not utf-8, as it declares")],
)
def test_a_wrong_encoding_is_neither_bad_xml_nor_another_format(tmp_path, head, words):
    (tmp_path / "a.xml").write_bytes(f"{head}<annotation>{thing(TEXT)}</annotation>".encode("gbk"))
    assert words in fault(read_annotation, tmp_path / "a.xml", "encoding")


def test_the_place_of_an_object_is_named(tmp_path):
    polygon = "<objects><object><points><point>20,20</point></points></object></objects>"
    (tmp_path / "a.xml").write_text(f"<annotation>{thing()}{polygon}</annotation>")
    text = fault(read_annotation, tmp_path / "a.xml", "object")
    assert text == f"{tmp_path}/a.xml object 2 in <objects>: no bndbox among its tags: points"


def test_every_object_at_fault_is_named(tmp_path):
    objects = thing(numbers=(1, 2, "a", 4)), thing(), thing(" "), thing(numbers=(1, "5,5", 3, 4))
    (tmp_path / "a.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    report = ValidationReport()
    assert read_annotation(tmp_path / "a.xml", report) is None
    assert list(report.errors["object"]) == [
        f"{tmp_path}/a.xml object 1: could not convert string to float: 'a'",
        f"{tmp_path}/a.xml object 3: name is missing or empty",
        f"{tmp_path}/a.xml object 4: could not convert string to float: '5,5'",
    ]


def test_a_folder_in_its_place(tmp_path):
    (tmp_path / "a.xml").mkdir()
    assert "Is a directory" in fault(read_annotation, tmp_path / "a.xml", "xml")


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
    assert "it declares XML entities" in fault(read_annotation, tmp_path / "a.xml", "xml")


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


@settings(SETTINGS, max_examples=100)
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


@settings(SETTINGS, max_examples=100)
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
    assert "no element found" in fault(read_annotation, tmp_path / "a.xml", "xml")
    (tmp_path / "a.xml").write_text(
        "<annotation><source>" + "<part>" * 20_000 + "</part>" * 20_000 + "</source></annotation>"
    )
    assert read_annotation(tmp_path / "a.xml", ValidationReport()).names.tolist() == []
