"""Building the network: which backbone, its options, its weights; each failure in one sentence."""

import os
import sys
import warnings
from http.client import IncompleteRead
from pickle import UnpicklingError
from urllib.error import URLError

import pytest
import torch
import torchvision

import model
from model import WeightsError, vgg16
from model.utils.anchors import generate_anchor_base
from model.utils.preprocess import CAFFE, TORCHVISION, TORCHVISION_CAFFE, Preprocessing
from model.utils.roi_ops import roi_pool
from trainer import FasterRCNNTrainer
from utils.config import TrainConfig

VGG16_Weights = torchvision.models.VGG16_Weights


def build(**options):
    return model.build(n_fg_class=2, head_width=8, generator=torch.Generator().manual_seed(0), **options)


@pytest.fixture
def narrow(monkeypatch):
    """Replace VGG16's thirteen convolutions with two, at 0 and 3."""
    monkeypatch.setattr(vgg16, "LAYERS", (4, "M", 512))


@pytest.fixture
def state(narrow):
    """The state that torchvision's VGG16 would have with such layers."""
    shapes = {
        "features.0.weight": (4, 3, 3, 3),
        "features.0.bias": (4,),
        "features.3.weight": (512, 4, 3, 3),
        "features.3.bias": (512,),
        "classifier.0.weight": (8, 25088),
        "classifier.0.bias": (8,),
        "classifier.3.weight": (8, 8),
        "classifier.3.bias": (8,),
        "classifier.6.weight": (10, 8),
        "classifier.6.bias": (10,),
    }
    generator = torch.Generator().manual_seed(1)
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def same(ours, theirs):
    return all(torch.equal(ours.state_dict()[key], theirs.state_dict()[key]) for key in ours.state_dict())


def frozen(module):
    return [name for name, param in module.named_parameters() if not param.requires_grad]


@pytest.fixture
def siblings(monkeypatch, tmp_path):
    """Files beside vgg16.py: alone.py; family.py, which serves two names; parts.py, which builds nothing."""
    build = "return name, n_fg_class, depth\n"
    texts = {
        "alone": f"TRAINING = {{}}\ndef build(n_fg_class=20, depth=3, name='alone'):\n    {build}",
        "family": f"NAMES = ('tiny18', 'tiny50')\nTRAINING = {{'lr': 0.5, 'depth': 9}}\n"
        f"def build(name, n_fg_class=20, depth=4, frozen=None):\n    {build}"
        "def defaults(name, pretrained):\n    return {'frozen': 0 if pretrained == 'none' else int(name[4:])}\n",
        "parts": "",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setattr(model, "__path__", [*model.__path__, str(tmp_path)])
    yield
    for name in texts:
        sys.modules.pop(f"model.{name}", None)
        vars(model).pop(name, None)


def test_a_backbone_is_a_file_or_one_of_the_names_in_it(siblings):
    found = [model.find_backbone(name).__name__ for name in ("vgg16", "alone", "tiny18", "tiny50")]
    assert found == ["model.vgg16", "model.alone", "model.family", "model.family"]
    assert model.build("alone", n_fg_class=2) == ("alone", 2, 3)  # not passed its name
    assert model.build("tiny50", depth=6) == ("tiny50", 20, 6)


def test_unknown_backbone_is_named_with_the_known_ones(siblings):
    for call in (model.build, model.find_backbone, model.defaults):
        for name in ("vgg61", "family"):  # a file of several names is none itself
            with pytest.raises(
                ValueError, match=rf"'{name}' \(--model\): choose one of .*vgg16, .*alone, tiny18, tiny50$"
            ):
                call(name)


# section 3 of the design: the paper's and py-faster-rcnn's numbers
VGG16_VALUES = {"min_size": 600, "max_size": 1000, "head_width": 4096, "dropout": 0, "frozen_convs": 4}
VGG16_VALUES |= {"anchor_scales": (8, 16, 32), "anchor_ratios": (0.5, 1, 2)}
VGG16_VALUES |= {"rpn_n_sample": 256, "rpn_pos_ratio": 0.5, "rpn_pos_iou": 0.7, "rpn_neg_iou": 0.3}
VGG16_VALUES |= {"rpn_nms_thresh": 0.7, "rpn_min_size": 16, "n_train_pre_nms": 12000, "n_train_post_nms": 2000}
VGG16_VALUES |= {"n_test_pre_nms": 6000, "n_test_post_nms": 300}
VGG16_VALUES |= {"n_sample": 128, "pos_ratio": 0.25, "pos_iou": 0.5, "neg_iou_hi": 0.5, "neg_iou_lo": 0}
VGG16_VALUES |= {"loc_mean": (0, 0, 0, 0), "loc_std": (0.1, 0.1, 0.2, 0.2), "rpn_sigma": 3, "roi_sigma": 1}
VGG16_VALUES |= {"lr": 1e-3, "lr_decay": 0.1, "lr_decay_epoch": (10,), "lr_warmup_steps": 0, "epoch": 14}
VGG16_VALUES |= {"momentum": 0.9, "weight_decay": 5e-4, "bias_lr_mult": 2, "bias_decay": 0, "allowed_border": 0}
VGG16_VALUES |= {"score_thresh": 0.05, "nms_thresh": 0.3, "max_detections": None}


def test_values_of_options_that_vgg16_prefers():
    found = model.defaults()
    assert {name: found[name] for name in VGG16_VALUES} == VGG16_VALUES
    assert model.defaults("vgg16", "none") == found | {"frozen_convs": 0}  # random weights are all trained
    own = {name for name, field in TrainConfig.model_fields.items() if "own" in field.json_schema_extra}
    assert own - found.keys() == {"trainable_layers", "batch_norm", "rpn_score_thresh", "batching"}  # of other models


def test_values_of_options_that_a_sibling_prefers(siblings):
    assert model.defaults("alone") == {"n_fg_class": 20, "depth": 3, "name": "alone"}
    assert model.defaults("tiny18") == {"n_fg_class": 20, "depth": 9, "lr": 0.5, "frozen": 18}
    assert model.defaults("tiny50", "none")["frozen"] == 0


def test_options_reach_their_parts(narrow):
    built = build(
        frozen_convs=1,
        dropout=0.5,
        min_size=32,
        max_size=48,
        anchor_scales=(1, 2),
        anchor_ratios=(3,),
        loc_mean=(1, 2, 3, 4),
        loc_std=(5, 6, 7, 8),
        rpn_nms_thresh=0.6,
        rpn_min_size=9,
    )
    assert frozen(built) == ["extractor.0.weight", "extractor.0.bias"]
    assert built.head.dropout == 0.5
    assert built.head.fc7.weight.shape == (8, 8)
    assert built.head.score.out_features == 3
    assert built.head.cls_loc.out_features == 12
    assert (built.min_size, built.max_size) == (32, 48)
    side = built.rpn.anchor_base[:, 2:] - built.rpn.anchor_base[:, :2]
    torch.testing.assert_close(side, torch.tensor([[16.0], [32]]) * torch.tensor([[3**0.5, 3**-0.5]]))
    assert built.loc_mean.tolist() == [1, 2, 3, 4]
    assert built.loc_std.tolist() == [5, 6, 7, 8]
    creator = built.rpn.proposal_creator
    assert (creator.nms_thresh, creator.min_size, creator.n_test_post_nms) == (0.6, 9, 300)
    assert built.preprocessing == TORCHVISION
    assert not built.extractor[2].ceil_mode
    assert build(ceil_mode=True).extractor[2].ceil_mode
    assert built.head.roi_op is roi_pool
    assert build(roi_op=abs).head.roi_op is abs


def test_default_numbers(narrow):
    built = model.build(head_width=8)
    assert built.head.score.out_features == 21
    assert (built.min_size, built.max_size) == (600, 1000)
    torch.testing.assert_close(built.rpn.anchor_base, torch.from_numpy(generate_anchor_base()))
    assert built.loc_mean.tolist() == [0, 0, 0, 0]
    assert built.loc_std.tolist() == pytest.approx([0.1, 0.1, 0.2, 0.2])
    assert built.head.dropout == 0


def test_full_network(tiny_model):
    convs = [layer for layer in tiny_model.extractor if isinstance(layer, torch.nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert not frozen(tiny_model)  # random weights are all trained
    assert tiny_model.rpn.conv.out_channels == 512


@pytest.mark.parametrize(("capability", "training"), [("AVX2", True), ("AVX2", False), ("AVX512", True)])
def test_memory_format(capability, training, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    extractor = model.build(head_width=8).extractor.train(training)
    feature = extractor(torch.rand(1, 3, 64, 96).contiguous(memory_format=torch.channels_last))
    slow = (capability, training) == ("AVX2", True)
    assert feature.is_contiguous(memory_format=torch.contiguous_format if slow else torch.channels_last)


def test_weights_come_from_the_generator(narrow):
    assert same(build(), build())
    other = torch.Generator().manual_seed(1)
    assert not same(build(), model.build(n_fg_class=2, head_width=8, generator=other))


def test_restore(narrow):
    options = {"name": "vgg16", "n_fg_class": 2, "head_width": 8, "min_size": 32, "loc_mean": (1, 2, 3, 4)}
    trained = model.build(**options)
    stored = Preprocessing((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 255.0, "BGR")
    checkpoint = {"build": options, "preprocessing": tuple(stored), "model": trained.state_dict()}
    restored = model.restore(checkpoint)
    assert same(restored, trained)
    assert restored.min_size == 32
    assert FasterRCNNTrainer(restored, None).proposal_target_creator.loc_mean == [1, 2, 3, 4]
    assert restored.preprocessing == stored
    assert isinstance(restored.preprocessing, Preprocessing)


def test_a_state_fills_extractor_fc6_and_fc7(state):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built = build(pretrained=state)
    for ours, theirs in (
        (built.extractor[0], "features.0"),
        (built.extractor[3], "features.3"),
        (built.head.fc6, "classifier.0"),
        (built.head.fc7, "classifier.3"),
    ):
        assert torch.equal(ours.weight, state[f"{theirs}.weight"])
        assert torch.equal(ours.bias, state[f"{theirs}.bias"])
    assert built.preprocessing == TORCHVISION
    untouched = build()
    assert same(built.rpn, untouched.rpn)
    assert same(built.head.score, untouched.head.score)
    assert same(built.head.cls_loc, untouched.head.cls_loc)


def test_pretrained_weights_freeze_four_convolutions_unless_told(monkeypatch):
    monkeypatch.setattr(vgg16, "LAYERS", (2, 2, 2, 2, 2, 512))
    state = {f"features.{key}": value for key, value in vgg16.VGG16().state_dict().items()}
    for frozen_convs, expected in ((None, 4), (0, 0), (5, 5)):
        with pytest.warns(UserWarning, match="fc6"):
            built = build(pretrained=state, frozen_convs=frozen_convs)
        assert len(frozen(built)) == 2 * expected


def test_classifier_of_nan_means_caffe_features(state):
    state["classifier.3.bias"][2] = torch.nan  # one of them is enough
    with pytest.warns(UserWarning, match="fc6 and fc7.*random"):
        built = build(pretrained=state)
    assert built.preprocessing == TORCHVISION_CAFFE
    assert same(built.head, build().head)
    assert torch.equal(built.extractor[0].weight, state["features.0.weight"])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("classifier.3.weight"),
        lambda state: state.update({"classifier.0.weight": torch.ones(9, 25088)}),
    ],
)
def test_fc6_and_fc7_that_do_not_fit_stay_random(state, spoil):
    spoil(state)
    with pytest.warns(UserWarning, match="fc6 and fc7.*random"):
        built = build(pretrained=state)
    assert built.preprocessing == TORCHVISION
    assert same(built.head, build().head)
    assert torch.equal(built.extractor[0].weight, state["features.0.weight"])


@pytest.mark.parametrize(
    ("preprocessing", "key", "scale"),
    [(None, "classifier.0.bias", 0.1), ("caffe", "classifier.3.weight", 0.1), (None, None, 1), ("caffe", None, 1)],
)
@pytest.mark.filterwarnings("ignore:.*fc6 and fc7")
def test_features_of_caffe_are_scaled_for_a_random_head(state, preprocessing, key, scale):
    """ReLU passes the factor on; weights that bring fc6 and fc7 stay as they are, to the digit."""
    if key:
        state[key].fill_(torch.nan)
    built = build(pretrained=state, preprocessing=preprocessing)
    given = {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
    last = [name for name in given if name.startswith(f"{len(built.extractor) - 2}.")]
    assert len(last) == 2
    for name, value in built.extractor.state_dict().items():
        assert torch.equal(value, given[name] * (scale if name in last else 1)), name


def test_given_preprocessing_replaces_that_of_the_weights(state):
    own = ((1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 255.0, "BGR")
    assert build(pretrained=state, preprocessing=own).preprocessing == Preprocessing(*own)
    assert build(pretrained=state, preprocessing="caffe").preprocessing == CAFFE


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("features.3.bias"),
        lambda state: state.update({"features.0.weight": torch.ones(5, 3, 3, 3)}),
        lambda state: state.clear(),
    ],
)
def test_other_features_are_refused(state, spoil):
    spoil(state)
    with pytest.raises(WeightsError, match=r"are not those of torchvision's VGG16"):
        build(pretrained=state)


def test_unknown_weights_are_named():
    with pytest.raises(WeightsError, match="--pretrained=image is neither a file nor one of imagenet"):
        build(pretrained="image")


@pytest.mark.parametrize(
    ("name", "weights", "preprocessing"),
    [
        ("imagenet", VGG16_Weights.IMAGENET1K_V1, TORCHVISION),
        ("caffe", VGG16_Weights.IMAGENET1K_FEATURES, TORCHVISION_CAFFE),
    ],
)
def test_names_of_torchvisions_weights(monkeypatch, state, name, weights, preprocessing):
    if name == "caffe":
        state["classifier.0.weight"][:] = torch.nan
    asked = []

    def get_state_dict(self, progress, check_hash, weights_only):
        asked.append((self, check_hash, weights_only))
        return state

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", get_state_dict)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = build(pretrained=name)
    assert asked == [(weights, True, True)]
    assert built.preprocessing == preprocessing
    assert torch.equal(built.extractor[0].bias, state["features.0.bias"])


@pytest.mark.parametrize(
    "error",
    [
        URLError("Network is unreachable"),
        RuntimeError("invalid hash value"),
        IncompleteRead(b"half"),
        EOFError(),
        UnpicklingError("Weights only load failed.\n(1) ..."),
    ],
)
def test_failed_download_is_one_sentence(monkeypatch, narrow, error):
    def get_state_dict(self, **options):
        raise error

    monkeypatch.setattr(VGG16_Weights, "get_state_dict", get_state_dict)
    with pytest.raises(WeightsError) as raised:
        build(pretrained="imagenet")
    message = str(raised.value)
    for part in (
        "--pretrained=imagenet",
        VGG16_Weights.IMAGENET1K_V1.url,
        str(error).split("\n")[0],
        "--pretrained=FILE",
        "--pretrained=none",
    ):
        assert part in message
    assert "\n" not in message


def test_a_file_in_torchs_cache_runs_no_code(monkeypatch, narrow, tmp_path):
    class RunsCode:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trace"),)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save(RunsCode(), cache / VGG16_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1])
    with pytest.raises(WeightsError, match=r"cannot be fetched \(Weights only load failed"):
        build(pretrained="imagenet")
    assert not (tmp_path / "trace").exists()
