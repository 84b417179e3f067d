"""Faster R-CNN: prepare -> extractor -> RPN -> head, and the detections that come out.

K: anchors. R: proposals (RoIs). L: classes of objects; inside the head 0 is the background and they are
shifted by one. D: detections. H, W: sides of an image; h, w: of its feature map.
"""
import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from model.rpn import RPNOutput
from model.utils.bbox_tools import clip_bbox, loc2bbox
from model.utils.preprocess import prepare


class FasterRCNNOutput(NamedTuple):
    """What the network says of one image, before anything is decided."""

    rpn: RPNOutput
    roi_cls_loc: Tensor  # (R, L + 1, 4) shift of every proposal for every class, normalised
    roi_score: Tensor  # (R, L + 1) logits


class FasterRCNN(nn.Module):
    """The detector (paper, figure 2). One image at a time, as in the paper.

    Args:
        extractor: (1, 3, H, W) image -> (1, C, h, w) feature map.
        rpn: `RegionProposalNetwork`.
        head: (feature map, (R, 4) RoIs) -> (R, L + 1, 4) locs, (R, L + 1) logits.
        preprocessing: `Preprocessing` that the extractor's weights want.
        min_size, max_size: of the resized image (3.3).
        loc_mean, loc_std: the normalisation of the head's locs, undone in `predict` (py-faster-rcnn).
    """

    def __init__(self, extractor, rpn, head, preprocessing, min_size=600, max_size=1000,
                 loc_mean=(0, 0, 0, 0), loc_std=(0.1, 0.1, 0.2, 0.2)):
        super().__init__()
        self.extractor = extractor
        self.rpn = rpn
        self.head = head
        self.preprocessing = preprocessing
        self.min_size = min_size
        self.max_size = max_size
        self.register_buffer("loc_mean", torch.tensor(loc_mean, dtype=torch.float32), persistent=False)
        self.register_buffer("loc_std", torch.tensor(loc_std, dtype=torch.float32), persistent=False)

    def prepare(self, img):
        """An (H, W, 3) uint8 RGB array as the network's input (1, 3, H', W'), and its resize factor."""
        return prepare(img, self.preprocessing, self.min_size, self.max_size, self.loc_std.device)

    def forward(self, img, scale=1.0):
        """Looks at one image; proposals as in training if the module is in training mode.

        Args:
            img: (1, 3, H, W) from `prepare`.
            scale: its resize factor.

        Returns:
            `FasterRCNNOutput`.
        """
        feature = self.extractor(img)  # (1, 512, h, w)
        rpn = self.rpn(feature, img.shape[2:], scale, self.training)
        roi_cls_loc, roi_score = self.head(feature, rpn.roi)  # (R, L + 1, 4), (R, L + 1)
        return FasterRCNNOutput(rpn, roi_cls_loc, roi_score)

    @torch.no_grad()
    def predict(self, imgs, score_thresh=0.05, nms_thresh=0.3, max_detections=None):
        """Detects objects.

        Args:
            imgs: list of (H, W, 3) uint8 RGB arrays, of any sizes.
            score_thresh: detections that are less sure than this are dropped.
            nms_thresh: of two detections of a class with an IoU above this, the better stays.
            max_detections: of an image, the best; None keeps all.

        Returns:
            bboxes, labels, scores: lists with one array an image, best detection first: (D, 4) float32 in the
            image's own pixels and inside it, (D,) int64 in 0 ... L - 1, (D,) float32 in 0 ... 1.
        """
        results = []
        with evaluating(self):
            for img in imgs:
                pixel, scale = self.prepare(img)
                detection = self.decode(self(pixel, scale), pixel.shape[2:], img.shape[:2], score_thresh, nms_thresh)
                results.append([tensor[:max_detections].cpu().numpy() for tensor in detection])
        return tuple([result[i] for result in results] for i in range(3))

    def decode(self, output, img_size, original_size, score_thresh, nms_thresh):
        """Decides what the network's output means.

        Args:
            output: `FasterRCNNOutput`.
            img_size: (H', W') of the network's input.
            original_size: (H, W) of the image as it was.
            score_thresh, nms_thresh: see `predict`.

        Returns:
            (D, 4) boxes in the image as it was, (D,) labels, (D,) scores, best first.
        """
        prob = output.roi_score.softmax(1)  # (R, L + 1)
        roi_index, label = (prob[:, 1:] > score_thresh).nonzero(as_tuple=True)  # (D,) each, before suppression
        score = prob[roi_index, label + 1]
        loc = output.roi_cls_loc[roi_index, label + 1] * self.loc_std + self.loc_mean  # (D, 4)
        bbox = loc2bbox(output.rpn.roi[roi_index], loc)
        bbox[:, ::2] *= original_size[0] / img_size[0]
        bbox[:, 1::2] *= original_size[1] / img_size[1]
        bbox = clip_bbox(bbox, original_size)  # last: rounding leaves none outside
        keep = batched_nms(bbox, score, label, nms_thresh)
        return bbox[keep], label[keep], score[keep]


@contextlib.contextmanager
def evaluating(model):
    """Evaluation mode for as long as the context lasts; then every module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
