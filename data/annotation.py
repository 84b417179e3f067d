"""One XML file in the VOC format.

The files count pixels from 1, both ends included. This reader subtracts 1 from all four numbers and takes the
result as continuous coordinates (y_min, x_min, y_max, x_max), as the reference does.

G: objects in the image. H, W: its sides.
"""
import xml.etree.ElementTree as ET
from typing import NamedTuple

import defusedxml.ElementTree
import numpy as np
from defusedxml import DefusedXmlException


class Annotation(NamedTuple):
    """The objects of one XML file, as they stand there."""

    name: list[str]  # G names of classes
    bbox: np.ndarray  # (G, 4) float32, 1 subtracted
    difficult: np.ndarray  # (G,) bool
    size: tuple[int, int] | None  # (H, W), where the file tells


def read_annotation(path, findings):
    """The `Annotation` in the XML file `path`, or None after telling `findings` why there is none.

    A missing `difficult` counts as 0; coordinates may be fractions. Entities are not expanded, but refused.
    """
    try:
        root = defusedxml.ElementTree.parse(path).getroot()
        if root.tag != "annotation":
            raise ValueError(f"it holds <{root.tag[:40]}>, not <annotation>")
        size = tuple(_number(root, f"size/{side}", _whole, "0") for side in ("height", "width"))
    except FileNotFoundError:
        return findings.error("no annotation", str(path))
    except OSError as error:
        return findings.error("annotation", f"{path}: {error.strerror}")
    except (ET.ParseError, ValueError, LookupError) as error:
        reason = ("it declares entities, which could grow without bound or fetch files: write out what they stand for"
                  if isinstance(error, DefusedXmlException) else error)
        return findings.error("annotation", f"{path}: {reason}")
    name, corner, difficult, objects = [], [], [], root.findall("object")
    for number, obj in enumerate(objects, start=1):
        try:
            corner.append([_number(obj, f"bndbox/{key}") for key in ("ymin", "xmin", "ymax", "xmax")])
            difficult.append(bool(_number(obj, "difficult", _whole, "0")))
            name.append(_text(obj, "name").strip())
        except ValueError as error:
            findings.error("annotation", f"{path} object {number}: {error}")
    if len(name) < len(objects):
        return None
    with np.errstate(over="ignore"):  # to inf, which is no box
        bbox = np.array(corner, np.float32).reshape(-1, 4) - 1  # (G, 4)
    return Annotation(name, bbox, np.array(difficult, bool), size if all(size) else None)


def _number(node, key, kind=float, missing=""):
    """The number in the element `key` below `node`; `missing` is its text where there is none."""
    text = _text(node, key, missing)
    try:
        return kind(text)
    except (ValueError, OverflowError):
        raise ValueError(f"{key} is {text[:40]!r}, not a number") from None


def _text(node, key, missing=""):
    """The text in the element `key` below `node`."""
    text = node.findtext(key) or missing
    if not text.strip():
        raise ValueError(f"it has no {key}, or nothing in it")
    return text


def _whole(text):
    return int(float(text))
