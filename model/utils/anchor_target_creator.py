"""What the RPN should have answered: which anchors are objects, and by what loc they miss them.

K: anchors, G: objects in the image. For training only.
"""
from typing import Any, NamedTuple

import numpy as np

from model.utils.array import get_xp
from model.utils.bbox_tools import bbox2loc, bbox_iou
from model.utils.sampling import draw, random_key


class AnchorTarget(NamedTuple):
    """What `AnchorTargetCreator` returns, arrays of the library that it was given."""

    loc: Any  # (K, 4) float32, meaningful where the label is 1
    label: Any  # (K,) int64: 1 object, 0 background, -1 ignored


class AnchorTargetCreator:
    """Assigns anchors to objects and samples a mini-batch of them (paper 3.1.2, 3.1.3).

    An anchor is positive if its IoU with an object is at least `pos_iou_thresh`, or if no other anchor overlaps
    some object more; negative if its IoU is below `neg_iou_thresh` with all objects and it is not positive.
    Anchors that cross the border of the image take no part.

    Args:
        n_sample: anchors in the mini-batch.
        pos_iou_thresh, neg_iou_thresh: see above.
        pos_ratio: largest share of positives; negatives fill the rest.
    """

    def __init__(self, n_sample=256, pos_iou_thresh=0.7, neg_iou_thresh=0.3, pos_ratio=0.5):
        self.n_sample = n_sample
        self.pos_iou_thresh = pos_iou_thresh
        self.neg_iou_thresh = neg_iou_thresh
        self.pos_ratio = pos_ratio

    def __call__(self, bbox, anchor, img_size, rng):
        """Makes the targets of one image.

        Args:
            bbox: (G, 4) boxes of the objects; G may be 0.
            anchor: (K, 4) anchors.
            img_size: (H, W) of the image that both lie in.
            rng: the sample's np.random.Generator; one key an anchor is drawn from it.

        Returns:
            `AnchorTarget`.
        """
        xp = get_xp(anchor)
        inside = (anchor[:, :2] >= 0).all(1) & (anchor[:, 2] <= img_size[0]) & (anchor[:, 3] <= img_size[1])
        if len(bbox):
            iou = bbox_iou(anchor, bbox) * inside[:, None]  # (K, G)
            nearest, max_iou = iou.argmax(1), iou.max(1)  # (K,) each
            best_iou = iou.max(0)  # (G,)
            # an object that no inside anchor touches has a best IoU of 0, which would match them all
            is_best = ((iou == best_iou) & (best_iou > 0)).any(1)
            loc = bbox2loc(anchor, bbox[nearest])  # (K, 4)
        else:
            max_iou, is_best = xp.zeros(len(anchor), np.float32), xp.zeros(len(anchor), bool)
            loc = xp.zeros_like(anchor)

        positive = inside & (is_best | (max_iou >= self.pos_iou_thresh))
        negative = inside & (max_iou < self.neg_iou_thresh)
        label = draw(positive, negative, random_key(rng, anchor), self.n_sample, self.pos_ratio)
        return AnchorTarget(loc, label)
