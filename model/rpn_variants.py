"""Variants of the region proposal network. `RPNS` names them.

A: anchors per cell. h, w: sides of the feature map.
"""

import torch
from torch import nn

from model.rpn import RegionProposalNetwork


class LogisticScore(nn.Conv2d):
    """A 1x1 convolution to one logit per anchor, stated as two: 0 for background and the logit for object.

    The softmax of the two is the sigmoid of the logit, and their cross entropy is the logistic loss.
    """

    def forward(self, hidden):
        """Map (1, mid_channels, h, w) to (1, 2A, h, w), the two logits of an anchor adjacent."""
        logit = super().forward(hidden)  # (1, A, h, w)
        return torch.stack((torch.zeros_like(logit), logit), 2).flatten(1, 2)  # (1, 2A, h, w)


class SigmoidRPN(RegionProposalNetwork):
    """An RPN with k instead of 2k scores per cell (paper 3.1.1, footnote 4: logistic regression).

    Arguments are those of `RegionProposalNetwork`; the initial weights of the logits are those of its object scores.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        pair = self.score
        self.score = LogisticScore(pair.in_channels, len(self.anchor_base), 1)
        self.score.load_state_dict({name: value[1::2] for name, value in pair.state_dict().items()})


RPNS = {"softmax": RegionProposalNetwork, "sigmoid": SigmoidRPN}  # values of --rpn-objectness
