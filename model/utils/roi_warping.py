"""RoI warping (paper 3.2; Dai et al. 2016, arXiv 1512.04412): RoI pooling with a gradient with respect to the box.

R: RoIs. C: channels of the feature map; h, w: its sides.
"""

import torch
import torch.nn.functional as F

from model.utils.array_tool import to_float32


def roi_warp(feature, roi, size=7, spatial_scale=1 / 16):
    """Interpolate each RoI at 2 size x 2 size points, then max-pool by 2.

    The points are the centres of as many bins of equal size (Dai et al. count from the corners of the bins), and the
    centre of cell (0, 0) is half a cell inside the image. Beyond the outermost centres the map continues unchanged.

    Args:
        feature: (1, C, h, w) feature map.
        roi: (R, 4) boxes in pixels of the network's input.
        size: side of the pooled map.
        spatial_scale: cells of the feature map per pixel of the input.

    Returns:
        (R, C, size, size), at least float32; differentiable in `feature` and `roi`.
    """
    feature, n = to_float32(feature), 2 * size
    step = (torch.arange(n, dtype=roi.dtype, device=roi.device) + 0.5) / n  # (2 size,) fractions of a side
    point = roi[:, :2, None] + (roi[:, 2:] - roi[:, :2])[:, :, None] * step  # (R, 2, 2 size) pixels: y, x
    h, w = feature.shape[2:]
    y, x = 2 * spatial_scale * point[:, 0] / h - 1, 2 * spatial_scale * point[:, 1] / w - 1  # -1 ... 1 over the map
    grid = torch.stack((x[:, None].expand(-1, n, -1), y[:, :, None].expand(-1, -1, n)), -1)  # (R, 2 size, 2 size, 2)
    grid = grid.reshape(1, -1, n, 2)  # (1, R * 2 size, 2 size, 2): the RoIs one below the other
    warped = F.grid_sample(feature, grid, padding_mode="border", align_corners=False)  # (1, C, R * 2 size, 2 size)
    bins = warped.reshape(feature.shape[1], len(roi), size, 2, size, 2)  # (C, R, size, 2, size, 2)
    return bins.amax((3, 5)).transpose(0, 1)  # (R, C, size, size)
