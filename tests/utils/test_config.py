"""Options: how the text of each type is read, what is refused and in which words, what --help shows."""
import dataclasses
import re

import fire
import pytest

from utils.config import (
    AnchorConfig,
    BenchConfig,
    EvalConfig,
    OptionError,
    PredictConfig,
    TrainConfig,
    as_text,
    by_topic,
    check_stored,
    command,
    dashed,
    help_text,
    make_config,
)

CLASSES = [TrainConfig, AnchorConfig, EvalConfig, PredictConfig, BenchConfig]


def call(words, config_class=TrainConfig, **kwargs):
    """What a script with the command line `words` hands to its main function: (config, words) of each call."""
    calls = []
    main = kwargs.pop("main", lambda config, *paths: calls.append((config, paths)))
    fire.Fire(command(config_class, main, **kwargs), command=words)
    return calls


def refusal(*args, **kwargs):
    """The text of the OptionError that `make_config` raises."""
    with pytest.raises(OptionError) as caught:
        make_config(*args, **kwargs)
    return str(caught.value)


# Texts become values


@pytest.mark.parametrize(("name", "text", "value"), [
    ("env", "007", "007"),
    ("env", "None", "None"),
    ("epoch", "3", 3),
    ("lr", "1e-3", 0.001),
    ("lr", "3", 3.0),
    ("resume", "True", True),
    ("resume", "false", False),
    ("precision", "bf16", "bf16"),
    ("max_steps", "7", 7),
    ("max_steps", "None", None),
    ("max_steps", "", None),
    ("load_path", "a=b.pth", "a=b.pth"),
    ("load_path", "None", None),
    ("anchor_scales", "2,4.5,8", (2.0, 4.5, 8.0)),
    ("anchor_scales", "(2, 4)", (2.0, 4.0)),
    ("anchor_scales", "[2]", (2.0,)),
    ("lr_decay_epoch", "", ()),
    ("lr_decay_epoch", "3,", (3.0,)),
    ("classes", "cat, dining table,1", ("cat", "dining table", "1")),
    ("classes", "['cat', \"dog\"]", ("cat", "dog")),
])
def test_reading(name, text, value):
    read = getattr(make_config(TrainConfig, {name: text}), name)
    assert read == value
    assert type(read) is type(value)


def test_a_choice_may_be_left_open():
    assert make_config(EvalConfig, {"load_path": "a"}).data is None
    assert make_config(EvalConfig, {"load_path": "a", "data": "shapes"}).data == "shapes"
    assert "must be one of voc, shapes" in refusal(EvalConfig, {"load_path": "a", "data": "coco"})


@pytest.mark.parametrize("config_class", CLASSES)
def test_what_as_text_writes_is_read_back(config_class):
    fields = [field for field in dataclasses.fields(config_class) if field.default is not dataclasses.MISSING]
    texts = {field.name: as_text(field.default) for field in fields}
    needed = {"load_path": "a"} if config_class in (EvalConfig, PredictConfig) else {}
    assert make_config(config_class, texts | needed) == make_config(config_class, needed)


@pytest.mark.parametrize(("name", "text", "words"), [
    ("epoch", "1.5", "--epoch must be a whole number, not '1.5'"),
    ("lr", "fast", "--lr must be a number, not 'fast'"),
    ("max_steps", "many", "--max-steps must be a whole number, not 'many'"),
    ("resume", "1", "--resume must be True or False, not '1'"),
    ("precision", "fp16", "--precision must be one of auto, fp32, bf16, not 'fp16'"),
    ("batch_size", "0", "--batch-size must be at least 1, not 0"),
    ("max_steps", "-1", "--max-steps must be at least 1, not -1"),
    ("num_workers", "-1", "--num-workers must be at least 0, not -1"),
    ("anchor_scales", "8;16", "--anchor-scales must be numbers, as in 8,16,32, not '8;16'"),
    ("anchor_scales", "8,0,16", "--anchor-scales must be at least 0.001, not 8,0,16"),
    ("anchor_ratios", "", "--anchor-ratios must name a number at least, as in 8,16,32"),
    ("anchor_ratios", "1,2000", "--anchor-ratios must be at most 1000, not 1,2000"),
    ("head_width", "100000", "--head-width must be at most 65536, not 100000"),
    ("num_workers", "1000", "--num-workers must be at most 256, not 1000"),
    ("epoch", "0", "--epoch must be at least 1, not 0"),
    ("lr", "-0.5", "--lr must be at least 0, not -0.5"),
    ("lr", "nan", "--lr must be a finite number, not nan"),
    ("anchor_scales", "8,inf", "--anchor-scales must be a finite number, not 8,inf"),
    ("lr_decay_step", "9,-1", "--lr-decay-step must be at least 0, not 9,-1"),
    ("flip_prob", "1.5", "--flip-prob must be at most 1, not 1.5"),
    ("rpn_pos_iou", "-0.1", "--rpn-pos-iou must be at least 0, not -0.1"),
    ("dropout", "2", "--dropout must be at most 1, not 2.0"),
    ("rpn_sigma", "0", "--rpn-sigma must be at least 0.01, not 0.0"),
    ("weight_decay", "-1e-4", "--weight-decay must be at least 0, not -0.0001"),
    ("visdom_port", "70000", "--visdom-port must be at most 65535, not 70000"),
    ("frozen_convs", "14", "--frozen-convs must be at most 13, not 14"),
    ("skip_nonfinite", "-1", "--skip-nonfinite must be at least 0, not -1"),
    ("min_size", "1200", "--min-size=1200 must not be above --max-size=1000"),
    ("rpn_neg_iou", "0.8", "--rpn-neg-iou=0.8 must not be above --rpn-pos-iou=0.7"),
    ("neg_iou_lo", "0.6", "--neg-iou-lo=0.6 must not be above --neg-iou-hi=0.5"),
])
def test_bad_values(name, text, words):
    assert refusal(TrainConfig, {name: text}) == words


@pytest.mark.parametrize(("name", "near"), [
    ("lrr", "lr"), ("batchsize", "batch-size"), ("max_step", "max-steps"), ("noresume", "resume")])
def test_an_unknown_option_names_the_nearest(name, near):
    text = refusal(TrainConfig, {"lr": "1", name: "1"})
    assert text == f"there is no option --{dashed(name)}: did you mean --{near}? --help lists all"


def test_an_option_that_is_near_to_nothing_is_refused_too():
    assert "there is no option --zzzz" in refusal(TrainConfig, {"zzzz": "1"})


def test_nought_is_a_number_where_it_means_something():
    names = ("eval_every", "num_workers", "frozen_convs", "seed", "lr")
    made = make_config(TrainConfig, dict.fromkeys(names, "0"))
    assert [getattr(made, name) for name in names] == [0] * 5
    assert refusal(TrainConfig, {"neg_iou_lo": "-1"}) == "--neg-iou-lo must be at least 0, not -1.0"


def test_two_that_are_equal_do_not_contradict_each_other():
    made = make_config(TrainConfig, {"min_size": "600", "max_size": "600", "rpn_neg_iou": "0.7", "neg_iou_lo": "0.5"})
    assert (made.min_size, made.rpn_neg_iou, made.neg_iou_lo) == (600, 0.7, 0.5)


def test_an_option_of_another_command_is_unknown():
    assert "no option --batch-size" in refusal(EvalConfig, {"load_path": "a", "batch_size": "1"})


def test_missing_required():
    assert refusal(EvalConfig, {"limit": "1"}).startswith("--load-path is missing: the checkpoint: ours, ")


def test_what_is_given_wins_over_what_is_stored_over_the_default():
    stored = {"lr": 0.5, "epoch": 3, "anchor_scales": (2.0,)}
    made = make_config(TrainConfig, {"epoch": "4"}, stored)
    assert (made.epoch, made.lr, made.anchor_scales, made.batch_size) == (4, 0.5, (2.0,), 1)
    assert stored == {"lr": 0.5, "epoch": 3, "anchor_scales": (2.0,)}
    assert make_config(EvalConfig, {}, {"load_path": "a"}).load_path == "a"


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        make_config(TrainConfig, {}).lr = 1


# The defaults that the paper and py-faster-rcnn give


def test_defaults_are_those_of_the_paper():
    made = make_config(TrainConfig, {})
    assert (made.min_size, made.max_size) == (600, 1000)
    assert (made.anchor_scales, made.anchor_ratios) == ((8, 16, 32), (0.5, 1, 2))
    assert (made.epoch, made.lr, made.lr_decay, made.lr_decay_epoch, made.lr_decay_step) == (14, 1e-3, 0.1, (10,), ())
    assert (made.momentum, made.weight_decay, made.batch_size, made.flip_prob) == (0.9, 5e-4, 1, 0.5)
    assert (made.rpn_n_sample, made.rpn_pos_ratio, made.rpn_pos_iou, made.rpn_neg_iou) == (256, 0.5, 0.7, 0.3)
    assert (made.n_sample, made.pos_ratio, made.pos_iou, made.neg_iou_hi, made.neg_iou_lo) == (128, 0.25, 0.5, 0.5, 0)
    assert (made.n_train_pre_nms, made.n_train_post_nms, made.n_test_pre_nms, made.n_test_post_nms) == (
        12000, 2000, 6000, 300)
    assert (made.rpn_nms_thresh, made.rpn_min_size, made.rpn_sigma, made.roi_sigma) == (0.7, 16, 3, 1)
    assert (made.score_thresh, made.nms_thresh, made.max_detections) == (0.05, 0.3, None)
    assert (made.pretrained, made.head_width, made.use_difficult) == ("imagenet", 4096, False)
    anchors = make_config(AnchorConfig, {})
    for field in dataclasses.fields(AnchorConfig):
        assert getattr(anchors, field.name) == getattr(made, field.name, getattr(anchors, field.name))  # as in training
    assert make_config(EvalConfig, {"load_path": "a"}).precision == "fp32"
    assert make_config(PredictConfig, {"load_path": "a"}).score_thresh == 0.7


def test_every_share_lies_between_0_and_1():
    shares = [field.name for field in dataclasses.fields(TrainConfig)
              if re.search("iou|prob|thresh|ratio$|momentum|dropout", field.name)]
    assert len(shares) == 13
    for name in shares:
        assert refusal(TrainConfig, {name: "-0.01"}).startswith(f"--{dashed(name)} must be at least 0")
        assert refusal(TrainConfig, {name: "1.01"}).startswith(f"--{dashed(name)} must be at most 1")


@pytest.mark.parametrize(("stored", "words"), [
    ({"lr": "fast"}, "'lr' is 'fast'"), ({"epoch": 1.5}, "'epoch' is 1.5"),
    ({"classes": (1, 2)}, "'classes' is (1, 2)"),
    ({"resume": 1}, "'resume' is 1"), ({"data": "coco"}, "'data' is 'coco'"), ({"learning": 1}, "no option 'learning'"),
    ({"lr": -1.0}, "--lr must be at least 0"), ({"max_steps": "9"}, "'max_steps' is '9'")])
def test_what_is_stored_is_checked(stored, words):
    with pytest.raises(OptionError, match=re.escape(words)):
        check_stored(TrainConfig, stored)


def test_what_could_be_stored_passes():
    check_stored(TrainConfig, {"lr": 1, "max_steps": None, "anchor_scales": (1, 2.5), "classes": ()})
    check_stored(TrainConfig, dataclasses.asdict(make_config(TrainConfig, {})))


def test_interrupting_a_command_is_a_line_and_the_code_of_its_signal(capsys):
    def main(config):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        call([], main=main)
    assert (caught.value.code, capsys.readouterr().err) == (130, "\ninterrupted\n")


# Help


@pytest.mark.parametrize("config_class", CLASSES)
def test_help_lists_every_option_with_default_meaning_and_source(config_class):
    lines = help_text(config_class).splitlines()
    assert lines[0] == config_class.__doc__
    options = [line for line in lines if line.startswith("  --")]
    assert len(options) == len(dataclasses.fields(config_class))
    for field in dataclasses.fields(config_class):
        at = lines.index(f"  --{dashed(field.name)}={as_text(field.default)}")
        meaning, source = field.metadata["meaning"], field.metadata["source"]
        assert meaning
        assert lines[at + 1].strip() == (f"{meaning} ({source})" if source else meaning)
        topic = next(line for line in reversed(lines[:at]) if line and not line.startswith(" "))
        assert topic == field.metadata["topic"]


@pytest.mark.parametrize("config_class", CLASSES)
def test_topics_hold_every_field_once(config_class):
    topics = by_topic(config_class)
    fields = [field.name for group in topics.values() for field in group]
    assert sorted(fields) == sorted(field.name for field in dataclasses.fields(config_class))
    for topic, group in topics.items():
        assert {field.metadata["topic"] for field in group} == {topic}


@pytest.mark.parametrize(("value", "text"), [
    ((8, 16), "8,16"), ((0.5, 1.0), "0.5,1"), ((), ""), (5e-4, "0.0005"), (0.0, "0"), (None, ""),
    (dataclasses.MISSING, ""), (True, "True"), ("a", "a"), (12000, "12000")])
def test_as_text(value, text):
    assert as_text(value) == text


# Commands


def test_a_command_hands_its_config_to_main():
    (config, paths), = call(["--env=007", "--max-steps", "5", "--resume", "--anchor-scales=2,4", "--classes=1,2"])
    assert (config.env, config.max_steps, config.resume, config.overwrite) == ("007", 5, True, False)
    assert (config.anchor_scales, config.classes, paths) == ((2.0, 4.0), ("1", "2"), ())


def test_words_are_handed_on_where_there_may_be_some():
    (config, paths), = call(["7.png", "--load-path=a", "b c"], PredictConfig, positional=True)
    assert (config.load_path, paths) == ("a", ("7.png", "b c"))


@pytest.mark.parametrize("words", [["voc"], ["--lr=1", "voc"], ["--lrr=1"], ["--epoch=x"], ["--precision=fp16"]])
def test_a_wrong_command_line_is_refused_before_anything_runs(words):
    ran = []
    with pytest.raises(SystemExit) as caught:
        call(words, main=lambda config: ran.append(config))
    assert re.fullmatch(r"error: .*(voc|--lr|--epoch|--precision).*", caught.value.code)  # a text: exit code 1
    assert not ran


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["--lrr=1", "--help"], ["voc", "--help"]])
def test_help_is_printed_and_nothing_runs(words, capsys):
    assert call(words) == []
    assert capsys.readouterr().out == help_text(TrainConfig) + "\n"


def test_stored_values_are_asked_for_with_the_options():
    asked = []
    (config, _), = call(["--env=a", "--lr=2"], stored=lambda options: asked.append(options) or {"lr": 1.0, "epoch": 3})
    assert asked == [{"env": "a", "lr": "2"}]
    assert (config.env, config.lr, config.epoch) == ("a", 2.0, 3)


def test_only_errors_of_the_user_become_a_line():
    def main(config):
        raise FileNotFoundError("no such thing")

    with pytest.raises(SystemExit, match="error: no such thing"):
        call([], main=main, errors=(FileNotFoundError,))
    with pytest.raises(FileNotFoundError):
        call([], main=main, errors=(KeyError,))
