"""The embedded data set: what is painted, what is annotated, what is written, and that it is worth training on."""

import inspect
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2hsv

from data import build
from data import shapes_dataset as shapes
from data.shapes_dataset import CLASSES, draw_scene, make_shapes


def read_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng([0, split, index])) for split in (0, 1) for index in range(30)]


# What is drawn


def test_scene_is_pure_and_typed():
    first, second = (draw_scene(np.random.default_rng(5)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    img, bbox, label, difficult, truncated = first
    assert img.dtype == np.uint8
    assert img.shape[2:] == (3,)
    assert bbox.dtype == np.float32
    assert label.dtype == np.int64
    assert difficult.dtype == truncated.dtype == bool
    assert bbox.shape == (len(label), 4)
    assert difficult.shape == truncated.shape == label.shape


def test_sizes_and_counts(scenes):
    side = np.array([img.shape[:2] for img, *_ in scenes])
    assert side.min() >= 200
    assert side.max() <= 320
    assert (side[:, 0] > side[:, 1]).any()
    assert (side[:, 0] < side[:, 1]).any()
    assert {len(label) for _, _, label, *_ in scenes} == {3, 4, 5}


def test_classes_are_balanced(scenes):
    share = np.bincount(np.concatenate([label for _, _, label, *_ in scenes]), minlength=len(CLASSES))
    share = share / share.sum()
    assert len(CLASSES) == 4
    assert share.min() > 0.2
    assert share.max() < 0.3


def test_no_class_comes_again_before_all_came(scenes):
    assert all(len(set(label)) == min(len(label), len(CLASSES)) for _, _, label, *_ in scenes)


def test_hue_is_a_hint():
    """The first colour of most objects is near the hue of their class, of some far from it."""
    off = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        obj = shapes._shape(seed % 4, np.array([30, 30]), np.array([40, 40]), 0.0, np.array([60, 60]))
        first = shapes._surface(rng, obj)[shapes._KINDS[CLASSES[obj.label]].pattern(*obj.own) == 0]
        hue = rgb2hsv(np.median(first, axis=0).clip(0, 1))[0]
        off.append(abs((hue - obj.label / 4 + 0.5) % 1 - 0.5))
    assert 0.92 < np.mean(np.array(off) < 0.1) < 0.99
    assert np.max(off) > 0.3


def test_boxes_use_the_full_range(scenes):
    side = np.concatenate([(bbox[:, 2:] - bbox[:, :2]) / min(img.shape[:2]) for img, bbox, *_ in scenes])
    ratio = side[:, 1] / side[:, 0]
    assert 1 / 12 - 1e-6 <= side.min() < 0.1
    assert 0.6 < side.max() <= 2 / 3 + 1e-6
    assert (np.histogram(side, np.linspace(1 / 12, 2 / 3, 7))[0] > 0.03 * side.size).all()
    assert ratio.max() > 1.9
    assert ratio.min() < 1 / 1.9
    for img, bbox, *_ in scenes:
        assert (bbox[:, :2] >= 0).all()
        assert (bbox[:, 2:] <= img.shape[:2]).all()


def test_objects_overlap(scenes):
    overlapped = []
    for _, bbox, *_ in scenes:
        for i, (y_min, x_min, y_max, x_max) in enumerate(bbox):
            other = np.delete(bbox, i, axis=0)
            height = np.minimum(other[:, 2], y_max) - np.maximum(other[:, 0], y_min)
            width = np.minimum(other[:, 3], x_max) - np.maximum(other[:, 1], x_min)
            shared = (height.clip(0) * width.clip(0)).max()
            overlapped.append(shared > 0.05 * (y_max - y_min) * (x_max - x_min))
    assert np.mean(overlapped) >= 0.2


def test_shares_of_difficult_and_truncated(scenes):
    assert 0.03 <= np.concatenate([difficult for *_, difficult, _ in scenes]).mean() <= 0.1
    assert 0.05 <= np.concatenate([truncated for *_, truncated in scenes]).mean() <= 0.25


def test_truncated_objects_touch_the_border(scenes):
    for img, bbox, _, _, truncated in scenes:
        touches = (bbox[:, :2] == 0).any(axis=1) | (bbox[:, 2:] == img.shape[:2]).any(axis=1)
        assert touches[truncated].all()


def test_difficult_follows_from_what_is_visible():
    n_difficult = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        img_size = rng.choice(shapes.IMAGE_SIDES, size=2)
        pile, visible = shapes._pile(rng, img_size)
        top = np.zeros(img_size * shapes.FINE)
        for number, obj in enumerate(pile, start=1):
            top[obj.row, obj.col] = number
        share = [(top == number).sum() / obj.n_pixel for number, obj in enumerate(pile, start=1)]
        np.testing.assert_allclose(visible, share)
        assert min(share) >= 0.15
        difficult = draw_scene(np.random.default_rng(seed))[3]
        np.testing.assert_array_equal(difficult, np.array(share) < 0.45)
        n_difficult += difficult.sum()
    assert n_difficult > 0


# Boxes and pixels


def test_bar_beyond_the_border_by_hand():
    # 8 x 24 pixels around (10, 30): rows 6..14, columns 18..42, of which the image holds those below 35
    bar = shapes._shape(CLASSES.index("bar"), np.array([10, 30]), np.array([8, 24]), 0.0, np.array([50, 35]))
    assert bar.bbox == (6, 18, 14, 35)
    assert bar.n_pixel == 8 * 24 * 4
    assert len(bar.row) == 8 * 17 * 4
    stripe = shapes._KINDS["bar"].pattern(*bar.own)
    assert len(set(stripe[bar.col == 40])) == 1
    assert set(stripe[bar.row == 20]) == {0, 1}


def test_bar_beyond_the_top_left_corner():
    bar = shapes._shape(CLASSES.index("bar"), np.array([2, 3]), np.array([8, 24]), 0.0, np.array([50, 35]))
    assert bar.bbox == (0, 0, 6, 15)
    assert (bar.n_pixel, len(bar.row)) == (8 * 24 * 4, 6 * 15 * 4)


def test_upright_bar_has_stripes_across():
    bar = shapes._shape(CLASSES.index("bar"), np.array([30, 10]), np.array([24, 8]), np.pi / 2, np.array([60, 60]))
    assert bar.bbox == (18, 6, 42, 14)
    stripe = shapes._KINDS["bar"].pattern(*bar.own)
    assert len(set(stripe[bar.row == 50])) == 1
    assert set(stripe[bar.col == 20]) == {0, 1}


@pytest.mark.parametrize("label", range(len(CLASSES)))
def test_turned_shape_fills_its_box_and_its_own_frame(label):
    obj = shapes._shape(label, np.array([60, 80]), np.array([70, 110]), 0.25, np.array([140, 160]))
    np.testing.assert_allclose(obj.bbox, (25, 25, 95, 135), atol=1.5)
    outline = shapes._KINDS[CLASSES[label]].outline
    np.testing.assert_allclose(obj.own.min(axis=1), outline.min(axis=0), atol=0.03)
    np.testing.assert_allclose(obj.own.max(axis=1), outline.max(axis=0), atol=0.03)


def test_boxes_are_tight_around_the_painted_pixels(monkeypatch):
    """On black, all objects black but the last, which nothing hides: its white pixels span its box."""
    is_last = []
    monkeypatch.setattr(shapes, "_background", lambda rng, height, width: np.zeros((height, width, 3), np.float32))
    monkeypatch.setattr(shapes, "_surface", lambda rng, obj: np.full((len(obj.row), 3), float(is_last.pop(0))))
    for seed in range(12):
        rng = np.random.default_rng(seed)
        n_object = len(shapes._pile(rng, rng.choice(shapes.IMAGE_SIDES, size=2))[0])
        is_last[:] = [False] * (n_object - 1) + [True]
        img, bbox, *_ = draw_scene(np.random.default_rng(seed))
        row, col = img[..., 0].any(axis=1).nonzero()[0], img[..., 0].any(axis=0).nonzero()[0]
        painted = row[0], col[0], row[-1] + 1, col[-1] + 1
        np.testing.assert_array_equal([*np.floor(bbox[-1, :2]), *np.ceil(bbox[-1, 2:])], painted)
        assert np.abs(bbox[-1] - painted).max() <= 0.5


def test_objects_stand_out(scenes):
    """Shrunk to a shorter side of 144, an object in front still differs from the ground around its box."""
    contrast = []
    for img, bbox, *_ in scenes[:30]:
        scale = 144 / min(img.shape[:2])
        small = Image.fromarray(img).resize([round(s * scale) for s in img.shape[1::-1]], Image.Resampling.BILINEAR)
        small = np.asarray(small, float)
        y_min, x_min, y_max, x_max = (bbox[-1] * scale).round().astype(int)
        around = small[max(y_min - 4, 0) : y_max + 4, max(x_min - 4, 0) : x_max + 4]
        contrast.append(np.abs(small[y_min:y_max, x_min:x_max] - np.median(around, axis=(0, 1))).mean())
    assert np.median(contrast) > 30


# Files


def test_defaults_are_large_enough():
    default = {name: p.default for name, p in inspect.signature(make_shapes).parameters.items()}
    assert default["n_test"] >= 60
    assert default["n_trainval"] >= 200


def test_files_depend_on_seed_split_and_index_only(tmp_path):
    one, two = (make_shapes(tmp_path / name, 3, 2, seed=7) for name in "ab")
    assert one.name == two.name
    assert read_files(one) == read_files(two)
    fewer, other = make_shapes(tmp_path / "a", 1, 1, seed=7), make_shapes(tmp_path / "a", 1, 1, seed=8)
    assert len({one, fewer, other}) == 3
    picture = Path("JPEGImages/test_0000.jpg")
    assert read_files(one)[picture] == read_files(fewer)[picture]
    assert read_files(one)[picture] != read_files(other)[picture]
    assert len({data for path, data in read_files(one).items() if path.suffix == ".jpg"}) == 5


def test_layout_and_annotations_repeat_the_scenes(tmp_path):
    folder = make_shapes(str(tmp_path), 3, 2, seed=4)
    assert folder.parent == tmp_path
    names = {s: (folder / "ImageSets" / "Main" / f"{s}.txt").read_text().split() for s in ("trainval", "test")}
    assert {s: len(n) for s, n in names.items()} == {"trainval": 3, "test": 2}
    every = sorted(names["trainval"] + names["test"])
    assert sorted(path.stem for path in (folder / "JPEGImages").glob("*.jpg")) == every
    assert sorted(path.stem for path in (folder / "Annotations").glob("*.xml")) == every
    assert len(list(folder.rglob("*.*"))) == 12
    for number, split in enumerate(names):
        for index, name in enumerate(names[split]):
            img, bbox, label, difficult, truncated = draw_scene(np.random.default_rng([4, number, index]))
            decoded = np.asarray(Image.open(folder / "JPEGImages" / f"{name}.jpg"), float)
            assert decoded.shape == img.shape
            assert np.abs(decoded - img).mean() < 8
            root = ET.parse(folder / "Annotations" / f"{name}.xml").getroot()
            assert root.findtext("filename") == f"{name}.jpg"
            assert [int(root.findtext(f"size/{key}")) for key in ("height", "width", "depth")] == [*img.shape]
            assert [CLASSES.index(obj.findtext("name")) for obj in root.iter("object")] == label.tolist()
            assert [int(obj.findtext("difficult")) for obj in root.iter("object")] == difficult.tolist()
            assert [int(obj.findtext("truncated")) for obj in root.iter("object")] == truncated.tolist()
            keys = ("ymin", "xmin", "ymax", "xmax")
            corner = np.array([[int(obj.findtext(f"bndbox/{k}")) for k in keys] for obj in root.iter("object")])
            assert corner.min() >= 1
            assert (corner[:, 2:] <= img.shape[:2]).all()
            assert np.abs(corner - 1 - bbox).max() <= 1


def test_xml_by_hand(tmp_path, monkeypatch):
    scene = np.zeros((30, 40, 3), np.uint8), np.float32([[2.5, 4, 10, 20.5]]), np.array([1]), [True], [False]
    monkeypatch.setattr(shapes, "draw_scene", lambda rng: scene)
    folder = make_shapes(tmp_path, 1, 0, seed=3)
    assert (folder / "Annotations" / "trainval_0000.xml").read_text() == (
        """<annotation>
<folder>shapes-v2-1-0-3</folder>
<filename>trainval_0000.jpg</filename>
<size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>bar</name><truncated>0</truncated><difficult>1</difficult>
<bndbox><xmin>5</xmin><ymin>3</ymin><xmax>21</xmax><ymax>10</ymax></bndbox>
</object>
</annotation>
"""
    )


def test_finished_folder_is_reused(tmp_path, monkeypatch):
    folder = make_shapes(tmp_path, 1, 1)
    before = read_files(folder)
    monkeypatch.setattr(shapes, "draw_scene", lambda rng: pytest.fail("drawn again"))
    assert make_shapes(tmp_path, 1, 1) == folder
    assert read_files(folder) == before


def test_crash_half_way_leaves_nothing(tmp_path, monkeypatch):
    drawn = []

    def crash(rng):
        drawn.append(draw_scene(rng))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return drawn[-1]

    monkeypatch.setattr(shapes, "draw_scene", crash)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path, 2, 2)
    assert len(drawn) == 3
    assert list(tmp_path.iterdir()) == []


def test_failed_rename_is_not_hidden(tmp_path, monkeypatch):
    def refuse(self, target):
        raise OSError("no space")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(OSError, match="no space"):
        make_shapes(tmp_path, 1, 1)
    assert list(tmp_path.iterdir()) == []


def test_scenes_are_those_of_format_version_2():
    """Runs compare only while the data set stays the same: raise FORMAT_VERSION if it must change."""
    assert shapes.FORMAT_VERSION == 2
    img, bbox, label, difficult, truncated = draw_scene(np.random.default_rng([0, 0, 0]))
    assert img.shape == (320, 280, 3)
    np.testing.assert_allclose(img.mean((0, 1)), [115.635279, 131.458248, 125.984275], atol=1e-3)
    np.testing.assert_allclose(img.std(), 49.590873, atol=1e-3)
    np.testing.assert_array_equal(bbox, [[165, 127, 308.5, 251.5], [95.5, 50, 239, 163.5], [25, 116, 161, 235]])
    assert label.tolist() == [3, 2, 0]
    assert not (difficult | truncated).any()


def test_build_draws_once_and_opens_splits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shapes, "make_shapes", lambda root: make_shapes(root, 3, 2))
    for _ in range(2):
        trainval, test = build("shapes", None, ["trainval", "test"])
    assert [path.name for path in (tmp_path / "datasets").iterdir()] == ["shapes-v2-3-2-0"]
    assert (len(trainval), len(test), trainval.classes) == (3, 2, CLASSES)
    assert test.ids == ["test_0000", "test_0001"]
    _, bbox, label, difficult, _ = draw_scene(np.random.default_rng([0, 1, 0]))
    assert np.abs(test[0].bbox - bbox).max() <= 1
    assert test[0].label.tolist() == label.tolist()
    assert test[0].difficult.tolist() == difficult.tolist()
    assert len(build("shapes", None, ["test"], ("ball", "bar", "diamond", "star", "cone"))[0].classes) == 5
