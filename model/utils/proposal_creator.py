"""Proposals: from the RPN's output at every anchor to the few hundred boxes that the RoI head classifies.

K: anchors. R: proposals. Used in training and in prediction.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torchvision import ops

from model.utils.array_tool import get_xp, to_array, to_tensor
from model.utils.bbox_tools import clip_bbox, loc2bbox


@dataclass
class ProposalCreator:
    """Decode anchors, clip, drop small boxes, rank by score, apply NMS (paper 3.3)."""

    nms_thresh: float = 0.7  # IoU above which the lower-scored of two proposals is dropped (3.3)
    n_train_pre_nms: int = 12000  # proposals before NMS in training (py-faster-rcnn)
    n_train_post_nms: int = 2000  # after NMS (3.3)
    n_test_pre_nms: int = 6000  # before NMS in prediction (py-faster-rcnn)
    n_test_post_nms: int = 300  # after NMS (4.1)
    min_size: float = 16  # shortest side of a proposal in pixels of the image before its resize (py-faster-rcnn)

    def __call__(self, loc, score, anchor, img_size, scale, train):
        """Create the proposals of one image.

        Args:
            loc: (K, 4) predicted locs, not normalised.
            score: (K,) predicted objectness.
            anchor: (K, 4) anchors.
            img_size: (H', W') of the network's input.
            scale: its resize factor.
            train: use n_train_* instead of n_test_*.

        Returns:
            (R, 4) proposals, best first.
        """
        roi = clip_bbox(loc2bbox(anchor, loc), img_size)  # (K, 4)
        return roi[self.select(roi, score, scale, train)]  # (R, 4)

    def select(self, roi, score, scale, train):
        """Return the indices (R,) of the proposals among all decoded anchors `roi` (K, 4), best first."""
        xp = get_xp(roi)
        n_pre_nms = self.n_train_pre_nms if train else self.n_test_pre_nms
        n_post_nms = self.n_train_post_nms if train else self.n_test_post_nms
        large = (roi[:, 2:] - roi[:, :2] >= self.min_size * scale).all(1)  # (K,)
        order = xp.argsort(xp.where(large, -score, np.inf), kind="stable")[:n_pre_nms]  # small boxes last
        index = order[nms(roi[order], self.nms_thresh, n_post_nms)]
        return index[large[index]]  # (R,)


def nms(bbox, iou_thresh, n):
    """Apply non-maximum suppression and return the first `n` boxes that are kept.

    torchvision's CPU kernel costs O(boxes x kept boxes). Whether a box is kept depends only on higher-ranked boxes, so
    on a CPU it runs on growing prefixes of the ranking until enough are kept.

    Args:
        bbox: (N, 4) boxes, NumPy or CuPy, best first.
        iou_thresh: IoU above which the worse of two boxes is dropped.
        n: number of boxes to return, at most.

    Returns:
        (R,) indices, ascending.
    """
    on_cpu = isinstance(bbox, np.ndarray)
    bbox = to_tensor(bbox, torch.device("cpu") if on_cpu else torch.device("cuda", bbox.device.id))
    rank = torch.arange(len(bbox), dtype=bbox.dtype, device=bbox.device)
    length = 2 * n if on_cpu else len(bbox)
    while True:
        keep = ops.nms(bbox[:length], -rank[:length], iou_thresh)
        if len(keep) >= n or length >= len(bbox):
            return to_array(keep[:n])
        length *= 2
