"""From what the RPN says of every anchor to the few hundred boxes that the head looks at.

K: anchors, R: proposals. For training and for prediction.
"""
import numpy as np
import torch
from torchvision.ops import nms

from model.utils.array import get_xp, to_array, to_tensor
from model.utils.bbox_tools import clip_bbox, loc2bbox


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
        survivor = self._nms(roi, -xp.arange(len(roi), dtype=roi.dtype), n_post_nms)  # by rank: no ties, no NaN
        return roi[survivor[large[survivor]]]  # (R, 4)

    def _nms(self, roi, score, n):
        """Indices of the first `n` boxes that survive; torchvision's kernel, which takes y for x as well.

        Its time on a CPU grows with boxes times survivors: there the survivors of the first boxes meet the next ones,
        until there are enough. On a GPU one call for all is faster.
        """
        on_cpu = isinstance(roi, np.ndarray)
        device = torch.device("cpu") if on_cpu else torch.device("cuda", roi.device.id)
        roi, score = to_tensor(roi, device), to_tensor(score, device)
        survivor = torch.arange(0, device=device)
        for some in torch.arange(len(roi), device=device).split(max(2 * n, 1) if on_cpu else max(len(roi), 1)):
            if len(survivor) < n:
                survivor = torch.cat((survivor, some))
                survivor = survivor[nms(roi[survivor], score[survivor], self.nms_thresh)]
        return to_array(survivor[:n])
