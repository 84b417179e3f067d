"""Properties that hold for any input: boxes of every kind and number, images from 1x1, equal scores, NaN.

Coordinates are mostly small whole numbers, so that boxes overlap, touch, are equal, have no area or are inverted.
"""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchvision import ops

from data import Sample
from data.transforms import TrainDataset, flip_bbox
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.anchors import enumerate_shifted_anchor, generate_anchor_base
from model.utils.bbox_tools import bbox2loc, bbox_iou, clip_bbox, loc2bbox, resize_bbox
from model.utils.preprocess import TORCHVISION, prepare
from model.utils.proposal_creator import ProposalCreator, nms
from model.utils.proposal_target_creator import ProposalTargetCreator
from model.utils.sampling import sample_labels
from utils.coco_eval import proposal_recall
from utils.voc_eval import eval_detection_voc

settings.register_profile("fixed", max_examples=75, deadline=None, derandomize=True, database=None)
fixed = settings(settings.get_profile("fixed"))
pytestmark = pytest.mark.filterwarnings(
    "ignore:overflow", "ignore:invalid value"
)  # intermediate infinities are harmless

N_CLASS = 3
whole = st.integers(-3, 20).map(float)
near = whole | st.floats(-1e4, 1e4, width=32)
finite = near | st.floats(allow_nan=False, allow_infinity=False, width=32)
anything = finite | st.floats(width=32)
any_score = st.sampled_from([0, 0.5, np.nan, -np.inf, np.inf]) | anything
size = st.tuples(st.integers(1, 40), st.integers(1, 40))
seed = st.integers(0, 2**32)


def rows(elements, least=0, most=8, columns=4):
    """(n, columns) float32."""
    return arrays(np.float32, st.tuples(st.integers(least, most), st.just(columns)), elements=elements)


def upright(bbox):
    """Boxes with their corners in order; some have no area."""
    return np.concatenate((np.minimum(bbox[:, :2], bbox[:, 2:]), np.maximum(bbox[:, :2], bbox[:, 2:])), 1)


boxes = rows(near)
objects = rows(st.integers(0, 40).map(float) | st.floats(0, 40, width=32)).map(upright)


def inside(bbox, img_size):
    height, width = img_size
    return ((bbox >= 0) & (bbox <= np.array([height, width] * 2))).all()


# Box functions


@fixed
@given(boxes, boxes)
def test_iou(a, b):
    iou = bbox_iou(a, b)
    assert iou.shape == (len(a), len(b))
    assert iou.dtype == np.float32
    assert ((iou >= 0) & (iou <= 1)).all()  # hence no NaN
    np.testing.assert_array_equal(iou.T, bbox_iou(b, a))
    np.testing.assert_allclose(iou, bbox_iou(torch.from_numpy(a), torch.from_numpy(b)), rtol=1e-5)
    has_area = (a[:, 2:] > a[:, :2]).all(1)
    own = bbox_iou(a, a).diagonal()
    assert (own[~has_area] == 0).all()
    large = has_area & ((a[:, 2:] - a[:, :2]).prod(1) > 1e-30)  # otherwise the area is not a normal float32
    assert (own[large] == 1).all()


@fixed
@given(rows(near, 6, 6), rows(near, 6, 6))
def test_any_box_has_a_finite_loc_to_any_other(src, dst):
    loc = bbox2loc(src, dst)
    assert np.isfinite(loc).all()
    np.testing.assert_allclose(loc, bbox2loc(torch.from_numpy(src), torch.from_numpy(dst)), rtol=1e-4, atol=1e-4)


@fixed
@given(rows(st.floats(0, 1000, width=32), 6, 6), rows(st.floats(0, 1000, width=32), 6, 6))
def test_loc_round_trip(src, dst):
    src, dst = (np.concatenate((box[:, :2], box[:, :2] + 20 + box[:, 2:]), 1) for box in (src, dst))
    np.testing.assert_allclose(loc2bbox(src, bbox2loc(src, dst)), dst, rtol=1e-4, atol=0.1)


@fixed
@given(rows(near, 6, 6), rows(finite, 6, 6), size)
def test_any_finite_loc_gives_a_box_that_can_be_clipped(src, loc, img_size):
    bbox = loc2bbox(src, loc)
    assert not np.isnan(bbox).any()
    clipped = clip_bbox(bbox, img_size)
    assert clipped.dtype == np.float32
    assert inside(clipped, img_size)
    np.testing.assert_array_equal(clip_bbox(clipped, img_size), clipped)


# Anchors


@fixed
@given(
    st.integers(1, 64),
    st.lists(st.floats(0.05, 20), min_size=1, max_size=4),
    st.lists(st.floats(0.1, 64), min_size=1, max_size=4),
    st.integers(1, 5),
    st.integers(1, 5),
)
def test_anchors(stride, ratios, scales, height, width):
    base = generate_anchor_base(stride, ratios, scales)  # (A, 4)
    side = base[:, 2:] - base[:, :2]
    ratio, scale = (grid.reshape(-1) for grid in np.meshgrid(ratios, scales, indexing="ij"))
    np.testing.assert_allclose(side.prod(1), (stride * scale) ** 2, rtol=1e-3)
    np.testing.assert_allclose(side[:, 0] / side[:, 1], ratio, rtol=1e-3)
    anchor = enumerate_shifted_anchor(base, stride, height, width)
    assert anchor.dtype == np.float32
    cell = anchor.reshape(height, width, len(base), 4)
    for y, x in ((0, 0), (height - 1, 0), (0, width - 1), (height - 1, width - 1)):
        np.testing.assert_array_equal(cell[y, x], base + np.float32([y * stride, x * stride] * 2))


# Sampling and the creators


@st.composite
def candidates(draw_one):
    kind = draw_one(arrays(np.int8, st.integers(0, 12), elements=st.integers(-1, 1)))
    key = draw_one(
        arrays(
            np.float32,
            len(kind),
            elements=st.sampled_from([0, 0.25, 0.5, 1 - 2**-24]) | st.floats(0, 1, exclude_max=True, width=32),
        )
    )
    return kind == 1, kind == 0, key


@fixed
@given(candidates(), st.integers(0, 15), st.floats(0, 1), seed)
def test_sample_labels(candidates, n_sample, pos_ratio, seed):
    positive, negative, key = candidates
    drawn = sample_labels(positive, negative, key, n_sample, pos_ratio)
    n_positive = min(positive.sum(), int(pos_ratio * n_sample))
    assert (drawn == 1).sum() == n_positive
    assert (drawn == 0).sum() == min(negative.sum(), n_sample - n_positive)
    for label, group in ((1, positive), (0, negative)):
        taken, left = group & (drawn == label), group & (drawn != label)
        assert (drawn[~group] != label).all()
        assert key[taken].max(initial=0) <= key[left].min(initial=1)
    order = np.random.default_rng(seed).permutation(len(key))
    if len(set(key.tolist())) == len(key):  # equal keys are taken in the order of their index
        again = sample_labels(positive[order], negative[order], key[order], n_sample, pos_ratio)
        np.testing.assert_array_equal(again, drawn[order])


@fixed
@given(objects, rows(near, 1, 12).map(upright), size, st.integers(0, 12), st.floats(0, 1), seed)
def test_anchor_targets(bbox, anchor, img_size, n_sample, pos_ratio, seed):
    bbox = clip_bbox(bbox, img_size)
    creator = AnchorTargetCreator(n_sample, pos_ratio=pos_ratio)

    def target(bbox):
        return creator(bbox, anchor, img_size, np.random.default_rng(seed))

    loc, label = target(bbox)
    assert (loc.shape, loc.dtype, label.shape, label.dtype) == (anchor.shape, np.float32, (len(anchor),), np.int64)
    assert np.isfinite(loc).all()
    assert set(label.tolist()) <= {-1, 0, 1}
    assert (label >= 0).sum() <= n_sample
    assert (label == 1).sum() <= int(pos_ratio * n_sample)
    assert inside(anchor[label >= 0], img_size)
    if len(bbox):
        assert (bbox_iou(anchor, bbox).max(1)[label == 1] > 0).all()
        assert (bbox_iou(anchor, bbox).max(1)[label == 0] < 0.3).all()
    else:
        assert not (label == 1).any()
    for same in (bbox[::-1], np.concatenate((bbox, bbox))):  # invariant to order and duplicates
        np.testing.assert_array_equal(target(same).label, label)


@fixed
@given(rows(near, 0, 12).map(upright), objects, st.integers(0, 12), st.floats(0, 1), st.floats(0, 0.4), seed)
def test_proposal_targets(roi, bbox, n_sample, pos_ratio, lo, seed):
    kind = np.arange(len(bbox)) % N_CLASS
    creator = ProposalTargetCreator(n_sample, pos_ratio, neg_iou_thresh_lo=lo)
    sample, loc, label = creator(roi, bbox, kind, np.random.default_rng(seed))
    n_row = min(n_sample, len(roi) + len(bbox))
    assert (sample.shape, loc.shape, label.shape) == ((n_row, 4), (n_row, 4), (n_row,))
    assert (sample.dtype, loc.dtype, label.dtype) == (np.float32, np.float32, np.int64)
    assert np.isfinite(loc).all()
    assert ((label >= -1) & (label <= N_CLASS)).all()
    assert (label > 0).sum() <= int(pos_ratio * n_sample)
    np.testing.assert_array_equal(np.sign(label), np.sort(np.sign(label))[::-1])  # positives, background, the rest
    given = {tuple(row) for row in np.concatenate((roi, bbox)).tolist()}
    assert {tuple(row) for row in sample.tolist()} <= given
    iou = bbox_iou(sample, bbox)  # (S, G)
    for row, one in zip(iou, label, strict=True):
        best = row.max(initial=0)
        assert one == -1 or (best >= 0.5 and one - 1 in kind[row == best] if one else lo <= best < 0.5)


@st.composite
def predictions(draw_one, elements, scores):
    anchor = upright(draw_one(rows(near, 1, 12)))
    loc = draw_one(arrays(np.float32, anchor.shape, elements=elements))
    return anchor, loc, draw_one(arrays(np.float32, len(anchor), elements=scores))


small = st.floats(-2, 2, width=32)


@fixed
@given(
    predictions(small | anything, any_score),
    size,
    st.sampled_from([0.0, 0.5, 1.0, 16.0]),
    st.integers(1, 24),
    st.integers(0, 6),
    st.booleans(),
)
def test_proposals(prediction, img_size, least, n_pre, n_post, train):
    anchor, loc, score = (np.concatenate((one, one)) for one in prediction)  # everything twice
    creator = ProposalCreator(0.5, n_pre, n_post, n_pre, n_post, least)
    roi = creator(loc, score, anchor, img_size, 0.5, train)
    assert (roi.shape, roi.dtype) == ((len(roi), 4), np.float32)
    assert len(roi) <= n_post
    assert inside(roi, img_size)  # so none is NaN
    assert (roi[:, 2:] - roi[:, :2] >= 0.5 * least).all()
    overlap = bbox_iou(roi, roi)
    assert (overlap[~np.eye(len(roi), dtype=bool)] <= 0.5 + 1e-5).all()


@fixed
@given(predictions(small, st.just(0)), size, seed)
def test_proposals_come_by_score_wherever_they_were_stored(prediction, img_size, seed):
    anchor, loc, _ = prediction
    order = np.random.default_rng(seed).permutation(len(anchor))
    score = np.argsort(order).astype(np.float32)  # all differ
    creator = ProposalCreator(0.5, 5, 3, 5, 3, 1)
    roi = creator(loc, score, anchor, img_size, 1.0, True)
    np.testing.assert_array_equal(roi, creator(loc[order], score[order], anchor[order], img_size, 1.0, True))
    bbox = clip_bbox(loc2bbox(anchor, loc), img_size)
    found = [max(score[(bbox == one).all(1)]) for one in roi]
    assert found == sorted(found, reverse=True)


@fixed
@given(rows(near, 0, 40).map(upright), st.sampled_from([0.0, 0.3, 0.7, 1.0]), st.integers(0, 12))
def test_nms_on_growing_prefixes(bbox, iou_thresh, n):
    """The first `n` boxes that one call on all boxes keeps."""
    keep = ops.nms(torch.from_numpy(bbox), -torch.arange(len(bbox), dtype=torch.float32), iou_thresh)
    np.testing.assert_array_equal(nms(bbox, iou_thresh, n), keep[:n])


# Transforms


@fixed
@given(objects, size, size)
def test_resized_and_flipped_boxes_stay_inside(bbox, old, new):
    bbox = clip_bbox(bbox, old)
    scaled = resize_bbox(bbox, old, new)
    assert scaled.dtype == np.float32
    limit = np.float32([*new, *new])
    assert ((scaled >= 0) & (scaled <= limit * (1 + 1e-6))).all()
    np.testing.assert_allclose(
        resize_bbox(scaled, new, old), bbox, rtol=1e-5, atol=1e-30
    )  # numbers below 1e-38 lose digits
    flipped = flip_bbox(bbox, old[1])
    assert inside(flipped, old)
    np.testing.assert_array_equal(flipped, upright(flipped))
    np.testing.assert_allclose(flip_bbox(flipped, old[1]), bbox, atol=1e-5)


@fixed
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 60), st.integers(0, 60), st.sampled_from([0, 1]), seed)
def test_any_image_becomes_an_input_with_boxes(height, width, min_size, more, flip_prob, seed):
    img = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    bbox = np.float32([[0, 0, height, width], [0, 0, height / 2, width / 4]])
    for n in (0, 2):
        sample = Sample(img, bbox[:n], np.zeros(n, np.int64), np.zeros(n, bool), "a", roi=bbox[:n])
        out = TrainDataset([sample], seed, 0, flip_prob)[0]
        np.testing.assert_array_equal(out.img, img[:, ::-1] if flip_prob else img)
        pixel, _ = prepare(out.img, TORCHVISION, min_size, min_size + more, "cpu", min_side=16)
        new_size = pixel.shape[2:]
        assert pixel.isfinite().all()
        assert all(16 <= side <= max(min_size + more, 16) for side in new_size)
        for boxes in (out.bbox, out.roi):
            resized = resize_bbox(boxes, (height, width), new_size)
            np.testing.assert_allclose(resized[:1], np.float32([[0, 0, *new_size]])[:n], atol=1e-4)
            left = 3 / 4 if flip_prob else 0
            np.testing.assert_allclose(resized[1:, 1], np.float32([left * new_size[1]])[:n], atol=1e-4)


# Metrics


@st.composite
def detections(draw_one, elements=near):
    """Boxes, labels and scores of 0 to 3 images, then boxes, labels and difficult flags of their objects."""

    def images(values):
        out = []
        for _ in range(n_image):
            bbox = draw_one(rows(elements, 0, 5))
            label = draw_one(arrays(np.int64, len(bbox), elements=st.integers(0, N_CLASS - 1)))
            out.append((bbox, label, draw_one(values(len(bbox)))))
        return [list(column) for column in zip(*out, strict=True)] or [[], [], []]

    n_image = draw_one(st.integers(0, 3))
    return (*images(lambda n: arrays(np.float64, n, elements=any_score)), *images(lambda n: arrays(bool, n)))


@fixed
@given(detections(), st.booleans(), st.floats(0.1, 1), seed)
def test_average_precision(lists, use_07_metric, iou_thresh, seed):
    def score(lists):
        return eval_detection_voc(*lists, iou_thresh, use_07_metric, N_CLASS)

    result = score(lists)
    *_, scores, _, gt_labels, difficults = lists
    counted = [label[~difficult] for label, difficult in zip(gt_labels, difficults, strict=True)]
    has_object = np.isin(np.arange(N_CLASS), np.concatenate([np.zeros(0, int), *counted]))
    ap = result["ap"]
    np.testing.assert_array_equal(np.isnan(ap), ~has_object)
    assert ((ap[has_object] >= 0) & (ap[has_object] <= 1 + 1e-9)).all()
    np.testing.assert_equal(result["map"], ap[has_object].mean() if has_object.any() else np.nan)

    flat = np.concatenate([np.zeros(0), *scores])
    rank = np.unique(np.nan_to_num(flat, nan=-np.inf, posinf=np.inf, neginf=-np.inf), return_inverse=True)[1]
    if not np.isneginf(flat).any():  # NaN ranks last, after -inf
        ranks = np.split(rank, np.cumsum([len(one) for one in scores]))[: len(scores)]
        np.testing.assert_equal(score((*lists[:2], ranks, *lists[3:])), result)  # only the order of scores counts
    order = np.random.default_rng(seed).permutation(len(scores))
    if len(set(rank)) == len(rank):  # ties are ranked in the given order
        shuffled = [[column[i] for i in order] for column in lists]
        np.testing.assert_equal(score(shuffled), result)


@fixed
@given(detections(st.integers(0, 30)), st.booleans())
def test_detecting_all_objects_gives_an_average_precision_of_1(lists, use_07_metric):
    *_, bboxes, labels, difficults = lists
    bboxes = [upright(bbox) for bbox in bboxes]
    for bbox, label in zip(bboxes, labels, strict=True):
        assume(len(np.unique(np.c_[bbox, label], axis=0)) == len(bbox))  # of two equal objects only one can be matched
    # each object once, then each a second time, then false positives
    found = [np.concatenate((bbox, bbox, bbox + 1000)) for bbox in bboxes]
    found_labels = [np.tile(label, 3) for label in labels]
    scores = [np.repeat([0.9, 0.5, 0.1], len(label)) for label in labels]
    ap = eval_detection_voc(found, found_labels, scores, bboxes, labels, difficults, 0.9, use_07_metric, N_CLASS)["ap"]
    np.testing.assert_allclose(ap[~np.isnan(ap)], 1)


@fixed
@given(
    detections(),
    st.lists(st.integers(1, 8), min_size=1, max_size=4).map(sorted),
    st.lists(st.floats(0.01, 1), min_size=1, max_size=4).map(sorted),
)
def test_recall(lists, counts, threshs):
    rois, _, _, bboxes, _, difficults = lists
    result = proposal_recall(rois, bboxes, difficults, counts, threshs)
    recall = result["recall"]
    assert recall.shape == (len(counts), len(threshs))
    assert result["n_object"] == sum((~difficult).sum() for difficult in difficults)
    if result["n_object"] == 0:
        assert np.isnan(recall).all()
        return
    assert ((recall >= 0) & (recall <= 1)).all()
    assert (np.diff(recall, axis=0) >= 0).all()  # not less with more proposals
    assert (np.diff(recall, axis=1) <= 0).all()  # not more at a higher IoU
    backwards = [[one[::-1] for one in column] for column in (bboxes, difficults)]
    np.testing.assert_equal(proposal_recall(rois, *backwards, counts, threshs), result)
    solid = [one[(one[:, 2:] > one[:, :2]).all(1)] for one in map(upright, bboxes)]
    if sum(map(len, solid)):
        assert (proposal_recall(solid, solid, None, [8], threshs)["recall"] == 1).all()
