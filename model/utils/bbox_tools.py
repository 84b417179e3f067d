"""Box arithmetic: boxes to regression targets (locs) and back, clipping, resizing, overlap.

Every box is (y_min, x_min, y_max, x_max) in continuous pixel coordinates: its height is y_max - y_min.
A loc is (dy, dx, dh, dw): the shift of the centre divided by the size of the source box, the log of the size ratio.
Functions take NumPy, CuPy or torch (where they stay differentiable) and return the same type.

N, M: numbers of boxes.
"""

import math

from model.utils.array_tool import get_xp

# A loc enlarges a box at most 1000 / 16 times, so that exp() of no finite input overflows (torchvision's bound;
# a deviation from the reference that changes none of its outputs).
MAX_LOG_RATIO = math.log(1000 / 16)


def _centre_and_size(bbox):
    """Split (..., 4) boxes into four arrays (...,): centre y, centre x, height, width."""
    height, width = bbox[..., 2] - bbox[..., 0], bbox[..., 3] - bbox[..., 1]
    return bbox[..., 0] + 0.5 * height, bbox[..., 1] + 0.5 * width, height, width


def bbox2loc(src_bbox, dst_bbox):
    """Encode destination boxes relative to source boxes (paper 3.1.2, equation 2).

    Args:
        src_bbox: (N, 4) anchors or RoIs; sides are clamped to at least the machine epsilon of their type.
        dst_bbox: (N, 4) ground-truth boxes; their sides likewise.

    Returns:
        (N, 4) locs (dy, dx, dh, dw), not normalised.
    """
    xp = get_xp(src_bbox)
    eps = xp.finfo(src_bbox.dtype).eps
    src_y, src_x, src_h, src_w = _centre_and_size(src_bbox)
    dst_y, dst_x, dst_h, dst_w = _centre_and_size(dst_bbox)
    src_h, src_w = src_h.clip(eps, None), src_w.clip(eps, None)
    dh, dw = xp.log(dst_h.clip(eps, None) / src_h), xp.log(dst_w.clip(eps, None) / src_w)
    return xp.stack(((dst_y - src_y) / src_h, (dst_x - src_x) / src_w, dh, dw), -1)  # (N, 4)


def loc2bbox(src_bbox, loc):
    """Apply locs to boxes, the inverse of `bbox2loc`.

    Args:
        src_bbox: (N, 4) boxes.
        loc: (N, 4) locs (dy, dx, dh, dw), not normalised; dh and dw are clamped at `MAX_LOG_RATIO`.

    Returns:
        (N, 4) boxes, not clipped to any image.
    """
    xp = get_xp(src_bbox)
    src_y, src_x, src_h, src_w = _centre_and_size(src_bbox)
    y, x = loc[..., 0] * src_h + src_y, loc[..., 1] * src_w + src_x
    half_h = 0.5 * src_h * xp.exp(loc[..., 2].clip(None, MAX_LOG_RATIO))
    half_w = 0.5 * src_w * xp.exp(loc[..., 3].clip(None, MAX_LOG_RATIO))
    return xp.stack((y - half_h, x - half_w, y + half_h, x + half_w), -1)  # (N, 4)


def clip_bbox(bbox, img_size):
    """Clip (N, 4) boxes to an image of size (H, W)."""
    height, width = map(float, img_size)  # a NumPy integer would widen float32
    xp = get_xp(bbox)
    y_min, x_min = bbox[..., 0].clip(0, height), bbox[..., 1].clip(0, width)
    y_max, x_max = bbox[..., 2].clip(0, height), bbox[..., 3].clip(0, width)
    return xp.stack((y_min, x_min, y_max, x_max), -1)  # (N, 4)


def resize_bbox(bbox, in_size, out_size):
    """Scale (N, 4) boxes from an image of size `in_size` to size `out_size`, (H, W) each, by the ratio of each axis."""
    ratio = [float(after / before) for before, after in zip(in_size, out_size, strict=True)] * 2  # of y, x, y, x
    return get_xp(bbox).stack([bbox[..., i] * ratio[i] for i in range(4)], -1)  # (N, 4)


def bbox_iou(bbox_a, bbox_b):
    """Compute the intersection over union of every pair of boxes.

    Args:
        bbox_a: (N, 4) boxes.
        bbox_b: (M, 4) boxes.

    Returns:
        (N, M) values in 0 ... 1; a box without area overlaps nothing.
    """
    a, b = bbox_a[:, None], bbox_b[None]  # (N, 1, 4), (1, M, 4)
    xp = get_xp(bbox_a)
    height = xp.minimum(a[..., 2], b[..., 2]) - xp.maximum(a[..., 0], b[..., 0])  # (N, M)
    width = xp.minimum(a[..., 3], b[..., 3]) - xp.maximum(a[..., 1], b[..., 1])  # (N, M)
    intersection = height.clip(0, None) * width.clip(0, None)
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])  # (N, 1)
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])  # (1, M)
    union = area_a + area_b - intersection
    return intersection / union.clip(xp.finfo(bbox_a.dtype).tiny, None)  # (N, M)
