"""VGG16 (arXiv 1409.1556) as Faster R-CNN uses it: its convolutions on the image, fc6 and fc7 on each RoI.

R: RoIs. L: foreground classes; class 0 of the head is background. loc: box regression offsets, see bbox_tools.
h, w: sides of the feature map, H'/16 and W'/16.
"""

import warnings

import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from model import fetch_weights, load_state
from model.faster_rcnn import FasterRCNN
from model.rpn_variants import RPNS
from model.utils.array_tool import to_float32
from model.utils.preprocess import TORCHVISION, TORCHVISION_CAFFE
from model.utils.proposal_creator import ProposalCreator
from model.utils.roi_ops import ROI_OPS, roi_pool

# output channels of the 13 convolutions (paper 3.1); "M": pooling. RoI pooling is the last (Fast R-CNN 2.2)
LAYERS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512)
STRIDE = 16  # four poolings by 2 (paper 3.3)
CHANNELS = LAYERS[-1]
CONV5_3_SCALE = 0.1  # of Caffe's weights before random fc6 and fc7, see `_load_pretrained`
# its values of the training options; sources: utils/config.py
TRAINING = {"epoch": 14, "lr": 1e-3, "lr_decay": 0.1, "lr_decay_epoch": (10,), "lr_warmup_steps": 0}
TRAINING |= {"momentum": 0.9, "weight_decay": 5e-4, "bias_lr_mult": 2, "bias_decay": 0, "rpn_sigma": 3, "roi_sigma": 1}
TRAINING |= {"rpn_n_sample": 256, "rpn_pos_ratio": 0.5, "rpn_pos_iou": 0.7, "rpn_neg_iou": 0.3, "allowed_border": 0}
TRAINING |= {"n_sample": 128, "pos_ratio": 0.25, "pos_iou": 0.5, "neg_iou_hi": 0.5, "neg_iou_lo": 0.0}
TRAINING |= {"rpn_lambda": None}


class VGG16(nn.Sequential):
    """conv1_1 to the ReLU of conv5_3: (1, 3, H', W') -> (1, 512, h, w). Keys are those of torchvision's `features`.

    Args:
        frozen_convs: convolutions, from the first on, that are not trained (paper 3.1.3, Fast R-CNN 4.5: 4 with
            ImageNet weights, conv1_1 to conv2_2).
        ceil_mode: whether a pooling keeps a partial cell at the border, as in Caffe and Chainer.
        generator: a torch.Generator for the initial weights, which are torchvision's (He et al. 2015, fan out).
    """

    stride, channels = STRIDE, CHANNELS

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

    def forward(self, img):
        """Compute the feature map.

        Convolutions take over the memory format of their input. They are fastest in channels_last, but on a CPU with
        AVX2 alone, oneDNN takes 2 to 4 times as long for the gradients of their weights (docs/benchmarks.md#speed).
        """
        slow = img.device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"
        memory_format = torch.contiguous_format if self.training and slow else torch.channels_last
        return super().forward(img.contiguous(memory_format=memory_format))


class VGG16RoIHead(nn.Module):
    """RoI pooling to 7x7, fc6, fc7 and two sibling layers (Fast R-CNN 2, 2.2).

    Args:
        n_fg_class: L.
        width: of fc6 and fc7, 4096 in VGG16.
        dropout: probability after fc6 and fc7; py-faster-rcnn trains with 0.5.
        roi_op: the RoI operation: (1, 512, h, w) feature map, (R, 4) RoIs -> (R, 512, 7, 7).
        generator: a torch.Generator for the initial weights: Gaussian with std 0.01, of `cls_loc` 0.001
            (Fast R-CNN 2.3); biases are 0.
        n_input: values of a pooled RoI.
    """

    def __init__(self, n_fg_class, width=4096, dropout=0.0, roi_op=roi_pool, generator=None, n_input=CHANNELS * 7 * 7):
        super().__init__()
        self.n_class = n_fg_class + 1
        self.dropout = dropout
        self.roi_op = roi_op
        self.fc6 = nn.Linear(n_input, width)
        self.fc7 = nn.Linear(width, width)
        self.cls_loc = nn.Linear(width, self.n_class * 4)
        self.score = nn.Linear(width, self.n_class)
        for layer, std in ((self.fc6, 0.01), (self.fc7, 0.01), (self.cls_loc, 0.001), (self.score, 0.01)):
            nn.init.normal_(layer.weight, std=std, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, feature, roi):
        """Classify the RoIs of one image and regress their boxes.

        Args:
            feature: (1, 512, h, w) feature map.
            roi: (R, 4) boxes in pixels of the network's input.

        Returns:
            (R, L + 1, 4) normalised locs, background first, and (R, L + 1) logits, in float32.
        """
        pool = self.roi_op(feature, roi)  # (R, 512, 7, 7)
        fc6 = F.dropout(F.relu(self.fc6(pool.flatten(1))), self.dropout, self.training)  # (R, width)
        fc7 = F.dropout(F.relu(self.fc7(fc6)), self.dropout, self.training)  # (R, width)
        roi_cls_loc = self.cls_loc(fc7).reshape(-1, self.n_class, 4)  # (R, L + 1, 4)
        return to_float32(roi_cls_loc), to_float32(self.score(fc7))

    def load_hidden(self, state):
        """Load fc6 and fc7 and return True; return False, with a warning, if `state` has none that fit."""
        own = {key: value for key, value in self.state_dict().items() if key.startswith("fc")}
        fits = all(key in state and state[key].shape == value.shape for key, value in own.items())
        if fits:
            self.load_state_dict({key: state[key] for key in own}, strict=False)
        else:
            warnings.warn("the pretrained weights have no fc6 and fc7 that fit: these start random", stacklevel=2)
        return fits


def defaults(name="vgg16", pretrained="imagenet"):
    """Return the value of the option that depends on the weights: random ones are all trained."""
    return {"frozen_convs": 0 if pretrained in (None, "none") else 4}  # conv1_1 to conv2_2 (paper 3.1.3)


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
    loc_mean=(0, 0, 0, 0),
    loc_std=(0.1, 0.1, 0.2, 0.2),
    score_thresh=0.05,
    nms_thresh=0.3,
    max_detections=None,
    ceil_mode=False,
    roi_op="pool",
    rpn_objectness="softmax",
    preprocessing=None,
    generator=None,
):
    """Build Faster R-CNN on VGG16.

    Args:
        n_fg_class: L.
        pretrained: "imagenet", "caffe" (both downloaded by torchvision), a dict of tensors under the names of
            torchvision's VGG16, or None or "none" for random weights.
        head_width: of fc6 and fc7; a width other than 4096 leaves them random.
        frozen_convs, ceil_mode: see `VGG16`; `model.build` freezes 4 with pretrained weights.
        dropout: see `VGG16RoIHead`.
        roi_op: a name of `ROI_OPS`, or a function as `VGG16RoIHead` takes it.
        rpn_objectness: a name of `RPNS`.
        min_size, max_size, loc_mean, loc_std, score_thresh, nms_thresh, max_detections: see `FasterRCNN`.
        anchor_scales, anchor_ratios: see `RegionProposalNetwork`.
        rpn_nms_thresh, rpn_min_size, n_train_pre_nms, ...: see `ProposalCreator`.
        preprocessing: a `Preprocessing` that replaces that of the weights.
        generator: a torch.Generator for the initial weights.

    Raises:
        WeightsError: the weights cannot be fetched, or the tensors are not VGG16's.
    """
    n_proposals = n_train_pre_nms, n_train_post_nms, n_test_pre_nms, n_test_post_nms
    proposal_creator = ProposalCreator(rpn_nms_thresh, *n_proposals, rpn_min_size)
    rpn = RPNS[rpn_objectness](CHANNELS, 512, STRIDE, anchor_ratios, anchor_scales, proposal_creator, generator)
    extractor = VGG16(frozen_convs, ceil_mode, generator)
    head = VGG16RoIHead(n_fg_class, head_width, dropout, ROI_OPS.get(roi_op, roi_op), generator)
    if pretrained not in (None, "none"):
        preprocessing = _load_pretrained(extractor, head, pretrained, preprocessing)
    decoding = loc_mean, loc_std, score_thresh, nms_thresh, max_detections
    return FasterRCNN(extractor, rpn, head, preprocessing or TORCHVISION, min_size, max_size, *decoding)


def _load_pretrained(extractor, head, pretrained, preprocessing):
    """Load VGG16's weights into extractor and head; return the `Preprocessing` that they expect, or the one given.

    Caffe's conv5_3 has outputs with a standard deviation of 4 to 9 on photographs. fc6 and fc7 that start random do not
    learn from these at the paper's rate, so conv5_3 is multiplied by `CONV5_3_SCALE`: ReLU passes the factor on. Of
    three ways (docs/benchmarks.md#from-caffes-convolutions) it is the simplest and learned as fast as any: a factor
    measured on images needs images, and one in the head alone leaves the RPN features that are too large.
    """
    weights = torchvision.models.VGG16_Weights
    known = {"imagenet": weights.IMAGENET1K_V1, "caffe": weights.IMAGENET1K_FEATURES}
    state = fetch_weights(pretrained, known) if isinstance(pretrained, str) else pretrained
    # torchvision's copy of the Caffe features has no classifier: its entries are NaN
    is_caffe = any(value.isnan().any() for key, value in state.items() if key.startswith("classifier."))
    preprocessing = preprocessing or (TORCHVISION_CAFFE if is_caffe else TORCHVISION)
    features = {key: state.get(f"features.{key}") for key in extractor.state_dict()}
    load_state(extractor, features, state, "torchvision's VGG16")
    renamed = {key.replace("classifier.0", "fc6").replace("classifier.3", "fc7"): value for key, value in state.items()}
    loaded = head.load_hidden({} if is_caffe else renamed)
    if not loaded and preprocessing.value_range == 255:  # Caffe's
        for param in extractor[-2].parameters():
            param.detach().mul_(CONV5_3_SCALE)
    return preprocessing
