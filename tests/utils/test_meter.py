"""Tests of utils.meter: means and rates by hand."""

import math
from typing import NamedTuple

import pytest
import torch

from utils import meter as meter_module
from utils.meter import Meter


class Two(NamedTuple):
    """Stands in for the trainer's losses."""

    one: torch.Tensor
    total: torch.Tensor


def losses(*values):
    return Two(*torch.tensor(values))


def scores(*choices):
    """Logits of three classes, the largest where `choices` say."""
    return torch.eye(3)[list(choices)] * 2 - 1


def test_means_and_speed_start_anew_when_they_are_read(monkeypatch):
    clock = iter([10.0, 14.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(meter_module.time, "monotonic", lambda: next(clock))
    meter = Meter()
    meter.add(losses(1.0, 10.0), 2)
    meter.add(losses(3.0, 6.0), 6)
    figures = meter.read()
    assert (figures["one"], figures["total"], figures["images_per_second"]) == (2, 8, 2)  # 8 images in 4 seconds
    meter.add(losses(1.0, 1.0), 5)
    figures = meter.read()
    assert (figures["one"], figures["total"], figures["images_per_second"]) == (1, 1, 0.5)


def watch_two_images(meter):
    meter.watch("proposal", torch.zeros(7, 4))
    # positive: right, wrong, wrong; negative: right, right; not counted: three
    meter.watch("rpn", scores(1, 0, 0, 0, 0, 1, 0, 1)[:, :2], torch.tensor([1, 1, 1, 0, 0, -1, -1, -1]))
    # of class 1 right, of class 2 taken for 1; background right, wrong; not counted: one
    meter.watch("roi", scores(1, 1, 0, 2, 0), torch.tensor([1, 2, 0, 0, -1]))
    meter.watch("proposal", torch.zeros(2, 4))
    meter.watch("rpn", scores(1, 1)[:, :2], torch.tensor([1, 0]))
    meter.watch("roi", scores(2, 2, 2), torch.tensor([2, 2, 0]))


def test_rates_by_hand():
    meter = Meter()
    watch_two_images(meter)
    meter.add(losses(1.0, 1.0), 2)
    figures = meter.read()
    assert {name: figures[name] for name in list(figures)[3:]} == {
        "rpn_recall_pos": 2 / 4, "rpn_recall_neg": 2 / 3, "roi_acc_fg": 3 / 4, "roi_acc_bg": 1 / 3,
        "n_proposal": 4.5, "n_pos_anchor": 2, "n_pos_roi": 2}
    meter.add(losses(1.0, 1.0), 2)
    figures = meter.read()  # nothing watched since
    assert all(math.isnan(figures[name]) for name in list(figures)[3:])


def test_nothing_to_divide_by_is_not_a_number():
    meter = Meter()
    meter.watch("proposal", torch.zeros(0, 4))
    meter.watch("rpn", scores(0, 1)[:, :2], torch.tensor([0, -1]))
    meter.watch("roi", torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    meter.add(losses(1.0, 1.0), 1)
    figures = meter.read()
    assert (figures["rpn_recall_neg"], figures["n_proposal"], figures["n_pos_anchor"]) == (1, 0, 0)
    assert all(math.isnan(figures[name]) for name in ("rpn_recall_pos", "roi_acc_fg", "roi_acc_bg"))


def test_several_processes_add_up_their_counts():
    alone, other, idle = Meter(), Meter(), Meter()
    for meter in (alone, other, idle):
        meter.add(losses(1.0, 1.0), 1)
    watch_two_images(alone)
    watch_two_images(other)
    expected = alone.read()

    def add_up(tensors):
        for tensor in tensors:
            tensor *= 2  # another process with the same

    figures = other.read(add_up)
    names = list(figures)[3:]
    assert [figures[name] for name in names] == [expected[name] for name in names]
    brought = []
    idle.read(lambda tensors: brought.extend(tensor.clone() for tensor in tensors))
    assert [tensor.tolist() for tensor in brought] == [[0] * 10]


def test_starting_forgets():
    meter = Meter()
    watch_two_images(meter)
    meter.add(losses(9.0, 9.0), 100)
    meter.start()
    meter.watch("proposal", torch.zeros(3, 4))
    meter.add(losses(1.0, 2.0), 1)
    figures = meter.read()
    assert (figures["one"], figures["n_proposal"]) == (1, 3)
    assert math.isnan(figures["roi_acc_fg"])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
def test_watching_waits_for_no_gpu():
    meter = Meter()
    score, label = scores(1, 0).cuda(), torch.tensor([1, 0]).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        meter.watch("roi", score, label)
        meter.add(Two(score[0, 0], score[0, 1]), 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
