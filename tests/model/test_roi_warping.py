"""RoI warping and RoIAlign by hand and against torchvision; the gradients of RoI warping by finite differences."""

import pytest
import torch
import torch.nn.functional as F
import torchvision

from model.utils.roi_ops import ROI_OPS, roi_align, roi_pool
from model.utils.roi_warping import roi_warp


def random_feature(channels=3, h=9, w=12):
    return torch.randn(1, channels, h, w, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_one_roi_by_hand():
    """The map is 10 y + x: with positive slopes, the largest of four points is the lower right one."""
    feature = (10.0 * torch.arange(7)[:, None] + torch.arange(8))[None, None]
    roi = torch.tensor([[16.0, 32, 80, 112]])
    # points at y = 24, 40, 56, 72 pixels: 1, 2, 3, 4 cells; at x = 42, 62, 82, 102: 2.125, 3.375, 4.625, 5.875 cells
    assert roi_warp(feature, roi, size=2)[0, 0].tolist() == [[23.375, 25.875], [43.375, 45.875]]
    assert roi_align(feature, roi, size=2)[0, 0].tolist() == [[17.75, 20.25], [37.75, 40.25]]  # their mean


def test_against_roi_align_with_one_point_per_bin():
    feature = random_feature()
    rows = [[10, 20, 100, 150], [0, 0, 144, 192], [3, 7, 9, 180], [140, 0, 144, 5], [50, 60, 50, 60]]  # at the border
    roi = torch.tensor(rows, dtype=torch.float64)
    points = torchvision.ops.roi_align(feature, [roi[:, [1, 0, 3, 2]]], 14, 1 / 16, sampling_ratio=1, aligned=True)
    torch.testing.assert_close(roi_warp(feature, roi), F.max_pool2d(points, 2))


def test_gradients_are_finite_differences():
    feature = random_feature(channels=2).requires_grad_()
    roi = torch.tensor([[10.3, 21.1, 102.7, 150.9], [-4.0, 30.2, 77.7, 181.0]], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(roi_warp, (feature, roi, 3))
    for i in range(4):  # each coordinate moves something
        assert torch.autograd.grad(roi_warp(feature, roi).sum(), roi)[0][:, i].all()


@pytest.mark.parametrize("name", ROI_OPS)
def test_no_roi_and_half_precision(name):
    roi_op, feature = ROI_OPS[name], random_feature().bfloat16()
    assert roi_op(feature.float(), torch.zeros(0, 4)).shape == (0, 3, 7, 7)
    roi = torch.tensor([[5.0, 20, 90, 70]])
    pool = roi_op(feature, roi)
    assert pool.dtype == (torch.bfloat16 if roi_op is roi_pool else torch.float32)
    torch.testing.assert_close(pool.float(), roi_op(feature.float(), roi))
