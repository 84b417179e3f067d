"""ResNet C4 against torchvision's layers, composed by hand; its weights, what it freezes, and a training."""

import json

import fixtures
import pytest
import torch
import torchvision
from stress_resume import same
from torch import nn
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d, roi_align

import eval as evaluation
import model
import predict
import train
import training
from model import WeightsError, resnet_c4
from model.utils.preprocess import CAFFE, TORCHVISION
from utils.checkpoint import CheckpointError, load_checkpoint
from utils.command import parse_options
from utils.config import EvalConfig, OptionError, PredictConfig, TrainConfig
from utils.run_folder import stored_options

SMALL = {"n_fg_class": 2, "min_size": 64, "max_size": 96, "anchor_scales": (1, 2)}


class Narrow(Bottleneck):
    """A block whose output has a fourth of the channels."""

    expansion = 1


def narrow_resnet(name="resnet50", weights=None, norm_layer=nn.BatchNorm2d):
    """A ResNet with one block per stage and few channels: 256 after layer3, 512 after layer4."""
    return ResNet(Narrow, [1, 1, 1, 1], width_per_group=4, norm_layer=norm_layer)


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(resnet_c4, "get_model", narrow_resnet)
    monkeypatch.setattr(resnet_c4, "CHANNELS", 256)
    monkeypatch.setattr(resnet_c4, "POOLED", 512)


@pytest.fixture(scope="module")
def classifier():
    """A narrow ResNet, in evaluation mode, whose batch norms do something."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        resnet = narrow_resnet().eval()
        for layer in resnet.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for tensor in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var):
                    tensor.uniform_(0.5, 1.5)
    return resnet


def frozen(net):
    """The modules with parameters that are not trained, without the numbers of blocks."""
    names = [name for name, param in net.named_parameters() if not param.requires_grad]
    return {".".join(name.split(".")[:2]) for name in names}


@torch.no_grad()
@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
def test_forward_is_that_of_torchvisions_layers(narrow, classifier, batch_norm):
    net = model.build("resnet50", pretrained=classifier.state_dict(), batch_norm=batch_norm, **SMALL).eval()
    x = torch.randn(1, 3, 64, 112, generator=torch.Generator().manual_seed(2))
    c = classifier
    feature = c.layer3(c.layer2(c.layer1(c.maxpool(c.relu(c.bn1(c.conv1(x)))))))
    torch.testing.assert_close(net.extractor(x), feature)
    yx = torch.tensor([[5.0, 30, 40, 90], [0, 0, 64, 112], [20, 3, 60, 17]])
    xy = torch.tensor([[0.0, 30, 5, 90, 40], [0, 0, 0, 112, 64], [0, 3, 20, 17, 60]])
    hidden = c.avgpool(c.layer4(roi_align(feature, xy, (14, 14), 1 / 16, 2))).flatten(1)
    cls_loc, score = net.head(feature, yx)
    torch.testing.assert_close(score, net.head.score(hidden))
    torch.testing.assert_close(cls_loc[:, 2], net.head.cls_loc(hidden)[:, 8:12])  # background is class 0
    assert [tensor.shape for tensor in net.head(feature, torch.zeros(0, 4))] == [(0, 3, 4), (0, 3)]


def test_roi_align_by_hand(narrow):
    head, seen = model.build("resnet50", **SMALL).head, []
    head.layer4.register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing="ij")
    feature = torch.zeros(1, 256, 5, 7)
    feature[0, 3] = 100 * y + x  # cell (y, x) is centred on pixel (16 y, 16 x)
    head.eval()(feature, torch.tensor([[16.0, 32, 72, 88]]))  # 56 x 56 pixels: bins of 4, the first centred on 18, 34
    assert seen[0].shape == (1, 256, 14, 14)
    assert seen[0][0, 3, 0, 0].item() == pytest.approx(100 * 18 / 16 + 34 / 16)
    assert seen[0][0, 3, 2, 5].item() == pytest.approx(100 * 26 / 16 + 54 / 16)
    assert not seen[0][0, 2].any()


@pytest.mark.parametrize(
    ("name", "n_block", "n_param"), [("resnet50", [3, 4, 6, 3], 23.5e6), ("resnet101", [3, 4, 23, 3], 42.5e6)]
)
def test_names(name, n_block, n_param):
    with torch.device("meta"):
        net = model.build(name)
        feature = net.extractor(torch.zeros(1, 3, 64, 112))
    assert feature.shape == (1, 1024, 4, 7) == (1, net.extractor.channels, 64 // net.extractor.stride, 7)
    assert [len(net.extractor.get_submodule(f"layer{i}")) for i in (1, 2, 3)] + [len(net.head.layer4)] == n_block
    own = [p for name, p in net.named_parameters() if not name.startswith(("rpn", "head.cls_loc", "head.score"))]
    assert sum(param.numel() for param in own) == pytest.approx(n_param, rel=1e-2)  # He et al., without the classifier
    assert net.rpn.conv.weight.shape == (1024, 1024, 3, 3)
    assert net.head.cls_loc.out_features == 84


FIRST = {"extractor.conv1", "extractor.bn1", "extractor.layer1"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, set()),
        ({"trainable_layers": 4}, FIRST - {"extractor.layer1"}),
        ({"trainable_layers": 3}, FIRST),
        ({"trainable_layers": 0}, FIRST | {"extractor.layer2", "extractor.layer3", "head.layer4"}),
    ],
)
def test_frozen_stages(narrow, options, expected):
    assert frozen(model.build("resnet50", **SMALL, **options)) == expected


def test_pretrained_weights_freeze_two_stages_and_batch_norm(narrow, classifier):
    net = model.build("resnet50", pretrained=classifier.state_dict(), **SMALL)
    assert frozen(net) == {"extractor.conv1", "extractor.layer1"}
    norms = {type(layer) for layer in net.modules() if "BatchNorm" in type(layer).__name__}
    assert norms == {FrozenBatchNorm2d}
    assert net.preprocessing == TORCHVISION
    assert model.build("resnet50", preprocessing="caffe", **SMALL).preprocessing == CAFFE
    assert model.defaults("resnet50", "imagenet").items() > {"trainable_layers": 3, "batch_norm": "frozen"}.items()
    assert model.defaults("resnet101", "none").items() > {"trainable_layers": 5, "batch_norm": "trained"}.items()
    with pytest.raises(OptionError, match="--frozen-convs: --model=resnet50 has no such option"):
        parse_options(TrainConfig, {"model": "resnet50", "frozen_convs": "1"}, None, model.defaults)


@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
def test_a_state_without_counts_of_batches_and_classifier_is_enough(narrow, classifier, batch_norm):
    state = {name: value for name, value in classifier.state_dict().items() if "num_batches" not in name}
    state = {name: value for name, value in state.items() if not name.startswith("fc.")}
    net = model.build("resnet50", pretrained=state, batch_norm=batch_norm, **SMALL)
    assert torch.equal(net.head.layer4[0].bn2.running_var, state["layer4.0.bn2.running_var"])


@pytest.mark.parametrize("change", [{"layer2.0.conv1.weight": torch.ones(3)}, {"layer5.weight": torch.ones(3)}])
def test_other_weights_are_refused(narrow, classifier, change):
    with pytest.raises(WeightsError, match=r"\['conv1.weight', .* are not those of torchvision's resnet101"):
        model.build("resnet101", pretrained=classifier.state_dict() | change, **SMALL)


def test_names_of_weights(narrow, classifier, monkeypatch):
    asked = []
    weights = torchvision.models.ResNet101_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **_: asked.append(self) or classifier.state_dict())
    net = model.build("resnet101", pretrained="imagenet", **SMALL)
    assert asked == [weights.IMAGENET1K_V1]
    assert torch.equal(net.extractor.conv1.weight, classifier.conv1.weight)
    with pytest.raises(WeightsError, match="--pretrained=caffe is neither a file nor one of imagenet and none"):
        model.build("resnet101", pretrained="caffe", **SMALL)


@pytest.mark.parametrize(("name", "pretrained"), [("resnet50", "none"), ("resnet101", "resnet.pth")])
def test_training_resumes_bit_for_bit_evaluates_and_predicts(place, narrow, classifier, capsys, name, pretrained):
    torch.save(classifier.state_dict(), "resnet.pth")

    def run(**options):
        stored = stored_options(options)
        texts = options if stored else fixtures.OPTIONS | {"model": name, "pretrained": pretrained} | options
        texts = {name: text for name, text in texts.items() if name not in ("head_width", "dropout")}
        train.main(parse_options(TrainConfig, texts, stored, model.defaults))
        return load_checkpoint(f"runs/{options['env']}/last.pth")

    calm = run(env=f"calm-{pretrained}", max_steps="4")
    run(env=f"halves-{pretrained}", max_steps="2")
    (place / "resnet.pth").unlink()
    halves = run(env=f"halves-{pretrained}", max_steps="4", resume="True")
    for key in ("model", "optimizer", "rng", "build"):
        assert same(calm[key], halves[key]), key
    norm = {"none": "trained", "resnet.pth": "frozen"}[pretrained]
    assert calm["build"]["batch_norm"] == norm
    if norm == "trained":
        assert not torch.equal(calm["model"]["extractor.bn1.running_var"], torch.ones(64))
    else:
        assert torch.equal(calm["model"]["extractor.bn1.weight"], classifier.bn1.weight)
        assert "resnet.pth: the backbone's layout, preprocessing torchvision\n" in capsys.readouterr().out
    texts = {"load_path": f"runs/calm-{pretrained}/last.pth", "device": "cpu"}
    evaluation.main(parse_options(EvalConfig, texts | {"json": "eval.json"}))
    assert json.loads((place / "eval.json").read_text())["n_object"].keys() == {"bar", "box"}
    predict.main(parse_options(PredictConfig, texts | {"score_thresh": "0", "out": "found"}), "voc/JPEGImages")
    found = json.loads((place / "found/predictions.json").read_text())
    assert {entry["name"] for entry in found} == {"bar", "box"}


def test_a_file_of_another_network_is_named(narrow, tmp_path):
    path = tmp_path / "vgg16.pth"
    torch.save({"features.0.weight": torch.ones(64, 3, 3, 3), "features.0.bias": torch.ones(64)}, path)
    config = parse_options(TrainConfig, {"model": "resnet50", "pretrained": str(path)}, None, model.defaults)
    words = r"vgg16\.pth cannot be used: the weights \['features.* not those of torchvision's resnet50"
    with pytest.raises(CheckpointError, match=words):
        training.build_model(config, ("ant",))
