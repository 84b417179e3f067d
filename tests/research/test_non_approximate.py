"""Non-approximate joint training: its gradient in double precision, and what it shares with approximate training."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from test_gradients import difference, make_model, make_sample

from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.proposal_target_creator import ProposalTarget, ProposalTargetCreator
from model.utils.roi_warping import roi_warp
from research.non_approximate import NonApproximateTrainer, with_gradient
from trainer import FasterRCNNTrainer


class FixedTargets:
    """Targets of the first call in every call: the RoIs are the same proposals, wherever these have moved."""

    def __init__(self):
        self.creator, self.first = ProposalTargetCreator(n_sample=16), None

    def __call__(self, roi, bbox, label, rng):
        candidate = np.concatenate((roi, bbox))
        if self.first is None:
            self.first = self.creator(roi, bbox, label, rng)
            self.index = [np.flatnonzero((candidate == row).all(1))[0] for row in self.first.sample_roi]
        return ProposalTarget(candidate[self.index], *self.first[1:])


def make_net():
    net = make_model()
    net.head.roi_op = partial(roi_warp, size=3)
    return net


def compute(trainer_class, net, targets=None):
    """Compute losses and gradients of one image."""
    targets = targets or ProposalTargetCreator(n_sample=16)
    trainer = trainer_class(net, None, AnchorTargetCreator(n_sample=40), targets)
    net.zero_grad()
    losses = trainer.compute_losses(make_sample())
    losses.total.backward()
    return [loss.item() for loss in losses[:4]], {name: param.grad.clone() for name, param in net.named_parameters()}


@pytest.mark.parametrize("name", ["rpn.loc.bias", "rpn.loc.weight", "rpn.conv.weight", "extractor.0.weight"])
def test_gradient_is_the_finite_difference(name):
    net, targets = make_net(), FixedTargets()
    grad = compute(NonApproximateTrainer, net, targets)[1][name].flatten()
    assert (np.array(targets.index) < 40).sum() > 5  # proposals, not ground truth

    @torch.no_grad()
    def loss():
        trainer = NonApproximateTrainer(net, None, AnchorTargetCreator(n_sample=40), targets)
        return trainer.compute_losses(make_sample()).total

    param = net.get_parameter(name)
    index = range(len(grad)) if len(grad) < 20 else grad.abs().topk(6)[1].tolist()
    slope = [difference(loss, param, i) for i in index]
    np.testing.assert_allclose(grad[list(index)], slope, rtol=1e-5, atol=1e-8)
    assert np.abs(slope).max() > 1e-4


def test_without_the_box_gradient_it_is_approximate_training(monkeypatch):
    net = make_net()
    approximate, theirs = compute(FasterRCNNTrainer, net)
    losses, ours = compute(NonApproximateTrainer, net)
    assert losses == approximate  # bit for bit
    differ = {name for name, grad in ours.items() if not torch.equal(grad, theirs[name])}
    moved = {"rpn.loc.weight", "rpn.loc.bias", "rpn.conv.weight", "rpn.conv.bias"}
    assert differ == moved | {name for name in ours if name.startswith("extractor")}  # not the head, not rpn.score
    monkeypatch.setattr("research.non_approximate.with_gradient", lambda sample_roi, roi: sample_roi)
    assert all(torch.equal(grad, theirs[name]) for name, grad in compute(NonApproximateTrainer, net)[1].items())


def test_the_network_is_as_before():
    net = make_net()
    before = copy.deepcopy(net)
    compute(NonApproximateTrainer, net)
    x, scale = net.prepare(make_sample().img)
    assert torch.equal(net(x, scale).roi_score, before(x, scale).roi_score)
    assert not net.rpn._forward_hooks
    assert not net.head._forward_pre_hooks


def test_only_proposals_carry_a_gradient():
    roi = torch.tensor([[1.0, 2, 30, 40], [5, 6, 70, 80]], requires_grad=True)
    sample_roi = torch.tensor([[5.0, 6, 70, 80], [1, 2, 30, 41], [5, 6, 70, 80]])
    out = with_gradient(sample_roi, roi)
    assert torch.equal(out, sample_roi)
    weighted = (out * torch.tensor([[1.0], [10], [100]])).sum()
    assert torch.autograd.grad(weighted, roi)[0].tolist() == [[0] * 4, [101] * 4]
    assert torch.equal(with_gradient(sample_roi, roi[:0]), sample_roi)


def test_proposals_that_are_given_replace_its_own(tiny_model):
    sample = make_sample()
    img = np.random.default_rng(0).integers(0, 256, (64, 112, 3), np.uint8)
    bbox = sample.bbox.astype(np.float32)
    net = copy.deepcopy(tiny_model)
    sample = sample._replace(img=img, bbox=bbox, roi=bbox[:1] + 1)
    losses = NonApproximateTrainer(net, None).compute_losses(sample)
    (losses.roi_loc + losses.roi_cls).backward()
    assert losses.stats.n_proposal == 1
    assert net.rpn.loc.weight.grad is None
