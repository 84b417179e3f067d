"""VGG16 (arXiv 1409.1556) as Faster R-CNN uses it: its convolutions look at the image, fc6 and fc7 at each RoI.

R: RoIs. L: classes of objects; 0 is the background inside the head. h, w: sides of the feature map, H/16, W/16.
"""
import warnings

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from model import WeightsError
from model.faster_rcnn import FasterRCNN
from model.rpn import RegionProposalNetwork
from model.utils.array import float32_or_wider
from model.utils.preprocess import BY_NAME, TORCHVISION, TORCHVISION_CAFFE, Preprocessing
from model.utils.proposal_creator import ProposalCreator
from model.utils.roi_pooling import roi_pool

FEAT_STRIDE = 16  # four poolings by 2
# output channels of the 13 convolutions; "M" is a pooling. The last pooling of VGG16 is left out (paper 3.3).
LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)


class VGG16(nn.Sequential):
    """conv1_1 to the ReLU of conv5_3: (1, 3, H, W) -> (1, 512, h, w). Keys are those of torchvision's `features`.

    Args:
        frozen_convs: how many convolutions, from the first on, are not trained (Fast R-CNN 4.5: 4 for weights
            from ImageNet, conv1_1 to conv2_2).
        ceil_mode: whether a pooling keeps half a cell at the border, as in Caffe and Chainer.
        generator: a torch.Generator for the initial weights, torchvision's (He et al. 2015, fan out).
    """

    def __init__(self, frozen_convs=0, ceil_mode=False, generator=None):
        layers, channels = [], 3
        for out in LAYERS:
            if out == "M":
                layers.append(nn.MaxPool2d(2, ceil_mode=ceil_mode))
            else:
                layers += [nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out
        super().__init__(*layers)
        convs = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            nn.init.zeros_(conv.bias)
        for conv in convs[:frozen_convs]:
            conv.requires_grad_(False)


class VGG16RoIHead(nn.Module):
    """RoI pooling to 7x7, fc6, fc7, and two sibling layers (Fast R-CNN 2).

    Args:
        n_fg_class: L.
        roi_size: side of the pooled map (Fast R-CNN: 7, VGG16's fc6 wants it).
        spatial_scale: cells of the feature map for a pixel of the input.
        width: of fc6 and fc7, 4096 in VGG16.
        dropout: probability after fc6 and fc7; the reference has 0.5 in training.
        generator: a torch.Generator for the initial weights: N(0, 0.01), and N(0, 0.001) for `cls_loc`
            (Fast R-CNN 2.3); biases are 0.
    """

    def __init__(self, n_fg_class, roi_size=7, spatial_scale=1 / FEAT_STRIDE, width=4096, dropout=0.0, generator=None):
        super().__init__()
        self.n_class = n_fg_class + 1
        self.roi_size = roi_size
        self.spatial_scale = spatial_scale
        self.dropout = dropout
        self.fc6 = nn.Linear(512 * roi_size**2, width)
        self.fc7 = nn.Linear(width, width)
        self.cls_loc = nn.Linear(width, self.n_class * 4)
        self.score = nn.Linear(width, self.n_class)
        for layer, std in ((self.fc6, 0.01), (self.fc7, 0.01), (self.cls_loc, 0.001), (self.score, 0.01)):
            nn.init.normal_(layer.weight, std=std, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, feature, roi):
        """Looks at the RoIs of one image.

        Args:
            feature: (1, 512, h, w) feature map.
            roi: (R, 4) boxes in pixels of the network's input.

        Returns:
            (R, L + 1, 4) normalised locs, class 0 (background) first, and (R, L + 1) logits, in float32.
        """
        pool = roi_pool(feature, roi, self.roi_size, self.spatial_scale)  # (R, 512, 7, 7)
        fc6 = F.dropout(F.relu(self.fc6(pool.flatten(1))), self.dropout, self.training)  # (R, 4096)
        fc7 = F.dropout(F.relu(self.fc7(fc6)), self.dropout, self.training)  # (R, 4096)
        roi_cls_loc = self.cls_loc(fc7).reshape(-1, self.n_class, 4)  # (R, L + 1, 4)
        return float32_or_wider(roi_cls_loc), float32_or_wider(self.score(fc7))


def build(n_fg_class=20, pretrained=None, head_width=4096, frozen_convs=None, dropout=0.0, min_size=600,
          max_size=1000, anchor_scales=(8, 16, 32), anchor_ratios=(0.5, 1, 2), loc_mean=(0, 0, 0, 0),
          loc_std=(0.1, 0.1, 0.2, 0.2), ceil_mode=False, proposal=None, preprocessing=None, generator=None):
    """Faster R-CNN on VGG16.

    Args:
        n_fg_class: L.
        pretrained: "imagenet", "caffe" (both through torchvision), a dict of tensors under the names of torchvision's
            VGG16, or None for random weights.
        head_width: of fc6 and fc7; anything but 4096 is for tests and leaves them random.
        frozen_convs: convolutions that are not trained; None: 4 with pretrained weights, else 0.
        dropout, min_size, max_size, anchor_scales, anchor_ratios, loc_mean, loc_std, ceil_mode: see the parts.
        proposal: options of `ProposalCreator`.
        preprocessing: what replaces that of the weights: the four values of a `Preprocessing`, or a name of `BY_NAME`;
            None keeps it.
        generator: a torch.Generator for the initial weights.

    Raises:
        WeightsError: the weights could not be fetched, or the tensors are not VGG16's.
    """
    pretrained = None if pretrained == "none" else pretrained
    if frozen_convs is None:
        frozen_convs = 0 if pretrained is None else 4
    rpn = RegionProposalNetwork(512, 512, FEAT_STRIDE, anchor_ratios, anchor_scales,
                                ProposalCreator(**(proposal or {})), generator)
    extractor = VGG16(frozen_convs, ceil_mode, generator)
    head = VGG16RoIHead(n_fg_class, width=head_width, dropout=dropout, generator=generator)
    own_preprocessing = TORCHVISION if pretrained is None else _load_pretrained(extractor, head, pretrained)
    if preprocessing:
        own_preprocessing = BY_NAME[preprocessing] if isinstance(preprocessing, str) else Preprocessing(*preprocessing)
    model = FasterRCNN(extractor, rpn, head, own_preprocessing, min_size, max_size, loc_mean, loc_std)
    return model.to(memory_format=torch.channels_last)  # convolutions are faster so, on CPU and GPU


def _fetch(pretrained):
    """The state of torchvision's VGG16, from torchvision."""
    names = torchvision.models.VGG16_Weights
    known = {"imagenet": names.IMAGENET1K_V1, "caffe": names.IMAGENET1K_FEATURES}
    if pretrained not in known:
        raise WeightsError(f"no weights are called {pretrained!r}: choose from imagenet, caffe and none")
    weights = known[pretrained]
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no network; half a file, not the right one, or more than tensors
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"the weights --pretrained={pretrained} could not be fetched from {weights.url} ({reason}): "
            "fetch that file elsewhere and name it, --pretrained=FILE, or start from --pretrained=none") from None


def _load_pretrained(extractor, head, pretrained):
    """Fills extractor and head with VGG16's weights; returns the `Preprocessing` that these want."""
    state = _fetch(pretrained) if isinstance(pretrained, str) else pretrained
    try:
        extractor.load_state_dict({key: state.get(f"features.{key}") for key in extractor.state_dict()})
    except RuntimeError:
        raise WeightsError(f"the pretrained weights hold {list(state)[:4]} ..., not the state of torchvision's VGG16 "
                           "with features.0.weight to features.28.bias in their shapes") from None
    fc = {f"{name}.{kind}": state.get(f"classifier.{index}.{kind}")
          for name, index in (("fc6", 0), ("fc7", 3)) for kind in ("weight", "bias")}
    # the copy of the Caffe features comes without a classifier: its entries are NaN (torchvision)
    is_caffe = any(value is not None and value.isnan().any() for value in fc.values())
    own = head.state_dict()
    if is_caffe or any(value is None or value.shape != own[key].shape for key, value in fc.items()):
        warnings.warn("the pretrained weights have no fc6 and fc7 that fit: they start random", stacklevel=2)
    else:
        head.load_state_dict(fc, strict=False)
    return TORCHVISION_CAFFE if is_caffe else TORCHVISION
