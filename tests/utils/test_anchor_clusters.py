"""K-means of heights and widths: by hand, against loops, on few boxes. A size is (height, width)."""
import numpy as np
import pytest

from model.utils.anchors import generate_anchor_base
from utils.anchor_clusters import best_grid, fit_clusters, fit_grid, grid_size, size_iou


def rng():
    return np.random.default_rng(4)


def slow_iou(a, b):
    inter = min(a[0], b[0]) * min(a[1], b[1])
    return inter / (a[0] * a[1] + b[0] * b[1] - inter)


def random_size(n=80):
    return np.exp(np.random.default_rng(1).normal((3, 4), (0.8, 0.5), (n, 2)))


def mean_best(size, shapes):
    return np.mean([max(slow_iou(a, b) for b in shapes) for a in size])


def test_iou_by_hand():
    # 10 x 40 with 20 x 20: 10 x 20 of 400 + 400 - 200; with 40 x 10: 10 x 10 of 700; with itself: 1
    iou = size_iou(np.array([[10.0, 40]]), np.array([[20.0, 20], [40, 10], [10, 40]]))
    np.testing.assert_allclose(iou, [[1 / 3, 1 / 7, 1]])


def test_iou_against_a_loop():
    a, b = random_size(7), random_size(5) * 1.7
    np.testing.assert_allclose(size_iou(a, b), [[slow_iou(x, y) for y in b] for x in a])


def test_the_grid_is_that_of_the_anchors():
    base = generate_anchor_base(16, (0.5, 1, 3), (2, 7))
    np.testing.assert_allclose(grid_size((2, 7), (0.5, 1, 3)), base[:, 2:] - base[:, :2], rtol=1e-6)
    np.testing.assert_allclose(grid_size([2], [4], stride=8), [[32, 8]])  # ratio is height / width


def test_two_obvious_clusters_are_found():
    # sides 8 and 32 times 1 / 1.25 and 1.25: the geometric mean is in the middle
    flat, high = np.array([8, 64]), np.array([90, 30])
    size = np.concatenate([flat * [[0.8, 1], [1.25, 1], [1, 0.8], [1, 1.25]], high * [[0.8, 0.8], [1.25, 1.25]]])
    np.testing.assert_allclose(fit_clusters(size, 2, rng()), [flat, high], rtol=1e-12)


def test_one_cluster_is_the_geometric_mean():
    found = fit_clusters([[8, 40], [12.5, 40], [10, 32], [10, 50]], 1, rng())  # the arithmetic one is 10.1 x 40.5
    np.testing.assert_allclose(found, [[10, 40]], rtol=1e-12)


@pytest.mark.parametrize(("size", "want"), [
    (np.zeros((0, 2)), np.zeros((0, 2))),
    ([[5, 9]], [[5, 9]]),
    ([[50, 9], [4, 7], [50, 9]], [[4, 7], [50, 9]]),  # two that differ
])
def test_fewer_boxes_than_clusters(size, want):
    found = fit_clusters(size, 3, rng())
    np.testing.assert_array_equal(found, want)
    assert found.shape == np.shape(want)


def test_clusters_beat_every_start_and_come_in_order():
    size = random_size()
    start = grid_size((1, 3), (0.25, 0.5, 1))
    found = fit_clusters(size, 6, rng(), start)
    assert found.shape == (6, 2)
    assert (np.diff(found.prod(1)) > 0).all()
    assert mean_best(size, found) > mean_best(size, start) + 0.05
    assert mean_best(size, found) > mean_best(size, fit_clusters(size, 5, rng())) > mean_best(size, size[:5])


def test_the_same_seed_finds_the_same():
    size = random_size()
    np.testing.assert_array_equal(fit_clusters(size, 4, rng()), fit_clusters(size, 4, rng()))
    np.testing.assert_array_equal(fit_grid(size, 2, 2, rng())[0], fit_grid(size, 2, 2, rng())[0])


def test_a_grid_is_found_again():
    size = grid_size((1.5, 4, 11), (0.4, 2))
    scales, ratios, mean = fit_grid(size, 3, 2, rng())
    np.testing.assert_allclose(scales, [1.5, 4, 11], rtol=1e-9)
    np.testing.assert_allclose(ratios, [0.4, 2], rtol=1e-9)
    assert mean == pytest.approx(1)


def test_a_grid_is_found_among_noise():
    count = (9, 30, 90, 25, 120, 16)  # so that the quantiles, from which it starts, miss
    size = np.repeat(grid_size((1.5, 4, 11), (0.4, 2)), count, 0)
    noise = np.exp(np.random.default_rng(6).normal(0, 0.1, size.shape))
    scales, ratios, _ = fit_grid(size * noise, 3, 2, rng())
    np.testing.assert_allclose(scales, [1.5, 4, 11], rtol=0.03)
    np.testing.assert_allclose(ratios, [0.4, 2], rtol=0.03)


def test_scales_are_in_units_of_the_stride():
    assert fit_grid([[32, 32]], 1, 1, rng(), stride=8)[0] == pytest.approx(4)
    assert fit_grid([[32, 8]], 1, 1, rng())[:2] == (pytest.approx(1), pytest.approx(4))


def test_one_box_and_a_whole_grid():
    scales, ratios, mean = fit_grid([[12, 48]], 2, 3, rng())
    assert (len(scales), len(ratios), mean) == (2, 3, pytest.approx(1))


def test_the_mean_iou_of_a_grid_is_that_of_a_loop():
    size = random_size()
    scales, ratios, mean = fit_grid(size, 3, 2, rng())
    assert mean == pytest.approx(mean_best(size, grid_size(scales, ratios)))


def test_a_grid_is_no_worse_than_its_start():
    size = random_size()
    scales, ratios, fitted = fit_grid(size, 3, 3, rng())
    again = fit_grid(size, 3, 3, rng(), (scales, ratios))[2]
    assert again >= fitted - 1e-12 > mean_best(size, grid_size((8, 16, 32), (0.5, 1, 2)))


@pytest.mark.parametrize(("true", "k"), [
    (((1, 2, 4, 8), (0.7,)), 4), (((3,), (0.2, 1, 3, 9)), 4), (((2, 8), (1, 3)), 4)])
def test_the_best_of_all_grids(true, k):
    scales, ratios, mean = best_grid(grid_size(*true), k, rng(), ((8, 16, 32), (0.5, 1, 2)))
    np.testing.assert_allclose(scales, true[0], rtol=1e-9)
    np.testing.assert_allclose(ratios, true[1], rtol=1e-9)
    assert mean == pytest.approx(1)
