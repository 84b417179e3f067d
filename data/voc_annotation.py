"""Read one annotation in PASCAL VOC's format: XML as tools and people write it.

G: objects in one image. H, W: sides of the image.
"""

import codecs
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import defusedxml.ElementTree
import numpy as np

from data.validate import ValidationReport

DECLARED = re.compile(rb"""\s*<\?xml[^>]*?\sencoding\s*=\s*["']([^"']*)""")
SUPERSETS = {"gb2312": "gb18030", "gbk": "gb18030"}  # many files use more characters than they declare
ADVICE = (  # part of expat's message, part of the file, what to do
    ("invalid token", r"[\0-\x08\x0b\x0c\x0e-\x1f]", "delete the control characters"),
    ("invalid token", r"&(?!#?\w+;)", "write &amp; for &"),
    ("invalid token", r"<(?![\w/?!:])", "write &lt; for <"),
    ("no element found", "", "the file is empty or cut off"),
    ("not at start", "", "delete what stands before <?xml"),
    ("undefined entity", "", "write the character itself, and &amp; for &"),
)
WORDS = {"true": 1, "yes": 1, "false": 0, "no": 0, "": 0}  # that mean a number
IN_OBJECT = re.compile(r"obj|.*box|polygon|[xy]_?(min|max|\d)")  # tags that belong into an object, or look like one
NAMES = ("folder", "filename", "path", "source")  # which may hold dates
NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")


class Annotation(NamedTuple):
    """The objects of one XML file."""

    names: np.ndarray  # (G,) str, names of classes; None: left out
    bbox: np.ndarray  # (G, 4) float32, 1 subtracted
    difficult: np.ndarray  # (G,) bool
    area: np.ndarray  # (G,) float64, pixels of the object, which COCO sorts sizes by; NaN: those of its box
    size: tuple[int, int] | None  # (H, W), if given


def as_annotation(rows: list[tuple], size: Sequence[float], origin: int) -> Annotation:
    """Return rows of name, corners, difficult and area, and (H, W), as arrays; a size with a 0 is not given."""
    names, corners, difficult, area = zip(*rows, strict=True) if rows else ((), (), (), ())
    with np.errstate(over="ignore"):  # inf, which is reported as a box without area
        bbox = np.array(corners, np.float32).reshape(-1, 4) - origin
    columns = np.array(names, object), bbox, np.array(difficult, bool), np.array(area, np.float64)
    return Annotation(*columns, tuple(map(int, size)) if all(map(int, size)) else None)


def read_annotation(path: Path, report: ValidationReport, skip: bool = False) -> Annotation | None:
    """Read an XML file in the VOC format; return None after reporting all errors in it.

    Tags are found in any case, objects at any depth. A missing or unusual `difficult` counts as 0; coordinates may be
    fractions. XML entities are refused. With `skip`, an object without a name or one box is noted; its name is None.
    """
    root = _parse(path, report)
    if root is None:
        return None
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2].lower()  # without the namespace
    if root.tag != "annotation":
        return report.error("annotation", f"{path}: the root element is <{root.tag[:40]}>, not <annotation>")
    rows, objects = [], list(root.iter("object"))
    parents = {node: parent for parent in root.iter() for node in parent}
    outside = parents.keys() - {node for obj in objects for node in obj.iter()}
    other = {node for node in root if not objects and node.tag not in NAMES and _count_numbers(node) >= 4}
    stray = [n for n in parents if n in outside and (n in other or IN_OBJECT.fullmatch(n.tag))]
    if stray:
        report.error("annotation", f"{path}: <{stray[0].tag}> in <{parents[stray[0]].tag}>, not in <object>")
    for number, obj in enumerate(objects, start=1):
        where = f"{path} object {number}" + (f" in <{parents[obj].tag}>" if parents[obj] is not root else "")
        difficult = as_number(obj.findtext("difficult"))
        if not math.isfinite(difficult):
            report.note("unusual", f"{where}: <difficult>{obj.findtext('difficult')[:40]}")
        try:
            rows.append((*_read_object(obj), math.isfinite(difficult) and difficult != 0, math.nan))
        except ValueError as error:
            rows += [(None, [math.nan] * 4, False, math.nan)] * skip
            (report.note if skip else report.error)("no_box" if skip else "object", f"{where}: {error}")
    sides = [" ".join(node.text or "" for node in root.findall(f"size/{side}")) for side in ("height", "width")]
    size = [as_number(side) for side in sides]  # NaN of two numbers
    if not all(map(math.isfinite, size)):
        report.note("unusual", f"{path}: <size> with {' and '.join(sides):.40}")
        size = [0, 0]
    if stray or len(rows) < len(objects):
        return None
    return as_annotation(rows, size, origin=1)


def _count_numbers(node):
    """Count the numbers in the texts and attributes of a node and those below it; a box has four."""
    texts = (text for each in node.iter() for text in (each.text or "", *each.attrib.values()))
    return sum(bool(NUMBER.fullmatch(word)) for text in texts for word in re.split(r"[\s,;()\[\]]+", text))


def _read_object(obj):
    """Return name and corners of an object; raise a ValueError that says what is missing."""
    boxes = obj.findall("bndbox")
    if len(boxes) != 1:
        raise ValueError(f"{len(boxes) or 'no'} bndbox among its tags: {', '.join(n.tag for n in obj) or 'none'}"[:200])
    turned = [a.findtext("value") for a in obj.findall("attributes/attribute") if a.findtext("name") == "rotation"]
    if any(map(is_turned, turned)):  # CVAT's; its bndbox is of the box before that
        raise ValueError(f"its box is rotated by {turned[0]} degrees")
    if len(obj.findall("difficult")) > 1:
        raise ValueError("difficult is there more than once")
    return _text(obj, "name"), [float(_text(boxes[0], key)) for key in ("ymin", "xmin", "ymax", "xmax")]


def _text(node, key):
    texts = [unicodedata.normalize("NFC", child.text or "").strip() for child in node.findall(key)]
    if len(texts) > 1:
        raise ValueError(f"{key} is there {len(texts)} times")
    if not any(texts):
        raise ValueError(f"{key} is missing or empty")
    return texts[0]


def is_turned(rotation: object) -> bool:
    """Whether a rotation in degrees is more than a touch of its handle."""
    return abs((as_number(rotation) + 180) % 360 - 180) > 0.5


def as_number(text: object) -> float:
    """Return the number that a text or a value of JSON means, 0 for an empty one or None, NaN if it means none."""
    text = "" if text is None else str(text).strip().lower()
    try:
        return WORDS[text] if text in WORDS else float(text)
    except ValueError:
        return math.nan


def _parse(path, report):
    text = ""
    try:
        text = _decode(path.read_bytes())
        if text.strip() and not text.lstrip().startswith("<"):
            return report.error("annotation", f"{path}: it starts with {text.split()[0][:40]!r}, not with <")
        return defusedxml.ElementTree.fromstring(text)
    except defusedxml.DefusedXmlException:
        return report.error("xml", f"{path}: it declares XML entities: replace them with their text")
    except (UnicodeError, LookupError) as error:
        return report.error("encoding", f"{path}: {error}")
    except (OSError, defusedxml.ElementTree.ParseError, ValueError) as error:
        advice = [advice for part, words, advice in ADVICE if part in str(error) and re.search(words, text)]
        return report.error("xml", ": ".join([f"{path}: {getattr(error, 'strerror', None) or error}", *advice[:1]]))


def _decode(raw):
    """Decode XML by its byte order mark or zero bytes, else as it declares, else as UTF-8."""
    codec = json.detect_encoding(raw)
    declared = DECLARED.match(raw) if codec == "utf-8" else None
    if declared and b"utf-16" not in declared[1].lower():  # which zero bytes would show; written by .NET
        codec = codecs.lookup(declared[1].decode("latin-1")).name
    try:
        return raw.decode(SUPERSETS.get(codec, codec))
    except UnicodeDecodeError as error:
        declares = "as it declares" if declared else "and it declares no encoding"
        raise UnicodeError(f"byte {error.start} is not {codec}, {declares}") from None
