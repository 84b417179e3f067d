"""Faster R-CNN: prepare -> extractor -> RPN -> RoI head, and the detections decoded from their outputs.

K: anchors. R: proposals (RoIs). D: detections. L: foreground classes; class 0 of the head is background, foreground
class c is c + 1. loc: box regression offsets, see bbox_tools. H, W: sides of the image; H', W': of the network's input;
h, w: of the feature map.
"""

import contextlib
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms

from model.rpn import RPNOutput
from model.utils.bbox_tools import clip_bbox, loc2bbox, resize_bbox
from model.utils.preprocess import prepare


class FasterRCNNOutput(NamedTuple):
    """Raw output of the network for one image, before post-processing."""

    rpn: RPNOutput
    roi_cls_loc: Tensor  # (R, L + 1, 4) locs of every proposal for every class, normalised
    roi_score: Tensor  # (R, L + 1) logits


class FasterRCNN(nn.Module):
    """The detector (paper, figure 2). It processes one image at a time.

    Args:
        extractor: (1, 3, H', W') image -> (1, C, h, w) feature map; states its `stride` and `channels`.
        rpn: `RegionProposalNetwork`.
        head: (feature map, (R, 4) RoIs) -> (R, L + 1, 4) locs, (R, L + 1) logits.
        preprocessing: `Preprocessing` that the extractor's weights expect.
        min_size, max_size: sides of the network's input (3.3).
        loc_mean, loc_std: normalisation of the head's locs, undone in `decode` (py-faster-rcnn).
        score_thresh, nms_thresh, max_detections: what `predict` uses unless it is told otherwise (py-faster-rcnn
            evaluates with 0.05, 0.3 and 100; max_detections None keeps all).
    """

    def __init__(
        self,
        extractor,
        rpn,
        head,
        preprocessing,
        min_size=600,
        max_size=1000,
        loc_mean=(0, 0, 0, 0),
        loc_std=(0.1, 0.1, 0.2, 0.2),
        score_thresh=0.05,
        nms_thresh=0.3,
        max_detections=None,
    ):
        super().__init__()
        self.extractor = extractor
        self.rpn = rpn
        self.head = head
        self.preprocessing = preprocessing
        self.min_size = min_size
        self.max_size = max_size
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.max_detections = max_detections
        self.register_buffer("loc_mean", torch.tensor(loc_mean, dtype=torch.float32), persistent=False)
        self.register_buffer("loc_std", torch.tensor(loc_std, dtype=torch.float32), persistent=False)

    @property
    def device(self):
        """The torch.device of the model."""
        return self.loc_std.device

    def prepare(self, img):
        """Turn an (H, W, 3) uint8 RGB array into the network's input (1, 3, H', W') and its resize factor."""
        return prepare(img, self.preprocessing, self.min_size, self.max_size, self.device, self.extractor.stride)

    def forward(self, img, scale=1.0):
        """Run the network on one image; propose as in training if the module is in training mode.

        Args:
            img: (1, 3, H', W') from `prepare`.
            scale: its resize factor.

        Returns:
            `FasterRCNNOutput`.
        """
        feature = self.extractor(img)  # (1, C, h, w)
        rpn = self.rpn(feature, img.shape[2:], scale, self.training)
        roi_cls_loc, roi_score = self.head(feature, rpn.roi)  # (R, L + 1, 4), (R, L + 1)
        return FasterRCNNOutput(rpn, roi_cls_loc, roi_score)

    @torch.no_grad()
    def predict(self, imgs, score_thresh=None, nms_thresh=None, max_detections=None):
        """Detect objects.

        Args:
            imgs: list of (H, W, 3) uint8 RGB arrays, of any sizes.
            score_thresh: keep detections with a score above this, 0 ... 1. None, here and below: the model's own value.
            nms_thresh: IoU above which the lower-scored of two detections of a class is dropped, 0 ... 1.
            max_detections: best detections to keep per image.

        Returns:
            bboxes, labels, scores: lists with one array per image, best detection first: (D, 4) float32 in the
            image's own pixels and inside it, (D,) int64 in 0 ... L - 1, (D,) float32 in 0 ... 1.
        """
        score_thresh = self.score_thresh if score_thresh is None else score_thresh
        nms_thresh = self.nms_thresh if nms_thresh is None else nms_thresh
        max_detections = self.max_detections if max_detections is None else max_detections
        results = []
        with eval_mode(self):
            for img in imgs:
                x, scale = self.prepare(img)  # (1, 3, H', W')
                detection = self.decode(self(x, scale), x.shape[2:], img.shape[:2], score_thresh, nms_thresh)
                results.append([tensor[:max_detections].cpu().numpy() for tensor in detection])
        return tuple([result[i] for result in results] for i in range(3))

    def decode(self, output, img_size, original_size, score_thresh, nms_thresh):
        """Post-process the output of one image: decode boxes, threshold, apply NMS per class (Fast R-CNN 3).

        Args:
            output: `FasterRCNNOutput`.
            img_size: (H', W') of the network's input.
            original_size: (H, W) of the image.
            score_thresh, nms_thresh: see `predict`.

        Returns:
            (D, 4) boxes in pixels of the image, (D,) labels, (D,) scores, best first.
        """
        bbox, label, score = self.candidates(output, score_thresh)
        bbox = resize_bbox(bbox, img_size, original_size)
        bbox = clip_bbox(bbox, original_size)  # after resizing, which may round past the border
        keep = batched_nms(bbox, score, label, nms_thresh)
        return bbox[keep], label[keep], score[keep]

    def candidates(self, output, score_thresh):
        """Return the boxes (D, 4), labels and scores (D,) above the threshold, in pixels of the network's input."""
        prob = output.roi_score.softmax(1)  # (R, L + 1)
        roi_index, label = (prob[:, 1:] > score_thresh).nonzero(as_tuple=True)  # (D,) each
        loc = output.roi_cls_loc[roi_index, label + 1] * self.loc_std + self.loc_mean  # (D, 4)
        return loc2bbox(output.rpn.roi[roi_index], loc), label, prob[roi_index, label + 1]


@contextlib.contextmanager
def eval_mode(model):
    """Put `model` into evaluation mode for the context, then restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
