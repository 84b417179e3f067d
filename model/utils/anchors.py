"""Anchors (paper 3.1.1): boxes of fixed shapes at every cell of the feature map, which the RPN scores and refines.

A: anchors per cell (9: 3 ratios x 3 scales). K: all anchors, height * width * A.
"""

import numpy as np

from model.utils.array_tool import arange_like, get_xp


def generate_anchor_base(base_size=16, ratios=(0.5, 1, 2), anchor_scales=(8, 16, 32)):
    """Generate the anchors of the cell at the origin (paper 3.3: areas 128², 256², 512², ratios 1:2, 1:1, 2:1).

    Args:
        base_size: side of a cell in pixels of the input, the stride of the feature map.
        ratios: height / width.
        anchor_scales: square root of the area, in units of `base_size`.

    Returns:
        (A, 4) float32 boxes, ratio-major, centred on the middle of the cell, not rounded.
    """
    ratio, scale = np.meshgrid(ratios, anchor_scales, indexing="ij")
    half_h = 0.5 * base_size * (scale * np.sqrt(ratio)).reshape(-1)  # (A,)
    half_w = 0.5 * base_size * (scale / np.sqrt(ratio)).reshape(-1)  # (A,)
    centre = base_size / 2
    return np.stack((centre - half_h, centre - half_w, centre + half_h, centre + half_w), 1).astype(np.float32)


def enumerate_shifted_anchor(anchor_base, feat_stride, height, width):
    """Place the anchors at every cell of a feature map.

    Args:
        anchor_base: (A, 4) anchors of the cell at the origin.
        feat_stride: pixels of the input from one cell to the next.
        height, width: of the feature map.

    Returns:
        (height * width * A, 4) boxes: the anchors of a cell are adjacent, then x runs fastest, as the channels of a
        (1, A * n, height, width) map do after permute(0, 2, 3, 1). Same library and device as `anchor_base`.
    """
    xp = get_xp(anchor_base)
    y, x = (feat_stride * arange_like(n, anchor_base) for n in (height, width))  # (height,), (width,)
    y, x = xp.meshgrid(y, x, indexing="ij")  # (height, width) each; built on the device, nothing is copied
    shift = xp.stack((y, x, y, x), -1)  # (height, width, 4)
    return xp.reshape(shift[:, :, None] + anchor_base, (-1, 4))  # (K, 4)
