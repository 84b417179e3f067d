"""The RPN with one score per anchor: the same probabilities and losses as with the two scores 0 and that one."""

import torch
import torch.nn.functional as F

from model.rpn import RegionProposalNetwork
from model.rpn_variants import RPNS, SigmoidRPN
from trainer import detection_losses

SHAPE = 5, 4, 16, (0.5, 2), (1, 2, 4)  # 6 anchors per cell


def make(rpn_class):
    return rpn_class(*SHAPE, generator=torch.Generator().manual_seed(0))


def test_one_score_is_the_difference_of_two():
    two, one = make(RegionProposalNetwork), make(SigmoidRPN)
    assert [tuple(param.shape) for param in one.score.parameters()] == [(6, 4, 1, 1), (6,)]
    assert torch.equal(one.loc.weight, two.loc.weight)
    assert torch.equal(one.score.weight, two.score.weight[1::2])  # initially
    with torch.no_grad():
        two.score.weight.normal_(0, 3, generator=torch.Generator().manual_seed(1))
        two.score.bias.copy_(torch.arange(12.0))
        one.score.weight.copy_(two.score.weight[1::2] - two.score.weight[::2])
        one.score.bias.fill_(1)
    feature = torch.randn(1, 5, 3, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, theirs = (rpn(feature, (48, 64), 1.0, True) for rpn in (one, two))
    assert ours.rpn_score.shape == (72, 2)
    assert ours.fg_score.std() > 0.01
    torch.testing.assert_close(ours.fg_score, theirs.fg_score)
    torch.testing.assert_close(ours.fg_score, ours.rpn_score[:, 1].sigmoid())
    torch.testing.assert_close(ours.roi, theirs.roi)
    label = torch.tensor([1, 0, -1] * 24)
    logistic = F.binary_cross_entropy_with_logits(ours.rpn_score[label >= 0, 1], label[label >= 0].float())
    cls_loss = detection_losses(ours.rpn_loc, ours.rpn_score, ours.rpn_loc, label, 3)[1]
    torch.testing.assert_close(cls_loss, logistic)


def test_names():
    assert {"softmax": RegionProposalNetwork, "sigmoid": SigmoidRPN} == RPNS
