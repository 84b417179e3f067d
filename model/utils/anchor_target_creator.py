"""Training targets of the RPN: which anchors are objects, and the locs from them to the ground truth.

K: anchors. G: ground-truth boxes of the image. Used in training only.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from model.utils.array_tool import get_xp
from model.utils.bbox_tools import bbox2loc, bbox_iou, clip_bbox
from model.utils.sampling import sample_labels, sampling_keys


class AnchorTarget(NamedTuple):
    """Targets of every anchor, arrays of the same library as the inputs."""

    loc: Any  # (K, 4) float32, meaningful where the label is 1
    label: Any  # (K,) int64: 1 object, 0 background, -1 ignored


@dataclass
class AnchorTargetCreator:
    """Assign anchors to ground-truth boxes and sample an RPN mini-batch (paper 3.1.2, 3.1.3).

    An anchor is positive if its IoU with a ground-truth box is at least `pos_iou_thresh`, or if it is the anchor (or
    one of the anchors) with the highest IoU for some ground-truth box. It is negative if it is not positive and its
    IoU with every ground-truth box is below `neg_iou_thresh`. Anchors that cross the image border by more than
    `allowed_border` are ignored (3.3).
    """

    n_sample: int = 256  # anchors in the mini-batch (3.1.3)
    pos_iou_thresh: float = 0.7  # (3.1.2)
    neg_iou_thresh: float = 0.3  # (3.1.2)
    pos_ratio: float = 0.5  # largest share of positives; negatives fill the rest (3.1.3)
    allowed_border: float = 0.0  # pixels (py-faster-rcnn); inf: no anchor is ignored for its place

    def __call__(self, bbox, anchor, img_size, rng):
        """Create the targets of one image.

        Args:
            bbox: (G, 4) ground-truth boxes; G may be 0.
            anchor: (K, 4) anchors.
            img_size: (H', W') of the network's input.
            rng: the sample's np.random.Generator; one key per anchor is drawn from it.

        Returns:
            `AnchorTarget`. A positive regresses to the ground-truth box that it overlaps most.
        """
        xp = get_xp(anchor)
        inside = abs(clip_bbox(anchor, img_size) - anchor).max(1) <= self.allowed_border  # (K,)
        if len(bbox):
            iou = bbox_iou(anchor, bbox) * inside[:, None]  # (K, G)
            gt_index, max_iou = iou.argmax(1), iou.max(1)  # (K,) each
            gt_max_iou = iou.max(0)  # (G,)
            # a ground-truth box that no inside anchor overlaps has a best IoU of 0, which would match every anchor
            is_best = ((iou == gt_max_iou) & (gt_max_iou > 0)).any(1)  # (K,)
            loc = bbox2loc(anchor, bbox[gt_index])  # (K, 4)
        else:
            max_iou, is_best = xp.zeros(len(anchor), np.float32), xp.zeros(len(anchor), bool)
            loc = xp.zeros_like(anchor)

        positive = inside & (is_best | (max_iou >= self.pos_iou_thresh))
        negative = inside & (max_iou < self.neg_iou_thresh)
        label = sample_labels(positive, negative, sampling_keys(rng, anchor), self.n_sample, self.pos_ratio)
        return AnchorTarget(loc, label)
