"""VGG16's convolutions against torchvision's, and the RoI head against torchvision's own RoI pooling."""

import math

import pytest
import torch
from torch import nn
from torchvision.models import vgg
from torchvision.ops import roi_align, roi_pool

from model.vgg16 import VGG16, VGG16RoIHead


@pytest.fixture(scope="module")
def extractor():
    return VGG16(frozen_convs=4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def head():
    return VGG16RoIHead(n_fg_class=2, width=32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def feature():
    return torch.randn(1, 512, 4, 6, generator=torch.Generator().manual_seed(1))


def pooled(head, feature, roi):
    """Return the input of fc6: (R, 512, 7, 7)."""
    seen = []
    with head.fc6.register_forward_pre_hook(lambda layer, args: seen.append(args[0])):
        head(feature, roi)
    return seen[0].reshape(-1, 512, 7, 7)


@torch.no_grad()
def test_extractor_is_torchvisions_up_to_conv5_3(extractor):
    theirs = vgg.make_layers(vgg.cfgs["D"])[:30]
    theirs.load_state_dict(extractor.state_dict())  # the same keys
    img = torch.randn(1, 3, 35, 50, generator=torch.Generator().manual_seed(2))
    ours = extractor(img.clone())
    assert ours.shape == (1, 512, 2, 3)  # pooling floors
    torch.testing.assert_close(ours, theirs(img))


@torch.no_grad()
@pytest.mark.parametrize(("ceil_mode", "cells"), [(False, (2, 3)), (True, (3, 4))])
def test_stride_and_channels_are_those_of_the_feature_map(ceil_mode, cells):
    extractor = VGG16(ceil_mode=ceil_mode)
    img = torch.zeros(1, 3, 2 * extractor.stride + 1, 4 * extractor.stride - 1)
    assert extractor(img).shape == (1, extractor.channels, *cells)


def test_first_convolutions_are_frozen(extractor):
    frozen = [name for name, param in extractor.named_parameters() if not param.requires_grad]
    assert frozen == [f"{i}.{kind}" for i in (0, 2, 5, 7) for kind in ("weight", "bias")]


def test_initial_weights_of_the_extractor(extractor):
    convs = [layer for layer in extractor if isinstance(layer, nn.Conv2d)]
    assert len(convs) == 13
    for conv in convs:
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * conv.out_channels)), rel=0.1)
        assert not conv.bias.any()


def test_initial_weights_of_the_head(head):
    for layer, std in ((head.fc6, 0.01), (head.fc7, 0.01), (head.score, 0.01), (head.cls_loc, 0.001)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.3)
        assert not layer.bias.any()


def test_roi_pooling_by_hand(head):
    feature = torch.zeros(1, 512, 4, 6)
    feature[0, 3] = torch.arange(24.0).reshape(4, 6)
    # rows 0 to 1, columns 3 to 5; were y and x swapped, rows 3 and columns 0 to 1
    pool = pooled(head, feature, torch.tensor([[0.0, 48, 16, 80]]))
    assert pool[0, 3, 0, 0] == 3
    assert pool[0, 3].max() == 11
    assert not pool[0, 2].any()


def test_roi_pooling_against_torchvision(head, feature):
    yx = torch.tensor([[5.0, 30, 40, 90], [0, 0, 64, 96], [20, 3, 60, 17]])
    xy = torch.tensor([[0.0, 30, 5, 90, 40], [0, 0, 0, 96, 64], [0, 3, 20, 17, 60]])
    assert torch.equal(pooled(head, feature, yx), roi_pool(feature, xy, (7, 7), 1 / 16))


def test_another_roi_operation(feature):
    """The head passes feature map and RoIs to `roi_op`, and the result to fc6."""
    seen = []

    def roi_op(feature, roi):
        seen.append((feature, roi))
        return roi_align(feature, [roi[:, [1, 0, 3, 2]]], 7, 1 / 16)

    head = VGG16RoIHead(2, width=32, roi_op=roi_op, generator=torch.Generator().manual_seed(0))
    roi = torch.tensor([[5.0, 30, 40, 90], [0, 0, 64, 96]])
    pool = pooled(head, feature, roi)
    assert seen[0][0] is feature
    assert seen[0][1] is roi
    assert torch.equal(pool, roi_align(feature, [roi[:, [1, 0, 3, 2]]], 7, 1 / 16))


def test_layers_in_their_order(head, feature):
    roi = torch.tensor([[5.0, 30, 40, 90], [0, 0, 64, 96]])
    pool = pooled(head, feature, roi)
    fc7 = head.fc7(head.fc6(pool.flatten(1)).relu()).relu()
    cls_loc, score = head(feature, roi)
    torch.testing.assert_close(score, head.score(fc7))
    assert cls_loc.shape == (2, 3, 4)
    torch.testing.assert_close(cls_loc[:, 2], head.cls_loc(fc7)[:, 8:12])  # background is class 0


def test_no_rois(head, feature):
    cls_loc, score = head(feature, torch.zeros(0, 4))
    assert cls_loc.shape == (0, 3, 4)
    assert score.shape == (0, 3)


def test_dropout_in_training_only(feature):
    head = VGG16RoIHead(n_fg_class=2, width=400, dropout=0.25)
    nn.init.zeros_(head.fc6.weight)
    nn.init.ones_(head.fc6.bias)
    nn.init.eye_(head.fc7.weight)
    nn.init.zeros_(head.fc7.bias)
    seen = []
    head.score.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for mode in (True, False):
            head.train(mode)(feature, torch.tensor([[0.0, 0, 64, 96]]))
    torch.testing.assert_close(seen[1], torch.ones(1, 400))
    kept = (seen[0] > 0).float().mean().item()
    assert kept == pytest.approx(0.75**2, abs=0.1)  # after fc6 and after fc7
    assert seen[0].max().item() == pytest.approx(1 / 0.75**2)


def test_outputs_are_float32_under_autocast(head, feature):
    roi = torch.tensor([[5.0, 30, 40, 90]])
    expected = head(feature, roi)
    with torch.autocast("cpu", torch.bfloat16):
        for feature_type in (torch.float32, torch.bfloat16):
            out = head(feature.to(feature_type), roi)
            assert {tensor.dtype for tensor in out} == {torch.float32}
            torch.testing.assert_close(out, expected, rtol=0.1, atol=0.01)
            assert not torch.equal(out[1], expected[1])  # the layers did run in bfloat16


def test_gradient_reaches_the_feature_map_through_the_rois_only(head):
    feature = torch.rand(1, 512, 4, 6).requires_grad_()
    head(feature, torch.tensor([[0.0, 48, 16, 80]]))[1].sum().backward()
    touched = feature.grad.abs().sum((0, 1)) > 0
    assert touched.nonzero().tolist() == [[y, x] for y in (0, 1) for x in (3, 4, 5)]
