"""Box arithmetic: numbers by hand, round trips, NumPy and torch, gradients, boxes without area, no boxes."""

import math

import numpy as np
import pytest
import torch
import torchvision

from model.utils.bbox_tools import bbox2loc, bbox_iou, clip_bbox, loc2bbox, resize_bbox

both_libraries = pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])

# height 20, width 40, centre (20, 40)  ->  height 40, width 10, centre (32, 35)
# height 8, width 4, centre (5, 9)      ->  height 6, width 12, centre (1, 12)
SRC = np.array([[10, 20, 30, 60], [1, 7, 9, 11]], np.float32)
DST = np.array([[12, 30, 52, 40], [-2, 6, 4, 18]], np.float32)
LOC = np.array(
    [[12 / 20, -5 / 40, math.log(2), math.log(1 / 4)], [-4 / 8, 3 / 4, math.log(3 / 4), math.log(3)]], np.float32
)


def random_bbox(n, seed):
    corner, side = np.split(np.random.default_rng(seed).uniform(1, 50, (n, 4)), 2, axis=1)
    return np.concatenate((corner, corner + side), 1).astype(np.float32)


def assert_answer(answer, expected, library, **tolerance):
    """Check numbers, library and dtype of an answer."""
    assert type(answer) is type(library(SRC))
    assert answer.dtype == library(SRC).dtype
    np.testing.assert_allclose(answer, expected, **tolerance)


@both_libraries
def test_bbox2loc(library):
    assert_answer(bbox2loc(library(SRC), library(DST)), LOC, library, rtol=1e-6)


@both_libraries
def test_loc2bbox(library):
    assert_answer(loc2bbox(library(SRC), library(LOC)), DST, library, rtol=1e-6, atol=1e-5)


@both_libraries
def test_round_trip(library):
    src, dst = library(random_bbox(20, 0)), library(random_bbox(20, 1))
    assert_answer(loc2bbox(src, bbox2loc(src, dst)), dst, library, rtol=1e-4, atol=1e-4)


@both_libraries
def test_loc2bbox_bounds_the_growth(library):
    src = library(np.array([[0, 0, 2, 4]] * 3, np.float32))
    loc = library(np.array([[0, 0, 1e30, -1e30], [0, 0, 4.1, 1e30], [0, 0, -1e30, 4.2]], np.float32))
    bbox = loc2bbox(src, loc)
    # 1000 / 16 = 62.5 times at most; e^4.1 = 60.3 is still below, e^4.2 = 66.7 above
    height, width = [125, 2 * math.exp(4.1), 0], [0, 250, 250]
    np.testing.assert_allclose(bbox[:, 2] - bbox[:, 0], height, rtol=1e-5)
    np.testing.assert_allclose(bbox[:, 3] - bbox[:, 1], width, rtol=1e-5)


@both_libraries
def test_boxes_without_area_give_finite_locs(library):
    flat = library(np.array([[3, 5, 3, 9], [3, 5, 9, 5], [3, 5, 3, 5]], np.float32))
    full = library(np.array([[1, 2, 5, 10]] * 3, np.float32))
    with np.errstate(all="raise"):
        for src, dst in ((flat, full), (full, flat), (flat, flat)):
            assert np.isfinite(np.asarray(bbox2loc(src, dst))).all()
        np.testing.assert_allclose(bbox2loc(full, flat)[0, [0, 1, 3]], [0, 1 / 8, math.log(4 / 8)], atol=1e-6)
        np.testing.assert_array_equal(loc2bbox(flat, library(np.ones((3, 4), np.float32)))[2], [3, 5, 3, 5])


# areas 200, and 600, 40 (inside), 200; the last two are apart from the first in y only, in x only
IOU_A = np.array([[0, 0, 10, 20]], np.float32)
IOU_B = np.array([[5, 10, 25, 40], [2, 3, 6, 13], [0, 0, 10, 20], [12, 5, 17, 15], [3, 25, 8, 30]], np.float32)
IOU = [[50 / 750, 40 / 200, 1, 0, 0]]


@both_libraries
def test_bbox_iou(library):
    assert_answer(bbox_iou(library(IOU_A), library(IOU_B)), IOU, library, rtol=1e-6)
    assert_answer(bbox_iou(library(IOU_B), library(IOU_A)), np.transpose(IOU), library, rtol=1e-6)


@both_libraries
def test_bbox_iou_of_boxes_that_only_touch_or_are_apart_in_both_directions(library):
    others = np.array([[10, 0, 15, 20], [0, 20, 10, 25], [11, 22, 30, 40]], np.float32)
    np.testing.assert_array_equal(bbox_iou(library(IOU_A), library(others)), [[0, 0, 0]])


@both_libraries
def test_bbox_iou_of_boxes_without_area_is_0(library):
    flat = library(np.array([[3, 5, 3, 9], [3, 5, 9, 5], [3, 5, 3, 5]], np.float32))
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(bbox_iou(flat, flat), np.zeros((3, 3)))
        np.testing.assert_array_equal(bbox_iou(flat, library(IOU_A)), np.zeros((3, 1)))


def test_bbox_iou_against_torchvision():
    a, b = torch.from_numpy(random_bbox(30, 2)), torch.from_numpy(random_bbox(9, 3))
    iou = bbox_iou(a, b)
    assert iou.shape == (30, 9)
    assert (iou > 0.1).any()
    torch.testing.assert_close(iou, torchvision.ops.box_iou(a[:, [1, 0, 3, 2]], b[:, [1, 0, 3, 2]]))


@both_libraries
def test_clip_bbox(library):
    bbox = np.array([[-5, -3, 60, 90], [4, 5, 6, 7], [55, 85, 70, 95]], np.float32)
    expected = [[0, 0, 50, 80], [4, 5, 6, 7], [50, 80, 50, 80]]
    for img_size in ((50, 80), np.array((50, 80))):  # neither kind of integer widens float32
        assert_answer(clip_bbox(library(bbox), img_size), expected, library)


@both_libraries
@pytest.mark.parametrize("size_type", [tuple, torch.Size, np.array])
def test_resize_bbox(library, size_type):
    bbox = np.array([[10, 20, 30, 60], [-4, 0, 40, 100]], np.float32)
    resized = resize_bbox(library(bbox), size_type((40, 100)), size_type((20, 150)))  # half as high, 1.5 times as wide
    assert_answer(resized, [[5, 30, 15, 90], [-2, 0, 20, 150]], library)


@both_libraries
def test_no_boxes(library):
    none, some = library(np.zeros((0, 4), np.float32)), library(SRC)
    resized = resize_bbox(none, (5, 6), (7, 9))
    for answer in (bbox2loc(none, none), loc2bbox(none, none), clip_bbox(none, (5, 6)), resized):
        assert_answer(answer, np.zeros((0, 4)), library)
    for a, b in ((none, some), (some, none), (none, none)):
        assert_answer(bbox_iou(a, b), np.zeros((len(a), len(b))), library)


@pytest.mark.parametrize("function", [bbox2loc, loc2bbox, bbox_iou])
def test_torch_stays_differentiable(function):
    first = torch.from_numpy(SRC).double().requires_grad_()
    second = torch.from_numpy(LOC if function is loc2bbox else DST).double().requires_grad_()
    assert torch.autograd.gradcheck(function, (first, second))
