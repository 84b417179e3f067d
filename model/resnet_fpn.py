"""torchvision's Faster R-CNN: ResNet-50 or MobileNet V3 with a feature pyramid (Lin et al. 2017, arXiv 1612.03144).

The four names are torchvision's without `fasterrcnn_`; with the same weights the results are the same. What differs
from VGG16 (model/vgg16.py), with torchvision's reason or the paper's:

- Image: 800 x 1333 (320 x 640 for ..._320_fpn), the setting of Detectron. Sides are rounded down, as `interpolate`
  does. The extractor pads it with zeros, after the normalisation, to a multiple of 32, so that the maps of the pyramid
  fit onto one another; boxes are clipped to the size without the padding.
- Anchors: each level of ResNet's pyramid has one size, 32² to 512² (1612.03144, 4.1); MobileNet's three levels have all
  five. They are rounded to whole pixels and centred on the corner of a cell; a stride is the side of the padded image
  divided by that of the map, rounded down. Those that cross the border are used as well: at 512² nearly all do.
- RPN: one logit per anchor (a sigmoid instead of the softmax of two, the same loss). Candidates are chosen and
  suppressed level by level, since scores of different levels are not comparable; sides of at least 1e-3, any but empty.
- RoI head: RoIAlign (He et al. 2017, arXiv 1703.06870) from the level that fits the RoI's size: 224² reads level 4
  (1612.03144, equation 1). Two layers of 1024, or four convolutions and one layer in v2 (Li et al. 2021, 2111.11429).
- Losses: smooth L1 with sigma 3 in both stages (torchvision: beta 1/9); 512 RoIs per image (1612.03144, 4.2).
- Detections: NMS 0.5 and 100 per image, COCO's; it runs on the resized image, after sides below 1e-2 are dropped.
- Batch norm: fixed with pretrained weights, since one or two images per step give poor statistics; trained from random
  weights and in v2. Three of the five (MobileNet: six) stages are trained with pretrained weights, else all.
- Optimizer: torchvision's reference recipe, 0.02 for 16 images, here for one; biases are no exception.

A: anchors per cell. K: all anchors of all levels, finest level first. R: RoIs. L: foreground classes.
H', W': sides of the network's input; h, w: of a level's map.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.detection.backbone_utils import mobilenet_backbone, resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d, MultiScaleRoIAlign, batched_nms
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from model import fetch_weights, load_state
from model.faster_rcnn import FasterRCNN
from model.rpn import RPNOutput
from model.utils.anchors import generate_anchor_base
from model.utils.array_tool import to_float32
from model.utils.bbox_tools import clip_bbox, loc2bbox, resize_bbox
from model.utils.preprocess import TORCHVISION, prepare
from model.utils.proposal_creator import ProposalCreator

CHANNELS = 256  # of every level (1612.03144, 3)
PADDED_TO = 32  # pixels, the stride of the coarsest map of the backbone
N_STAGE = {True: 5, False: 6}  # of ResNet and of MobileNet V3
MIN_PROPOSAL, MIN_DETECTION = 1e-3, 1e-2  # shortest sides in pixels of the network's input (torchvision)

# its values of the training options: those of torchvision's references/detection
TRAINING = {"epoch": 26, "lr": 0.02 / 16, "lr_decay": 0.1, "lr_decay_epoch": (16, 22), "lr_warmup_steps": 1000}
TRAINING |= {"batching": "padded", "momentum": 0.9, "weight_decay": 1e-4, "bias_lr_mult": 1, "bias_decay": 1e-4}
TRAINING |= {"rpn_n_sample": 256, "rpn_pos_ratio": 0.5, "rpn_pos_iou": 0.7, "rpn_neg_iou": 0.3}
TRAINING |= {"rpn_sigma": 3, "roi_sigma": 3, "allowed_border": math.inf}
TRAINING |= {"n_sample": 512, "pos_ratio": 0.25, "pos_iou": 0.5, "neg_iou_hi": 0.5, "neg_iou_lo": 0.0}
# name -> options of `build` that it has different
_MOBILE = {"anchor_scales": (1, 2, 4, 8, 16), "rpn_score_thresh": 0.05}
_MOBILE_320 = _MOBILE | {"min_size": 320, "max_size": 640, "n_test_pre_nms": 150, "n_test_post_nms": 150}
VARIANTS = {"resnet50_fpn": {}, "resnet50_fpn_v2": {"batch_norm": "trained"}}
VARIANTS |= {"mobilenet_v3_large_fpn": _MOBILE, "mobilenet_v3_large_320_fpn": _MOBILE_320}
NAMES = tuple(VARIANTS)


class Pyramid(NamedTuple):
    """The feature maps of N images, mostly one."""

    levels: dict[str, Tensor]  # torchvision's name -> (N, 256, h, w), finest first; "pool", the last, is for the RPN
    size: tuple[int, int]  # of the padded images

    def split(self):
        """Return the N pyramids of one image each."""
        maps = zip(*(level.split(1) for level in self.levels.values()), strict=True)
        return [Pyramid(dict(zip(self.levels, levels, strict=True)), self.size) for levels in maps]


class PyramidExtractor(nn.Module):
    """Backbone and feature pyramid: (1, 3, H', W') of one or more images -> their `Pyramid`.

    Args:
        name: one of `NAMES`.
        trainable_layers: stages of the backbone that are trained, from the last on; more than there are: all.
        norm_layer: `FrozenBatchNorm2d` or `nn.BatchNorm2d`.
    """

    channels = CHANNELS

    def __init__(self, name, trainable_layers, norm_layer):
        super().__init__()
        n_trained = min(trainable_layers, N_STAGE[is_resnet(name)])
        options = {"weights": None, "norm_layer": norm_layer, "trainable_layers": n_trained}
        if is_resnet(name):
            backbone = resnet_fpn_backbone(backbone_name="resnet50", **options)
        else:
            backbone = mobilenet_backbone(backbone_name="mobilenet_v3_large", fpn=True, **options)
        self.body, self.fpn = backbone.body, backbone.fpn
        if is_v2(name):  # batch norm in the pyramid, too
            self.fpn = FeaturePyramidNetwork((256, 512, 1024, 2048), CHANNELS, LastLevelMaxPool(), norm_layer)
        self.stride = 4 if is_resnet(name) else 32  # of the finest level, the unit of the anchors' scales

    def forward(self, *imgs):
        """Pad the images at their lower and right borders to one size and compute their `Pyramid`."""
        sides = (max(img.shape[axis] for img in imgs) for axis in (2, 3))
        height, width = (side + -side % PADDED_TO for side in sides)
        x = torch.cat([F.pad(img, (0, width - img.shape[3], 0, height - img.shape[2])) for img in imgs])
        x = x.contiguous()  # from channels_last, as torchvision's
        return Pyramid(self.fpn(self.body(x)), (height, width))


@dataclass
class PyramidProposalCreator(ProposalCreator):
    """Choose the best anchors of every level, decode, clip, drop small boxes and low scores, apply NMS per level."""

    score_thresh: float = 0.0  # lowest probability of an object

    @torch.no_grad()
    def __call__(self, loc, score, anchor, level_sizes, img_size, train):
        """Create the proposals of one image.

        Args:
            loc: (K, 4) predicted locs.
            score: (K,) logits; their order is kept where probabilities round to 1.
            anchor: (K, 4) anchors.
            level_sizes: number of anchors of each level, K together.
            img_size: (H', W') without the padding.
            train: use n_train_* instead of n_test_*; "pre_nms" per level, "post_nms" in all.

        Returns:
            (R, 4) proposals, best first.
        """
        n_pre_nms = self.n_train_pre_nms if train else self.n_test_pre_nms
        n_post_nms = self.n_train_post_nms if train else self.n_test_post_nms
        best = []
        for index in torch.arange(len(score), device=score.device).split(level_sizes):  # the anchors of a level
            best.append(index[score[index].topk(min(n_pre_nms, len(index))).indices])
        level = torch.cat([torch.full_like(index, i) for i, index in enumerate(best)])
        best = torch.cat(best)
        roi, prob = clip_bbox(loc2bbox(anchor[best], loc[best]), img_size), score[best].sigmoid()
        kept = (roi[:, 2:] - roi[:, :2] >= self.min_size).all(1) & (prob >= self.score_thresh)
        roi = roi[kept]
        return roi[batched_nms(roi, prob[kept], level[kept], self.nms_thresh)[:n_post_nms]]  # (R, 4)


class PyramidRPN(nn.Module):
    """The region proposal network on every level, with the same weights.

    Args:
        anchor_base: (levels, A, 4) anchors of the first cell of each level.
        proposal_creator: a `PyramidProposalCreator`.
        depth: number of 3x3 convolutions.
    """

    def __init__(self, anchor_base, proposal_creator, depth=1):
        super().__init__()
        self.register_buffer("anchor_base", anchor_base, persistent=False)
        self.proposal_creator = proposal_creator
        self.conv = nn.Sequential(*[Conv2dNormActivation(CHANNELS, CHANNELS, 3, norm_layer=None) for _ in range(depth)])
        self.score = nn.Conv2d(CHANNELS, anchor_base.shape[1], 1)
        self.loc = nn.Conv2d(CHANNELS, 4 * anchor_base.shape[1], 1)
        for layer in (*(block[0] for block in self.conv), self.score, self.loc):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, feature, img_size, scale, train):
        """Run the RPN on one image.

        Args:
            feature: its `Pyramid`.
            img_size: (H', W') of the network's input, without the padding.
            scale: its resize factor, which the proposals do not depend on here.
            train: propose as in training instead of as in prediction.

        Returns:
            `RPNOutput`; its first logit, background, is 0.
        """
        rpn_loc, rpn_score = self.head(feature)  # (K, 4), (K, 2)
        anchor = self.anchors(feature, img_size)  # (K, 4)
        level_sizes = [level[0, 0].numel() * self.anchor_base.shape[1] for level in feature.levels.values()]
        roi = self.propose(rpn_loc, rpn_score[:, 1], anchor, img_size, scale, train, level_sizes)  # (R, 4)
        return RPNOutput(rpn_loc, rpn_score, rpn_score.softmax(1)[:, 1], roi, anchor)

    def head(self, feature):
        """Predict the locs (K, 4) and the logits (K, 2) of every anchor."""
        hidden = [self.conv(level) for level in feature.levels.values()]  # (1, 256, h, w) each
        loc = [self.loc(x).permute(0, 2, 3, 1).reshape(-1, 4) for x in hidden]  # (1, 4A, h, w) -> (h * w * A, 4)
        score = [self.score(x).permute(0, 2, 3, 1).reshape(-1) for x in hidden]  # (1, A, h, w) -> (h * w * A,)
        logit = to_float32(torch.cat(score))  # (K,)
        return to_float32(torch.cat(loc)), torch.stack((torch.zeros_like(logit), logit), 1)

    def anchors(self, feature, img_size):
        """Generate the anchors (K, 4) at every cell of each level; the strides along y and x may differ.

        `img_size` is not used here: the strides are those of the padded image.
        """
        anchors = []
        for base, level in zip(self.anchor_base, feature.levels.values(), strict=True):  # (A, 4), (1, 256, h, w)
            sides = zip(feature.size, level.shape[2:], strict=True)
            y, x = (torch.arange(n, dtype=base.dtype, device=base.device) * (side // n) for side, n in sides)
            shift = torch.cartesian_prod(y, x).repeat(1, 2)  # (h * w, 4)
            anchors.append((shift[:, None] + base).reshape(-1, 4))  # (h * w * A, 4)
        return torch.cat(anchors)

    def propose(self, rpn_loc, logit, anchor, img_size, scale, train, level_sizes):
        """Create the proposals (R, 4) from the outputs of all anchors; see `PyramidProposalCreator`."""
        return self.proposal_creator(rpn_loc, logit, anchor, level_sizes, img_size, train)


class PyramidRoIHead(nn.Module):
    """RoIAlign to 7x7 from the level of the RoI's size, hidden layers and two sibling layers.

    Args:
        n_fg_class: L.
        box_head: `TwoMLPHead` or `FastRCNNConvFCHead`, (R, 256, 7, 7) -> (R, width).
        width: of its last layer.
    """

    def __init__(self, n_fg_class, box_head, width):
        super().__init__()
        self.n_class = n_fg_class + 1
        self.roi_align = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=2)
        self.box_head = box_head
        self.cls_loc = nn.Linear(width, 4 * self.n_class)
        self.score = nn.Linear(width, self.n_class)

    def forward(self, feature, *rois):
        """Classify the RoIs of one or more images and regress their boxes.

        Args:
            feature: `Pyramid` of the images.
            rois: (R, 4) boxes of each image, in pixels of the network's input.

        Returns:
            (R, L + 1, 4) normalised locs, background first, and (R, L + 1) logits, in float32; R of all images.
        """
        boxes = [roi.unflatten(1, (2, 2)).flip(2).flatten(1) for roi in rois]  # (R, 4), x first
        # of the padded size the scales of the levels are exact powers of two
        pool = self.roi_align(feature.levels, boxes, [feature.size] * len(rois))  # (R, 256, 7, 7)
        hidden = self.box_head(pool)  # (R, width)
        roi_cls_loc = self.cls_loc(hidden).reshape(-1, self.n_class, 4)  # (R, L + 1, 4)
        return to_float32(roi_cls_loc), to_float32(self.score(hidden))


class PyramidFasterRCNN(FasterRCNN):
    """`FasterRCNN` with torchvision's resize and post-processing."""

    def prepare(self, img):
        """Turn an (H, W, 3) uint8 RGB array into the network's input (1, 3, H', W') and its resize factor."""
        return prepare(img, self.preprocessing, self.min_size, self.max_size, self.device, rounding=math.floor)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        """Load tensors under our names or torchvision's; where both are there, as with new last layers, ours count."""
        if any(name.startswith("roi_heads.") for name in state_dict):
            state_dict = convert_torchvision(state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def decode(self, output, img_size, original_size, score_thresh, nms_thresh):
        """Post-process the output of one image; see `FasterRCNN.decode`. NMS runs before boxes are scaled back."""
        bbox, label, score = self.candidates(output, score_thresh)
        bbox = clip_bbox(bbox, img_size)
        large = (bbox[:, 2:] - bbox[:, :2] >= MIN_DETECTION).all(1)  # (D,)
        bbox, label, score = bbox[large], label[large], score[large]
        keep = batched_nms(bbox, score, label, nms_thresh)
        bbox = clip_bbox(resize_bbox(bbox[keep], img_size, original_size), original_size)
        return bbox, label[keep], score[keep]


def is_resnet(name):
    """Whether the backbone is ResNet-50; else it is MobileNet V3."""
    return name.startswith("resnet")


def is_v2(name):
    """Whether `name` is that of the improved training recipe, whose heads are deeper and have batch norm."""
    return name.endswith("_v2")


def defaults(name="resnet50_fpn", pretrained="imagenet"):
    """Return the values of options that depend on the name or on the weights: random ones are all trained."""
    stages = {"trainable_layers": 3, "batch_norm": "frozen"}
    if pretrained in (None, "none"):
        stages = {"trainable_layers": N_STAGE[is_resnet(name)], "batch_norm": "trained"}
    return stages | VARIANTS[name]


def build(
    name="resnet50_fpn",
    n_fg_class=20,
    pretrained=None,
    head_width=1024,
    trainable_layers=5,
    batch_norm="trained",
    min_size=800,
    max_size=1333,
    anchor_scales=(8,),
    anchor_ratios=(0.5, 1, 2),
    rpn_nms_thresh=0.7,
    rpn_score_thresh=0.0,
    n_train_pre_nms=2000,
    n_train_post_nms=2000,
    n_test_pre_nms=1000,
    n_test_post_nms=1000,
    score_thresh=0.05,
    nms_thresh=0.5,
    max_detections=100,
    preprocessing=None,
):
    """Build torchvision's `fasterrcnn_NAME`; `defaults` has the values that depend on name or weights.

    Args:
        name: one of `NAMES`.
        n_fg_class: L.
        pretrained: "imagenet" for the backbone, "coco" for the whole detector (its last layers start random unless L
            is 90), a dict of tensors under torchvision's names of either, or None or "none" for random weights, which
            are drawn from torch's global generator.
        head_width: of the hidden layers of the head.
        trainable_layers: see `PyramidExtractor`.
        batch_norm: "frozen" or "trained".
        anchor_scales: sides of square anchors in units of 4 pixels, doubled from level to level (ResNet), or of 32
            pixels (MobileNet).
        rpn_nms_thresh, rpn_score_thresh, n_train_pre_nms, ...: see `PyramidProposalCreator`.
        min_size, max_size, score_thresh, nms_thresh, max_detections: see `FasterRCNN`.
        preprocessing: a `Preprocessing` that replaces that of the weights.

    Raises:
        WeightsError: the weights cannot be fetched, or the tensors are not those of this network.
    """
    norm_layer = FrozenBatchNorm2d if batch_norm == "frozen" else nn.BatchNorm2d
    extractor = PyramidExtractor(name, trainable_layers, norm_layer)
    units = [extractor.stride * 2**i for i in range(5)] if is_resnet(name) else [extractor.stride] * 3
    base = [generate_anchor_base(unit, anchor_ratios, anchor_scales) - unit / 2 for unit in units]  # (A, 4) each
    anchor_base = torch.stack([torch.from_numpy(level) for level in base]).round()
    n_proposals = n_train_pre_nms, n_train_post_nms, n_test_pre_nms, n_test_post_nms
    creator = PyramidProposalCreator(rpn_nms_thresh, *n_proposals, MIN_PROPOSAL, rpn_score_thresh)
    rpn = PyramidRPN(anchor_base, creator, depth=2 if is_v2(name) else 1)
    if is_v2(name):
        box_head = FastRCNNConvFCHead((CHANNELS, 7, 7), [CHANNELS] * 4, [head_width], norm_layer)
    else:
        box_head = TwoMLPHead(CHANNELS * 7**2, head_width)
    head = PyramidRoIHead(n_fg_class, box_head, head_width)
    thresholds = {"score_thresh": score_thresh, "nms_thresh": nms_thresh, "max_detections": max_detections}
    model = PyramidFasterRCNN(extractor, rpn, head, preprocessing or TORCHVISION, min_size, max_size, **thresholds)
    if pretrained not in (None, "none"):
        _load_pretrained(model, name, pretrained)
    return model


def _load_pretrained(model, name, pretrained):
    """Load torchvision's weights of the backbone, or of the whole detector."""
    if isinstance(pretrained, str):
        classifier = "resnet50" if is_resnet(name) else "mobilenet_v3_large"
        known = {"imagenet": get_model_weights(classifier).IMAGENET1K_V1}
        known["coco"] = get_model_weights(f"fasterrcnn_{name}").COCO_V1
        pretrained = fetch_weights(pretrained, known)
    module, own = model.extractor.body, model.extractor.body.state_dict()
    state = {key.removeprefix("features."): value for key, value in pretrained.items()}
    state = {key: value for key, value in state.items() if key in own}  # not its last layer
    if any(key.startswith("roi_heads.") for key in pretrained):
        module, own, state = model, model.state_dict(), convert_torchvision(pretrained)
        last = [key for key in own if key.startswith(("head.cls_loc.", "head.score."))]  # random for other classes
        state |= {key: own[key] for key in last if key in state and state[key].shape != own[key].shape}
    load_state(module, state, pretrained, f"torchvision's fasterrcnn_{name} or of its backbone")


# names of modules: torchvision's -> ours
_RENAMED = {"backbone.": "extractor.", "rpn.head.cls_logits.": "rpn.score.", "rpn.head.bbox_pred.": "rpn.loc."}
# in the older layout layers do not stand in a sequence (`FeaturePyramidNetwork` loads its own from either)
_RENAMED |= {f"rpn.head.conv.{kind}": f"rpn.conv.0.0.{kind}" for kind in ("weight", "bias")}
_RENAMED |= {"rpn.head.conv.": "rpn.conv.", "roi_heads.box_head.": "head.box_head."}
_RENAMED |= {"roi_heads.box_predictor.cls_score.": "head.score.", "roi_heads.box_predictor.bbox_pred.": "head.cls_loc."}


def convert_torchvision(state):
    """Rename the tensors of a detector of torchvision, of the present or the older layout, to those of ours.

    Offsets are (dx, dy, dw, dh) there, (dy, dx, dh, dw) here. The frozen batch norms of `fasterrcnn_resnet50_fpn` have
    eps 0 in what was trained on COCO, the published weights and those made from them: it is put into their weight.

    Args:
        state: name -> tensor.

    Returns:
        name -> tensor.
    """
    converted = {}
    for name, tensor in state.items():
        new = name
        for theirs, ours in _RENAMED.items():
            new = new.replace(theirs, ours)
        if "bbox_pred" in name:
            tensor = tensor.unflatten(0, (-1, 4))[:, [1, 0, 3, 2]].flatten(0, 1)  # (4n, ...)
        converted[new] = tensor
    if "backbone.body.layer1.0.bn1.weight" in state and not any("num_batches_tracked" in name for name in state):
        for name in [name for name in converted if name.endswith("running_var")]:
            weight, var = name.replace("running_var", "weight"), converted[name]
            converted[weight] = converted[weight] * (var + 1e-5).sqrt() * var.rsqrt()  # eps of `FrozenBatchNorm2d`
    return converted
