"""RoI max pooling (Fast R-CNN 2.1): each RoI's part of the feature map as a small map of one size.

R: RoIs. C: channels. h, w: sides of the feature map. S: side of the pooled map.
"""
import torch
import torch.nn.functional as F
from torchvision import ops

from model.utils.array import float32_or_wider


def roi_pool(feature, roi, size, spatial_scale):
    """torchvision's RoI pooling, with a quicker way for prediction on a CPU.

    Args:
        feature: (1, C, h, w) feature map, of finite numbers.
        roi: (R, 4) boxes (y_min, x_min, y_max, x_max) in pixels of the network's input.
        size: S.
        spatial_scale: cells of the feature map for a pixel of the input.

    Returns:
        (R, C, S, S) maxima over the cells of each bin, 0 where a bin lies beyond the map; in float32 or, the quicker
        way, in bfloat16 as it came.
    """
    if feature.device.type == "cpu" and not (feature.requires_grad and torch.is_grad_enabled()):
        return _pool_one_by_one(feature, roi, size, spatial_scale)
    return _pool_together(feature, roi, size, spatial_scale)


def _pool_together(feature, roi, size, spatial_scale):
    """By torchvision: it wants (index of the image, x_min, y_min, x_max, y_max), and its kernels know no bfloat16."""
    return ops.roi_pool(float32_or_wider(feature), F.pad(roi[:, [1, 0, 3, 2]], (1, 0)), size, spatial_scale)


def _pool_one_by_one(feature, roi, size, spatial_scale):
    """By `adaptive_max_pool2d`, whose bins are those of RoI pooling, in about half of the time for 300 RoIs.

    Not those RoIs for which it is not the same: that begin outside the map or end far beyond it, or have a side whose
    bins torchvision's float32 rounds (57 cells in 7 bins).
    """
    cell = roi * spatial_scale
    cell = (cell.floor() + (cell - cell.floor() >= 0.5)).clamp(max=2**30).long()  # halves up
    first, last = cell.split(2, 1)  # (R, 2) each, y before x
    end = torch.maximum(first, last) + 1  # (R, 2), at least one cell
    beyond = 2  # cells: 15 pixels that fill no cell of the map are rounded up to one, and the end is the one after it
    map_size = torch.tensor(feature.shape[2:])
    inside = (roi >= 0).all(1) & (end <= map_size + beyond).all(1)
    side = (end - first)[..., None]  # (R, 2, 1)
    edge = torch.arange(size + 1)  # of the bins
    rounded, exact = edge * (side.float() / size), edge * side  # (R, 2, S + 1)
    same_bins = ((rounded.floor() == exact // size) & (rounded.ceil() == -(-exact // size))).all(2).all(1)
    quick = inside & same_bins  # (R,)

    pool = feature.new_empty(len(roi), feature.shape[1], size, size)  # (R, C, S, S)
    pool[~quick] = _pool_together(feature, roi[~quick], size, spatial_scale).to(feature.dtype)
    padded = F.pad(feature, (0, beyond, 0, beyond), value=-torch.inf)
    bounds = torch.cat((first, end), 1).tolist()
    for i in quick.nonzero()[:, 0].tolist():
        y_min, x_min, y_max, x_max = bounds[i]
        pool[i:i + 1] = F.adaptive_max_pool2d(padded[:, :, y_min:y_max, x_min:x_max], size)
    reaches_out = (end > map_size).any(1)
    pool[reaches_out] = pool[reaches_out].nan_to_num(torch.nan, torch.inf, 0)  # bins beyond the map: 0 for -inf
    return pool
