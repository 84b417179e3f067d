"""Adam: its first step by arithmetic, its warning, and that its state is restored."""

import copy
import warnings

import pytest
import torch
from torch import nn

from research.adam import to_adam
from trainer import build_optimizer, set_lr


def make(lr=1e-4):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    return net, to_adam(build_optimizer(net, lr, weight_decay=0.5))


def step(net, optimizer):
    optimizer.zero_grad()
    net(torch.tensor([[1.0, -2, 3]])).sum().backward()
    optimizer.step()


def test_first_step_is_as_long_as_the_rate():
    net, optimizer = make()
    set_lr(optimizer, 2e-5)
    before = [param.detach().clone() for param in net.parameters()]
    step(net, optimizer)
    for old, new in zip(before, net.parameters(), strict=True):
        is_weight = old.dim() == 2
        gradient = new.grad + (0.5 * old if is_weight else 0)
        rate = 2e-5 if is_weight else 4e-5  # biases at twice the rate, without decay
        torch.testing.assert_close((new - old).detach(), -rate * gradient.sign(), rtol=0.01, atol=1e-9)


def test_a_rate_of_sgd_is_warned_of():
    with pytest.warns(UserWarning, match=r"^--lr=0\.001 is a rate for SGD: .* Start from --lr=0\.0001"):
        make(1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(1e-4)


def test_state_is_restored():
    net, optimizer = make()
    step(net, optimizer)
    other, resumed = make()
    other.load_state_dict(net.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    step(net, optimizer)
    step(other, resumed)
    assert all(map(torch.equal, net.parameters(), other.parameters()))
