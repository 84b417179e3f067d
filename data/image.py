"""Image files: their headers, and their pixels as RGB.

H, W: sides of the image as its pixels are stored; an EXIF orientation turns nothing here.
"""
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.check import DataError

ORIENTATION = 0x112  # the EXIF tag
SUFFIX_FORMATS = {".jpg": ("JPEG", "MPO"), ".jpeg": ("JPEG", "MPO"), ".png": ("PNG",)}
ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}  # format -> what a whole file ends with
# what is read, whatever the name says (MPO counts as JPEG); not EPS, which Pillow has Ghostscript run as a program
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
TAIL = 4096  # bytes; some programs write a little behind the end


class Header(NamedTuple):
    """What an image file says of itself before its pixels."""

    size: tuple[int, int]  # (H, W)
    format: str  # "JPEG", "PNG", ... whatever the name says
    mode: str  # Pillow's: "RGB", "L", "CMYK", ...
    orientation: int  # EXIF's, 1 to 8, 0 where there is none


def read_image(path):
    """The image file `path` as an (H, W, 3) uint8 RGB array.

    Pixels come as they are stored, whatever EXIF says. Gray, palettes and CMYK become RGB; of 16 bits the upper 8
    are kept; transparency is ignored, the colours below it stay. Raises DataError where a file cannot be read.
    """
    with _named(path), Image.open(path, formats=FORMATS) as img:
        return _to_rgb(img)


def read_header(path, findings):
    """The `Header` of the image file `path` (.jpg, .jpeg, .png), or None after telling `findings` why there is none.

    Pixels are not decoded but where the file seems cut off. More than Pillow takes for an attack are refused.
    """
    try:
        with _named(path), Image.open(path, formats=FORMATS) as img:
            header = Header((img.height, img.width), img.format, img.mode, _orientation(img))
        if not _has_end(path, header.format):
            read_image(path)
    except DataError as error:
        return findings.error("image", str(error))
    if header.format not in SUFFIX_FORMATS[path.suffix.lower()]:
        findings.note("suffix", f"{path}: {header.format}")
    return header


@contextmanager
def _named(path):
    """Turns whatever Pillow raises on a damaged file into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        empty = Path(path).is_file() and Path(path).stat().st_size == 0
        reason = "it is empty" if empty else getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = " ".join(reason.replace(f" {str(path)!r}", "").split())
        raise DataError(f"{path} is not an image that can be read: {reason}") from None


def _to_rgb(img):
    """An (H, W, 3) uint8 array of a Pillow image."""
    if img.mode == "F":
        raise ValueError("its pixels are floats, save it with 8 or 16 bits")
    if img.mode.startswith("I"):  # 16 bits of gray, which Pillow would cut off at 255; and those that it opens as 32
        gray = np.asarray(img)  # (H, W)
        if gray.min() < 0 or gray.max() > 65535:
            raise ValueError("its pixels have more than 16 bits, save it with 8 or 16")
        return np.repeat((gray >> 8).astype(np.uint8)[:, :, None], 3, 2)  # (H, W, 3)
    if "transparency" in img.info:
        img = img.convert("RGBA")
    return np.array(img.convert("RGB"))


def _orientation(img):
    if "exif" not in img.info:
        return 0  # asked all the same, Pillow decodes a PNG to look behind its pixels
    try:
        orientation = int(img.getexif().get(ORIENTATION, 0))
    except Exception:  # damaged EXIF does not hurt the pixels
        return 0
    return orientation if 1 <= orientation <= 8 else 0


def _has_end(path, kind):
    """Whether the file ends as its format does; False where the format is another one."""
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, 2) - TAIL, 0))
        return kind in ENDS and ENDS[kind] in file.read()
