"""Tests of utils.vis: colours, tags, pictures and recall."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from skimage.color import deltaE_ciede2000, rgb2lab

from utils import vis
from utils.vis import (
    class_color,
    comparison,
    contact_sheet,
    draw_bbox,
    plot_recall,
    save_picture,
    sheet_columns,
    shrink,
)

GREY = np.full((120, 200, 3), 128, np.uint8)
CORNERS = np.array([[-5, -9, 30, 40], [0, 170, 30, 200], [100, 0, 120, 30], [90, 160, 140, 230]], np.float32)


@pytest.fixture
def tags(monkeypatch):
    """The filled rectangles drawn so far, (left, top, right, bottom) with the last pixel included."""
    filled, rectangle = [], ImageDraw.ImageDraw.rectangle

    def spy(self, xy, fill=None, **kwargs):
        if fill is not None:
            filled.append(tuple(xy))
        return rectangle(self, xy, fill=fill, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", spy)
    return filled


def shared(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    return max(0, width) * max(0, height)


def test_class_colors_differ_and_stay():
    color = np.array([class_color(label) for label in range(20)])
    lab = rgb2lab(color[None] / 255.0)[0]
    distance = deltaE_ciede2000(lab[:, None], lab[None]) + 1e3 * np.eye(20)
    assert distance.min() > 15
    assert class_color(0) == (255, 0, 0)
    assert class_color(14) == tuple(color[14].tolist()) == class_color(np.int64(14))
    assert len(class_color(1000)) == 3


def test_ink_is_read_on_every_class_color():
    for label in range(60):
        color = np.array(class_color(label)) / 255
        linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
        luminance = linear @ (0.2126, 0.7152, 0.0722)
        contrast = (
            (luminance + 0.05) / 0.05 if vis._ink_color(class_color(label)) == "black" else 1.05 / (luminance + 0.05)
        )
        assert contrast > 3.9


def test_lines_of_the_class_color_run_around_the_box():
    img = GREY.copy()
    out = draw_bbox(img, np.array([[20, 50, 90, 170]], np.float32), [3])
    inside = np.zeros((120, 200), bool)
    inside[20:90, 50:170] = True
    assert (out[inside] == 128).all()
    color = class_color(3)
    for y, x in ((19, 170), (90, 49), (91, 171), (55, 48), (55, 49), (55, 170), (55, 171), (90, 110), (91, 110)):
        assert tuple(out[y, x]) == color
    for y, x in ((92, 110), (55, 172), (55, 47), (92, 172)):
        assert 60 < out[y, x, 0] < 90  # the shade
        assert len(set(out[y, x].tolist())) == 1
    for y, x in ((93, 110), (55, 173), (55, 46), (50, 20)):
        assert tuple(out[y, x]) == (128, 128, 128)
    assert out.shape == (120, 200, 3)
    assert out.dtype == np.uint8
    assert (img == 128).all()


def test_line_width_and_tag_grow_with_the_image(tags):
    small = draw_bbox(np.zeros((225, 300, 3), np.uint8), np.array([[100, 50, 200, 250]]), [0])
    large = draw_bbox(np.zeros((2250, 3000, 3), np.uint8), np.array([[1000, 500, 2000, 2500]]), [0])
    assert (small[180, :150].any(axis=1)).sum() == 2
    assert 6 <= (large[1800, :1500].any(axis=1)).sum() <= 12
    heights = [bottom - top + 1 for _, top, _, bottom in tags]
    assert 11 <= heights[0] <= 20
    assert 45 <= heights[1] <= 80


def test_tags_stay_inside_and_apart(tags):
    draw_bbox(GREY, CORNERS, [0, 1, 2, 3], [0.5, 0.25, 1.0, 0.125], ["bird", "cat", "sofa", "tvmonitor"])
    assert len(tags) == 4
    for i, (left, top, right, bottom) in enumerate(tags):
        assert 0 <= left < right < 200
        assert 0 <= top < bottom < 120
        assert all(shared(tags[i], tag) == 0 for tag in tags[:i])


def test_tags_of_equal_boxes_avoid_each_other(tags):
    draw_bbox(GREY, np.array([[40, 30, 110, 180]] * 4), [0, 1, 2, 3])
    assert len(set(tags)) == 4
    assert not any(shared(a, b) for i, a in enumerate(tags) for b in tags[:i])


def test_a_tag_spares_small_boxes(tags):
    large, small = [30, 20, 110, 90], [10, 20, 28, 60]  # the small one lies where the tag of the large one would go
    draw_bbox(GREY, np.array([large, small]), [0, 1], [0.9, 0.8], ["cat", "dog"])
    for y_min, x_min, y_max, x_max in (small,):
        assert not any(shared((x_min, y_min, x_max - 1, y_max - 1), tag) for tag in tags)
    assert len(tags) == 2


def test_tags_beside_a_box_at_the_top_and_the_bottom(tags):
    draw_bbox(np.zeros((20, 300, 3), np.uint8), np.array([[2, 100, 18, 140]]), [0], None, ["cat"])
    left, _, right, _ = tags[0]
    assert right < 100 or left >= 140


def test_a_crowd_keeps_the_best_tags_readable(tags, monkeypatch):
    texts, text = [], ImageDraw.ImageDraw.text
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, xy, words, **kw: [texts.append(words), text(self, xy, words, **kw)]
    )
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, (100, 150), (100, 2))
    draw_bbox(GREY, np.concatenate([corner, corner + 20], axis=1), [0] * 100, np.arange(100) / 100, ["cat"])
    assert 3 <= len(tags) < 60
    assert texts == sorted(texts, reverse=True)
    area = [(right - left + 1) * (bottom - top + 1) for left, top, right, bottom in tags]
    for i, tag in enumerate(tags):
        assert sum(shared(tag, other) for other in tags[:i]) <= 0.26 * max(area)


def test_tag_wider_than_the_image_shrinks_and_ends_with_the_image(tags):
    img, bbox = np.zeros((40, 70, 3), np.uint8), np.array([[20, 5, 39, 45]])
    out = draw_bbox(img, bbox, [0], [0.5], ["w" * 7])
    left, top, right, bottom = tags[0]
    assert 0 <= left < right < 70
    assert (out[top : bottom + 1, right - 1 : right + 1] == class_color(0)).all()  # no letter is cut off
    draw_bbox(img, bbox, [0], [0.5], ["w" * 30])
    assert tags[1][::2] == (0, 69)


def test_tag_text(monkeypatch):
    texts = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, xy, text, **kwargs: texts.append(text))
    bbox = np.array([[40, 30, 110, 180], [10, 5, 20, 60]])
    draw_bbox(GREY, bbox, np.array([1, 0]), np.array([0.987, 0.5]), ["cat", "dog"], np.array([True, False]))
    draw_bbox(GREY, bbox, np.array([1, 0]))
    draw_bbox(GREY, bbox)
    assert texts == ["dog 0.99 (difficult)", "cat 0.50", "1", "0"]
    texts.clear()
    draw_bbox(GREY, bbox, [0, 1], [0.5, 0.75])
    assert texts == ["1 0.75", "0 0.50"]  # the best first


@pytest.mark.parametrize("bbox", [[7, 9, 7, 9], [7, 9, 7, 30], [-50, 20, -40, 60], [200, 300, 220, 400]])
def test_boxes_without_area_or_outside_are_drawn(bbox):
    out = draw_bbox(GREY, np.array([bbox], np.float32))
    y, x = min(max(bbox[0] - 1, 0), 119), min(max(bbox[1] - 1, 0), 199)
    assert tuple(out[y, x]) == class_color(0)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 300, 3), (300, 1, 3), (12, 12, 3)])
def test_tiny_and_thin_images_are_drawn_on(shape):
    img = np.full(shape, 128, np.uint8)
    out = draw_bbox(img, np.array([[0, 0, *shape[:2]], [0.2, 0.1, 0.9, 0.8]]), [0, 1], [0.5, 1], ["cat", "dog"])
    assert out.shape == shape
    assert (out != img).any()


def test_no_boxes_give_an_equal_copy():
    out = draw_bbox(GREY, np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0), ["cat"])
    assert (out == GREY).all()
    out[:] = 0
    assert (GREY == 128).all()


def test_shrinking_takes_the_boxes_along():
    img, bbox = shrink(np.zeros((420, 840, 3), np.uint8), np.array([[100, 200, 300, 400]]), 210)
    assert img.shape == (210, 420, 3)
    assert shrink(np.zeros((100, 840, 3), np.uint8), np.zeros((0, 4)), 210)[0].shape == (50, 420, 3)
    assert bbox.tolist() == [[50, 100, 150, 200]]
    img, bbox = shrink(GREY, CORNERS, 200)
    assert (img == GREY).all()
    assert (bbox == CORNERS).all()


def sample(height, width, bbox=(), label=(), value=100):
    return SimpleNamespace(
        img=np.full((height, width, 3), (value, 7, 200), np.uint8),
        bbox=np.array(bbox, np.float32).reshape(-1, 4),
        label=np.array(label, int),
        difficult=np.arange(len(label)) == 0,
        id="7",
    )


def test_ground_truth_is_beside_detections(monkeypatch):
    calls, draw = [], draw_bbox

    def spy(img, bbox, label, score, class_names, difficult=None):
        calls.append((img.shape[:2], bbox.tolist(), list(label), score, class_names, difficult))
        return draw(img, bbox, label, score, class_names, difficult)

    monkeypatch.setattr(vis, "draw_bbox", spy)
    large, names, score = sample(600, 840, [[100, 200, 300, 400]], [1]), ("cat", "dog"), np.array([0.75])
    sheet = comparison([large], ([np.array([[20.0, 40, 60, 80]])], [np.array([0])], [score]), names)
    assert calls == [
        ((300, 420), [[50, 100, 150, 200]], [1], None, names, np.array([True])),
        ((300, 420), [[10, 20, 30, 40]], [0], score, names, None),
    ]
    assert sheet.shape[1] > 840
    assert (large.img == (100, 7, 200)).all()


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_a_comparison_has_two_images_per_row_each_in_its_place(n):
    sizes = [(40, 60), (30, 100), (80, 50), (20, 20), (50, 50), (60, 30)][:n]
    nothing = [np.zeros((0, 4))] * n, [np.zeros(0, int)] * n, [np.zeros(0)] * n
    sheet = comparison([sample(*size, value=100 + i) for i, size in enumerate(sizes)], nothing, ("cat",))
    places = [(sheet == (100 + i, 7, 200)).all(axis=2) for i in range(n)]
    for place, (height, width) in zip(places, sizes, strict=True):
        assert place.sum() == 2 * height * width  # twice, and complete
        assert (place.sum(axis=1) == 2 * width).sum() == height  # in the same rows
    if n > 2:
        rows, columns = ([np.nonzero(place.any(axis=axis))[0] for place in places] for axis in (1, 0))
        assert columns[0].max() < columns[1].min()  # beside
        assert max(rows[0].max(), rows[1].max()) < rows[2].min()  # below


def test_a_contact_sheet_holds_every_image_above_its_title():
    sizes = [(30, 200), (90, 10), (60, 150), (40, 130), (1, 1)]
    imgs = [np.full((*size, 3), 10 * i + 10, np.uint8) for i, size in enumerate(sizes)]
    sheet = contact_sheet(imgs, ["a", "b" * 200, "", "d", "e"])
    places = [np.argwhere((sheet == 10 * i + 10).all(axis=2)) for i in range(5)]
    for place, size in zip(places, sizes, strict=True):
        assert (np.ptp(place, axis=0) + 1).tolist() == list(size) or size == (1, 1)
    top, left = np.transpose([place.min(axis=0) for place in places])
    bottom, right = np.transpose([place.max(axis=0) for place in places])
    assert bottom[0] == bottom[1] == bottom[2] < top[3:].min()  # a row, each directly above its title
    assert left[0] == left[3] == 16
    assert left[1] - right[0] - 1 == 16 + 55  # an image of 10 pixels in the middle of its title's 120
    assert left[2] - right[0] - 1 == 16 + 120 + 16
    assert (sheet[:8] == 255).all()
    assert (sheet[-8:] == 255).all()
    assert (sheet[:, :8] == 255).all()  # the long title, too, has a margin
    assert (sheet[:, -8:] == 255).all()


def test_titles_in_any_script_and_with_any_character():
    titles = ["图像_0001", "f\udce9.jpg", "a\nb", "größe", "\u200bx", "猫" * 50]
    assert contact_sheet([GREY] * 6, titles).shape[1] > 600


# Letters


def test_a_font_with_the_letters_is_found(monkeypatch, tmp_path):
    assert vis.find_font("größe жena") == vis.findfont("DejaVu Sans")
    assert vis.find_font("größe\n") is None
    tried = []

    class Font:
        def __init__(self, path):
            tried.append(path)
            if "damaged" in path:
                raise RuntimeError("no font")
            self.scalable = "bitmap" not in path

        def get_char_index(self, code):
            return 0 if "latin" in tried[-1] else code

    files = ["c/cjk-Bold.ttf", "b/cjk-Regular.ttf", "a/damaged.ttf", "a/bitmap.ttf", "a/latin.ttf", "d/cjk.ttf"]
    monkeypatch.setattr(vis, "findSystemFonts", lambda: files)
    monkeypatch.setattr(vis, "findfont", lambda name: "latin.ttf")
    monkeypatch.setattr(vis, "FT2Font", Font)
    assert vis.find_font.__wrapped__("猫") == "b/cjk-Regular.ttf"  # neither bold nor after another
    assert tried == ["latin.ttf", "a/bitmap.ttf", "a/damaged.ttf", "a/latin.ttf", "b/cjk-Regular.ttf"]


@pytest.fixture
def no_other_font(monkeypatch):
    monkeypatch.setattr(vis, "findSystemFonts", lambda: [])
    vis.find_font.cache_clear()
    vis._warn_of_fonts.cache_clear()
    yield
    vis.find_font.cache_clear()


def test_without_a_font_the_number_is_drawn_and_noted_once(no_other_font, monkeypatch):
    texts = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, xy, text, **kwargs: texts.append(text))
    with warnings.catch_warnings(record=True) as noted:
        for _ in range(3):
            warnings.simplefilter("default")  # as a library may: what was warned of is forgotten
            draw_bbox(GREY, CORNERS, [0, 1, 2, 3], None, ["猫", "žena", "$1_$5", "a\nb"])
    assert sorted(texts) == sorted(["0", "žena", "$1_$5", "3"] * 3)
    assert len(noted) == 1
    assert "no installed font has the letters of some class names" in str(noted[0].message)


def test_letters_of_a_system_font_are_drawn_as_such(no_other_font, monkeypatch):
    path = vis.findfont("DejaVu Serif")
    monkeypatch.setattr(vis, "findSystemFonts", lambda: [path])
    monkeypatch.setattr(vis, "findfont", lambda name: "missing.ttf")
    box = np.array([[40, 30, 110, 180]])
    drawn = draw_bbox(GREY, box, [0], None, ["ж"])
    assert vis.find_font("ж") == path
    assert (drawn != draw_bbox(GREY, box, [0], None, ["0"])).any()


@pytest.mark.filterwarnings("ignore:no installed font")
def test_a_font_without_digits_is_not_taken_for_a_tag(no_other_font, monkeypatch):
    texts = []

    class Letters:
        scalable = True

        def __init__(self, path):
            pass

        def get_char_index(self, code):
            return code * chr(code).isalpha()

    monkeypatch.setattr(vis, "FT2Font", Letters)
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda self, xy, text, **kwargs: texts.append(text))
    assert vis.find_font("猫")
    assert vis.drawable("猫", 7) == "7"
    draw_bbox(GREY, np.array([[40, 30, 110, 180]]), [0], [0.5], ["猫"], [True])
    assert texts == ["0 0.50 (difficult)"]


def test_columns_of_a_contact_sheet():
    assert [sheet_columns(n) for n in (1, 2, 3, 4, 5, 9, 10, 16)] == [1, 2, 3, 2, 3, 3, 4, 4]


def test_failed_drawing_keeps_the_old_picture(tmp_path, monkeypatch):
    def fill_the_disk(self, path, **kwargs):
        path.write_bytes(b"half a picture")
        raise OSError("disk full")

    path = tmp_path / "recall.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(vis.Figure, "savefig", fill_the_disk)
    with pytest.raises(OSError, match="disk full"):
        plot_recall(np.ones((1, 1)), [50], [0.5], path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["recall.png"]


@pytest.fixture
def recall_axes(monkeypatch):
    """The axes of the figures saved so far."""
    axes, savefig = [], vis.Figure.savefig

    def spy(self, *args, **kwargs):
        axes.extend(self.axes)
        return savefig(self, *args, **kwargs)

    monkeypatch.setattr(vis.Figure, "savefig", spy)
    return axes


def test_recall_has_a_line_a_count(tmp_path, recall_axes):
    threshs, path = (0.5, 0.7, 0.9), tmp_path / "recall.png"
    recall = np.array([[0.5, 0.25, 0.0], [0.75, 0.5, 0.0625]])
    plot_recall(recall, (100, 2000), threshs, path)
    axes = recall_axes[0]
    assert len(axes.lines) == 2
    for line, values in zip(axes.lines, recall, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([threshs, values], axis=1))
    assert not np.array_equal(axes.lines[0].get_color(), axes.lines[1].get_color())
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["100 proposals: average 0.2500", "2000 proposals: average 0.4375"]
    assert (axes.get_xlim(), axes.get_ylim()) == ((0.5, 1), (0, 1))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("IoU", "recall")
    img = np.array(Image.open(path).convert("RGB")).astype(int)
    assert img.shape == (600, 800, 3)
    assert (img.max(axis=2) - img.min(axis=2) > 60)[200:].any()  # the lines, below the legend
    assert [file.name for file in tmp_path.iterdir()] == ["recall.png"]


@pytest.mark.filterwarnings("error")
def test_recall_bears_nan_and_emptiness(tmp_path):
    for counts, threshs in (((300,), (0.5,)), ((50, 100), (0.5, 0.6))):
        plot_recall(np.full((len(counts), len(threshs)), np.nan), counts, threshs, tmp_path / "recall.png")
    Image.open(tmp_path / "recall.png").verify()


@pytest.mark.parametrize(
    ("suffix", "start"), [(".pdf", b"%PDF"), (".SVG", b"<?xml"), (".png", b"\x89PNG"), ("", b"\x89PNG")]
)
def test_the_suffix_is_the_format(tmp_path, suffix, start):
    path = tmp_path / f"recall{suffix}"
    plot_recall(np.ones((1, 1)), [50], [0.5], path)
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize(("suffix", "kind"), [("", "PNG"), (".PNG", "PNG"), (".JPG", "JPEG")])
def test_the_suffix_is_the_format_of_a_picture(tmp_path, suffix, kind):
    save_picture(tmp_path / f"a{suffix}", np.full((4, 6, 3), 200, np.uint8))
    with Image.open(tmp_path / f"a{suffix}") as img:
        assert (img.format, img.size, img.getpixel((5, 3))) == (kind, (6, 4), (200, 200, 200))


@pytest.mark.parametrize(("low", "labels"), [(0.2, ["0.2", "0.5", "1", "2"]), (1e-10, ["1e-10", "1e-08", "1e-06"])])
def test_a_logarithmic_axis_has_ticks_over_any_range(low, labels):
    axes = Figure().subplots()
    axes.plot([0, 1], [low, 2])
    vis.set_log_scale(axes, "y")
    axes.figure.draw_without_rendering()
    bottom, top = axes.get_ylim()
    shown = [
        tick.label1.get_text().replace("\N{MINUS SIGN}", "-")
        for tick in axes.yaxis.get_major_ticks()
        if bottom <= tick.get_loc() <= top
    ]
    assert shown[: len(labels)] == labels
