"""ZF: normalization against a direct loop, what a cell sees, Caffe's names, and the parts of the detector."""

import pytest
import torch
from torch import nn

import model
from model.zf import ZF, WithinChannelLRN


def test_normalization_is_within_the_channel():
    x = torch.randn(1, 2, 4, 5, generator=torch.Generator().manual_seed(0)) * 100
    expected = torch.empty_like(x)
    for c in range(2):
        for i in range(4):
            for j in range(5):
                square = 0.0
                for k in range(max(i - 1, 0), min(i + 2, 4)):
                    for m in range(max(j - 1, 0), min(j + 2, 5)):
                        square += x[0, c, k, m].item() ** 2
                expected[0, c, i, j] = x[0, c, i, j] / (1 + 5e-5 / 9 * square) ** 0.75
    torch.testing.assert_close(WithinChannelLRN()(x), expected)
    assert not torch.allclose(nn.LocalResponseNorm(3, 5e-5, 0.75, 1)(x), expected, rtol=1e-3)


def seen(layers, cell):
    """Rows and columns of the input that reach a cell, and the first of each."""
    img = torch.zeros(1, 3, 300, 340, requires_grad=True)
    layers(img)[0, :, cell[0], cell[1]].sum().backward()
    rows, columns = (img.grad.abs().sum((0, 1, 2 + axis)).nonzero().flatten().tolist() for axis in (1, 0))
    return len(rows), len(columns), rows[0], columns[0]


def test_what_the_last_convolution_and_the_window_of_the_rpn_see():
    extractor = ZF()
    layers = []
    for layer in extractor:
        if isinstance(layer, nn.MaxPool2d):  # a mean reaches all that a maximum may
            layers.append(nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding))
        elif isinstance(layer, nn.Conv2d):
            layers.append(layer)
            nn.init.constant_(layer.weight, 0.01)
    convs, window = nn.Sequential(*layers), nn.Conv2d(256, 1, 3, padding=1)
    nn.init.constant_(window.weight, 0.01)
    assert seen(convs, (9, 10)) == (139, 139, 9 * 16 - 69, 10 * 16 - 69)
    assert seen(nn.Sequential(convs, window), (9, 10)) == (171, 171, 9 * 16 - 85, 10 * 16 - 85)


@torch.no_grad()
@pytest.mark.parametrize(("size", "cells"), [((96, 160), (6, 10)), ((97, 175), (7, 11)), ((16, 33), (1, 3))])
def test_stride_and_channels(size, cells):
    extractor = ZF()
    assert extractor(torch.zeros(1, 3, *size)).shape == (1, extractor.channels, *cells)
    assert (extractor.stride, extractor.channels) == (16, 256)


def caffe_weights(width=8):
    """Random weights with Caffe's names, and those of a layer that a detector has no use for."""
    net = model.build("zf", n_fg_class=2, head_width=width, generator=torch.Generator().manual_seed(1))
    state = net.extractor.state_dict() | {k: v for k, v in net.head.state_dict().items() if k.startswith("fc")}
    return state | {"fc8.weight": torch.zeros(3, width), "fc8.bias": torch.zeros(3)}


@pytest.mark.parametrize("names", ["conv1.weight", "conv1/W"])
def test_caffes_weights_are_loaded(names, recwarn):
    state = given = caffe_weights()
    if names == "conv1/W":
        given = {k.replace(".weight", "/W").replace(".bias", "/b"): v for k, v in state.items()}
    net = model.build("zf", n_fg_class=2, head_width=8, pretrained=given, frozen_convs=1)
    torch.testing.assert_close(net.extractor.conv3.weight, state["conv3.weight"])
    torch.testing.assert_close(net.head.fc6.weight, state["fc6.weight"])
    torch.testing.assert_close(net.head.fc7.bias, state["fc7.bias"])
    assert net.preprocessing.channel_order == "BGR"
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == [
        "extractor.conv1.weight",
        "extractor.conv1.bias",
    ]
    assert not recwarn


def test_weights_that_are_not_there():
    with pytest.raises(model.WeightsError, match="Caffe's names"):
        model.build("zf", head_width=8, pretrained={"features.0.weight": torch.zeros(1)})
    with pytest.raises(model.WeightsError, match="--pretrained=caffe"):
        model.build("zf", head_width=8, pretrained="caffe")
    with pytest.warns(UserWarning, match="ZF's weights to download"):
        model.build("zf", head_width=8, pretrained="imagenet")
    with pytest.warns(UserWarning, match="fc6 and fc7"):
        model.build("zf", head_width=4, pretrained=caffe_weights())


def test_parts():
    net = model.build("zf", n_fg_class=2, head_width=8, min_size=64, max_size=96, anchor_scales=(1, 2))
    assert net.rpn.conv.weight.shape == (256, 256, 3, 3)
    assert net.head.fc6.in_features == 256 * 6 * 6
    loc, score = net.head(torch.rand(1, 256, 4, 6), torch.tensor([[0.0, 16, 30, 90], [5, 5, 60, 20]]))
    assert loc.shape == (2, 3, 4)
    assert score.shape == (2, 3)
    assert model.defaults("zf", "imagenet")["frozen_convs"] == 0
