"""Proposals: decoding, clipping, small boxes, ranking, NMS, and their numbers."""

import math

import numpy as np
import pytest
import torch
from torchvision import ops

from model.utils.array_tool import call_creator
from model.utils.bbox_tools import clip_bbox, loc2bbox
from model.utils.proposal_creator import ProposalCreator, nms

IMG_SIZE = (60, 100)


def boxes(*rows):
    return np.array(rows, np.float32)


def still(anchor):
    return np.zeros_like(anchor)


def scores(*values):
    return np.array(values, np.float32)


def test_shifted_then_clipped():
    anchor = boxes([10, 20, 30, 60], [40, 50, 60, 90])
    loc = boxes(
        [0.25, -0.5, math.log(2), math.log(0.5)],  # centre (25, 20), 40 x 20
        [0.5, 0.25, 0, math.log(1.5)],
    )  # centre (60, 80), 20 x 60
    roi = ProposalCreator()(loc, scores(2, 1), anchor, IMG_SIZE, 1.0, True)
    np.testing.assert_allclose(roi, [[5, 10, 45, 30]], atol=1e-5)  # the other is only 10 high after clipping
    roi = ProposalCreator(min_size=10)(loc, scores(2, 1), anchor, IMG_SIZE, 1.0, True)
    np.testing.assert_allclose(roi, [[5, 10, 45, 30], [50, 50, 60, 100]], atol=1e-5)
    assert roi.dtype == np.float32


@pytest.mark.parametrize("img_size", [(60, 100), tuple(np.array((60, 100)))])
def test_whole_numbers_leave_float32(img_size):
    anchor = boxes([-5, -5, 90, 130])
    roi = ProposalCreator()(still(anchor), scores(1), anchor, img_size, 1.0, True)
    assert roi.dtype == np.float32
    assert roi.tolist() == [[0, 0, 60, 100]]


def test_small_boxes_are_dropped_at_min_size_times_scale():
    anchor = boxes([0, 0, 12, 20], [20, 0, 31.9, 20], [40, 0, 60, 11.9], [0, 50, 12, 62])
    score = scores(4, 3, 2, 1)
    roi = ProposalCreator(min_size=8)(still(anchor), score, anchor, IMG_SIZE, 1.5, False)
    np.testing.assert_array_equal(roi, anchor[[0, 3]])  # a side of exactly 12 is kept
    assert len(ProposalCreator(min_size=8)(still(anchor), score, anchor, IMG_SIZE, 1.0, False)) == 4


def apart(n):
    """n boxes of 5 x 4 that do not touch."""
    y, x = 8 * (np.arange(n) // 10), 6 * (np.arange(n) % 10)
    return np.stack((y, x, y + 5, x + 4), 1).astype(np.float32)


def test_best_first_and_ties_in_the_order_of_the_anchors():
    anchor = apart(40)
    score = (np.arange(40) * 7 % 13).astype(np.float32)  # several of each
    roi = ProposalCreator(min_size=1)(still(anchor), score, anchor, IMG_SIZE, 1.0, True)
    np.testing.assert_array_equal(roi, anchor[sorted(range(40), key=lambda i: -score[i])])


def test_numbers_before_and_after_nms():
    anchor = np.repeat(apart(10), 2, 0)  # each box twice: NMS keeps half
    score = np.arange(20, 0, -1).astype(np.float32)
    for numbers, left in (((14, 5, 6, 4), (5, 3)), ((6, 9, 14, 4), (3, 4))):  # 14 -> 7 -> 5 or 4, and 6 -> 3
        creator = ProposalCreator(0.7, *numbers, min_size=1)
        for train, n in zip((True, False), left, strict=True):
            roi = creator(still(anchor), score, anchor, IMG_SIZE, 1.0, train)
            np.testing.assert_array_equal(roi, apart(n))


@pytest.mark.parametrize(("train", "n"), [(True, 12000), (False, 6000)])
def test_default_numbers_before_nms(train, n):
    anchor = np.repeat(boxes([0, 0, 20, 40], [30, 0, 50, 40], [0, 50, 20, 90]), (n - 1, 1, 1), 0)
    score = np.arange(len(anchor), 0, -1).astype(np.float32)
    roi = ProposalCreator()(still(anchor), score, anchor, IMG_SIZE, 1.0, train)
    np.testing.assert_array_equal(roi, anchor[[0, n - 1]])  # the last has too low a rank


def test_small_boxes_do_not_take_the_places_of_others():
    anchor = boxes([0, 0, 3, 30], [0, 0, 20, 30], [30, 0, 50, 30])
    roi = ProposalCreator(n_test_pre_nms=2)(still(anchor), scores(3, 2, 1), anchor, IMG_SIZE, 1.0, False)
    np.testing.assert_array_equal(roi, anchor[1:])


def test_nms_above_the_threshold_only():
    anchor = boxes([0, 0, 20, 40], [0, 0, 20, 20], [0, 0, 20, 24])  # 1/2 and 3/5 with the first, 5/6 together
    score = scores(3, 2, 1)
    half = ProposalCreator(nms_thresh=0.5)(still(anchor), score, anchor, IMG_SIZE, 1.0, True)
    np.testing.assert_array_equal(half, anchor[:2])
    below = ProposalCreator(nms_thresh=0.49)(still(anchor), score[::-1], anchor, IMG_SIZE, 1.0, True)
    np.testing.assert_array_equal(below, anchor[[2]])  # the best box wins wherever it is stored


def random_boxes(n, side):
    """n boxes with sides of 4 to `side` pixels in an image of `IMG_SIZE`."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(-10, 80, (n, 2))
    return np.concatenate((corner, corner + rng.uniform(4, side, (n, 2))), 1).astype(np.float32)


@pytest.mark.parametrize("n_post_nms", [10**6, 70, 3])
def test_against_torchvision(n_post_nms):
    rng, n = np.random.default_rng(0), 900
    anchor = random_boxes(n, 40)
    loc, score = rng.normal(0, 0.2, (n, 4)).astype(np.float32), rng.permutation(n).astype(np.float32)
    creator = ProposalCreator(nms_thresh=0.6, n_train_post_nms=n_post_nms, min_size=0)
    roi = creator(loc, score, anchor, IMG_SIZE, 1.0, True)
    bbox = torch.from_numpy(clip_bbox(loc2bbox(anchor, loc), IMG_SIZE))
    keep = ops.nms(bbox[:, [1, 0, 3, 2]], torch.from_numpy(score), 0.6)
    assert 140 < len(keep) < n - 100  # the first prefix, of 140 boxes, is not enough
    np.testing.assert_array_equal(roi, bbox[keep[:n_post_nms]])


@pytest.mark.parametrize("n", [0, 1, 10, 40, 66, 67, 133, 10**6])
def test_growing_prefixes_keep_what_one_call_keeps(n):
    bbox = random_boxes(700, 90)
    keep = ops.nms(torch.from_numpy(bbox), -torch.arange(700.0), 0.3)
    assert len(keep) == 134
    assert nms(bbox, 0.3, n).tolist() == keep[:n].tolist()


def test_a_prefix_that_keeps_one_box_too_few_grows():
    bbox = apart(3)[[0, 0, 0, 1, 1, 1, 1, 2]]  # the first prefix, of 6 boxes, keeps 2
    assert nms(bbox, 0.7, 3).tolist() == [0, 3, 7]


def test_equal_boxes_and_no_boxes():
    anchor = np.tile(apart(40), (20, 1))
    assert nms(anchor, 0.7, 10**6).tolist() == list(range(40))
    assert nms(anchor, 1.0, 50).tolist() == list(range(50))  # no IoU is above 1
    assert nms(anchor[:0], 0.7, 5).tolist() == []


@pytest.mark.parametrize("anchor", [np.zeros((0, 4), np.float32), boxes([10, 10, 15, 40], [200, 5, 300, 90])])
def test_nothing_to_propose(anchor):
    roi = ProposalCreator()(still(anchor), np.ones(len(anchor), np.float32), anchor, IMG_SIZE, 1.0, True)
    assert roi.shape == (0, 4)
    assert roi.dtype == np.float32


def test_huge_locs_give_finite_proposals():
    anchor = boxes([10, 20, 30, 60])
    with np.errstate(over="raise", invalid="raise"):
        roi = ProposalCreator()(boxes([0, 0, 1e30, 500]), scores(1), anchor, IMG_SIZE, 1.0, True)
    np.testing.assert_array_equal(roi, [[0, 0, 60, 100]])


def test_tensors_in_tensors_out_without_gradient():
    anchor = torch.tensor([[10.0, 20, 30, 60], [40, 50, 60, 90]])
    loc, score = torch.zeros(2, 4, requires_grad=True), torch.tensor([0.2, 0.7], requires_grad=True)
    roi = call_creator(ProposalCreator(), loc, score, anchor, torch.Size(IMG_SIZE), 1.0, True)
    assert torch.equal(roi, anchor.flip(0))
    assert not roi.requires_grad
