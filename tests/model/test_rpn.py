"""The region proposal network: the order of its outputs, what it proposes, its initial weights."""

import math

import pytest
import torch

from model.rpn import RegionProposalNetwork
from model.utils.anchors import enumerate_shifted_anchor
from model.utils.proposal_creator import ProposalCreator


def marked_rpn(**options):
    """Build an RPN whose hidden layer is the feature map and whose outputs are 0 until a weight is set."""
    rpn = RegionProposalNetwork(1, 1, feat_stride=16, ratios=(0.5, 2), anchor_scales=(1, 2, 3), **options)
    for layer in (rpn.conv, rpn.score, rpn.loc):
        torch.nn.init.zeros_(layer.weight)
    rpn.conv.weight.data[0, 0, 1, 1] = 1
    return rpn


def test_outputs_match_their_anchors():
    rpn = marked_rpn()
    a, y, x = 4, 1, 5  # the anchor of ratio 2 and scale 2, at one cell
    rpn.score.weight.data[2 * a + 1] = 1
    rpn.loc.weight.data[4 * a + 2] = 3
    feature = torch.zeros(1, 1, 3, 7)
    feature[0, 0, y, x], feature[0, 0, 0, 3] = 5, -5  # the negative one ends at the ReLU
    out = rpn(feature, (60, 120), 1.0, True)
    assert out.rpn_loc.shape == out.anchor.shape == (3 * 7 * 6, 4)  # from the feature map, not from the image
    assert out.rpn_score.nonzero().tolist() == [[(y * 7 + x) * 6 + a, 1]]
    ((k, coordinate),) = out.rpn_loc.nonzero().tolist()
    assert (k, coordinate) == ((y * 7 + x) * 6 + a, 2)
    assert out.rpn_loc[k].tolist() == [0, 0, 15, 0]
    half_h, half_w = 16 * 2**0.5, 16 / 2**0.5
    expected = torch.tensor([24 - half_h, 88 - half_w, 24 + half_h, 88 + half_w])
    torch.testing.assert_close(out.anchor[k], expected)
    probability = torch.full((126,), 0.5)
    probability[k] = 1 / (1 + torch.tensor(-5.0).exp())
    torch.testing.assert_close(out.fg_score, probability)


def test_the_anchor_of_the_highest_score_is_proposed_first_and_clipped():
    rpn = marked_rpn(proposal_creator=ProposalCreator(min_size=5))
    rpn.score.weight.data[2 * 5 + 1] = 1
    feature = torch.zeros(1, 1, 3, 7)
    feature[0, 0, 2, 6] = 5
    roi = rpn(feature, (47, 110), 1.0, True).roi
    half_h, half_w = 24 * 2**0.5, 24 / 2**0.5  # around (40, 104)
    torch.testing.assert_close(roi[0], torch.tensor([40 - half_h, 104 - half_w, 47, 110]))
    assert (roi >= 0).all()
    assert (roi <= torch.tensor([47, 110, 47, 110])).all()


def test_mode_and_scale_reach_the_proposals():
    creator = ProposalCreator(1.0, n_train_post_nms=7, n_test_post_nms=4, min_size=10)
    rpn = marked_rpn(proposal_creator=creator)
    feature = torch.zeros(1, 1, 6, 7)
    assert len(rpn(feature, (96, 112), 1.0, True).roi) == 7
    assert len(rpn(feature, (96, 112), 1.0, False).roi) == 4
    sides = [
        (roi[:, 2:] - roi[:, :2]).min() for roi in (rpn(feature, (96, 112), scale, True).roi for scale in (1.0, 3.3))
    ]
    assert 10 <= sides[0] < 33 <= sides[1]


@pytest.mark.parametrize("autocast", [False, True])
def test_boxes_and_scores_are_float32(autocast):
    rpn = RegionProposalNetwork(4, 8, 16, anchor_scales=(1, 2))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        hidden = rpn.conv(torch.randn(1, 4, 3, 5))
        out = rpn(torch.randn(1, 4, 3, 5), (48, 80), 1.0, True)
    assert (hidden.dtype == torch.bfloat16) is autocast
    assert {tensor.dtype for tensor in out} == {torch.float32}
    background, foreground = out.rpn_score.exp().T
    torch.testing.assert_close(out.fg_score, foreground / (background + foreground))
    assert out.rpn_loc.shape == (90, 4)
    assert out.rpn_score.shape == (90, 2)


def test_gradient_flows_through_scores_and_locs_but_not_through_proposals():
    rpn = RegionProposalNetwork(4, 8, 16, anchor_scales=(1, 2))
    out = rpn(torch.randn(1, 4, 3, 5), (48, 80), 1.0, True)
    assert len(out.roi)
    assert not out.roi.requires_grad
    (out.rpn_loc.sum() + out.rpn_score[:, 1].sum()).backward()
    assert all(param.grad.abs().sum() > 0 for param in rpn.parameters())


class Steps(RegionProposalNetwork):
    """A sibling that replaces all three steps."""

    def head(self, feature):
        return feature.new_full((2, 4), 3.0), torch.tensor([[0.0, 1], [1, 0]])

    def anchors(self, feature, img_size):
        self.seen = feature, img_size
        return torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])

    def propose(self, rpn_loc, fg_score, anchor, img_size, scale, train):
        return anchor[fg_score > 0.5] + scale * rpn_loc[:1] + img_size[1] * train


def test_a_subclass_can_replace_each_step():
    rpn, feature = Steps(1, 1, 16), torch.zeros(1, 1, 3, 7)
    out = rpn(feature, (60, 120), 2.0, True)
    assert rpn.seen == (feature, (60, 120))
    assert out.anchor.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert out.rpn_loc.tolist() == [[3] * 4] * 2
    torch.testing.assert_close(out.fg_score, torch.tensor([1 / (1 + math.exp(-1)), 1 / (1 + math.e)]))
    assert out.roi.tolist() == [[127, 128, 129, 130]]


class TwoLevels(RegionProposalNetwork):
    """A sibling whose feature is a list of maps; their strides follow from the size of the input."""

    def head(self, feature):
        return map(torch.cat, zip(*(super(TwoLevels, self).head(level) for level in feature), strict=True))

    def anchors(self, feature, img_size):
        strides = (img_size[0] // level.shape[2] for level in feature)
        return torch.cat(
            [
                enumerate_shifted_anchor(self.anchor_base * s / 16, s, *level.shape[2:])
                for s, level in zip(strides, feature, strict=True)
            ]
        )


def test_a_subclass_can_have_several_levels():
    rpn = TwoLevels(4, 8, 16, anchor_scales=(1, 2), proposal_creator=ProposalCreator(1.0, min_size=1))
    feature = [torch.randn(1, 4, 6, 8), torch.randn(1, 4, 3, 4)]
    out = rpn(feature, (48, 64), 1.0, True)
    n = [6 * 8 * 6, 3 * 4 * 6]
    assert [len(tensor) for tensor in out[:3]] == [sum(n)] * 3
    side = (out.anchor[:, 2:] - out.anchor[:, :2]).prod(1).sqrt()
    torch.testing.assert_close(
        side, torch.tensor([8.0, 16]).repeat(sum(n) // 2) * torch.tensor([1.0] * n[0] + [2.0] * n[1])
    )
    assert len(out.roi) > n[0]  # so of both levels


def test_initial_weights():
    rpn, same, other = (
        RegionProposalNetwork(64, 64, 16, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    for layer in (rpn.conv, rpn.score, rpn.loc):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1)
        assert not layer.bias.any()
    assert rpn.score.out_channels == 18
    assert rpn.loc.out_channels == 36
    assert all(torch.equal(one, two) for one, two in zip(rpn.parameters(), same.parameters(), strict=True))
    assert not torch.equal(rpn.loc.weight, other.loc.weight)


def test_anchors_are_no_weights():
    assert set(RegionProposalNetwork(8, 8, 16).state_dict()) == {
        f"{layer}.{kind}" for layer in ("conv", "score", "loc") for kind in ("weight", "bias")
    }
