"""Anchors: shapes by hand, and their order over the cells."""

import numpy as np
import pytest
import torch

from model.utils.anchors import enumerate_shifted_anchor, generate_anchor_base


def test_base_by_hand():
    base = generate_anchor_base(base_size=10, ratios=(0.25, 4), anchor_scales=(2, 3))
    assert base.dtype == np.float32
    np.testing.assert_allclose(
        base,
        [
            [0, -15, 10, 25],  # ratio 1/4, scale 2: height 10, width 40, around (5, 5)
            [-2.5, -25, 12.5, 35],
            [-15, 0, 25, 10],
            [-25, -2.5, 35, 12.5],  # ratio 4, scale 3: height 60, width 15
        ],
    )


def test_the_nine_of_the_paper():
    base = generate_anchor_base()
    height, width = base[:, 2] - base[:, 0], base[:, 3] - base[:, 1]
    np.testing.assert_allclose(np.sqrt(height * width), [128, 256, 512] * 3, rtol=1e-6)
    np.testing.assert_allclose(height / width, np.repeat((0.5, 1, 2), 3), rtol=1e-6)
    np.testing.assert_allclose((base[:, :2] + base[:, 2:]) / 2, np.full((9, 2), 8), atol=1e-4)
    assert base[0, 2] - base[0, 0] == pytest.approx(128 / np.sqrt(2))  # not rounded to whole pixels


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_shifted_by_hand(library):
    base = np.array([[0, 1, 2, 5], [-3, 0, 7, 2]], np.float32)
    anchor = enumerate_shifted_anchor(library(base), 16, 2, 3)
    assert type(anchor) is type(library(base))
    assert anchor.dtype == library(base).dtype
    np.testing.assert_array_equal(
        anchor,
        [
            [0, 1, 2, 5],
            [-3, 0, 7, 2],
            [0, 17, 2, 21],
            [-3, 16, 7, 18],
            [0, 33, 2, 37],
            [-3, 32, 7, 34],
            [16, 1, 18, 5],
            [13, 0, 23, 2],
            [16, 17, 18, 21],
            [13, 16, 23, 18],
            [16, 33, 18, 37],
            [13, 32, 23, 34],
        ],
    )


def test_order_is_that_of_flattened_maps():
    base = generate_anchor_base()
    height, width, a, y, x = 4, 7, 5, 2, 6
    for per_anchor in (2, 4):
        maps = torch.zeros(1, 9 * per_anchor, height, width)
        maps[0, a * per_anchor + 1, y, x] = 1  # channel 1 of anchor 5, at one cell
        flat = maps.permute(0, 2, 3, 1).reshape(-1, per_anchor)
        ((k, channel),) = flat.nonzero().tolist()
        anchor = enumerate_shifted_anchor(base, 16, height, width)
        assert len(anchor) == len(flat)
        assert channel == 1
        np.testing.assert_allclose(anchor[k], base[a] + [32, 96, 32, 96], atol=1e-4)


def test_map_without_cells():
    assert enumerate_shifted_anchor(generate_anchor_base(), 16, 0, 5).shape == (0, 4)
