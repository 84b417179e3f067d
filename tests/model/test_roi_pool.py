"""RoI pooling without a gradient on a CPU against torchvision's kernel, which it replaces there."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision

from model.utils.roi_ops import roi_pool

SCALE = 1 / 16
KERNEL = torchvision.ops.roi_pool


def random_feature(h, w, channels=3):
    """A map with negative values, in the memory format of the network."""
    rng = np.random.default_rng(0)
    feature = torch.from_numpy(rng.normal(0, 1, (1, channels, h, w)).astype(np.float32))
    return feature.to(memory_format=torch.channels_last)


def theirs(feature, roi, size=7):
    return KERNEL(feature, F.pad(roi[:, [1, 0, 3, 2]], (1, 0)), size, SCALE)


@pytest.fixture
def calls(monkeypatch):
    """How many RoIs torchvision's kernel got, one entry per call."""
    found = []
    monkeypatch.setattr(
        torchvision.ops, "roi_pool", lambda feature, roi, *args: found.append(len(roi)) or KERNEL(feature, roi, *args)
    )
    return found


@pytest.mark.parametrize("size", [1, 3, 7])
def test_every_size_of_a_roi(calls, size):
    feature = random_feature(70, 90)
    for side in set(range(1, 70)) - {57}:  # of 57 cells in 7 bins, torchvision's float32 makes a bin a cell larger
        for other, start in ((side // 2 + 1, 0), (70 - side, 2)):
            if other != 57:
                corner = [start, 1, start + side - 1, other]
                roi = torch.tensor([corner], dtype=torch.float32) * 16
                assert torch.equal(roi_pool(feature, roi, size, SCALE), theirs(feature, roi, size)), (side, other)
    assert not calls


def test_random_rois_and_the_border(calls):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, (600, 780), (400, 2))
    end = np.minimum(corner + rng.uniform(0, 400, (400, 2)), (600, 800))  # 37.5 and 50 cells, of 37 and 50
    roi = torch.from_numpy(np.concatenate((corner, end), 1).astype(np.float32))
    feature = random_feature(37, 50)
    pool = roi_pool(feature, roi)
    assert torch.equal(pool, theirs(feature, roi))
    assert (pool == 0).any()  # bins beyond the map
    assert not calls


def test_halves_are_rounded_up_and_a_side_has_at_least_one_cell(calls):
    feature = random_feature(9, 9)
    rows = [[8, 24, 40, 56], [7.9, 24.1, 39.9, 72], [7.9999995, 0, 60, 80], [72, 40, 24, 56], [40, 88, 90, 8]]
    roi = torch.tensor(rows)  # 0.5, 1.5, 2.5 cells ...; the last two are inverted
    assert torch.equal(roi_pool(feature, roi, 2), theirs(feature, roi, 2))
    assert not calls


@pytest.mark.parametrize("roi", [[-20, -20, 300, 300], [16, -9, 48, 24], [0, 0, 400, 490], [0, 8, 90, 600]])
def test_rois_beyond_the_image_are_left_to_torchvision(calls, roi):
    feature, roi = random_feature(20, 30), torch.tensor([[16, 16, 99, 170], roi], dtype=torch.float32)
    assert torch.equal(roi_pool(feature, roi), theirs(feature, roi))
    assert calls == [2]


def test_bfloat16_stays_bfloat16(calls):
    feature = random_feature(37, 50).bfloat16()
    roi = torch.tensor([[16.0, 32, 200, 500], [300, 40, 599, 90]])
    pool = roi_pool(feature, roi)
    assert pool.dtype == torch.bfloat16
    assert torch.equal(pool.float(), theirs(feature.float(), roi))
    assert not calls


def test_a_gradient_goes_through_torchvision(calls):
    feature = random_feature(10, 12).requires_grad_()
    roi = torch.tensor([[16.0, 32, 100, 150]])
    pool = roi_pool(feature, roi)
    assert torch.autograd.grad(pool.sum(), feature)[0].sum() == pool.numel()
    assert calls == [1]
    with torch.no_grad():
        assert torch.equal(roi_pool(feature, roi), pool)
    assert calls == [1]


def test_no_roi():
    assert roi_pool(random_feature(5, 6), torch.zeros(0, 4)).shape == (0, 3, 7, 7)
