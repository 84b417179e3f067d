"""From what the RPN says of every anchor to the few hundred boxes that the head looks at.

K: anchors, R: proposals. For training and for prediction.
"""
import numpy as np
import torch
from torchvision.ops import nms

from model.utils.array import get_xp, to_array, to_tensor
from model.utils.bbox_tools import bbox_iou, clip_bbox, loc2bbox

BLOCK = 512  # boxes that meet the survivors at once: so many that their IoUs stay in a processor's cache


class ProposalCreator:
    """Turns anchors into proposals: shift, clip, drop the small, rank, suppress (paper 3.3).

    Args:
        nms_thresh: a proposal that overlaps a better one by more than this IoU is dropped.
        n_train_pre_nms, n_train_post_nms: proposals that enter and that leave the suppression in training.
        n_test_pre_nms, n_test_post_nms: the same for prediction.
        min_size: shortest side of a proposal, in pixels of the image before its resize.
    """

    def __init__(self, nms_thresh=0.7, n_train_pre_nms=12000, n_train_post_nms=2000,
                 n_test_pre_nms=6000, n_test_post_nms=300, min_size=16):
        self.nms_thresh = nms_thresh
        self.n_train_pre_nms = n_train_pre_nms
        self.n_train_post_nms = n_train_post_nms
        self.n_test_pre_nms = n_test_pre_nms
        self.n_test_post_nms = n_test_post_nms
        self.min_size = min_size

    def __call__(self, loc, score, anchor, img_size, scale, train):
        """Makes the proposals of one image.

        Args:
            loc: (K, 4) what the RPN predicts, not normalised.
            score: (K,) how sure it is of an object.
            anchor: (K, 4) anchors.
            img_size: (H, W) of the resized image.
            scale: its resize factor.
            train: which pair of numbers holds.

        Returns:
            (R, 4) proposals, best first.
        """
        xp = get_xp(loc)
        n_pre_nms, n_post_nms = ((self.n_train_pre_nms, self.n_train_post_nms) if train else
                                 (self.n_test_pre_nms, self.n_test_post_nms))
        roi = clip_bbox(loc2bbox(anchor, loc), img_size)  # (K, 4)
        large = (roi[:, 2:] - roi[:, :2] >= self.min_size * scale).all(1)
        order = xp.argsort(xp.where(large, -score, np.inf), kind="stable")[:n_pre_nms]  # the small ones last
        roi, large = roi[order], large[order]
        survivor = suppress(roi, self.nms_thresh, n_post_nms)
        return roi[survivor[large[survivor]]]  # (R, 4)


def suppress(roi, iou_thresh, n):
    """Non-maximum suppression: of boxes, best first, those that overlap no better one that stays.

    On a GPU torchvision's kernel does it in one call. On a CPU its time grows with boxes times survivors, pair by pair:
    there blocks of boxes meet the survivors so far in one operation, then themselves in the kernel, until there are
    enough.

    Args:
        roi: (N, 4) boxes, best first.
        iou_thresh: boxes with an IoU above this are too near.
        n: how many to find, at most.

    Returns:
        (R,) indices, ascending.
    """
    iou_thresh = float(np.float32(iou_thresh))  # 0.6 becomes a little more, and so does an IoU of 3/5
    on_cpu = isinstance(roi, np.ndarray)
    device = torch.device("cpu") if on_cpu else torch.device("cuda", roi.device.id)
    roi = to_tensor(roi, device)
    rank = torch.arange(len(roi), device=device)
    if not on_cpu:
        return to_array(nms(roi, -rank.to(roi.dtype), iou_thresh)[:n])
    column = roi.T.contiguous()  # (4, N): a block's coordinates lie side by side
    survivor = rank[:0]
    for some in rank.split(BLOCK):
        if len(survivor) >= n:
            break
        near = bbox_iou(column[:, some].T, column[:, survivor].T) > iou_thresh  # (BLOCK, survivors)
        some = some[~near.any(1)]
        some = some[nms(roi[some], -some.to(roi.dtype), iou_thresh)]
        survivor = torch.cat((survivor, some))
    return to_array(survivor[:n])
