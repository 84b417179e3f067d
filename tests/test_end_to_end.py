"""The whole network against figures of simple-faster-rcnn-pytorch: features, proposals, detections, losses, gradients.

The two photographs and the figures are not part of the project; without them these tests are skipped.

K: anchors. R: proposals. G: objects.
"""

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from data.voc_dataset import read_image
from model import restore
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.proposal_target_creator import ProposalTargetCreator
from trainer import FasterRCNNTrainer, Losses
from utils.checkpoint import open_checkpoint

SHARED = Path(__file__).parents[2] / "shared"
FIGURES, PHOTOGRAPHS = SHARED / "oracles" / "end_to_end.npz", SHARED / "data" / "voc100" / "JPEGImages"
IMAGES = ("2007_000027", "2007_000733")
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in the extractor
CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
LARGE = 10**6  # larger than the number of candidates

pytestmark = pytest.mark.skipif(
    not (FIGURES.exists() and PHOTOGRAPHS.exists()),
    reason="the photographs of the reference are not beside this project",
)


def weights(n_fg_class=20):
    """Make the weights of the stored figures, named as in simple-faster-rcnn-pytorch.

    Each tensor has a generator seeded by the checksum of its name: normal numbers, 0.01 wide for biases, for weights
    as wide as a gain divided by the root of the inputs; the gain is that of He et al. but for the last layers.
    """
    shape = {
        f"extractor.{place}": (out, channels, 3, 3)
        for place, channels, out in zip(PLACES, CHANNELS, CHANNELS[1:], strict=False)
    }
    shape |= {
        "rpn.conv1": (512, 512, 3, 3),
        "rpn.score": (18, 512, 1, 1),
        "rpn.loc": (36, 512, 1, 1),
        "head.classifier.0": (4096, 25088),
        "head.classifier.2": (4096, 4096),
        "head.cls_loc": (4 * n_fg_class + 4, 4096),
        "head.score": (n_fg_class + 1, 4096),
    }
    gain = {"rpn.loc": 0.25, "rpn.score": 1.5, "head.cls_loc": 0.7, "head.score": 1.8}
    state = {}
    for module, size in shape.items():
        for kind, wide in (("weight", gain.get(module, 2**0.5) / np.prod(size[1:]) ** 0.5), ("bias", 0.01)):
            rng = np.random.RandomState(zlib.crc32(f"{module}.{kind}".encode()))
            value = rng.standard_normal(size if kind == "weight" else size[:1]) * wide
            state[f"{module}.{kind}"] = torch.from_numpy(value.astype(np.float32))
    return state


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference") / "reference.pth"
    torch.save({"model": weights(), "config": {"caffe_pretrain": False}}, path)
    model = restore(open_checkpoint(path))
    path.unlink()  # half a gigabyte
    for place in PLACES[:4]:  # theirs trains from conv3_1 on
        model.extractor[place].requires_grad_(False)
    return model


@pytest.fixture(scope="module", params=IMAGES)
def theirs(request):
    """Return the figures of one image, and the image itself."""
    with np.load(FIGURES) as arrays:
        prefix = f"{request.param}_"
        found = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
    return found | {"img": read_image(PHOTOGRAPHS / f"{request.param}.jpg")}


@pytest.fixture(scope="module")
def ours(model, theirs):
    """Return feature map, raw output and detections of the same image, from one prediction."""
    seen = {}
    hooks = [
        model.extractor.register_forward_hook(lambda module, args, out: seen.update(feature=out)),
        model.register_forward_hook(lambda module, args, out: seen.update(output=out)),
    ]
    seen["detections"] = [values[0] for values in model.predict([theirs["img"]])]
    for hook in hooks:
        hook.remove()
    return seen


def assert_close(ours, theirs, tolerance=1e-4):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def prepare(model, theirs):
    img, scale = model.prepare(theirs["img"])
    assert scale == pytest.approx(theirs["scale"], rel=1e-3)  # theirs is that of the rounded width
    return img, scale


def test_input(model, theirs):
    img, _ = prepare(model, theirs)
    assert img.shape[1:] == tuple(theirs["input_shape"])
    assert_close(img[0, :, :8, :8], theirs["input_corner"])
    assert_close(img.mean((0, 2, 3)), theirs["input_mean"])


def test_features_proposals_and_head(ours, theirs):
    feature, output = ours["feature"], ours["output"]
    assert feature.shape == tuple(theirs["feature_shape"])
    assert_close([feature.mean(), feature.std()], [theirs["feature_mean"], theirs["feature_std"]])
    assert_close(feature[0, :4, :6, :6], theirs["feature_corner"])
    assert_close(output.rpn.rpn_loc[:90], theirs["rpn_loc_head"])
    assert_close(output.rpn.rpn_score[:90], theirs["rpn_score_head"])
    assert len(output.rpn.roi) == len(theirs["roi"])
    nearest = box_iou(torch.from_numpy(theirs["roi"]), output.rpn.roi).max(1)
    same = (nearest.values > 0.99).numpy()
    assert same.mean() >= 0.98  # rounding decides which of two boxes is suppressed
    assert_close(output.roi_score[nearest.indices][same], theirs["roi_score"][same], 1e-3)
    first = nearest.indices[:20]
    assert_close(output.roi_cls_loc[first].flatten(1)[same[:20]], theirs["roi_cls_loc_first20"][same[:20]], 1e-3)


def test_detections(ours, theirs):
    bbox, label, score = ours["detections"]
    assert len(bbox) == pytest.approx(len(theirs["bbox"]), rel=0.02)
    iou = box_iou(torch.from_numpy(theirs["bbox"]), torch.from_numpy(bbox)).numpy()  # (theirs, ours)
    match = (iou > 0.99) & (theirs["label"][:, None] == label) & (abs(theirs["score"][:, None] - score) < 1e-3)
    assert match.any(1).mean() >= 0.98


def test_losses_and_gradients(model, theirs):
    trainer = FasterRCNNTrainer(
        model, None, AnchorTargetCreator(LARGE, pos_ratio=0.5), ProposalTargetCreator(LARGE, pos_ratio=1)
    )
    img, scale = prepare(model, theirs)
    model.train()
    model.zero_grad(set_to_none=True)
    bbox, label = (torch.from_numpy(theirs[name]) for name in ("gt_bbox_scaled", "gt_label"))
    losses = trainer.forward(img, bbox, label, scale, np.random.default_rng(0))
    for name, ours, wanted in zip(Losses._fields, losses[:5], theirs["losses"], strict=False):
        assert ours.item() == pytest.approx(wanted, rel=2e-3), name
    losses.total.backward()
    names = {"rpn.conv1": "rpn.conv", "head.classifier.0": "head.fc6", "head.classifier.2": "head.fc7"}
    params = dict(model.named_parameters())
    found = {}
    for name, norm in zip(theirs["grad_names"], theirs["grad_norms"], strict=True):
        module, kind = name.rsplit(".", 1)
        grad = params.pop(f"{names.get(module.removeprefix('extractor.'), names.get(module, module))}.{kind}").grad
        found[name] = (grad.norm().item(), norm)
    assert all(param.grad is None for param in params.values())  # the frozen ones
    model.zero_grad(set_to_none=True)
    for name, (ours, wanted) in found.items():
        assert ours == pytest.approx(wanted, rel=2e-2), name
