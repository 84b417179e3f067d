"""ResNet-50 and ResNet-101 (paper 4.2; He et al. 2015, arXiv 1512.03385, appendix A), last stage as the RoI head.

What differs from VGG16 (model/vgg16.py):

- Extractor: conv1 to layer3 (the paper's conv4_x), stride 16. Head: layer4 (conv5_x) and the average pooling of the
  classifier, on every RoI.
- Every RoI becomes a map of 14x14, which layer4 halves; by RoIAlign instead of RoI pooling, with 2x2 samples per bin
  (He et al. 2017, arXiv 1703.06870, 3). The padding of the layers centres cell i of the map on pixel 16 i, and there it
  is sampled.
- RPN: as many channels as the map has, 1024 (Detectron); 1512.03385 does not state any.
- Batch norm: fixed with pretrained weights, an affine layer (1512.03385, appendix A). With random weights that layer
  would be the identity and the variance of the activations would double from block to block, so there it normalises
  with the statistics of the image, and in the head with those of its RoIs.
- Frozen with pretrained weights: conv1 and layer1, the first two of five stages (Detectron; torchvision).
- Options of training are VGG16's.

R: RoIs. L: foreground classes; class 0 of the head is background. h, w: sides of the feature map, H'/16 and W'/16.
"""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models import get_model, get_model_weights
from torchvision.ops import FrozenBatchNorm2d

from model import fetch_weights, load_state, vgg16
from model.faster_rcnn import FasterRCNN
from model.rpn import RegionProposalNetwork
from model.utils.array_tool import to_float32
from model.utils.preprocess import TORCHVISION
from model.utils.proposal_creator import ProposalCreator
from model.utils.roi_ops import roi_align

NAMES = ("resnet50", "resnet101")
TRAINING = vgg16.TRAINING
STRIDE, CHANNELS, POOLED = 16, 1024, 2048  # of layer3; channels of layer4
STAGES = ("layer4", "layer3", "layer2", "layer1", "conv1")  # as torchvision counts its `trainable_layers`


class ResNetC4(nn.Sequential):
    """conv1 to layer3: (1, 3, H', W') -> (1, 1024, h, w). Its keys are torchvision's; `resnet` is torchvision's."""

    stride, channels = STRIDE, CHANNELS

    def __init__(self, resnet):
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")
        super().__init__(OrderedDict((name, getattr(resnet, name)) for name in names))


class ResNetRoIHead(nn.Module):
    """RoIAlign to 14x14, layer4 of a ResNet, average pooling and two sibling layers.

    Args:
        layer4: (R, 1024, 14, 14) -> (R, 2048, 7, 7).
        n_fg_class: L.
    """

    def __init__(self, layer4, n_fg_class):
        super().__init__()
        self.n_class = n_fg_class + 1
        self.layer4 = layer4
        self.cls_loc = nn.Linear(POOLED, self.n_class * 4)
        self.score = nn.Linear(POOLED, self.n_class)
        for layer, std in ((self.cls_loc, 0.001), (self.score, 0.01)):  # Fast R-CNN 2.3
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, feature, roi):
        """Classify the RoIs of one image and regress their boxes.

        Args:
            feature: (1, 1024, h, w) feature map.
            roi: (R, 4) boxes in pixels of the network's input.

        Returns:
            (R, L + 1, 4) normalised locs, background first, and (R, L + 1) logits, in float32.
        """
        pool = roi_align(feature, roi, 14, 1 / STRIDE, aligned=False)  # (R, 1024, 14, 14)
        hidden = self.layer4(pool).mean((2, 3))  # (R, 2048)
        roi_cls_loc = self.cls_loc(hidden).reshape(-1, self.n_class, 4)  # (R, L + 1, 4)
        return to_float32(roi_cls_loc), to_float32(self.score(hidden))


def defaults(name="resnet50", pretrained="imagenet"):
    """Return the values of the options that depend on the weights: random ones are all trained."""
    if pretrained in (None, "none"):
        return {"trainable_layers": len(STAGES), "batch_norm": "trained"}
    return {"trainable_layers": 3, "batch_norm": "frozen"}


def build(
    name="resnet50",
    n_fg_class=20,
    pretrained=None,
    trainable_layers=5,
    batch_norm="trained",
    min_size=600,
    max_size=1000,
    anchor_scales=(8, 16, 32),
    anchor_ratios=(0.5, 1, 2),
    rpn_nms_thresh=0.7,
    rpn_min_size=16,
    n_train_pre_nms=12000,
    n_train_post_nms=2000,
    n_test_pre_nms=6000,
    n_test_post_nms=300,
    loc_mean=(0, 0, 0, 0),
    loc_std=(0.1, 0.1, 0.2, 0.2),
    score_thresh=0.05,
    nms_thresh=0.3,
    max_detections=None,
    preprocessing=None,
):
    """Build Faster R-CNN on ResNet; what is not listed here is as in `vgg16.build`.

    Args:
        name: one of `NAMES`.
        pretrained: "imagenet" (downloaded by torchvision), a dict of tensors under torchvision's names, or None or
            "none" for random weights, which are drawn from torch's global generator.
        trainable_layers: how many of `STAGES`, from the last on, are trained; see `defaults` for pretrained weights.
        batch_norm: "frozen" or "trained"; the same.

    Raises:
        WeightsError: the weights cannot be fetched, or the tensors are not those of this ResNet.
    """
    norm_layer = FrozenBatchNorm2d if batch_norm == "frozen" else nn.BatchNorm2d
    resnet = get_model(name, weights=None, norm_layer=norm_layer)
    resnet.fc = nn.Identity()
    if pretrained not in (None, "none"):
        _load_pretrained(resnet, name, pretrained)
    for stage in STAGES[trainable_layers:]:
        getattr(resnet, stage).requires_grad_(False)
    resnet.bn1.requires_grad_(resnet.conv1.weight.requires_grad)
    n_proposals = n_train_pre_nms, n_train_post_nms, n_test_pre_nms, n_test_post_nms
    proposal_creator = ProposalCreator(rpn_nms_thresh, *n_proposals, rpn_min_size)
    rpn = RegionProposalNetwork(CHANNELS, CHANNELS, STRIDE, anchor_ratios, anchor_scales, proposal_creator)
    head = ResNetRoIHead(resnet.layer4, n_fg_class)
    decoding = loc_mean, loc_std, score_thresh, nms_thresh, max_detections
    model = FasterRCNN(ResNetC4(resnet), rpn, head, preprocessing or TORCHVISION, min_size, max_size, *decoding)
    return model.to(memory_format=torch.channels_last)  # faster convolutions


def _load_pretrained(resnet, name, pretrained):
    """Load all but the classifier."""
    if isinstance(pretrained, str):
        pretrained = fetch_weights(pretrained, {"imagenet": get_model_weights(name).IMAGENET1K_V1})
    state = {key: value for key, value in pretrained.items() if not key.startswith("fc.")}
    load_state(resnet, state, pretrained, f"torchvision's {name}")
