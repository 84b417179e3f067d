"""RoI operations: from the part of a feature map below each RoI to a map of one size. `ROI_OPS` names them.

R: RoIs. C: channels of the feature map; h, w: its sides. Columns are swapped by flip: a list as index makes a GPU wait.
"""

import torch
import torch.nn.functional as F
import torchvision

from model.utils.array_tool import to_float32
from model.utils.roi_warping import roi_warp


def roi_pool(feature, roi, size=7, spatial_scale=1 / 16):
    """Max-pool each RoI to a map of one size (Fast R-CNN 2.1).

    torchvision's kernel does it where it must: on a GPU, for a gradient, for RoIs beyond the image. Elsewhere
    `adaptive_max_pool2d`, which has the same bins, takes a quarter of its time (300 RoIs, 2 cores).

    Args:
        feature: (1, C, h, w) feature map.
        roi: (R, 4) boxes in pixels of the network's input.
        size: side of the pooled map.
        spatial_scale: cells of the feature map per pixel of the input.

    Returns:
        (R, C, size, size) maxima, 0 where a bin lies beyond the map; float32, or the type of `feature`.
    """
    cell = roi * spatial_scale
    cell = (cell.floor() + (cell - cell.floor() >= 0.5)).long()  # (R, 4), halves round up
    end = torch.maximum(cell[:, :2], cell[:, 2:]) + 1  # (R, 2), at least one cell
    rest = 2  # cells: the map lacks the last 15 pixels at most, which round up to one; `end` is one more
    inside = (cell >= 0).all() and (end <= torch.tensor(feature.shape[2:]) + rest).all() if roi.is_cpu else False
    if not (len(roi) and inside) or (feature.requires_grad and torch.is_grad_enabled()):
        indexed = F.pad(roi.unflatten(1, (2, 2)).flip(2).flatten(1), (1, 0))  # (R, 5): image index, x, y, x, y
        return torchvision.ops.roi_pool(to_float32(feature), indexed, size, spatial_scale)  # no kernel for bfloat16
    padded = F.pad(feature, (0, rest, 0, rest), value=-torch.inf)
    bounds = torch.cat((cell[:, :2], end), 1).tolist()
    pool = torch.cat([F.adaptive_max_pool2d(padded[:, :, y:y2, x:x2], size) for y, x, y2, x2 in bounds])
    return pool.masked_fill(pool == -torch.inf, 0)  # (R, C, size, size)


def roi_align(feature, roi, size=7, spatial_scale=1 / 16, aligned=True):
    """Average four interpolated points per bin of each RoI, without rounding its box (Mask R-CNN, arXiv 1703.06870).

    Args and returns as `roi_pool`; `aligned`: the cell (0, 0) of the map has its centre half a cell inside the image,
    else on its corner.
    """
    indexed = F.pad(roi.unflatten(1, (2, 2)).flip(2).flatten(1), (1, 0))  # (R, 5): image index, x, y, x, y
    return torchvision.ops.roi_align(to_float32(feature), indexed, size, spatial_scale, 2, aligned)


ROI_OPS = {"pool": roi_pool, "align": roi_align, "warp": roi_warp}  # values of --roi-op
