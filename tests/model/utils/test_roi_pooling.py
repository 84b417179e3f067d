"""RoI pooling without a gradient on a CPU against torchvision's, which it stands in for."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import ops

from model.utils import roi_pooling
from model.utils.roi_pooling import roi_pool

SCALE = 1 / 16


def random_feature(h, w, channels=3):
    """A map with negative values, in the memory format of the network."""
    rng = np.random.default_rng(0)
    feature = torch.from_numpy(rng.normal(0, 1, (1, channels, h, w)).astype(np.float32))
    return feature.to(memory_format=torch.channels_last)


def theirs(feature, roi, size=7):
    return ops.roi_pool(feature, F.pad(roi[:, [1, 0, 3, 2]], (1, 0)), size, SCALE)


@pytest.fixture
def left(monkeypatch):
    """How many RoIs were left to torchvision, a list with one entry a call."""
    found, inner = [], roi_pooling._pool_together

    def spy(feature, roi, *args):
        found.append(len(roi))
        return inner(feature, roi, *args)

    monkeypatch.setattr(roi_pooling, "_pool_together", spy)
    return found


@pytest.mark.parametrize("size", [1, 3, 7, 14])
def test_every_size_of_a_roi(left, size):
    feature = random_feature(70, 90)
    for side in range(1, 70):
        for other, start in ((side // 2 + 1, 0), (70 - side, 2)):
            roi = torch.tensor([[start, 1, start + side - 1, 1 + other - 1]], dtype=torch.float32) * 16
            assert torch.equal(roi_pool(feature, roi, size, SCALE), theirs(feature, roi, size)), (side, other)
    assert len(left) == 138
    assert sum(left) <= 18  # RoIs of 57 cells with 7 bins, of 62 with 14


def test_a_width_that_rounding_makes_larger_is_left_to_torchvision(left):
    feature = random_feature(5, 70)
    roi = torch.tensor([[0.0, 0, 40, 56 * 16], [0, 16, 40, 90], [30, 0, 40, 56 * 16]])
    assert torch.equal(roi_pool(feature, roi, 7, SCALE), theirs(feature, roi))
    assert left == [2]


def test_random_rois_and_the_border(left):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, (600, 780), (400, 2))
    end = np.minimum(corner + rng.uniform(0, 400, (400, 2)), (600, 800))  # 37.5 and 50 cells, of 37 and 50
    roi = torch.from_numpy(np.concatenate((corner, end), 1).astype(np.float32))
    feature = random_feature(37, 50)
    pool = roi_pool(feature, roi, 7, SCALE)
    assert torch.equal(pool, theirs(feature, roi))
    assert left == [0]
    assert (pool == 0).any()  # bins beyond the map


def test_halves_are_rounded_up_and_a_side_has_a_cell_at_least(left):
    feature = random_feature(9, 9)
    roi = torch.tensor([[8.0, 24, 40, 56], [7.9, 24.1, 39.9, 72],  # 0.5, 1.5, 2.5 cells ...
                        [72, 40, 24, 56], [40, 88, 90, 8]])
    assert torch.equal(roi_pool(feature, roi, 2, SCALE), theirs(feature, roi, 2))
    assert left == [0]


@pytest.mark.parametrize("roi", [
    [-20, -20, 300, 300], [-8, -9, -7, -7], [-8, 16, 48, 90], [16, -8, 48, 24], [-100, -100, -50, -50],
    [torch.nan, 8, 90, 70], [0, 0, torch.inf, 40],
    [0, 0, 368, 490], [0, 8, 3e38, 40]])
def test_rois_that_begin_or_end_nowhere_are_left_to_torchvision(left, roi):
    feature, roi = random_feature(20, 30), torch.tensor([[16, 16, 99, 170], roi, [0, 30, 70, 490]], dtype=torch.float32)
    assert torch.equal(roi_pool(feature, roi, 7, SCALE), theirs(feature, roi))
    assert left == [1]


def test_a_hair_below_a_half_is_rounded_down(left):
    feature = random_feature(9, 9)
    roi = torch.tensor([[7.9999995, 0, 60, 80]])
    assert torch.equal(roi_pool(feature, roi, 3, SCALE), theirs(feature, roi, 3))
    assert left == [0]


def test_bfloat16_stays_what_it_is(left):
    feature = random_feature(37, 50).bfloat16()
    roi = torch.tensor([[16.0, 32, 200, 500], [300, 40, 599, 90], [-16, 40, 599, 90]])
    pool = roi_pool(feature, roi, 7, SCALE)
    assert pool.dtype == torch.bfloat16
    assert torch.equal(pool.float(), theirs(feature.float(), roi))
    assert left == [1]


def test_training_goes_through_torchvision(left):
    feature = random_feature(10, 12).requires_grad_()
    roi = torch.tensor([[16.0, 32, 100, 150]])
    pool = roi_pool(feature, roi, 7, SCALE)
    assert torch.equal(pool, theirs(feature, roi))
    assert torch.autograd.grad(pool.sum(), feature)[0].sum() == pool.numel()
    assert left == [1]
    with torch.no_grad():
        assert torch.equal(roi_pool(feature, roi, 7, SCALE), pool)
    assert left == [1, 0]


def test_no_roi():
    assert roi_pool(random_feature(5, 6), torch.zeros(0, 4), 7, SCALE).shape == (0, 3, 7, 7)
