"""Weights of other programs: each layout is recognised and comes out under our names, with the same detections."""

import numpy as np
import pytest
import torch

from model import build, restore
from utils.checkpoint import CheckpointError, load_backbone, load_checkpoint, open_checkpoint
from utils.convert_weights import convert_backbone, convert_detector

# by index in torchvision's list of layers: name in VGG16's paper, output channels
CONVS = {
    0: ("conv1_1", 64),
    2: ("conv1_2", 64),
    5: ("conv2_1", 128),
    7: ("conv2_2", 128),
    10: ("conv3_1", 256),
    12: ("conv3_2", 256),
    14: ("conv3_3", 256),
    17: ("conv4_1", 512),
    19: ("conv4_2", 512),
    21: ("conv4_3", 512),
    24: ("conv5_1", 512),
    26: ("conv5_2", 512),
    28: ("conv5_3", 512),
}
N_CLASS, WIDTH = 4, 6  # with the background; of fc6 and fc7
BUILD = {
    "name": "vgg16",
    "n_fg_class": 3,
    "head_width": WIDTH,
    "anchor_scales": (8, 16, 32),
    "anchor_ratios": (0.5, 1, 2),
    "min_size": 600,
    "max_size": 1000,
}


def tensors(part, **shapes):
    """VGG16's convolutions and modules of other shapes; each tensor holds one number and takes no more memory."""
    channels, all_shapes = 3, {}
    for index, (_, out) in CONVS.items():
        all_shapes[f"{part}.{index}"], channels = (out, channels, 3, 3), out
    all_shapes |= {name.replace("__", "."): shape for name, shape in shapes.items()}
    kinds = (("weight", 4), ("bias", 1))  # with dimensions
    names = [(f"{name}.{kind}", shape[:n]) for name, shape in all_shapes.items() for kind, n in kinds]
    return {name: torch.tensor(float(i)).expand(shape) for i, (name, shape) in enumerate(names, 1)}


@pytest.fixture
def ours():
    """A detector with three classes and a narrow head, under our names."""
    head = {"head__fc6": (WIDTH, 25088), "head__fc7": (WIDTH, WIDTH)}
    head |= {"head__cls_loc": (4 * N_CLASS, WIDTH), "head__score": (N_CLASS, WIDTH)}
    rpn = {"rpn__conv": (512, 512, 3, 3), "rpn__score": (18, 512, 1, 1), "rpn__loc": (36, 512, 1, 1)}
    return tensors("extractor", **rpn, **head)


@pytest.fixture
def vgg16():
    """A classifier, under torchvision's names."""
    return tensors("features", classifier__0=(4096, 25088), classifier__3=(4096, 4096), classifier__6=(1000, 4096))


def rename(state, names):
    """Rename modules: `names` is old name -> new name."""
    modules = {key: key.rpartition(".") for key in state}
    return {f"{names.get(module, module)}.{kind}": state[key] for key, (module, _, kind) in modules.items()}


def simple(ours, dropout=False):
    fc7 = "head.classifier.3" if dropout else "head.classifier.2"
    return rename(ours, {"rpn.conv": "rpn.conv1", "head.fc6": "head.classifier.0", "head.fc7": fc7})


def chainer(state):
    """Slashes for dots, W and b for weight and bias."""
    kinds = {"weight": "W", "bias": "b"}
    parts = {key: key.split(".") for key in state}
    return {"/".join([*part[:-1], kinds[part[-1]]]): state[key] for key, part in parts.items()}


def chainercv(ours):
    names = {f"extractor.{index}": f"extractor.{name}.conv" for index, (name, _) in CONVS.items()}
    return chainer(rename(ours, names | {"rpn.conv": "rpn.conv1"}))


def caffe(vgg16, suffix=""):
    names = {f"features.{index}": name + suffix for index, (name, _) in CONVS.items()}
    return rename(vgg16, names | {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"})


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


# Detectors


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state, "other_info": {}},
        lambda state: {"model": {f"module.{name}": value for name, value in state.items()}},
    ],
)
def test_simple_faster_rcnn_pytorch(ours, wrap, dropout):
    checkpoint = convert_detector(wrap(simple(ours, dropout)))
    assert_same(checkpoint.pop("model"), ours)
    assert checkpoint == {
        "build": BUILD,
        "class_names": [],
        "preprocessing": None,
        "config": {},
        "epoch": None,
        "step": None,
        "layout": "simple-faster-rcnn-pytorch",
    }


@pytest.mark.parametrize(
    ("options", "preprocessing"),
    [({"caffe_pretrain": True}, "caffe-rgb-mean"), ({"caffe_pretrain": False}, "torchvision"), ({"lr": 1}, None)],
)
def test_preprocessing_comes_from_the_options_in_the_file(ours, options, preprocessing):
    assert convert_detector({"model": simple(ours), "config": options})["preprocessing"] == preprocessing


def test_image_sizes_come_from_the_options_in_the_file(ours):
    checkpoint = convert_detector({"model": simple(ours), "config": {"min_size": 300, "max_size": None}})
    assert checkpoint["build"] == BUILD | {"min_size": 300}


def test_chainercv(ours):
    checkpoint = convert_detector(chainercv(ours))
    assert {"extractor/conv1_1/conv/W", "rpn/conv1/b", "head/cls_loc/W"} < chainercv(ours).keys()
    assert_same(checkpoint["model"], ours)
    assert (checkpoint["layout"], checkpoint["preprocessing"]) == ("chainercv", "chainercv")
    assert checkpoint["build"] == BUILD | {"ceil_mode": True}


@pytest.mark.parametrize("state", [{}, {"state_dict": {"a": 1}}, {"model": {}}, {"layer1.0.conv1.weight": 1}])
def test_unknown_detector(state):
    with pytest.raises(ValueError, match=r"^it holds .*, neither 'format' .*'rpn\.conv1\.weight', 'rpn/conv1/W'"):
        convert_detector(state)


@pytest.mark.parametrize("key", ["model", "state_dict", None])
def test_weights_of_this_library_alone_say_too_little(ours, key):
    with pytest.raises(ValueError, match=r"weights of this library alone: name last\.pth or best\.pth"):
        convert_detector({key: ours} if key else ours)


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state_dict"])
def test_weights_among_other_things(ours, vgg16, key):
    beside = {"epoch": 3, "optimizer": {"state": {}}}
    assert_same(convert_detector(beside | {key: simple(ours)})["model"], ours)
    prefixed = {f"module.{name}": value for name, value in vgg16.items()}
    assert_same(convert_backbone(beside | {key: prefixed})["model"], convert_backbone(vgg16)["model"])


def test_a_classifier_is_no_detector(vgg16):
    with pytest.raises(ValueError, match="a VGG16 classifier in the layout of torchvision: give it as --pretrained"):
        convert_detector(vgg16)


# Classifiers


@pytest.mark.parametrize(
    ("layout", "program", "preprocessing"),
    [
        (lambda vgg16: vgg16, "torchvision", None),
        (caffe, "Caffe", "caffe"),
        (lambda vgg16: chainer(caffe(vgg16)), "Caffe, through Chainer", "caffe"),
        (lambda vgg16: chainer(caffe(vgg16, ".conv")), "chainercv", "chainercv"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_vgg16(vgg16, layout, program, preprocessing, whole):
    given = {name: value for name, value in vgg16.items() if whole or name.startswith("features.")}
    fc8 = "classifier.6" if program == "torchvision" else "fc8"
    backbone = convert_backbone(layout(given))
    assert_same(backbone["model"], rename(given, {"classifier.6": fc8}))  # the backbone leaves it out
    assert (backbone["layout"], backbone["preprocessing"]) == (program, preprocessing)


def test_a_detector_is_no_classifier(ours):
    for state in (simple(ours), {"model": simple(ours)}, chainercv(ours), {"format": 1, "model": ours}):
        with pytest.raises(ValueError, match="it is a whole detector: give it as --load-path"):
            convert_backbone(state)


def test_the_weights_of_other_backbones_stay_as_they_are():
    state = {"conv1.W": torch.ones(1), "fc/b": torch.zeros(2), "pos.model.embed": torch.ones(3)}
    prefixed = (
        {f"{prefix}{name}": value for name, value in state.items()} for prefix in ("module.", "model._orig_mod.")
    )
    for wrapped in (state, *({"model": tensors, "epoch": 3} for tensors in prefixed)):
        backbone = convert_backbone(wrapped)
        assert_same(backbone["model"], state)
        assert (backbone["layout"], backbone["preprocessing"]) == ("the backbone's", None)


# Files


def write_old(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


def write_npz(state, path):
    np.savez(path, **{name: value.numpy() for name, value in state.items()})


@pytest.mark.parametrize("write", [torch.save, write_old, write_npz])
def test_file_formats(tmp_path, write):
    state = {"conv1_1.weight": torch.arange(6.0).reshape(2, 3), "conv1_1.bias": torch.tensor([0.5, 7])}  # (2, 3)
    path = tmp_path / ("a.npz" if write is write_npz else "a.pth")
    write(state, path)
    assert_same(load_backbone(path)["model"], rename(state, {"conv1_1": "features.0"}))


@pytest.mark.parametrize("module", [b"numpy._core.multiarray", b"numpy.core.multiarray"])  # NumPy 2 and 1
def test_numpy_numbers_beside_the_weights(tmp_path, ours, module):
    path = tmp_path / "a.pth"
    write_old({"model": simple(ours), "best_map": np.float64(0.7053), "n": np.int64(-3), "x": np.float32(0.25)}, path)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.multiarray", module))
    checkpoint = load_checkpoint(path)
    assert_same(checkpoint["model"], ours)


def test_errors_name_the_file(tmp_path, ours):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"a\.pth cannot be used: it holds 'a', "):
        load_checkpoint(path)
    torch.save(simple({name: value for name, value in ours.items() if name != "head.score.bias"}), path)
    with pytest.raises(CheckpointError, match=r"a\.pth cannot be used: 'head\.score\.bias' is missing$"):
        load_checkpoint(path)
    torch.save(simple(ours), path)
    with pytest.raises(CheckpointError, match=r"a\.pth has no optimizer and rng: start from it with --load-path"):
        load_checkpoint(path, resume=True)
    with pytest.raises(CheckpointError, match=r"a\.pth cannot be used: it is a whole detector: give it as --load-path"):
        load_backbone(path)


# The same network


@pytest.fixture
def network(tiny_model):
    """A network with those programs' anchors, on small images."""
    network = build(n_fg_class=3, head_width=16, min_size=96, max_size=160)
    network.load_state_dict(tiny_model.state_dict())
    return network


def restore_small(checkpoint):
    assert (checkpoint["build"]["min_size"], checkpoint["build"]["max_size"]) == (600, 1000)  # would take long
    return restore(checkpoint | {"build": checkpoint["build"] | {"min_size": 96, "max_size": 160}})


def assert_predicts_the_same(ours, theirs):
    img = np.random.default_rng(0).integers(0, 256, (30, 45, 3), np.uint8)
    expected, found = (network.predict([img], score_thresh=0.01, nms_thresh=0.9) for network in (ours, theirs))
    assert len(expected[0][0]) > 10
    for part, expected_part in zip(found, expected, strict=True):
        np.testing.assert_allclose(part[0], expected_part[0], rtol=1e-5, atol=1e-5)


def test_simple_faster_rcnn_pytorch_predicts_the_same(tmp_path, network, capsys):
    path = tmp_path / "simple.pth"
    torch.save({"model": simple(network.state_dict())}, path)
    assert_predicts_the_same(network, restore_small(open_checkpoint(path)))
    assert capsys.readouterr().out == (
        f"{path}: a detector of simple-faster-rcnn-pytorch, 3 classes, preprocessing torchvision, assumed (the other "
        "is --preprocess=caffe-rgb-mean)\n"
    )
    theirs = restore_small(open_checkpoint(path, "caffe-rgb-mean"))
    assert theirs.preprocessing == ((102.9801, 115.9465, 122.7717), (1, 1, 1), 255, "BGR")  # red minus blue's mean
    assert "preprocessing caffe-rgb-mean, from --preprocess" in capsys.readouterr().out


def test_chainercv_predicts_the_same(tmp_path, network, capsys):
    path = tmp_path / "chainercv.npz"
    write_npz(chainercv(network.state_dict()), path)
    theirs = restore_small(open_checkpoint(path))
    assert theirs.extractor(torch.zeros(1, 3, 33, 48)).shape[2:] == (3, 3)  # 33, 17, 9, 5, 3
    assert network.extractor(torch.zeros(1, 3, 33, 48)).shape[2:] == (2, 3)
    assert theirs.preprocessing == ((122.7717, 115.9465, 102.9801), (1, 1, 1), 255, "RGB")
    network.preprocessing = theirs.preprocessing
    assert_predicts_the_same(network, theirs)
    out = capsys.readouterr().out
    assert out == f"{path}: a detector of chainercv, 3 classes, preprocessing chainercv, as its file says\n"
