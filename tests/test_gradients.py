"""One training step in double precision: gradients against finite differences, the update by arithmetic.

Proposals carry no gradient (approximate joint training), so the differences keep the RoIs, and through the seed
the samples, of the step. R: RoIs.
"""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from data import Sample
from model.faster_rcnn import FasterRCNN
from model.rpn import RegionProposalNetwork
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.preprocess import TORCHVISION
from model.utils.proposal_creator import ProposalCreator
from model.utils.proposal_target_creator import ProposalTargetCreator
from model.utils.roi_ops import roi_pool
from model.vgg16 import VGG16RoIHead
from trainer import FasterRCNNTrainer, build_optimizer

LR, WEIGHT_DECAY, STEP = 0.02, 0.3, 1e-6


def make_model():
    """Build a Faster R-CNN with few channels (except the head's 512) and large weights."""
    layers, channels = [], 3
    for out in (4, 6, 8, 512):
        layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.Tanh()]  # no kinks
        channels = out
    rpn = RegionProposalNetwork(512, 8, 16, (0.5, 2), (1, 2), ProposalCreator(n_train_post_nms=40, min_size=4))
    head = VGG16RoIHead(3, width=8, roi_op=partial(roi_pool, size=3))
    head.fc6 = nn.Linear(512 * 3 * 3, 8)
    model = FasterRCNN(nn.Sequential(*layers), rpn, head, TORCHVISION).double()
    model.prepare = lambda img: (torch.from_numpy(img).permute(2, 0, 1)[None], 1.0)  # in double precision
    generator = torch.Generator().manual_seed(0)
    for param in model.parameters():
        fan_in = param[0].numel() if param.dim() > 1 else 25
        nn.init.normal_(param, std=fan_in**-0.5, generator=generator)
    return model.train()


def make_sample():
    """Make a sample of 64 x 112 pixels of noise with two objects and a new generator."""
    bbox = np.array([[7, 15, 41, 93], [30, 4, 59, 33]], np.float64)
    img = np.random.default_rng(1).normal(size=(64, 112, 3))
    return Sample(img, bbox, np.array([2, 0]), np.zeros(2, bool), "noise", np.random.default_rng(2))


def make_trainer(model):
    optimizer = build_optimizer(model, LR, weight_decay=WEIGHT_DECAY)
    return FasterRCNNTrainer(model, optimizer, AnchorTargetCreator(n_sample=40), ProposalTargetCreator(n_sample=16))


@torch.no_grad()
def proposals(model):
    return model(*model.prepare(make_sample().img)).rpn.roi


def all_losses(model, roi):
    """Compute the four losses, with `roi` (R, 4) in place of the RPN's proposals."""
    return make_trainer(model).compute_losses(make_sample()._replace(roi=roi.numpy()))[:4]


@torch.no_grad()
def difference(loss, param, index):
    """Return the slope of `loss`, a function without arguments, along one element of `param`."""
    flat, value = param.view(-1), param.view(-1)[index].item()
    flat[index] = value + STEP
    above = loss()
    flat[index] = value - STEP
    below = loss()
    flat[index] = value
    return (above - below).item() / (2 * STEP)


@pytest.fixture(scope="module")
def trained():
    """Return the network before a step, the network after it, with gradients, and the losses."""
    before = make_model()
    after = copy.deepcopy(before)
    losses = make_trainer(after).train_step([make_sample()])
    return before, after, losses


NAMES = [name for name, _ in make_model().named_parameters()]


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_finite_difference(trained, name):
    before, after, _ = trained
    model, grad = copy.deepcopy(before), after.get_parameter(name).grad.flatten()
    roi = proposals(model)
    rng = np.random.default_rng(3)
    nonzero = grad.nonzero()[:, 0].numpy()
    assert len(nonzero)
    index = {*rng.integers(0, len(grad), 2), *rng.choice(nonzero, 4)}  # gradients of the first two may be 0
    slope = [difference(lambda: sum(all_losses(model, roi)), model.get_parameter(name), i) for i in index]
    np.testing.assert_allclose(grad[list(index)], slope, rtol=1e-5, atol=1e-8)
    assert np.abs(slope).max() > 1e-5  # far above the noise of a difference


def test_step_moves_weights_by_decayed_and_biases_by_doubled_gradients(trained):
    """In the first step, the momentum buffer is the gradient."""
    before, after, _ = trained
    for name, old in before.named_parameters():
        new = after.get_parameter(name)
        move = 2 * LR * new.grad if name.endswith("bias") else LR * (new.grad + WEIGHT_DECAY * old)
        assert move.any()
        torch.testing.assert_close(new.detach(), (old - move).detach(), rtol=1e-13, atol=1e-14)


def test_everything_is_in_double_precision(trained):
    before, after, losses = trained
    rpn, roi_cls_loc, roi_score = before(*before.prepare(make_sample().img))
    tensors = [
        *rpn,
        roi_cls_loc,
        roi_score,
        *losses[:5],
        *before.buffers(),
        *(param.grad for param in after.parameters()),
    ]
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    torch.testing.assert_close(torch.stack(losses[:4]), torch.stack(all_losses(before, proposals(before))).detach())


def test_no_gradient_flows_through_the_proposals(trained):
    """The approximation of joint training: the head's loss does depend on the RPN's locs, which move the RoIs."""
    model = copy.deepcopy(trained[0])
    layers = [model.rpn.loc.weight, model.rpn.loc.bias, model.rpn.score.weight, model.rpn.conv.weight]
    roi_loc, roi_cls = all_losses(model, proposals(model))[2:]
    assert torch.autograd.grad(roi_loc + roi_cls, layers, retain_graph=True, allow_unused=True) == (None,) * 4
    assert torch.autograd.grad(roi_loc, model.extractor[0].weight)[0].any()
    slope = [difference(lambda: all_losses(model, proposals(model))[2], model.rpn.loc.bias, i) for i in range(16)]
    assert np.abs(slope).max() > 1e-3
