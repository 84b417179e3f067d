"""Image files of every kind as RGB, and a sentence for those that are none."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageFile
from voc_files import message

from data.check import DataError, Findings
from data.image import ORIENTATION, read_header, read_image

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def header(path):
    """The header of an image with which nothing is wrong."""
    findings = Findings()
    found = read_header(path, findings)
    assert (findings.errors, findings.notes) == ({}, {})
    return found


def fault(path):
    """What is said of an image whose header or end is damaged."""
    findings = Findings()
    assert read_header(path, findings) is None
    (offender,) = findings.errors.pop("image")
    assert not findings.errors
    return offender


# Kinds of pixels


@pytest.mark.parametrize(("mode", "color", "expected"), [
    ("RGB", (10, 20, 30), (10, 20, 30)), ("L", 90, (90, 90, 90)), ("LA", (90, 7), (90, 90, 90)),
    ("RGBA", (10, 20, 30, 128), (10, 20, 30)), ("RGBA", (10, 20, 30, 0), (10, 20, 30)), ("1", 1, (255, 255, 255)),
    ("P", 0, (0, 0, 0))])
def test_every_kind_is_read_as_rgb(tmp_path, mode, color, expected):
    Image.new(mode, (5, 3), color).save(tmp_path / "a.png")
    img = read_image(tmp_path / "a.png")
    assert (img.shape, img.dtype) == ((3, 5, 3), np.uint8)
    np.testing.assert_array_equal(img, np.broadcast_to(np.uint8(expected), (3, 5, 3)))
    img[0, 0, 0] = 1  # may be written to
    assert header(tmp_path / "a.png")[:3] == ((3, 5), "PNG", mode)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [1, b"\x80\x00\xff"])
def test_a_palette_keeps_its_colours_below_transparency(tmp_path, transparency):
    img = Image.new("P", (3, 2))
    img.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    img.putdata([0, 1, 2, 2, 1, 0])
    img.save(tmp_path / "a.png", transparency=transparency)
    a, b, c = (10, 20, 30), (40, 50, 60), (70, 80, 90)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), [[a, b, c], [c, b, a]])


def test_cmyk(tmp_path):
    Image.new("CMYK", (16, 8), (255, 51, 0, 0)).save(tmp_path / "a.jpg", quality=95)  # no red, four fifths of green
    img = read_image(tmp_path / "a.jpg")
    assert img.shape == (8, 16, 3)
    np.testing.assert_allclose(img[4, 4], (0, 204, 255), atol=4)
    assert header(tmp_path / "a.jpg").mode == "CMYK"


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_scaled_and_not_cut_off(tmp_path, suffix):
    gray = np.array([[0, 255, 256], [0x1234, 0xfe00, 0xffff]], np.uint16)
    Image.fromarray(gray).save(tmp_path / f"a.{suffix}")
    img = read_image(tmp_path / f"a.{suffix}")
    assert img.dtype == np.uint8
    np.testing.assert_array_equal(img[:, :, 1], [[0, 0, 1], [0x12, 0xfe, 255]])
    assert (img == img[:, :, :1]).all()


@pytest.mark.parametrize(("array", "words"), [
    (np.full((2, 3), 0.5, np.float32), "floats"), (np.full((2, 3), 70_000, np.int32), "more than 16 bits"),
    (np.full((2, 3), -1, np.int32), "more than 16 bits")])
def test_what_has_no_sensible_bytes_is_refused(tmp_path, array, words):
    Image.fromarray(array).save(tmp_path / "a.tif")
    text = message(read_image, tmp_path / "a.tif")
    assert text.startswith(f"{tmp_path / 'a.tif'} is not an image that can be read: ")
    assert words in text


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_exif_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(NOISE).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").shape == (40, 60, 3)
    assert header(tmp_path / "a.jpg") == ((40, 60), "JPEG", "RGB", 6)
    exif[ORIENTATION] = 9  # which EXIF does not have
    Image.fromarray(NOISE).save(tmp_path / "c.jpg", exif=exif)
    assert header(tmp_path / "c.jpg").orientation == 0
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data.replace(b"Exif\0\0MM\0*\0\0\0\x08", b"Exif\0\0MM\0*\xff\xff\xff\xff"))
    assert header(tmp_path / "b.jpg").orientation == 0


def test_headers_are_read_without_decoding(tmp_path, monkeypatch):
    exif, decoded = Image.Exif(), []
    exif[ORIENTATION] = 5
    for name, options in (("a.png", {}), ("b.png", {"exif": exif}), ("a.jpg", {}), ("b.jpg", {"exif": exif})):
        Image.fromarray(NOISE).save(tmp_path / name, **options)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(self))
    found = [header(tmp_path / name).orientation for name in ("a.png", "b.png", "a.jpg", "b.jpg")]
    assert found == [0, 5, 0, 5]
    assert not decoded


def test_pictures_of_several_cameras_are_jpeg(tmp_path):
    img = Image.fromarray(NOISE)
    img.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[img])
    assert header(tmp_path / "a.jpg").format == "MPO"
    assert read_image(tmp_path / "a.jpg").shape == (40, 60, 3)


# Sizes


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 20_000), (20_000, 3)])
def test_thin_images(tmp_path, size):
    for suffix in ("png", "jpg"):
        Image.new("RGB", size[::-1]).save(tmp_path / f"a.{suffix}")
        assert read_image(tmp_path / f"a.{suffix}").shape == (*size, 3)
        assert header(tmp_path / f"a.{suffix}").size == size


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("1", (300, 200)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 29_999)  # Pillow refuses twice as many
    text = message(read_image, tmp_path / "a.png")
    assert text.startswith(f"{tmp_path / 'a.png'} is not an image that can be read: Image size (60000 pixels)")
    assert fault(tmp_path / "a.png") == text


# Damage


DAMAGES = {"empty": (lambda data: b"", "it is empty"), "text": (lambda data: b"no image", "cannot identify"),
           "head": (lambda data: data[:20], ""), "cut": (lambda data: data[:len(data) // 2], ""),
           "cut near the end": (lambda data: data[:-300], "")}


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_seen_before_decoding(tmp_path, suffix, damage):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(NOISE).save(path)
    change, reason = DAMAGES[damage]
    path.write_bytes(change(path.read_bytes()))
    for text in (fault(path), message(read_image, path)):
        assert text.startswith(f"{path} is not an image that can be read: {reason}")
        assert "\n" not in text
        assert text.count(str(path)) == 1


def test_a_missing_file(tmp_path):
    text = message(read_image, tmp_path / "a.jpg")
    assert text == f"{tmp_path / 'a.jpg'} is not an image that can be read: No such file or directory"


def test_something_behind_the_end_is_no_damage(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(NOISE).save(path)
    for more in (b"\0" * 100, b"\0" * 10_000):  # within what is looked at, and beyond: then it is decoded
        path.write_bytes(path.read_bytes() + more)
        assert header(path).size == (40, 60)


def test_another_format_than_the_name_says_is_read_and_noted(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), NOISE)
    findings = Findings()
    assert read_header(tmp_path / "a.jpg", findings).format == "PNG"
    assert findings.notes == {"suffix": {f"{tmp_path / 'a.jpg'}: PNG": None}}
    assert not findings.errors


def test_no_program_is_run_for_an_image(tmp_path, monkeypatch):
    """EPS is a program in PostScript, and Pillow would have Ghostscript run it."""
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: ran.append(args))
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n"
                                    "%%BoundingBox: 0 0 60 40\n%%EndComments\nshowpage\n%%EOF\n")
    for text in (fault(tmp_path / "a.png"), message(read_image, tmp_path / "a.png")):
        assert text == f"{tmp_path / 'a.png'} is not an image that can be read: cannot identify image file"
    assert not ran


@pytest.mark.parametrize("kind", ["BMP", "GIF", "PPM", "TIFF", "WEBP"])
def test_other_formats_of_pixels_are_read(tmp_path, kind):
    Image.new("RGB", (6, 4), (200, 200, 200)).save(tmp_path / "a.png", kind)
    np.testing.assert_allclose(read_image(tmp_path / "a.png"), np.full((4, 6, 3), 200), atol=2)
    assert read_header(tmp_path / "a.png", Findings())[:2] == ((4, 6), kind)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("rubbish")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=8)), min_size=1, max_size=3))
def test_mutated_bytes_give_an_image_or_a_sentence(place, suffix, changes):
    path = place / f"a.{suffix}"
    Image.fromarray(NOISE[:9, :14]).save(path)
    data = path.read_bytes()
    for share, length, piece in changes:
        start = int(share**2 * len(data))  # more often in the header
        data = data[:start] + piece + data[start + length:]
    path.write_bytes(data)
    findings = Findings()
    if read_header(path, findings):
        try:
            img = read_image(path)
        except DataError as error:
            findings.error("image", str(error))
        else:
            assert (img.shape[2], img.dtype) == (3, np.uint8)
            return
    (offender,) = findings.errors["image"]
    assert offender.startswith(str(path))
