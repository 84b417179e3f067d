"""The region proposal network: a small head on the feature map that predicts where objects may be.

A: anchors per cell. K: all anchors, h * w * A. R: proposals. C: channels of the feature map; h, w: its sides.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.utils.anchors import enumerate_shifted_anchor, generate_anchor_base
from model.utils.array_tool import call_creator, to_float32
from model.utils.proposal_creator import ProposalCreator


class RPNOutput(NamedTuple):
    """Output of the RPN for one image, in float32."""

    rpn_loc: Tensor  # (K, 4) loc of every anchor, not normalised
    rpn_score: Tensor  # (K, 2) logits: background, object
    fg_score: Tensor  # (K,) probability of an object
    roi: Tensor  # (R, 4) proposals, best first, without gradient
    anchor: Tensor  # (K, 4)


class RegionProposalNetwork(nn.Module):
    """A 3x3 convolution, then two sibling 1x1 convolutions (paper 3.1, figure 3).

    Args:
        in_channels: C.
        mid_channels: of the hidden layer; 512 for VGG16 (3.1).
        feat_stride: pixels of the input from one cell of the feature map to the next.
        ratios, anchor_scales: shapes of the anchors (3.1.1, 3.3).
        proposal_creator: a `ProposalCreator`; None for the paper's.
        generator: a torch.Generator for the initial weights, Gaussian with std 0.01 (3.1.3); biases are 0.
    """

    def __init__(
        self,
        in_channels,
        mid_channels,
        feat_stride,
        ratios=(0.5, 1, 2),
        anchor_scales=(8, 16, 32),
        proposal_creator=None,
        generator=None,
    ):
        super().__init__()
        anchor_base = torch.from_numpy(generate_anchor_base(feat_stride, ratios, anchor_scales))
        self.register_buffer("anchor_base", anchor_base, persistent=False)  # (A, 4)
        self.feat_stride = feat_stride
        self.proposal_creator = proposal_creator or ProposalCreator()
        self.conv = nn.Conv2d(in_channels, mid_channels, 3, padding=1)
        self.score = nn.Conv2d(mid_channels, 2 * len(anchor_base), 1)
        self.loc = nn.Conv2d(mid_channels, 4 * len(anchor_base), 1)
        for layer in (self.conv, self.score, self.loc):
            nn.init.normal_(layer.weight, std=0.01, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, feature, img_size, scale, train):
        """Run the RPN on one image.

        Args:
            feature: (1, C, h, w) feature map.
            img_size: (H', W') of the network's input.
            scale: its resize factor.
            train: propose as in training instead of as in prediction.

        Returns:
            `RPNOutput`.
        """
        rpn_loc, rpn_score = self.head(feature)  # (K, 4), (K, 2)
        fg_score = rpn_score.softmax(1)[:, 1]  # (K,)
        anchor = self.anchors(feature, img_size)  # (K, 4)
        roi = self.propose(rpn_loc, fg_score, anchor, img_size, scale, train)  # (R, 4)
        return RPNOutput(rpn_loc, rpn_score, fg_score, roi, anchor)

    def head(self, feature):
        """Predict the locs (K, 4) and the logits (K, 2) of every anchor."""
        hidden = F.relu(self.conv(feature))  # (1, mid_channels, h, w)
        rpn_loc = self.loc(hidden).permute(0, 2, 3, 1).reshape(-1, 4)  # (1, 4A, h, w) -> (K, 4)
        rpn_score = self.score(hidden).permute(0, 2, 3, 1).reshape(-1, 2)  # (1, 2A, h, w) -> (K, 2)
        return to_float32(rpn_loc), to_float32(rpn_score)

    def anchors(self, feature, img_size):
        """Generate the anchors (K, 4) of a feature map (1, C, h, w).

        `img_size` is not used here; siblings with several levels or padded inputs need it.
        """
        return enumerate_shifted_anchor(self.anchor_base, self.feat_stride, *feature.shape[2:])

    def propose(self, rpn_loc, fg_score, anchor, img_size, scale, train):
        """Create the proposals (R, 4) from the outputs of all anchors; see `ProposalCreator`."""
        return call_creator(self.proposal_creator, rpn_loc, fg_score, anchor, img_size, scale, train)
