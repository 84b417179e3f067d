"""Receptive fields: by hand, of the networks of the paper, and against what a cell of VGG16 really answers to."""
import pytest
import torch
from torch import nn

from model.utils.receptive_field import receptive_field, window_layers
from model.vgg16 import VGG16

ZF = [(7, 2), (3, 2), (5, 2), (3, 2), (3, 1), (3, 1), (3, 1)]  # convolution, pooling, convolution, pooling, three more


def test_by_hand():
    assert receptive_field([]) == (1, 1)
    assert receptive_field([(5, 1)]) == (5, 1)
    assert receptive_field([(3, 2), (2, 3), (4, 1)]) == (3 + 1 * 2 + 3 * 6, 6)  # a kernel counts in strides before it


def test_the_networks_of_the_paper():
    vgg = window_layers(VGG16())
    assert len(vgg) == 13 + 4
    assert receptive_field(vgg) == (196, 16)
    assert receptive_field([*vgg, (3, 1)]) == (228, 16)
    assert receptive_field(ZF) == (139, 16)
    assert receptive_field([*ZF, (3, 1)]) == (171, 16)


def test_layers_are_read_in_order_and_inside_others():
    net = nn.Sequential(nn.Conv2d(1, 2, 5, stride=2, padding=1), nn.ReLU(), nn.Sequential(nn.MaxPool2d(3, stride=1)),
                        nn.Conv2d(2, 1, (1, 1)))
    assert window_layers(net) == [(5, 2), (3, 1), (1, 1)]


def test_only_squares_are_counted():
    with pytest.raises(ValueError, match="3 x 5"):
        window_layers(nn.Conv2d(1, 1, (3, 5)))


@torch.no_grad()
def test_a_cell_answers_to_its_window_and_to_nothing_else():
    """Every weight is positive, so that a bright row lights a cell exactly where its window reaches."""
    net = VGG16()
    for layer in net:
        if isinstance(layer, nn.Conv2d):
            layer.weight.fill_(1 / layer.weight[0].numel())
    y, x = 7, 0  # its window is centred on 16 * 7 + 8 = 120, from 22 to 218
    for row, seen in ((21, False), (22, True), (217, True), (218, False)):
        img = torch.zeros(1, 3, 240, 16)
        img[:, :, row] = 1e6
        assert bool(net(img)[0, 0, y, x] > 0) == seen, row
