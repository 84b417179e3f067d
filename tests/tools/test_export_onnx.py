"""Export to ONNX: the path in torch alone, and the graph, give what `predict` gives."""

import copy
import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.ops import MultiScaleRoIAlign

import model
from model.faster_rcnn import FasterRCNN
from model.utils.preprocess import CAFFE
from tools import export_onnx
from tools.export_onnx import Detector, ExportConfig, LevelRoIAlign, PyramidDetector, difference
from utils.checkpoint import save_checkpoint
from utils.config import OptionError

MISSING = [name for name in export_onnx.PACKAGES if importlib.util.find_spec(name) is None]
SIZES = ((24, 33), (50, 31), (95, 320), (70, 90))  # in the third the longer side decides
MORE_SIZES = ((33, 24), (60, 60), (61, 97), (120, 75), (200, 64), (17, 40))
PYRAMID = {"min_size": 110, "max_size": 160, "n_test_pre_nms": 90, "n_test_post_nms": 60, "score_thresh": 0.2}
BUILD = {"n_fg_class": 3, "head_width": 16, "min_size": 60, "max_size": 96, "anchor_scales": (1, 2, 4)}


@pytest.fixture(scope="module")
def net(tiny_model):
    """A network with many detections of all classes, for inputs in BGR."""
    net = model.build(**BUILD, n_test_pre_nms=150, n_test_post_nms=20, rpn_min_size=7)
    net.load_state_dict(copy.deepcopy(tiny_model.state_dict()))
    net.preprocessing, generator = CAFFE, torch.Generator().manual_seed(1)
    for layer, std in ((net.rpn.score, 0.1), (net.rpn.loc, 0.02), (net.head.score, 2), (net.head.cls_loc, 2)):
        torch.nn.init.normal_(layer.weight, std=std, generator=generator)
    return net


def pyramid(name):
    """Build a detector with a feature pyramid whose norms have the statistics of the images, and many detections."""
    torch.manual_seed(0)
    net = model.build(name, n_fg_class=3, head_width=32, **PYRAMID)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of all images
    with torch.no_grad():
        for size in SIZES:
            net.extractor(net.prepare(image(size))[0])
    for layer, std in ((net.rpn.score, 0.1), (net.rpn.loc, 0.01), (net.head.score, 1), (net.head.cls_loc, 0.2)):
        nn.init.normal_(layer.weight, std=std)
    nn.init.ones_(net.rpn.score.bias)
    return net.eval()


def image(size):
    return np.random.default_rng(size).integers(0, 256, (*size, 3), np.uint8)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"score_thresh": 0.2, "nms_thresh": 0.6, "max_detections": 9}])
@pytest.mark.parametrize("size", SIZES)
def test_the_path_in_torch_gives_what_predict_gives(net, size, options):
    detector = Detector(copy.deepcopy(net), **options)
    bbox, label, score = (values[0] for values in net.predict([image(size)], **options))
    found = [tensor.numpy() for tensor in detector(torch.from_numpy(image(size)))]
    assert len(bbox) == 9 if options else len(bbox) > 9 and len(set(label)) == 3
    np.testing.assert_array_equal(found[1], label)
    np.testing.assert_allclose(found[0], bbox, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(found[2], score, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_path_of_a_pyramid_gives_what_predict_gives():
    net = pyramid("mobilenet_v3_large_320_fpn")
    detector, labels = PyramidDetector(copy.deepcopy(net), max_detections=25), set()
    for size in SIZES:
        bbox, label, score = (values[0] for values in net.predict([image(size)], max_detections=25))
        found = [tensor.numpy() for tensor in detector(torch.from_numpy(image(size)))]
        assert len(bbox) > 5
        labels |= {*label}
        np.testing.assert_array_equal(found[1], label)
        np.testing.assert_allclose(found[0], bbox, rtol=1e-4, atol=1e-3)
        np.testing.assert_allclose(found[2], score, rtol=1e-4, atol=1e-5)
    assert len(labels) > 1


def test_rois_go_to_the_levels_of_torchvision():
    rng = np.random.default_rng(0)
    side = np.concatenate([rng.uniform(1, 600, 200), [112, 224, 448, 896]])  # 2 ** k * 56: to the coarser level
    roi = torch.tensor(np.stack([side / 9, side / 7, side / 9 + side, side / 7 + side], 1), dtype=torch.float32)
    for stride, n_level in ((4, 4), (32, 2)):
        levels = {str(i): torch.rand(1, 3, *2 * [1024 // min(stride * 2**i, 32)]) for i in range(n_level)}
        theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, sampling_ratio=2)
        found = LevelRoIAlign(stride)(levels, [roi], None)
        torch.testing.assert_close(found, theirs(levels, [roi], [(1024, 1024)]))


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "resized"),
    [((24, 33), [60, 82]), ((95, 320), [28, 96])],  # 33 * 60 / 24 = 82.5; 95 * 96 / 320 = 28.5, in float64 alone
)
def test_a_half_is_rounded_as_in_the_resize(net, size, resized):
    x, scale = net.prepare(image(size))
    found, found_scale, found_size = Detector(copy.deepcopy(net)).prepare(torch.from_numpy(image(size)))
    assert list(x.shape[2:]) == found_size == resized
    assert found_scale.item() == scale
    torch.testing.assert_close(found, x)


def test_difference_by_hand():
    bbox, label, score = (
        np.array([[0, 0, 10, 10], [0, 20, 10, 30]], np.float32),
        np.array([0, 1]),
        np.array([0.5, 0.25]),
    )
    other = np.array([[0, 20, 10, 29], [0, 0, 10, 10], [0, 0, 10, 10]], np.float32)
    words = difference((bbox, label, score), (other, np.array([1, 1, 0]), np.array([0.5, 0.9, 0.625])))
    assert words == "2 and 3 detections, IoU at least 0.9000, scores within 2.5e-01"
    assert difference((bbox[:0], label[:0], score[:0]), (other, label, score)) == "0 and 3 detections"


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(export_onnx, "PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(OptionError, match="the export needs no_such_package: pip install numpy no_such_package"):
        export_onnx.main(ExportConfig(load_path="a.pth"))


def test_a_network_that_decodes_in_its_own_way_is_refused(monkeypatch):
    own = type("Own", (FasterRCNN,), {})
    monkeypatch.setattr(export_onnx, "PACKAGES", ("numpy",))
    monkeypatch.setattr(export_onnx.ckpt, "open_checkpoint", lambda path: {"build": {"name": "new"}})
    monkeypatch.setattr(model, "restore", lambda checkpoint: own.__new__(own))
    with pytest.raises(OptionError, match=r"a\.pth: new prepares or decodes in its own way, which is not exported yet"):
        export_onnx.main(ExportConfig(load_path="a.pth"))


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
@pytest.mark.parametrize("name", ["vgg16", "mobilenet_v3_large_320_fpn"])
def test_the_graph_gives_what_predict_gives(net, name, tmp_path, capsys):
    sizes = SIZES + MORE_SIZES
    paths = [str(tmp_path / f"{height}x{width}.png") for height, width in sizes]
    for path, size in zip(paths, sizes, strict=True):
        Image.fromarray(image(size)).save(path)
    build = BUILD | {"name": name, "n_test_pre_nms": 150, "n_test_post_nms": 20, "rpn_min_size": 7}
    if name != "vgg16":
        net, build = pyramid(name), PYRAMID | {"name": name, "n_fg_class": 3, "head_width": 32}
    state = {"model": net.state_dict(), "build": build, "class_names": ["a", "b", "c"], "config": {}, "epoch": 0}
    save_checkpoint(tmp_path / "a.pth", state | {"preprocessing": tuple(net.preprocessing), "step": 1})
    export_onnx.main(ExportConfig(load_path=str(tmp_path / "a.pth"), out=str(tmp_path / "a.onnx")), *paths)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].endswith("a.onnx: img (H, W, 3) uint8 RGB -> bbox, label, score; labels: 0 a, 1 b, 2 c")
    for path, line in zip(paths, lines[2:-1], strict=True):
        name, counts, iou, score = line.replace(": ", ", ").split(", ")
        ours, theirs = counts.removesuffix(" detections").split(" and ")
        assert name == path
        assert ours == theirs
        assert float(iou.split()[-1]) > 0.99
        assert float(score.split()[-1]) < 1e-3
