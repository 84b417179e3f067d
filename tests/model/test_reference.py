"""Our box functions, creators and losses against the figures in tests/reference (see its README)."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.anchors import enumerate_shifted_anchor, generate_anchor_base
from model.utils.bbox_tools import bbox2loc, bbox_iou, loc2bbox
from model.utils.proposal_creator import ProposalCreator
from model.utils.proposal_target_creator import ProposalTargetCreator
from trainer import detection_losses

REFERENCE = Path(__file__).parents[1] / "reference"


def load(name):
    with np.load(REFERENCE / f"{name}.npz") as arrays:
        return dict(arrays)


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def boxes():
    return load("boxes")


@pytest.fixture(scope="module")
def anchor():
    return enumerate_shifted_anchor(generate_anchor_base(), 16, 37, 50)


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_boxes(boxes, anchor, library):
    boxes = {name: library(array) for name, array in boxes.items()}
    assert_close(generate_anchor_base(), boxes["anchor_base"])
    assert_close(anchor, boxes["anchor_37x50_stride16"])
    assert_close(bbox_iou(boxes["iou_a"], boxes["iou_b"]), boxes["iou"])
    assert_close(bbox2loc(boxes["src"], boxes["dst"]), boxes["loc"])
    assert_close(loc2bbox(boxes["src"], boxes["loc"]), boxes["decoded"])
    assert_close(loc2bbox(boxes["src"], boxes["noise_loc"]), boxes["noise_decoded"])


def test_anchor_targets(anchor):
    theirs = load("anchor_targets")
    creator, rng = AnchorTargetCreator(n_sample=10**6), np.random.default_rng(0)
    img_size = tuple(theirs["img_size"])
    loc, label = creator(theirs["gt_bbox"], anchor, img_size, rng)
    np.testing.assert_array_equal(label, theirs["label"])
    np.testing.assert_array_equal(np.flatnonzero(label == 1), theirs["positive_index"])
    assert_close(loc[label == 1], theirs["loc_of_positive"])
    without_object = creator(np.zeros((0, 4), np.float32), anchor, img_size, rng)  # all inside anchors are 0
    np.testing.assert_array_equal(without_object.label == 0, theirs["inside"])


@pytest.mark.parametrize("train", [True, False])
def test_proposals(anchor, train):
    theirs = load("proposals")
    roi = ProposalCreator()(
        theirs["loc"], theirs["score"], anchor, tuple(theirs["img_size"]), float(theirs["scale"]), train
    )
    assert_close(roi, theirs["roi_train" if train else "roi_test"])


def test_proposal_targets():
    theirs = load("proposal_targets")
    ours = ProposalTargetCreator(n_sample=10**6, pos_ratio=1)(
        theirs["roi"], theirs["gt_bbox"], theirs["gt_label"], np.random.default_rng(0)
    )
    counts = ours.gt_roi_label >= 0
    ours = type(ours)(*(part[counts] for part in ours))
    order = np.lexsort(ours.sample_roi.T[::-1])
    assert_close(ours.sample_roi[order], theirs["sample_roi"])
    np.testing.assert_array_equal(ours.gt_roi_label[order], theirs["gt_roi_label"])
    assert_close(ours.gt_roi_loc[order], theirs["gt_roi_loc"])


@pytest.mark.parametrize("sigma", [1, 3])
def test_loc_loss(sigma):
    theirs = load("loc_loss")
    label, pred, target = (torch.from_numpy(theirs[name]) for name in ("label", "pred", "target"))
    score = torch.zeros(len(label), int(label.max()) + 1)
    loss, _ = detection_losses(pred, score, target, label, sigma)
    assert_close(loss, theirs[f"sigma{sigma}"])
