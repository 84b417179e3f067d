"""Which proposals the head trains on, and what it should have answered for each.

R: proposals, G: objects in the image, S: rows of the mini-batch, the smaller of its size and R + G. For training only.
"""
from typing import Any, NamedTuple

import numpy as np

from model.utils.array import as_array_like, get_xp
from model.utils.bbox_tools import bbox2loc, bbox_iou
from model.utils.sampling import draw, random_key


class ProposalTarget(NamedTuple):
    """What `ProposalTargetCreator` returns, arrays of the library that it was given."""

    sample_roi: Any  # (S, 4) float32
    gt_roi_loc: Any  # (S, 4) float32, normalised; meaningful where the label is above 0
    gt_roi_label: Any  # (S,) int64: 0 background, 1 ... L the classes, -1 does not count


class ProposalTargetCreator:
    """Assigns proposals to objects and samples a mini-batch of them (Fast R-CNN 2.3).

    The objects themselves join the proposals, so that the head sees positives from the first step on.

    Args:
        n_sample: RoIs in the mini-batch.
        pos_ratio: largest share of positives; background fills the rest.
        pos_iou_thresh: a RoI is positive if its IoU with an object is at least this.
        neg_iou_thresh_hi, neg_iou_thresh_lo: it is background if its largest IoU is in [lo, hi).
            Fast R-CNN has lo = 0.1; 0 is py-faster-rcnn's for training end to end.
        loc_mean, loc_std: (4,) what locs are normalised by (py-faster-rcnn); the model undoes it at test time.
    """

    def __init__(self, n_sample=128, pos_ratio=0.25, pos_iou_thresh=0.5, neg_iou_thresh_hi=0.5,
                 neg_iou_thresh_lo=0.0, loc_mean=(0, 0, 0, 0), loc_std=(0.1, 0.1, 0.2, 0.2)):
        self.n_sample = n_sample
        self.pos_ratio = pos_ratio
        self.pos_iou_thresh = pos_iou_thresh
        self.neg_iou_thresh_hi = neg_iou_thresh_hi
        self.neg_iou_thresh_lo = neg_iou_thresh_lo
        self.loc_mean = np.array(loc_mean, np.float32)
        self.loc_std = np.array(loc_std, np.float32)

    def __call__(self, roi, bbox, label, rng):
        """Makes the mini-batch of one image.

        Args:
            roi: (R, 4) proposals.
            bbox: (G, 4) boxes of the objects; G may be 0.
            label: (G,) their classes, 0 ... L - 1.
            rng: the sample's np.random.Generator; one key a RoI is drawn from it.

        Returns:
            `ProposalTarget`, positives first. Where fewer RoIs than rows qualify, others fill them with the label -1,
            so that the shape says nothing of the values: no GPU has to tell the host how many there are.
        """
        xp = get_xp(roi)
        roi = xp.concatenate((roi, bbox))  # (R + G, 4)
        iou = bbox_iou(roi, bbox)  # (R + G, G)
        max_iou = iou.max(1) if len(bbox) else xp.zeros(len(roi), np.float32)  # (R + G,)

        positive = max_iou >= self.pos_iou_thresh
        negative = (max_iou >= self.neg_iou_thresh_lo) & (max_iou < self.neg_iou_thresh_hi)
        drawn = draw(positive, negative, random_key(rng, roi), self.n_sample, self.pos_ratio)  # (R + G,) 1, 0 or -1
        sample = xp.argsort(-drawn, kind="stable")[:self.n_sample]  # (S,) positives, background, then what fills up

        sample_roi = roi[sample]
        if not len(bbox):
            return ProposalTarget(sample_roi, xp.zeros_like(sample_roi), drawn[sample])
        nearest = iou.argmax(1)[sample]  # (S,)
        mean, std = as_array_like(self.loc_mean, roi), as_array_like(self.loc_std, roi)
        gt_roi_loc = (bbox2loc(sample_roi, bbox[nearest]) - mean) / std
        gt_roi_label = xp.where(drawn[sample] == 1, label[nearest] + 1, drawn[sample])
        return ProposalTarget(sample_roi, gt_roi_loc, gt_roi_label)
