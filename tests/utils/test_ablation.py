"""Proposals from which a part of the RPN is left out, and the table. tests/test_eval.py runs all of it."""

import copy

import numpy as np
import pytest
import torch

from model.utils.bbox_tools import clip_bbox, loc2bbox
from utils.ablation import Row, direction, format_ablation, propose

SIZE = (64, 96)


@pytest.fixture(scope="module")
def rpn(tiny_model):
    rpn = copy.deepcopy(tiny_model.rpn)
    torch.nn.init.normal_(rpn.loc.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    return rpn


@pytest.fixture(scope="module")
def output(rpn):
    feature = torch.rand(1, 512, 4, 6, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return rpn(feature, SIZE, 1.0, train=False)


def proposals(rpn, output, without, n=30, seed=0):
    before = rpn.proposal_creator
    roi = propose(rpn, output, without, n, SIZE, 1.0, np.random.default_rng(seed))
    assert rpn.proposal_creator is before
    return roi.tolist()


def decoded(output, factor=1):
    """All anchors (K, 4) with `factor` times their locs, clipped, in NumPy as the creator does it."""
    return clip_bbox(loc2bbox(output.anchor.numpy(), output.rpn_loc.numpy() * factor), SIZE)


def large(roi):
    return roi[((roi[:, 2:] - roi[:, :2]) >= 16).all(1)].tolist()


def test_nothing_left_out_is_the_rpn(rpn, output):
    assert proposals(rpn, output, "RPN", 300) == output.roi.tolist()
    assert proposals(rpn, output, "RPN", 7) == output.roi[:7].tolist()


def test_without_nms_they_are_the_best_boxes(rpn, output):
    order = np.argsort(-output.fg_score.numpy(), kind="stable")
    assert proposals(rpn, output, "no NMS") == large(decoded(output)[order])[:30]


def test_without_cls_they_are_random_boxes(rpn, output):
    roi = large(decoded(output))
    found = proposals(rpn, output, "no cls")
    assert len(found) == 30
    assert all(box in roi for box in found)
    assert found == proposals(rpn, output._replace(fg_score=1 - output.fg_score), "no cls")
    assert found != proposals(rpn, output, "no cls", seed=1)
    assert sorted(proposals(rpn, output, "no cls", n=10**6)) == sorted(roi)  # no NMS


def test_without_reg_they_are_anchors(rpn, output):
    anchors = large(decoded(output, 0))
    found = proposals(rpn, output, "no reg")
    assert all(box in anchors for box in found)
    assert 0 < len(found) < len(anchors)  # NMS


def test_the_table_says_whether_the_paper_agrees():
    rows = [Row("RPN", 50, 49.6, 0.5, None), Row("RPN", 100, 99, 0.61, 0.551), Row("RPN", 300, 280, 0.6, 0.568)]
    rows += [
        Row("no NMS", 6000, 5000, 0.6, 0.552),
        Row("no cls", 100, 100, 0.2, 0.446),
        Row("no reg", 300, 300, None, 0.521),
    ]
    lines = [line.split() for line in format_ablation(rows, "fast.pth").splitlines()]
    assert lines[0][-4:] == ["fast.pth,", "apart", "from", "them"]
    assert lines[3:] == [
        ["RPN", "50", "50", "0.5000", "lower"],
        ["RPN", "100", "99", "0.6100", "higher", "0.551", "lower", "differs"],
        ["RPN", "300", "280", "0.6000", "equal", "0.568", "equal"],
        ["no", "NMS", "6000", "5000", "0.6000", "equal", "0.552", "lower", "differs"],
        ["no", "cls", "100", "100", "0.2000", "lower", "0.446", "lower", "agrees"],
        ["no", "reg", "300", "300", "n/a", "0.521", "lower"],
    ]


def test_direction():
    assert [direction(*pair) for pair in ((0.2, 0.1), (0.1, 0.2), (0.1, 0.1), (None, 0.1))] == [
        "higher",
        "lower",
        "equal",
        "",
    ]
