"""Training targets of the RoI head: which proposals it trains on, and the class and loc of each.

R: proposals. G: ground-truth boxes of the image. L: foreground classes. S: rows of the mini-batch,
min(n_sample, R + G). Used in training only.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from model.utils.array_tool import as_array_like, get_xp
from model.utils.bbox_tools import bbox2loc, bbox_iou
from model.utils.sampling import sample_labels, sampling_keys


class ProposalTarget(NamedTuple):
    """The sampled RoIs and their targets, arrays of the same library as the inputs."""

    sample_roi: Any  # (S, 4) float32
    gt_roi_loc: Any  # (S, 4) float32, normalised; meaningful where the label is above 0
    gt_roi_label: Any  # (S,) int64: 0 background, 1 ... L the classes, -1 ignored


@dataclass
class ProposalTargetCreator:
    """Assign proposals to ground-truth boxes and sample a mini-batch of RoIs (Fast R-CNN 2.3).

    The ground-truth boxes join the proposals, so that the head sees positives from the first step on (py-faster-rcnn).
    A RoI is positive if its highest IoU with a ground-truth box is at least `pos_iou_thresh`, background if that is in
    [`neg_iou_thresh_lo`, `neg_iou_thresh_hi`).
    """

    n_sample: int = 128  # RoIs in the mini-batch
    pos_ratio: float = 0.25  # largest share of positives; background fills the rest
    pos_iou_thresh: float = 0.5
    neg_iou_thresh_hi: float = 0.5
    neg_iou_thresh_lo: float = 0.0  # py-faster-rcnn, paper 4.2 on COCO; Fast R-CNN 2.3: 0.1
    loc_mean: tuple = (0, 0, 0, 0)  # normalisation of the locs (Fast R-CNN 2.3), undone in `decode`
    loc_std: tuple = (0.1, 0.1, 0.2, 0.2)  # (py-faster-rcnn)

    def __call__(self, roi, bbox, label, rng):
        """Create the mini-batch of one image.

        Args:
            roi: (R, 4) proposals.
            bbox: (G, 4) ground-truth boxes; G may be 0.
            label: (G,) their classes, 0 ... L - 1.
            rng: the sample's np.random.Generator; one key per RoI is drawn from it.

        Returns:
            `ProposalTarget`, positives first. If too few RoIs qualify, rows are padded with label -1: static shapes
            need no synchronization of GPU and host.
        """
        xp = get_xp(roi)
        roi = xp.concatenate((roi, bbox))  # (R + G, 4)
        iou = bbox_iou(roi, bbox)  # (R + G, G)
        max_iou = iou.max(1) if len(bbox) else xp.zeros(len(roi), np.float32)  # (R + G,)

        positive = max_iou >= self.pos_iou_thresh
        negative = (max_iou >= self.neg_iou_thresh_lo) & (max_iou < self.neg_iou_thresh_hi)
        sampled = sample_labels(positive, negative, sampling_keys(rng, roi), self.n_sample, self.pos_ratio)  # (R + G,)
        index = xp.argsort(-sampled, kind="stable")[: self.n_sample]  # (S,) positives, background, padding

        sample_roi = roi[index]
        if not len(bbox):
            return ProposalTarget(sample_roi, xp.zeros_like(sample_roi), sampled[index])
        gt_index = iou.argmax(1)[index]  # (S,)
        mean, std = (as_array_like(np.array(x, np.float32), roi) for x in (self.loc_mean, self.loc_std))  # (4,) each
        gt_roi_loc = (bbox2loc(sample_roi, bbox[gt_index]) - mean) / std  # (S, 4)
        gt_roi_label = xp.where(sampled[index] == 1, label[gt_index] + 1, sampled[index])  # (S,)
        return ProposalTarget(sample_roi, gt_roi_loc, gt_roi_label)
