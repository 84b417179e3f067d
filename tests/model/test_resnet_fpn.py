"""The detectors with a feature pyramid are torchvision's: anchors, proposals, detections, losses and gradients.

theirs: torchvision's detector; its boxes are (x_min, y_min, x_max, y_max).
"""

import json
import math

import fixtures
import numpy as np
import pytest
import torch
import torchvision
from stress_resume import same
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

import eval as evaluation
import model
import predict
import train
from data import Sample
from model import WeightsError
from model.faster_rcnn import FasterRCNNOutput
from model.resnet_fpn import (
    NAMES,
    Pyramid,
    PyramidExtractor,
    PyramidFasterRCNN,
    PyramidProposalCreator,
    convert_torchvision,
)
from model.rpn import RPNOutput
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.bbox_tools import bbox_iou
from model.utils.preprocess import CAFFE, TORCHVISION, resized_size
from model.utils.proposal_target_creator import ProposalTargetCreator
from research.fast_rcnn import RPNTrainer
from research.padded import PaddedTrainer
from trainer import FasterRCNNTrainer, build_optimizer
from utils.checkpoint import load_checkpoint
from utils.command import parse_options
from utils.config import EvalConfig, OptionError, PredictConfig, TrainConfig
from utils.metrics import predict_sample
from utils.run_folder import stored_options

N_CLASS, LARGE = 3, 10**6  # LARGE: more than there are candidates
# 90 x 150 becomes 72 x 120 or 192 x 320, 132 x 90 117 x 80 or 313 x 214. MultiScaleRoIAlign, given the size without the
# padding, guesses the scale of a map wrong where the padding makes a side sqrt(2) times as long: never at torchvision's
# own sizes
SIZES = {"resnet": {"min_size": 80, "max_size": 120}, "mobilenet": {"min_size": 214, "max_size": 320}}
# option -> argument of torchvision, and a number that keeps the tests fast
NUMBERS = {"n_train_pre_nms": ("rpn_pre_nms_top_n_train", 300), "n_train_post_nms": ("rpn_post_nms_top_n_train", 12)}
NUMBERS |= {"n_test_pre_nms": ("rpn_pre_nms_top_n_test", 200), "n_test_post_nms": ("rpn_post_nms_top_n_test", 15)}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    n_thread = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_thread)


def random_img(height, width, seed=0):
    """Return large random patches, which give features of some contrast."""
    patches = np.random.default_rng(seed).integers(0, 256, (math.ceil(height / 9), math.ceil(width / 7), 3), np.uint8)
    return patches.repeat(9, 0).repeat(7, 1)[:height, :width].copy()


def as_tensor(img):
    return torch.from_numpy(img).permute(2, 0, 1).double() / 255


def randomize(theirs):
    """Give a detector of torchvision random weights whose outputs are spread like those of a trained one.

    In one pass over an image, running statistics become those of the image, each a little off, and the weights of other
    layers are scaled so that their outputs have mean 0 and the standard deviation that is stated here.
    """
    rpn, predictor = theirs.rpn.head, theirs.roi_heads.box_predictor
    wide = {block[0]: 1.0 for block in theirs.backbone.fpn.layer_blocks if len(block) == 1}
    wide |= {rpn.cls_logits: 2.0, rpn.bbox_pred: 0.2, predictor.cls_score: 1.0, predictor.bbox_pred: 0.5}

    def rescale(module, args, out):
        if module in wide:
            places = [0, *range(2, out.dim())]  # all dimensions but that of the channels
            mean, factor = out.mean(places), wide.pop(module) / out.std(places).mean()
            module.weight *= factor
            module.bias.copy_((module.bias - mean) * factor)
            return module(*args)

    hooks = [module.register_forward_hook(rescale) for module in wide]
    norms = [module for module in theirs.modules() if isinstance(module, nn.BatchNorm2d)]
    theirs.eval()
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        theirs([as_tensor(random_img(128, 192)).float()])
        predictor.cls_score.bias[0] -= 3  # objects everywhere
        for norm in norms:
            norm.weight.uniform_(0.8, 1.2)
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.25))
    for hook in hooks:
        hook.remove()
    return theirs.eval()


def older_layout(state):
    """Name tensors as torchvision did before its layers stood in sequences."""
    renamed = {name.replace("rpn.head.conv.0.0.", "rpn.head.conv."): value for name, value in state.items()}
    for block in (f"{kind}_blocks.{i}." for kind in ("inner", "layer") for i in range(4)):
        renamed = {name.replace(f"{block}0.", block): value for name, value in renamed.items()}
    assert len(renamed.keys() - state.keys()) == 18
    return renamed


def frozen_resnet(**kwargs):
    """Build fasterrcnn_resnet50_fpn as it is with the published weights, but with random ones."""
    source = torchvision.models.detection.fasterrcnn_resnet50_fpn
    source = randomize(source(weights=None, weights_backbone=None, num_classes=N_CLASS + 1, **kwargs))
    backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None, trainable_layers=3)
    theirs = FasterRCNN(backbone, N_CLASS + 1, **kwargs)
    theirs.load_state_dict(source.state_dict())
    overwrite_eps(theirs, 0.0)
    for module in theirs.modules():
        if isinstance(module, FrozenBatchNorm2d):
            var = torch.full_like(module.running_var, 3e-5)  # where an eps of 1e-5 would tell
            module.weight *= (var / module.running_var).sqrt()
            module.running_var.copy_(var)
    return theirs.eval()


SEEDS = [*((name, 0) for name in NAMES), ("frozen", 1), (NAMES[-1], 2)]


@pytest.fixture(scope="module", params=SEEDS, ids=lambda param: f"{param[0]}-{param[1]}")
def pair(request):
    """Their detector with few proposals and nothing sampled away, and ours with its weights.

    Both compute in float64 and from the same pixels, which are compared, as random networks enlarge differences of
    rounding, which then change an order.
    """
    name, seed = request.param
    size = SIZES["mobilenet" if "mobilenet" in name else "resnet"]
    kwargs = dict(NUMBERS.values()) | {"rpn_batch_size_per_image": LARGE, "box_batch_size_per_image": LARGE} | size
    options = {option: number for option, (_, number) in NUMBERS.items()} | {"n_fg_class": N_CLASS} | size
    torch.manual_seed(seed)
    if name == "frozen":
        theirs = frozen_resnet(**kwargs).double()
        ours = model.build("resnet50_fpn", batch_norm="frozen", trainable_layers=3, **options).double()
        state = older_layout(theirs.state_dict())
    else:
        build = getattr(torchvision.models.detection, f"fasterrcnn_{name}")
        theirs = build(weights=None, weights_backbone=None, num_classes=N_CLASS + 1, **kwargs)
        theirs = randomize(theirs).double()
        ours = model.build(name, **options).double()
        state = theirs.state_dict()
    ours.load_state_dict(convert_torchvision(state))
    ours.eval()

    def prepare(img):
        x, scale = type(ours).prepare(ours, img)
        (size,), padded = (images := theirs.transform([as_tensor(img)])[0]).image_sizes, images.tensors
        assert_same(x, padded[:, :, : size[0], : size[1]])
        return padded[:, :, : size[0], : size[1]], scale

    ours.prepare = prepare
    return theirs, ours


def assert_same(ours, theirs, rtol=1e-4, atol=1e-4):
    torch.testing.assert_close(torch.as_tensor(ours), torch.as_tensor(theirs), rtol=rtol, atol=atol, check_dtype=False)


@pytest.mark.parametrize("size", [(90, 150), (132, 90)])
def test_proposals_and_detections_are_torchvisions(pair, size):
    theirs, ours = pair
    img = random_img(*size, seed=size[0])
    seen = []
    with theirs.rpn.register_forward_hook(lambda module, args, out: seen.append(out[0][0])), torch.no_grad():
        found = theirs([as_tensor(img)])[0]
    with ours.rpn.register_forward_hook(lambda module, args, out: seen.append(out)):
        bbox, label, score = (values[0] for values in ours.predict([img]))
    proposals, rpn = seen
    assert 5 < len(proposals) <= 15
    assert_same(rpn.roi, proposals[:, [1, 0, 3, 2]], atol=1e-2)
    assert len(bbox) > 5
    assert_same(bbox, found["boxes"][:, [1, 0, 3, 2]], atol=1e-2)
    assert_same(label, found["labels"] - 1)
    assert_same(score, found["scores"])
    assert score[0] - score[-1] > 0.1  # spread, so that their order means something


def test_prediction_in_float32_is_torchvisions():
    """At a size that is padded, 200 x 266 to 224 x 288, from the pixels on."""
    torch.manual_seed(0)
    kwargs = {"weights": None, "weights_backbone": None, "num_classes": N_CLASS + 1, "min_size": 200, "max_size": 500}
    theirs = randomize(torchvision.models.detection.fasterrcnn_resnet50_fpn(**kwargs))
    ours = model.build("resnet50_fpn", n_fg_class=N_CLASS, min_size=200, max_size=500)
    ours.load_state_dict(theirs.state_dict())
    img = random_img(240, 320)
    with torch.no_grad():
        found = theirs([as_tensor(img).float()])[0]
    bbox, label, score = (values[0] for values in ours.predict([img]))
    assert len(bbox) == len(found["boxes"]) > 20
    best = bbox_iou(found["boxes"][:, [1, 0, 3, 2]].numpy(), bbox) * (found["labels"].numpy()[:, None] == label + 1)
    assert (best.max(1) > 0.99).mean() >= 0.98  # random weights enlarge differences of rounding
    np.testing.assert_allclose(score, found["scores"], atol=1e-3)


IMGS = (random_img(132, 90), random_img(90, 150))
BBOXES = [[[10, 5, 70, 60], [30, 40, 110, 79], [2, 3, 40, 20]], [[20, 30, 80, 120]]]
BBOXES = [np.array(bbox, np.float32) for bbox in BBOXES]
LABELS = np.array([0, 2, 1]), np.array([1])
EVERYTHING = {"anchor_target_creator": AnchorTargetCreator(LARGE, allowed_border=math.inf)}
EVERYTHING |= {"proposal_target_creator": ProposalTargetCreator(LARGE), "rpn_sigma": 3, "roi_sigma": 3}


def compare_losses(pair, n_image, compute_losses, batch_statistics):
    """Compare losses and gradients of the first images; `compute_losses` takes samples.

    `batch_statistics`: batch norm is in training mode.
    """
    theirs, ours = pair
    theirs.train()
    ours.train()
    for module in (*theirs.modules(), *ours.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.train(batch_statistics)
            module.momentum = 0.0  # running statistics stay
    targets = [
        {"boxes": torch.from_numpy(bbox[:, [1, 0, 3, 2]]), "labels": torch.from_numpy(label + 1)}
        for bbox, label in zip(BBOXES, LABELS, strict=True)
    ]
    wanted = theirs([as_tensor(img) for img in IMGS[:n_image]], targets[:n_image])
    theirs.zero_grad(set_to_none=True)
    sum(wanted.values()).backward()
    theirs.eval()

    rest = np.zeros(1, bool), "a", np.random.default_rng(0)
    losses = compute_losses([Sample(*image, *rest) for image in zip(IMGS, BBOXES, LABELS, strict=True)][:n_image])
    ours.zero_grad(set_to_none=True)
    losses.total.backward()
    ours.eval()
    names = ("loss_rpn_box_reg", "loss_objectness", "loss_box_reg", "loss_classifier")
    for name, loss in zip(names, losses, strict=False):
        assert loss.item() == pytest.approx(n_image * wanted[name].item(), rel=1e-4), name
        assert loss > 1e-3
    params = dict(ours.named_parameters())
    grads = {name: param.grad for name, param in theirs.named_parameters() if param.grad is not None}
    assert len(grads) > 30
    for name, grad in convert_torchvision(grads).items():
        assert params[name].grad.norm().item() == pytest.approx(n_image * grad.norm().item(), rel=1e-4), name
        params.pop(name)
    assert all(param.grad is None for param in params.values())  # frozen there, too


def test_losses_and_gradients_are_torchvisions(pair):
    trainer = FasterRCNNTrainer(pair[1], None, **EVERYTHING)
    compare_losses(pair, 1, lambda samples: trainer.compute_losses(samples[0]), batch_statistics=False)


@pytest.mark.parametrize("pair", [("resnet50_fpn_v2", 0)], indirect=True)  # batch norm in the head, too
def test_losses_of_two_padded_images_are_torchvisions(pair):
    trainer = PaddedTrainer(pair[1], None, **EVERYTHING)
    compare_losses(pair, 2, trainer.compute_losses, batch_statistics=True)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_torchvisions(name):
    with torch.device("meta"):
        theirs = getattr(torchvision.models.detection, f"fasterrcnn_{name}")(weights=None, weights_backbone=None)
    ours = model.build(name, head_width=8)
    assert (ours.min_size, ours.max_size) == (theirs.transform.min_size[0], theirs.transform.max_size)
    rpn, heads, creator = theirs.rpn, theirs.roi_heads, ours.rpn.proposal_creator
    assert (creator.n_train_pre_nms, creator.n_test_pre_nms) == tuple(rpn._pre_nms_top_n.values())
    assert (creator.n_train_post_nms, creator.n_test_post_nms) == tuple(rpn._post_nms_top_n.values())
    assert (creator.nms_thresh, creator.min_size) == (rpn.nms_thresh, rpn.min_size)
    assert creator.score_thresh == rpn.score_thresh
    wanted = heads.score_thresh, heads.nms_thresh, heads.detections_per_img
    assert (ours.score_thresh, ours.nms_thresh, ours.max_detections) == wanted
    own = model.defaults(name)
    found = own["rpn_n_sample"], own["rpn_pos_ratio"]
    assert found == (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction)
    found = own["n_sample"], own["pos_ratio"]
    assert found == (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction)
    matchers = rpn.proposal_matcher, heads.proposal_matcher
    wanted = [threshold for matcher in matchers for threshold in (matcher.high_threshold, matcher.low_threshold)]
    assert [own[key] for key in ("rpn_pos_iou", "rpn_neg_iou", "pos_iou", "neg_iou_hi")] == wanted


def test_anchors_of_a_photograph(pair):
    theirs, ours = pair
    generator = theirs.rpn.anchor_generator
    n_level = len(generator.sizes)
    assert resized_size(375, 500, 800, 1333, rounding=math.floor)[:2] == (800, 1066)  # 1066.67
    padded = (800, 1088)
    strides = [4, 8, 16, 32, 64] if n_level == 5 else [32, 32, 64]
    maps = [torch.zeros(1, 1, math.ceil(padded[0] / s), math.ceil(padded[1] / s)) for s in strides]
    found = ours.rpn.anchors(Pyramid({str(i): level for i, level in enumerate(maps)}, padded), None)
    (wanted,) = generator(ImageList(torch.zeros(1, 3, *padded), [(800, 1066)]), maps)
    assert torch.equal(found, wanted[:, [1, 0, 3, 2]])
    last = found[-1] - found[-1 - 3 * len(generator.sizes[0])]  # of neighbours at the coarsest level
    assert last.tolist() == [0, 64, 0, 64]
    below = found[-1] - found[-1 - 3 * len(generator.sizes[0]) * maps[-1].shape[3]]
    assert below.tolist() == [61, 0, 61, 0]  # 800 // 13


def test_base_anchors():
    net = model.build("resnet50_fpn", head_width=8)
    sides = (net.rpn.anchor_base[..., 2:] - net.rpn.anchor_base[..., :2]).tolist()
    assert sides[0] == [[22, 46], [32, 32], [46, 22]]  # 32 at height / width 1/2, 1, 2, halves rounded
    assert sides[4] == [[362, 724], [512, 512], [724, 362]]
    wide = model.build("resnet50_fpn", head_width=8, anchor_scales=(4, 6), anchor_ratios=(1,))
    assert wide.rpn.anchor_base[1, :, 2].tolist() == [16, 24]
    assert wide.rpn.score.out_channels == 2


def test_proposals_of_levels():
    anchor = [[10, 10, 30, 30], [10, 10, 30, 29], [50, 50, 70, 70], [10, 10, 30, 31], [20, 100.5, 40, 120]]
    logit = torch.tensor([2.0, 1, -1, 0, 5])  # 0.88, 0.73 (suppressed by the first), 0.27; 0.5, 0.99 (outside)

    def propose(train=False, **numbers):
        numbers = {"n_test_pre_nms": 3, "n_test_post_nms": 3, "min_size": 1e-3} | numbers
        creator = PyramidProposalCreator(n_train_pre_nms=1, n_train_post_nms=2, **numbers)
        roi = creator(torch.zeros(5, 4), logit, torch.tensor(anchor), [3, 2], (80, 100), train)
        return [anchor.index(row) for row in roi.tolist()]

    assert propose() == [0, 3, 2]  # one level does not suppress the other
    assert propose(n_test_pre_nms=2) == [0, 3]  # of each level
    assert propose(n_test_post_nms=1) == [0]  # of all
    assert propose(score_thresh=0.3) == [0, 3]
    assert propose(train=True) == [0]


def test_detections_are_chosen_on_the_clipped_boxes():
    net = PyramidFasterRCNN(None, None, None, TORCHVISION)
    roi = torch.tensor([[10.0, 10, 30, 40], [10, 100.5, 30, 120], [0, 50, 20, 90], [-40, 50, 20, 90]])
    score = torch.tensor([3.0, 9, 2, 1])  # the second is empty once it is clipped, the fourth like the third
    output = FasterRCNNOutput(
        RPNOutput(None, None, None, roi, None), torch.zeros(4, 2, 4), torch.stack((0 * score, score), 1)
    )
    bbox, label, prob = net.decode(output, (50, 100), (100, 100), 0.05, 0.5)
    assert bbox.tolist() == [[20, 10, 60, 40], [0, 50, 40, 90]]
    assert label.tolist() == [0, 0]
    assert_same(prob, score[[0, 2]].sigmoid())


def test_an_image_is_padded_only_inside_the_extractor():
    extractor = PyramidExtractor("mobilenet_v3_large_fpn", 6, nn.BatchNorm2d).eval()
    with torch.no_grad():
        found = extractor(torch.ones(1, 3, 33, 64))
        wanted = extractor(torch.cat((torch.ones(1, 3, 33, 64), torch.zeros(1, 3, 31, 64)), 2))
    assert found.size == (64, 64)
    assert [tuple(level.shape) for level in found.levels.values()] == [(1, 256, 2, 2)] * 2 + [(1, 256, 1, 1)]
    assert all(torch.equal(level, wanted.levels[name]) for name, level in found.levels.items())


def trained(net):
    """Return the parts of the backbone that are trained."""
    return {name.split(".")[0] for name, param in net.extractor.body.named_parameters() if param.requires_grad}


def test_pretrained_weights_freeze_norms_and_first_stages():
    resnet = torchvision.models.resnet50(weights=None)
    nn.init.uniform_(resnet.bn1.running_var, 1, 2)
    net = model.build("resnet50_fpn", head_width=8, pretrained=resnet.state_dict())
    assert trained(net) == {"layer2", "layer3", "layer4"}
    assert isinstance(net.extractor.body.bn1, FrozenBatchNorm2d)
    assert torch.equal(net.extractor.body.bn1.running_var, resnet.bn1.running_var)
    assert torch.equal(net.extractor.body.layer4[2].conv3.weight, resnet.layer4[2].conv3.weight)
    mobilenet = torchvision.models.mobilenet_v3_large(weights=None)
    net = model.build("mobilenet_v3_large_fpn", head_width=8, pretrained=mobilenet.state_dict())
    assert trained(net) == {str(i) for i in range(7, 17)}
    assert torch.equal(net.extractor.body["16"][0].weight, mobilenet.features[16][0].weight)
    with pytest.raises(WeightsError, match=r"not those of torchvision's fasterrcnn_resnet50_fpn or of its backbone"):
        model.build("resnet50_fpn", head_width=8, pretrained=mobilenet.state_dict())


def test_values_that_depend_on_name_and_weights():
    found = model.defaults("resnet50_fpn")
    assert (found["trainable_layers"], found["batch_norm"]) == (3, "frozen")
    assert (found["lr"], found["lr_decay_epoch"], found["allowed_border"]) == (0.00125, (16, 22), math.inf)
    found = model.defaults("resnet50_fpn", "none")
    assert (found["trainable_layers"], found["batch_norm"]) == (5, "trained")
    assert model.defaults("resnet50_fpn_v2")["batch_norm"] == "trained"
    found = model.defaults("mobilenet_v3_large_320_fpn", "none")
    assert (found["trainable_layers"], found["min_size"], found["rpn_score_thresh"]) == (6, 320, 0.05)
    net = model.build("resnet50_fpn", head_width=8)
    assert trained(net) == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert type(net.extractor.body.bn1) is nn.BatchNorm2d
    assert net.preprocessing == TORCHVISION
    assert model.build("resnet50_fpn", head_width=8, preprocessing="caffe").preprocessing == CAFFE


def test_a_published_detector_gets_new_last_layers_for_other_classes():
    name, options = "mobilenet_v3_large_320_fpn", {"weights": None, "weights_backbone": None}
    state = torchvision.models.detection.fasterrcnn_mobilenet_v3_large_320_fpn(**options).state_dict()
    net = model.build(name, n_fg_class=2, pretrained=state)
    assert net.head.score.weight.shape == (3, 1024)
    assert torch.equal(net.head.box_head.fc7.weight, state["roi_heads.box_head.fc7.weight"])
    assert torch.equal(net.rpn.score.weight, state["rpn.head.cls_logits.weight"])
    net = model.build(name, n_fg_class=90, pretrained=state)
    assert torch.equal(net.head.score.weight, state["roi_heads.box_predictor.cls_score.weight"])
    bias = state["roi_heads.box_predictor.bbox_pred.bias"].reshape(91, 4)
    assert torch.equal(net.head.cls_loc.bias.reshape(91, 4), bias[:, [1, 0, 3, 2]])


@pytest.mark.parametrize(
    ("name", "pretrained", "url"),
    [
        ("resnet50_fpn", "imagenet", "resnet50-0676ba61.pth"),
        ("resnet50_fpn", "coco", "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"),
        ("mobilenet_v3_large_320_fpn", "coco", "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"),
    ],
)
def test_names_of_torchvisions_weights(monkeypatch, name, pretrained, url):
    def get_state_dict(self, **options):
        raise OSError("no network")

    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", get_state_dict)
    with pytest.raises(WeightsError, match=rf"--pretrained={pretrained}: \S*/{url} cannot be fetched \(no network\)"):
        model.build(name, head_width=8, pretrained=pretrained)


def test_biases_are_trained_as_weights_are():
    net = nn.Linear(2, 3)
    weight, bias = build_optimizer(net, 0.5, weight_decay=0.1, bias_lr_mult=1, bias_decay=0.1).param_groups
    assert (weight["lr"], weight["weight_decay"]) == (bias["lr"], bias["weight_decay"]) == (0.5, 0.1)


@pytest.mark.parametrize("option", ["frozen_convs", "dropout", "rpn_min_size"])
def test_an_option_that_the_model_lacks_is_refused(option):
    for pretrained in ("imagenet", "none"):
        texts = {"model": "resnet50_fpn", "pretrained": pretrained, option: "1"}
        with pytest.raises(OptionError, match=rf"--{option.replace('_', '-')}: --model=resnet50_fpn has no such"):
            parse_options(TrainConfig, texts, defaults=model.defaults)
    made = parse_options(TrainConfig, {"model": "resnet50_fpn"}, defaults=model.defaults)
    assert (made.trainable_layers, made.allowed_border, made.min_size) == (3, math.inf, 800)


def run(**options):
    """Train on tiny images, or resume; return last.pth."""
    unknown = ("dropout", "rpn_min_size", "anchor_scales")
    texts = {name: text for name, text in fixtures.OPTIONS.items() if name not in unknown}
    stored = stored_options(options)
    train.main(parse_options(TrainConfig, options if stored else texts | options, stored, model.defaults))
    return load_checkpoint(f"runs/{options['env']}/last.pth")


def test_training_resumes_bit_for_bit_evaluates_and_predicts(place):
    options = {"model": "mobilenet_v3_large_320_fpn", "lr": "0.01", "lr_warmup_steps": "0", "batch_size": "2"}
    calm = run(env="calm", max_steps="4", **options)
    run(env="halves", max_steps="2", **options)
    halves = run(env="halves", max_steps="4", resume="True")
    for key in ("model", "optimizer", "rng", "build"):
        assert same(calm[key], halves[key]), key
    assert calm["build"]["batch_norm"] == "trained"
    assert calm["model"]["extractor.body.0.1.num_batches_tracked"] == 4  # of two images each
    texts = {"load_path": "runs/calm/last.pth", "device": "cpu"}
    evaluation.main(parse_options(EvalConfig, texts | {"json": "eval.json", "proposals": "True"}))
    assert json.loads((place / "eval.json").read_text())["n_object"] == 4
    predict.main(parse_options(PredictConfig, texts | {"score_thresh": "0", "out": "found"}), "voc/JPEGImages")
    found = json.loads((place / "found/predictions.json").read_text())
    assert {entry["name"] for entry in found} == {"bar", "box"}
    with pytest.raises(OptionError, match=r"--ablate: .* proposes level by level"):
        evaluation.main(parse_options(EvalConfig, texts | {"ablate": "True"}))


def test_given_proposals_replace_those_of_the_pyramid_and_its_rpn_trains_alone():
    torch.manual_seed(0)
    net = model.build("mobilenet_v3_large_320_fpn", n_fg_class=2, min_size=64, max_size=96)
    img, bbox = np.random.default_rng(0).integers(256, size=(64, 96, 3), dtype=np.uint8), [[8.0, 10, 40, 70]]
    sample = Sample(img, np.float32(bbox), np.array([1]), np.zeros(1, bool), "a", np.random.default_rng(0))
    given = sample._replace(roi=np.float32([[4, 6, 30, 50], [20, 30, 60, 90]]))
    (label,) = predict_sample(net, given, score_thresh=0, nms_thresh=1)[1]
    assert len(label) == 4  # two proposals, two classes
    assert len(predict_sample(net, sample, score_thresh=0, nms_thresh=1)[1][0]) > 4
    losses = RPNTrainer(net, None, AnchorTargetCreator(allowed_border=math.inf)).compute_losses(sample)
    whole = FasterRCNNTrainer(net, None, AnchorTargetCreator(allowed_border=math.inf))
    expected = whole.compute_losses(sample._replace(rng=np.random.default_rng(0)))
    assert losses.rpn_cls.item() == pytest.approx(expected.rpn_cls.item())
    assert losses.rpn_cls > losses.roi_cls == 0


def test_resnet_trains_and_resumes_bit_for_bit(place):
    options = {"model": "resnet50_fpn", "trainable_layers": "1", "batch_norm": "frozen", "lr": "0.01"}
    calm = run(env="calm_resnet", max_steps="2", **options)
    before = run(env="halves_resnet", max_steps="1", **options)
    after = run(env="halves_resnet", max_steps="2", resume="True")
    for key in ("model", "optimizer", "rng"):
        assert same(calm[key], after[key]), key
    body = "extractor.body.{}.weight".format
    changed = {name for name in before["model"] if not torch.equal(before["model"][name], after["model"][name])}
    assert changed > {
        body("layer4.0.conv1"),
        "extractor.fpn.inner_blocks.0.0.bias",
        "rpn.loc.weight",
        "head.score.bias",
    }
    assert not changed & {body("conv1"), body("layer3.0.conv1"), body("layer4.0.bn1")}
    net = model.restore(after)
    assert isinstance(net.extractor.body.bn1, FrozenBatchNorm2d)
    assert trained(net) == {"layer4"}
