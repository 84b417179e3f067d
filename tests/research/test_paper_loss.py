"""The RPN's loss of equation 1, by hand, and that the trainer takes it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model.rpn import RPNOutput
from research.choices import rpn_loss
from research.paper_loss import paper_losses
from trainer import FasterRCNNTrainer, detection_losses

LOC = torch.tensor([[1.0, 0, 0, 0.25], [9, 9, 9, 9], [9, 9, 9, 9], [0, 0, 2, 0], [9, 9, 9, 9], [9, 9, 9, 9]])
LABEL = torch.tensor([1, 0, -1, 1, -1, -1])  # three anchors are sampled
SCORE = torch.tensor([[1.0, 3], [1, 1], [1, 9], [1, 1], [1, 9], [1, 9]]).log()


@pytest.mark.parametrize(("rpn_lambda", "n_anchor", "n_position"), [(10, 2, 3), (0.1, 3, 2), (0, 1, 6)])
def test_by_hand(rpn_lambda, n_anchor, n_position):
    loc_loss, cls_loss = paper_losses(LOC, SCORE, torch.zeros(6, 4), LABEL, 1, rpn_lambda, n_anchor)
    assert loc_loss.item() == pytest.approx(rpn_lambda * (0.5 + 0.03125 + 1.5) / n_position)
    expected = detection_losses(LOC, SCORE, LOC, LABEL, 1)[1]
    assert cls_loss.item() == expected.item() == pytest.approx(-np.log([3 / 4, 1 / 2, 1 / 2]).sum() / 3)


def test_nothing_sampled_is_no_loss():
    assert paper_losses(LOC, SCORE, LOC + 1, torch.full((6,), -1), 1) == (0, 0)


def test_anchors_per_position_of_a_pyramid():
    rpn = SimpleNamespace(anchor_base=torch.zeros(5, 3, 4))  # levels, A, 4
    assert rpn_loss(rpn, 10).keywords == {"rpn_lambda": 10, "n_anchor": 3}


def test_the_trainer_takes_it(tiny_model):
    """`tiny_model` has 9 anchors per cell; the first anchor of two cells is the object."""
    anchor = torch.tensor([[0.0, 0, 20, 40]] + [[-1.0, 0, 20, 40]] * 17)
    rpn = RPNOutput(torch.full((18, 4), 2.0), torch.zeros(18, 2), None, None, anchor)
    losses = []
    for rpn_lambda in (None, 5):
        trainer = FasterRCNNTrainer(tiny_model, None, rpn_sigma=1, rpn_loss=rpn_loss(tiny_model.rpn, rpn_lambda))
        losses.append(trainer.rpn_losses(rpn, anchor[:1], (64, 96), np.random.default_rng(0))[0].item())
    assert losses == pytest.approx([6, 5 * 6 / 2])
