"""The small decisions of train.py: learning rate, order of the images, one epoch, where the weights come from."""

import numpy as np
import pytest
import torch
from PIL import Image

import train
from data.voc import Sample
from model.utils.preprocess import BY_NAME, CAFFE, TORCHVISION
from train import Run, batches, learning_rate, open_model, train_epoch
from trainer import Losses
from utils.checkpoint import CheckpointError, load_weights, save_checkpoint
from utils.config import OptionError, TrainConfig
from utils.faults import Guard
from utils.meter import Meter

# Learning rate


def rates(config, at):
    """Rates at (step, epoch) pairs, in units of the first."""
    return [learning_rate(config, step, epoch) / config.lr for step, epoch in at]


def test_rate_decays_after_ten_epochs():
    config = TrainConfig(lr=3e-3)
    assert learning_rate(config, 0, 0) == 3e-3
    assert rates(config, [(10**6, 9), (0, 10), (0, 13)]) == pytest.approx([1, 0.1, 0.1])


def test_rate_decays_after_several_epochs():
    config = TrainConfig(lr=2.0, lr_decay=0.5, lr_decay_epoch=(3, 1))
    assert rates(config, [(0, 0), (0, 1), (0, 2), (0, 3)]) == pytest.approx([1, 0.5, 0.5, 0.25])


def test_rate_never_decays_where_nothing_says_when():
    assert rates(TrainConfig(lr_decay_epoch=()), [(10**6, 99)]) == [1]


def test_steps_replace_epochs():
    config = TrainConfig(lr_decay_step=(900, 1000))
    assert rates(config, [(899, 50), (900, 0), (999, 0), (1000, 0)]) == pytest.approx([1, 0.1, 0.1, 0.01])


# The data


def test_difficult_objects_are_trained_on_when_asked_and_evaluated_always(tmp_path):
    thing = "<object><name>cat</name><difficult>{}</difficult><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>9</xmax>" \
            "<ymax>7</ymax></bndbox></object>"
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (tmp_path / folder).mkdir(parents=True)
    for split in ("trainval", "test"):
        (tmp_path / f"ImageSets/Main/{split}.txt").write_text("a\n")
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>{thing.format(0)}{thing.format(1)}</annotation>")
    Image.new("RGB", (20, 10)).save(tmp_path / "JPEGImages/a.jpg")
    for options, n_train in (({}, 1), ({"use_difficult": True}, 2)):
        splits = train.open_data(TrainConfig(voc_data_dir=str(tmp_path), **options))
        assert [len(split.objects()[0][0]) for split in splits] == [n_train, 2]


# The network


@pytest.mark.filterwarnings("ignore:.* start random")
def test_frozen_convolutions(tmp_path):
    def frozen(**options):
        model = open_model(TrainConfig(head_width=8, **options), ("cat", "dog"))
        return [param.requires_grad for param in model.extractor.parameters()].count(False) / 2

    state = open_model(TrainConfig(head_width=8, pretrained="none"), ("cat", "dog")).extractor.state_dict()
    path = str(tmp_path / "vgg16.pth")
    torch.save({f"features.{name}": value for name, value in state.items()}, path)
    assert frozen(pretrained="none") == 0
    assert frozen(pretrained=path) == 4
    assert frozen(pretrained=path, resume=True) == 4  # else the optimizer's state would not fit
    assert frozen(pretrained=path, resume=True, load_path="no longer there") == 4
    assert frozen(pretrained=path, frozen_convs=2) == 2


def test_weights_that_do_not_fit_are_one_line():
    model = torch.nn.Linear(2, 3)
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, {"model": torch.nn.Linear(4, 3).state_dict()}, "a.pth")
    assert str(caught.value).startswith("a.pth does not fit the options (classes, anchors, head width): size mismatch")
    assert "\n" not in str(caught.value)


# Weights from elsewhere


@pytest.fixture(scope="module")
def ours(tmp_path_factory, tiny_model):
    """A checkpoint of this library with the classes ant, bee, cow."""
    path = tmp_path_factory.mktemp("weights") / "ours.pth"
    save_checkpoint(path, {
        "model": tiny_model.state_dict(), "build": {
            "name": "vgg16", "n_fg_class": 3, "head_width": 16, "anchor_scales": (1, 2, 4), "min_size": 64,
            "max_size": 96},
        "class_names": ["ant", "bee", "cow"], "preprocessing": tuple(CAFFE), "config": {}, "epoch": 0, "step": 5})
    return str(path)


def test_what_weights_were_trained_with_is_told(ours, capsys):
    config = narrow(load_path=ours, anchor_scales=(2, 4, 8), max_size=96)
    open_model(config, ("ant", "bee", "cow"))
    assert capsys.readouterr().out.splitlines()[1:] == [
        "note: these weights were trained with --anchor-scales=1,2,4, now it is 2,4,8",
        "note: these weights were trained with --min-size=64, now it is 600"]
    with pytest.raises(CheckpointError, match=r"ours\.pth has fc6 and fc7 of width 16, not 8: --head-width=16"):
        open_model(TrainConfig(load_path=ours, head_width=8, device="cpu"), ("ant", "bee", "cow"))


def narrow(**options):
    return TrainConfig(head_width=16, seed=3, device="cpu", **options)


def test_training_starts_from_a_checkpoint(ours, tiny_model, capsys):
    model = open_model(narrow(load_path=ours, anchor_scales=(1, 2, 4), min_size=64, max_size=96), ("ant", "bee", "cow"))
    assert model.preprocessing == CAFFE
    for name, value in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert capsys.readouterr().out == f"{ours}: a checkpoint of this library, step 5\n"  # and nothing differs


@pytest.mark.parametrize("classes", [("ant", "bee"), ("ant", "cow", "bee"), ("ant", "bee", "hen")])
def test_other_classes_are_refused_unless_the_head_starts_anew(ours, tiny_model, classes):
    with pytest.raises(CheckpointError) as caught:
        open_model(narrow(load_path=ours), classes)
    assert str(caught.value).startswith(f"{ours} knows 3 classes (ant, bee, cow), the data have {len(classes)} "
                                        f"({', '.join(classes)}): --reset-head ")
    model = open_model(narrow(load_path=ours, reset_head=True), classes)
    untrained = open_model(narrow(pretrained="none"), classes).state_dict()
    for name, value in model.state_dict().items():
        anew = name.split(".")[1] in ("cls_loc", "score") and name.startswith("head")
        source = untrained if anew else tiny_model.state_dict()
        assert torch.equal(value, source[name]), name
    assert model.preprocessing == CAFFE


def test_a_head_can_be_reset_only_where_there_is_one():
    with pytest.raises(OptionError, match="--reset-head starts the last layers of a detector anew: name it with"):
        open_model(narrow(pretrained="none", reset_head=True), ("ant",))


def test_a_checkpoint_says_itself_what_it_wants(ours):
    with pytest.raises(OptionError, match=r"--preprocess=caffe: .*ours\.pth says itself what its weights want"):
        open_model(narrow(load_path=ours, preprocess="caffe"), ("ant", "bee", "cow"))


@pytest.mark.parametrize(("separator", "options", "preprocessing"), [
    (".", {}, TORCHVISION), (".", {"preprocess": "caffe"}, CAFFE), ("_", {}, CAFFE),
    ("_", {"preprocess": "torchvision"}, TORCHVISION)])
def test_a_bare_vgg16(tmp_path, tiny_model, capsys, separator, options, preprocessing):
    state = {f"features.{name}": value for name, value in tiny_model.extractor.state_dict().items()}
    program = "torchvision"
    if separator == "_":  # Caffe's names: conv1_1 ... conv5_3
        convs = [f"conv{b}_{i}" for b in range(1, 6) for i in range(1, 3 + (b > 2))]
        names = [f"{conv}.{kind}" for conv in convs for kind in ("weight", "bias")]
        state, program = dict(zip(names, state.values(), strict=True)), "Caffe"
    path = tmp_path / "vgg16.pth"
    torch.save(state, path)
    with pytest.warns(UserWarning, match="have no fc6 and fc7 that fit: they start random"):
        model = open_model(narrow(pretrained=str(path), **options), ("ant",))
    assert model.preprocessing == preprocessing
    assert torch.equal(model.extractor[28].weight, tiny_model.extractor[28].weight)
    name = {v: k for k, v in BY_NAME.items()}[preprocessing]
    hint = "" if options or program == "Caffe" else " (--preprocess=caffe if it was converted from Caffe)"
    assert capsys.readouterr().out == f"{path}: a VGG16 in the layout of {program}, preprocessing {name}{hint}\n"


# Order of the images


def flat(batches):
    return [index for indices in batches for index in indices]


@pytest.mark.parametrize(("n_image", "batch_size", "sizes"), [
    (5, 1, [1] * 5), (5, 2, [2, 2, 1]), (6, 3, [3, 3]), (2, 4, [2]), (1, 1, [1])])
def test_every_image_once_an_epoch(n_image, batch_size, sizes):
    found = batches(n_image, batch_size, 0, 0)
    assert [len(indices) for indices in found] == sizes
    assert sorted(flat(found)) == list(range(n_image))
    assert type(found[0][0]) is int


def test_order_depends_on_seed_and_epoch_alone():
    order = batches(50, 1, 3, 4)
    np.random.seed(1)
    torch.manual_seed(1)
    assert batches(50, 1, 3, 4) == order
    assert flat(batches(50, 7, 3, 4)) == flat(order)
    assert order != batches(50, 1, 3, 5)
    assert order != batches(50, 1, 4, 4)
    assert order != [[i] for i in range(50)]


# One epoch


class Recorder:
    """Stands in for trainer, model, log and interrupt: notes what they are handed."""

    watched = False
    loc_std = torch.zeros(4)  # says which device

    def __init__(self):
        self.lr, self.steps, self.lines, self.stop_after = None, [], [], None

    def prepare(self, img):
        return torch.zeros(1, 3, 2, 3), 1.0

    def set_lr(self, lr):
        self.lr = lr

    def asked(self, may_wait):
        return len(self.steps) == self.stop_after

    def train_step(self, samples, n_sample):
        assert n_sample == len(samples)
        self.steps.append((self.lr, [(sample.label.item(), sample.rng.random()) for sample in samples]))
        return Losses(*torch.full((5,), float(len(self.steps))))

    def training(self, step, epoch, figures):
        self.lines.append((step, epoch, figures["total"], figures["lr"]))
        assert figures["images_per_second"] > 0


def run_epoch(config, epoch, steps, stop_after=None):
    """What `Recorder` notes of some steps of an epoch of five images, whose labels are their indices."""
    empty = np.empty((1, 4), np.float32)
    dataset = [Sample(np.zeros((2, 3, 3), np.uint8), empty, np.array([i]), np.zeros(1, bool), str(i)) for i in range(5)]
    seen = Recorder()
    seen.stop_after = stop_after
    run = Run(config, None, dataset, None, seen, seen, Meter(), 6, 3, Guard())
    seen.reached = train_epoch(run, seen, seen, epoch, steps)
    return seen


def test_each_sample_has_the_generator_of_seed_epoch_and_index():
    config = TrainConfig(seed=7, batch_size=2, lr=1.0, lr_decay_step=(4,), plot_every=2, device="cpu")
    seen = run_epoch(config, 1, range(3, 6))
    order = batches(5, 2, 7, 1)
    assert [[index for index, _ in pairs] for _, pairs in seen.steps] == order
    for index, draw in (pair for _, pairs in seen.steps for pair in pairs):
        rng = np.random.default_rng([7, 1, index])
        rng.random()  # the flip
        assert draw == rng.random()
    assert [lr for lr, _ in seen.steps] == pytest.approx([1, 0.1, 0.1])
    assert seen.lines == [(4, 1, 1, 1), (6, 1, 2.5, pytest.approx(0.1))]


def test_an_interrupted_epoch_goes_on_inside():
    config = TrainConfig(batch_size=2, device="cpu")
    whole, rest = run_epoch(config, 1, range(3, 6)), run_epoch(config, 1, range(4, 6))
    assert len(rest.steps) == 2
    assert rest.steps == whole.steps[1:]
    assert run_epoch(config, 1, range(3, 4)).steps == whole.steps[:1]
    assert (whole.reached, rest.reached) == (6, 6)


def test_an_epoch_ends_after_the_step_in_which_that_was_asked():
    seen = run_epoch(TrainConfig(batch_size=2, device="cpu"), 1, range(3, 6), stop_after=2)
    assert (len(seen.steps), seen.reached) == (2, 5)


# Resuming


def test_resuming_in_vain_keeps_the_options_of_the_run(earlier_run, monkeypatch, tiny_model):
    class Dataset(list):
        classes = ("cat",)

    before = (earlier_run / "config.json").read_text()
    monkeypatch.setattr(train, "open_data", lambda config: (Dataset("ab"), Dataset("c")))
    monkeypatch.setattr(train, "open_model", lambda config, classes: tiny_model)
    monkeypatch.setattr(train, "FasterRCNNTrainer", lambda *args: None)
    with pytest.raises(CheckpointError, match=r"runs/old/last\.pth \(0 bytes\) is damaged"):
        train.train(TrainConfig(env="old", resume=True, lr=0.25, device="cpu"))
    assert (earlier_run / "config.json").read_text() == before


@pytest.mark.parametrize("options", [{"download": True, "data": "shapes"}, {"download": True, "voc_data_dir": "mine"}])
def test_a_download_is_of_voc2007_only(options):
    with pytest.raises(OptionError, match="--download fetches VOC2007"):
        train.open_data(TrainConfig(**options))


@pytest.mark.parametrize("pretrained", ["imagenet", "caffe"])
def test_preprocessing_that_weights_do_not_want_is_refused(pretrained):
    with pytest.raises(OptionError, match="--preprocess=caffe: these weights"):
        train.open_model(TrainConfig(pretrained=pretrained, preprocess="caffe"), ("cat", "dog"))
