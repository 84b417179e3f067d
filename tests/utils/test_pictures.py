"""Tests of utils.pictures: the sheet with what is there beside what was seen."""

from types import SimpleNamespace

import numpy as np
import pytest

from utils import pictures
from utils.pictures import comparison

NAMES = ("cat", "dog")


def sample(height, width, bbox=(), label=(), difficult=None, value=100):
    return SimpleNamespace(
        img=np.full((height, width, 3), (value, 7, 200), np.uint8), bbox=np.array(bbox, np.float32).reshape(-1, 4),
        label=np.array(label, int), difficult=np.zeros(len(label), bool) if difficult is None else difficult)


@pytest.fixture
def calls(monkeypatch):
    """What was drawn: (size, boxes, labels, scores, class names, difficult)."""
    seen, draw = [], pictures.draw_bbox

    def spy(img, bbox, label, score, class_names, difficult=None):
        seen.append((img.shape[:2], bbox.tolist(), list(label), score, class_names, difficult))
        return draw(img, bbox, label, score, class_names, difficult)

    monkeypatch.setattr(pictures, "draw_bbox", spy)
    return seen


def nothing(n):
    return [np.zeros((0, 4))] * n, [np.zeros(0, int)] * n, [np.zeros(0)] * n


def test_objects_are_beside_detections(calls):
    one = sample(60, 90, [[10, 20, 50, 70]], [1], np.array([True]))
    sheet = comparison([one], ([np.array([[5.0, 6, 30, 40]])], [np.array([0])], [np.array([0.75])]), NAMES)
    assert sheet.dtype == np.uint8
    (left, right) = calls
    assert left == ((60, 90), [[10, 20, 50, 70]], [1], None, NAMES, np.array([True]))
    assert right == ((60, 90), [[5, 6, 30, 40]], [0], np.array([0.75]), NAMES, None)
    assert (one.img == (100, 7, 200)).all()


def test_large_images_shrink_with_their_boxes(calls):
    comparison([sample(420, 840, [[100, 200, 300, 400]], [0])],
               ([np.array([[20.0, 40, 60, 80]])], [np.array([1])], [np.array([0.5])]), NAMES)
    assert [call[:2] for call in calls] == [((210, 420), [[50, 100, 150, 200]]), ((210, 420), [[10, 20, 30, 40]])]


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_two_images_a_row_each_in_its_place(n):
    sizes = [(40, 60), (30, 100), (80, 50), (20, 20), (50, 50), (60, 30)][:n]
    sheet = comparison([sample(*size, value=100 + i) for i, size in enumerate(sizes)], nothing(n), NAMES)
    for i, (height, width) in enumerate(sizes):
        found = (sheet == (100 + i, 7, 200)).all(axis=2)
        assert found.sum() == 2 * height * width  # twice, and whole
        assert found[found.sum(axis=1) >= 2 * width].shape[0] == height  # in the same rows
    if n > 2:
        places = [(sheet == (100 + i, 7, 200)).all(axis=2) for i in range(3)]
        rows, columns = ([place.any(axis=axis) for place in places] for axis in (1, 0))
        assert np.nonzero(columns[0])[0].max() < np.nonzero(columns[1])[0].min()  # beside
        assert max(np.nonzero(rows[i])[0].max() for i in (0, 1)) < np.nonzero(rows[2])[0].min()  # below
