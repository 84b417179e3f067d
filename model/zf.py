"""ZF (Zeiler and Fergus, arXiv 1311.2901), the paper's fast model (4.1): five convolutions instead of VGG16's thirteen.

The layers and their names are those of the Caffe model that py-faster-rcnn trains. The last convolution sees 139 pixels
of the input, the 3x3 window of the RPN 171 (paper 3.1); the two normalizations look at a few pixels more.

R: RoIs. L: foreground classes. h, w: sides of the feature map, H'/16 and W'/16.
"""

import functools
import warnings
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from model import WeightsError, load_state, vgg16
from model.faster_rcnn import FasterRCNN
from model.rpn import RegionProposalNetwork
from model.utils.preprocess import CAFFE, TORCHVISION
from model.utils.proposal_creator import ProposalCreator
from model.utils.roi_ops import ROI_OPS

# output channels, kernel, stride, and whether normalization and pooling follow
LAYERS = ((96, 7, 2, True), (256, 5, 2, True), (384, 3, 1, False), (384, 3, 1, False), (256, 3, 1, False))
CHANNELS = LAYERS[-1][0]
STRIDE = 16  # two convolutions and two poolings by 2 (paper 3.3)
RPN_CHANNELS = 256  # of the hidden layer (3.1)
ROI_SIZE = 6  # side of a pooled RoI (Caffe's pool5 of ZF)
TRAINING = vgg16.TRAINING | {"frozen_convs": 0}  # all layers are trained (3.1.3)


class WithinChannelLRN(nn.Module):
    """Local response normalization within each channel, Caffe's WITHIN_CHANNEL: (1, C, h, w) -> (1, C, h, w).

    x / (1 + alpha / size² * sum of x² over a size x size window) ** beta, zeros beyond the border.
    `nn.LocalResponseNorm` sums over neighbouring channels instead.
    """

    def __init__(self, size=3, alpha=5e-5, beta=0.75):
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x):
        """Divide by the response around each pixel."""
        mean_square = F.avg_pool2d(x * x, self.size, 1, self.size // 2)  # divides by size² at the border, too
        return x / (1 + self.alpha * mean_square) ** self.beta


class ZF(nn.Sequential):
    """conv1 to the ReLU of conv5: (1, 3, H', W') -> (1, 256, h, w).

    Args: see `vgg16.VGG16`; initial weights are those of He et al. 2015, fan in. Poolings round sizes down (Caffe: up,
    which adds cells beyond the border).
    """

    stride, channels = STRIDE, CHANNELS

    def __init__(self, frozen_convs=0, generator=None):
        layers, channels = OrderedDict(), 3
        for i, (out, kernel, stride, pooled) in enumerate(LAYERS, start=1):
            conv = layers[f"conv{i}"] = nn.Conv2d(channels, out, kernel, stride, padding=kernel // 2)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu", generator=generator)
            nn.init.zeros_(conv.bias)
            conv.requires_grad_(i > frozen_convs)
            layers[f"relu{i}"] = nn.ReLU(inplace=True)
            if pooled:
                layers[f"norm{i}"] = WithinChannelLRN()
                layers[f"pool{i}"] = nn.MaxPool2d(3, 2, padding=1)
            channels = out
        super().__init__(layers)


def build(
    n_fg_class=20,
    pretrained=None,
    head_width=4096,
    frozen_convs=0,
    dropout=0.0,
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
    score_thresh=0.05,
    nms_thresh=0.3,
    max_detections=None,
    roi_op="pool",
    preprocessing=None,
    generator=None,
):
    """Build Faster R-CNN on ZF.

    Args:
        pretrained: a dict of tensors under Caffe's names, conv1.weight ... conv5.bias and fc6, fc7, also as conv1/W,
            conv1/b; None or "none" for random weights, as "imagenet", with a warning: no copy can be downloaded.
        preprocessing: a `Preprocessing`; None: Caffe's with such weights, else torchvision's.
        the others: see `vgg16.build`.

    Raises:
        WeightsError: the tensors are not ZF's.
    """
    n_proposals = n_train_pre_nms, n_train_post_nms, n_test_pre_nms, n_test_post_nms
    creator = ProposalCreator(rpn_nms_thresh, *n_proposals, rpn_min_size)
    rpn = RegionProposalNetwork(CHANNELS, RPN_CHANNELS, STRIDE, anchor_ratios, anchor_scales, creator, generator)
    extractor = ZF(frozen_convs, generator)
    roi_op = functools.partial(ROI_OPS.get(roi_op, roi_op), size=ROI_SIZE)
    head = vgg16.VGG16RoIHead(n_fg_class, head_width, dropout, roi_op, generator, CHANNELS * ROI_SIZE**2)
    expected = TORCHVISION if pretrained in (None, "none") else _load_pretrained(extractor, head, pretrained)
    values = {"score_thresh": score_thresh, "nms_thresh": nms_thresh, "max_detections": max_detections}
    model = FasterRCNN(extractor, rpn, head, preprocessing or expected, min_size, max_size, **values)
    return model.to(memory_format=torch.channels_last)  # faster convolutions


def _load_pretrained(extractor, head, pretrained):
    """Load Caffe's weights into extractor and head; return the `Preprocessing` that they expect."""
    if pretrained == "imagenet":  # the default of the option
        warnings.warn("there is no copy of ZF's weights to download: it starts random", stacklevel=2)
        return TORCHVISION
    if isinstance(pretrained, str):
        wanted = "ZF takes one with Caffe's names (conv1 ... fc7), or none"
        raise WeightsError(f"--pretrained={pretrained} is no file: {wanted}")
    state = {name.replace("/W", ".weight").replace("/b", ".bias"): value for name, value in pretrained.items()}
    convs = {name: state.get(name) for name in extractor.state_dict()}
    load_state(extractor, convs, pretrained, "ZF with Caffe's names")
    head.load_hidden(state)
    return CAFFE
