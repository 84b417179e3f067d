"""Fast R-CNN: no loss of the RPN, and whole runs on a file of proposals and on sliding windows."""

import numpy as np
import pytest
import stress_resume
import torch
from stress_resume import log

import data
from data.proposals import write_proposals
from data.voc_dataset import read_splits
from research.fast_rcnn import FastRCNNTrainer, RPNTrainer
from trainer import FasterRCNNTrainer
from utils.checkpoint import load_checkpoint


def test_the_rpn_gets_no_loss(tiny_model):
    img = np.random.default_rng(0).integers(0, 256, (48, 80, 3), np.uint8)
    bbox, roi = np.array([[4, 8, 40, 50]], np.float32), np.array([[2, 6, 42, 44], [0, 0, 20, 80]], np.float32)
    rest = np.array([1]), np.array([False]), "noise", np.random.default_rng(0), roi
    losses = FastRCNNTrainer(tiny_model, None).compute_losses(data.Sample(img, bbox, *rest))
    assert losses[:2] == (0, 0)
    assert losses.total == losses.roi_loc + losses.roi_cls
    assert (losses.stats.n_proposal, losses.stats.n_pos_anchor, losses.stats.n_neg_anchor) == (2, 0, 0)
    assert losses.stats.n_pos_roi > 0
    gradients = torch.autograd.grad(
        losses.total, [*tiny_model.rpn.parameters(), tiny_model.head.fc6.weight], allow_unused=True
    )
    assert [gradient is None for gradient in gradients] == [True] * 6 + [False]


def sample(roi=None):
    img = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    bbox = np.array([[8, 20, 40, 90]], np.float32)
    return data.Sample(img, bbox, np.array([1]), np.zeros(1, bool), "noise", np.random.default_rng(0), roi)


def test_the_halves_have_the_losses_of_the_whole(tiny_model):
    roi = np.array([[10, 20, 30, 80], [0, 5, 60, 40]], np.float32)
    whole = FasterRCNNTrainer(tiny_model, None).compute_losses(sample(roi))
    rpn = RPNTrainer(tiny_model, None).compute_losses(sample())
    assert rpn[:2] == whole[:2]
    assert (rpn.roi_loc, rpn.roi_cls, rpn.total) == (0, 0, rpn.rpn_loc + rpn.rpn_cls)
    assert rpn.stats[:6] == (1, 0, *whole.stats[2:6])

    class NoAnchors(FasterRCNNTrainer):  # draws nothing for anchors
        def rpn_losses(self, *args):
            return 0, 0, torch.zeros(4)

    whole = NoAnchors(tiny_model, None).compute_losses(sample(roi))
    head = FastRCNNTrainer(tiny_model, None).compute_losses(sample(roi))
    assert head[2:5] == whole[2:5]
    assert (head.rpn_loc, head.rpn_cls, head.stats.n_proposal) == (0, 0, 2)
    assert head.stats[6:] == whole.stats[6:]


@pytest.mark.parametrize("source", ["rois.npz", "sliding-windows"])
def test_a_run_trains_and_evaluates_on_the_proposals(place, monkeypatch, source):
    train_set, eval_set = read_splits("voc", ["train", "val"])
    rois = {image_id: np.array([[3, 3, 30, 40], [0, 5, 20, 25]]) for image_id in [*train_set.ids, *eval_set.ids]}
    write_proposals("rois.npz", rois)
    seen, real = [], FasterRCNNTrainer.head_losses

    def head_losses(trainer, feature, roi, *args):
        seen.append(len(roi))
        return real(trainer, feature, roi, *args)

    monkeypatch.setattr(FasterRCNNTrainer, "head_losses", head_losses)
    stress_resume.run(env="fast", overwrite="True", proposals_file=source, epoch="1")
    # 37 x 64, 48 x 48 and 48 x 64 pixels: 2 x 4, 3 x 3 and 3 x 4 cells with 6 windows
    assert (len(seen), set(seen)) == (6, {2} if source == "rois.npz" else {48, 54, 72})
    lines = log(place / "runs/fast", "train")
    assert [(line["rpn_loc"], line["rpn_cls"]) for line in lines] == [(0, 0)] * 3
    assert load_checkpoint("runs/fast/last.pth")["config"]["proposals_file"] == source
