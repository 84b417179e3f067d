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
    number, name, corner, difficult = 0, [], [], []
    try:
        root = defusedxml.ElementTree.parse(path).getroot()
        if root.tag != "annotation":
            raise ValueError(f"it holds <{root.tag[:40]}>, not <annotation>")
        size = tuple(int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
        for obj in root.findall("object"):
            number += 1
            name.append(obj.findtext("name").strip() or None)
            corner.append([float(obj.findtext(f"bndbox/{key}")) for key in ("ymin", "xmin", "ymax", "xmax")])
            difficult.append(bool(int(obj.findtext("difficult") or 0)))
        if None in name:
            number = name.index(None) + 1
            raise ValueError("its name is empty")
    except FileNotFoundError:
        return findings.error("no annotation", str(path))
    except OSError as error:
        return findings.error("annotation", f"{path}: {error.strerror}")
    except (ET.ParseError, AttributeError, TypeError, ValueError, LookupError, OverflowError) as error:
        reason = ("something is missing" if isinstance(error, AttributeError | TypeError) else
                  "it declares entities, which could grow without bound or fetch files: write out what they stand for"
                  if isinstance(error, DefusedXmlException) else error)
        return findings.error("annotation", f"{path}{f' object {number}' if number else ''}: {reason}")
    with np.errstate(over="ignore"):  # to inf, which is no box
        bbox = np.array(corner, np.float32).reshape(-1, 4) - 1  # (G, 4)
    return Annotation(name, bbox, np.array(difficult, bool), size if all(size) else None)
