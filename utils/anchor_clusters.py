"""Which shapes of anchors fit the boxes of a data set: k-means on their heights and widths.

The distance of two shapes is 1 - IoU of boxes of these shapes with one centre. It depends only on the ratios of the
sides, so the mean of a cluster is the geometric one.

N: boxes. k: anchors at a cell. S, R: scales and ratios, k = S * R.
"""
import numpy as np

N_START = 8  # random starts of the k-means; the best result is taken
LEAST_GAIN = 1e-6  # in mean best IoU; a round that brings less is the last


def size_iou(size_a, size_b):
    """IoU of boxes with one centre: (N, 2) and (M, 2) heights and widths above 0 -> (N, M)."""
    intersection = np.minimum(size_a[:, None], size_b).prod(2)  # (N, M)
    return intersection / (size_a.prod(1)[:, None] + size_b.prod(1) - intersection)


def grid_size(scales, ratios, stride=16):
    """The heights and widths of anchors, ratio by ratio: (S,) and (R,) -> (k, 2) float64."""
    ratio, scale = np.meshgrid(np.asarray(ratios, float), np.asarray(scales, float), indexing="ij")
    size = stride * np.stack((scale * np.sqrt(ratio), scale / np.sqrt(ratio)), -1)  # (R, S, 2)
    return size.reshape(-1, 2)  # (k, 2)


def fit_clusters(size, k, rng, start=None):
    """The k shapes that k-means finds, which need not be a grid.

    Args:
        size: (N, 2) heights and widths of boxes, above 0; N may be 0.
        k: how many; where fewer boxes differ, there are as many as those.
        rng: np.random.Generator, draws the starts.
        start: (k, 2) shapes, or fewer, to start from as well, so that the result is no worse than they.

    Returns:
        (k, 2) heights and widths, the smallest area first.
    """
    size = np.asarray(size, float).reshape(-1, 2)  # (N, 2)
    distinct = np.unique(size, axis=0)
    if len(distinct) <= k:
        return distinct[np.argsort(distinct.prod(1), kind="stable")]
    log_size = np.log(size)

    def update(nearest, log_centre):
        return _means(log_size, nearest, log_centre)

    starts = [np.log(_spread(distinct, k, rng)) for _ in range(N_START)] + ([] if start is None else [np.log(start)])
    best, _ = max((_refine(size, start, np.exp, update) for start in starts), key=lambda result: result[1])
    centre = np.exp(best)  # (k, 2)
    return centre[np.argsort(centre.prod(1), kind="stable")]


def fit_grid(size, n_scale, n_ratio, rng, start=None, stride=16):
    """The scales and ratios whose product fits best: the same k-means, its centres held to a grid.

    Each box goes to the shape of the grid that it overlaps most; then each scale becomes the mean over all boxes
    that went to it, whatever their ratio, and each ratio the mean over those that went to it, whatever their scale.

    Args:
        size: (N, 2) heights and widths of boxes, above 0; N at least 1.
        n_scale, n_ratio: S and R.
        rng: np.random.Generator, draws the starts.
        start: (scales, ratios), S and R of them, to start from as well, so that the result is no worse than they.
        stride: pixels from a cell to its neighbour, the unit of the scales.

    Returns:
        (S,) scales, (R,) ratios, both ascending, and the mean IoU of the boxes with the nearest shape.
    """
    size = np.asarray(size, float)
    log_scale, log_ratio = np.log(size.prod(1)) / 2 - np.log(stride), np.log(size[:, 0] / size[:, 1])  # (N,) each

    def shapes(grid):
        return grid_size(np.exp(grid[0]), np.exp(grid[1]), stride)

    def update(nearest, grid):
        ratio, scale = np.divmod(nearest, n_scale)
        return _means(log_scale, scale, grid[0]), _means(log_ratio, ratio, grid[1])

    middle = [(np.arange(n) + 0.5) / n for n in (n_scale, n_ratio)]
    starts = [tuple(np.quantile(value, at) for value, at in zip((log_scale, log_ratio), middle, strict=True))]
    starts += [(rng.choice(log_scale, n_scale), rng.choice(log_ratio, n_ratio)) for _ in range(N_START)]
    starts += [tuple(np.log(numbers) for numbers in start)] if start else []
    grid, mean_iou = max((_refine(size, start, shapes, update) for start in starts), key=lambda result: result[1])
    return np.sort(np.exp(grid[0])), np.sort(np.exp(grid[1])), mean_iou


def best_grid(size, k, rng, start, stride=16):
    """The best of all grids with k shapes, 1 x k to k x 1: arguments and result as for `fit_grid`.

    `start` counts where it has the numbers of scales and ratios that are tried.
    """
    n_start = tuple(map(len, start))
    grids = [fit_grid(size, n, k // n, rng, start if n_start == (n, k // n) else None, stride)
             for n in range(1, k + 1) if k % n == 0]
    return max(grids, key=lambda grid: grid[2])


def _spread(distinct, k, rng):
    """(k, 2) shapes drawn from `distinct`: the less the chosen ones overlap a shape, the likelier it is next."""
    chosen = [rng.integers(len(distinct))]
    while len(chosen) < k:
        distance = 1 - size_iou(distinct, distinct[chosen]).max(1)  # 0 for those chosen
        distance[chosen] = 0
        chosen.append(rng.choice(len(distinct), p=distance / distance.sum()))
    return distinct[chosen]


def _means(value, group, old):
    """The mean of the values (N, ...) of each group; that of `old` for a group without any."""
    return np.stack([value[group == i].mean(0) if (group == i).any() else old[i] for i in range(len(old))])


def _refine(size, grid, shapes, update):
    """Rounds of k-means as long as the mean best IoU rises; `shapes(grid)` are (k, 2). Returns the best, its IoU."""
    best, best_mean = grid, -1.0  # less than any
    while True:
        iou = size_iou(size, shapes(grid))  # (N, k)
        gain = iou.max(1).mean() - best_mean
        if gain > 0:
            best, best_mean = grid, best_mean + gain
        if gain < LEAST_GAIN:
            return best, best_mean
        grid = update(iou.argmax(1), grid)
