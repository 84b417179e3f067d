"""Options: how texts become values, which are refused and with what message, what --help shows."""

import ast
import contextlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import fire
import pydantic
import pytest

import model
from utils.command import command, help_text, parse_options, restore_options, training_options
from utils.config import EvalConfig, OptionError, PredictConfig, TrainConfig, as_text, as_words, dashed, option

NEEDED = {TrainConfig: {}, EvalConfig: {"load_path": "a"}, PredictConfig: {"load_path": "a"}}


def call(words, config_class=TrainConfig, **kwargs):
    """What a script with the command line `words` passes to its main function: (config, words) of each call."""
    calls = []
    main = kwargs.pop("main", lambda config, *paths: calls.append((config, paths)))
    fire.Fire(command(config_class, main, **kwargs), command=words)
    return calls


def refusal(*args, **kwargs):
    """The text of the OptionError that `parse_options` raises."""
    with pytest.raises(OptionError) as caught:
        parse_options(*args, **kwargs)
    return str(caught.value)


# Texts become values


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("env", "007", "007"),
        ("env", "None", "None"),
        ("env", "nan", "nan"),
        ("epoch", "3", 3),
        ("lr", "1e-3", 0.001),
        ("lr", "3", 3.0),
        ("resume", "True", True),
        ("resume", "false", False),
        ("precision", "bf16", "bf16"),
        ("data", "mine", "mine"),
        ("max_steps", "7", 7),
        ("max_steps", "None", None),
        ("max_steps", "", None),
        ("load_path", "a=b.pth", "a=b.pth"),
        ("load_path", "None", None),
        ("anchor_scales", "2,4.5,8", (2.0, 4.5, 8.0)),
        ("anchor_scales", "(2, 4)", (2.0, 4.0)),
        ("anchor_scales", "[2]", (2.0,)),
        ("lr_decay_epoch", "()", ()),
        ("lr_decay_epoch", "3,", (3.0,)),
        ("classes", "cat, dining table,1", ("cat", "dining table", "1")),
        ("classes", "['cat', \"dog\"]", ("cat", "dog")),
    ],
)
def test_reading(name, text, value):
    read = getattr(parse_options(TrainConfig, {name: text}), name)
    assert read == value
    assert type(read) is type(value)
    if isinstance(value, tuple):
        assert list(map(type, read)) == list(map(type, value))


@pytest.mark.parametrize("config_class", NEEDED)
def test_what_as_text_writes_is_read_back(config_class):
    fields = {
        field.alias or name: field for name, field in config_class.model_fields.items() if not field.is_required()
    }
    texts = {name: as_text(field.default) or "()" for name, field in fields.items() if field.default is not None}
    texts |= NEEDED[config_class]
    assert parse_options(config_class, texts) == parse_options(config_class, NEEDED[config_class])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("epoch", "1.5", "--epoch=1.5: Input should be a valid integer, unable to parse string as an integer"),
        ("lr", "fast", "--lr=fast: Input should be a valid number, unable to parse string as a number"),
        (
            "max_steps",
            "many",
            "--max-steps=many: Input should be a valid integer, unable to parse string as an integer",
        ),
        ("resume", "1", "--resume=1: write --resume alone, or =False"),
        ("precision", "fp16", "--precision=fp16: Input should be 'auto', 'fp32' or 'bf16'"),
        ("batch_size", "0", "--batch-size=0: Input should be greater than or equal to 1"),
        ("batch_size", "", "--batch-size=: Input should be a valid integer, unable to parse string as an integer"),
        ("max_steps", "-1", "--max-steps=-1: Input should be greater than or equal to 1"),
        ("num_workers", "-1", "--num-workers=-1: Input should be greater than or equal to 0"),
        (
            "anchor_scales",
            "8;16",
            "--anchor-scales=8;16: Input should be a valid number, unable to parse string as a number",
        ),
        ("anchor_scales", "8,0,16", "--anchor-scales=8,0,16: Input should be greater than or equal to 0.001"),
        ("anchor_ratios", "()", "--anchor-ratios=(): Tuple should have at least 1 item after validation, not 0"),
        ("anchor_ratios", "1,2000", "--anchor-ratios=1,2000: Input should be less than or equal to 1000"),
        ("head_width", "100000", "--head-width=100000: Input should be less than or equal to 65536"),
        ("epoch", "0", "--epoch=0: Input should be greater than or equal to 1"),
        ("lr", "-0.5", "--lr=-0.5: Input should be greater than or equal to 0"),
        ("lr", "nan", "--lr=nan: Input should be a finite number"),
        ("anchor_scales", "8,inf", "--anchor-scales=8,inf: Input should be a finite number"),
        ("lr_decay_step", "9,-1", "--lr-decay-step=9,-1: Input should be greater than or equal to 0"),
        ("flip_prob", "1.5", "--flip-prob=1.5: Input should be less than or equal to 1"),
        ("rpn_sigma", "0", "--rpn-sigma=0: Input should be greater than or equal to 0.01"),
        ("visdom_port", "70000", "--visdom-port=70000: Input should be less than or equal to 65535"),
        ("lr_warmup_steps", "-1", "--lr-warmup-steps=-1: Input should be greater than or equal to 0"),
        ("min_size", "1200", "--min-size=1200 must not be greater than --max-size=1000"),
        ("rpn_neg_iou", "0.8", "--rpn-neg-iou=0.8 must not be greater than --rpn-pos-iou=0.7"),
        ("neg_iou_lo", "0.6", "--neg-iou-lo=0.6 must not be greater than --neg-iou-hi=0.5"),
    ],
)
def test_bad_values(name, text, words):
    assert refusal(TrainConfig, {name: text}, defaults=model.defaults) == words


def test_every_share_lies_between_0_and_1():
    shares = [name for name in TrainConfig.model_fields if re.search("iou|prob|thresh|ratio$|momentum|dropout", name)]
    assert len(shares) == 15
    for name in shares:
        assert refusal(TrainConfig, {name: "-0.01"}).endswith("=-0.01: Input should be greater than or equal to 0")
        assert refusal(TrainConfig, {name: "1.01"}).endswith("=1.01: Input should be less than or equal to 1")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lrr", "lr"),
        ("batchsize", "batch-size"),
        ("max_step", "max-steps"),
        ("noresume", "resume"),
        ("learning_rate", "lr"),
        ("batch", "batch-size"),
        ("name", "env"),
        ("split", "train-split"),
        ("max_iter", "max-steps"),
        ("output_dir", "env"),
        ("num_classes", "classes"),
    ],
)
def test_an_unknown_option_names_the_nearest(name, near):
    text = refusal(TrainConfig, {"lr": "x", name: "1"})
    about = TrainConfig.model_fields[near.replace("-", "_")].description
    assert text == f"there is no option --{dashed(name)}: did you mean --{near} ({about})? --help lists all"


def test_an_option_that_is_near_to_nothing_and_one_of_another_command_are_refused_too():
    for name in ("zzzz", "run", "train", "images"):
        assert refusal(TrainConfig, {name: "1"}) == f"there is no option --{name}: --help lists all"
    assert "no option --batch-size" in refusal(EvalConfig, {"load_path": "a", "batch_size": "1"})


def test_equal_limits_do_not_contradict_each_other():
    texts = {"min_size": "600", "max_size": "600", "rpn_neg_iou": "0.7", "rpn_pos_iou": "0.7"}
    assert parse_options(TrainConfig, texts).min_size == 600


def test_a_threshold_is_that_of_scores():
    assert "did you mean --score-thresh (" in refusal(PredictConfig, {"thresh": "0.5"})


def test_a_value_that_lacks_its_second_half_is_not_missing():
    assert refusal(EvalConfig, {"load_path": "a", "svd": "9"}) == "--svd=9: it needs more values"


def test_a_missing_option_is_named():
    assert refusal(EvalConfig, {"limit": "1"}) == "--load-path is missing: --help lists all options"


def test_json_is_an_option_though_pydantic_uses_the_name():
    assert parse_options(EvalConfig, {"load_path": "a", "json": "b"}).json_path == "b"
    assert "there is no option --json-path" in refusal(EvalConfig, {"load_path": "a", "json_path": "b"})


def test_a_config_cannot_be_changed():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        TrainConfig().lr = 1


# Where values come from


def test_given_wins_over_stored_over_the_models_own():
    stored = {"lr": 0.5, "epoch": 3, "anchor_scales": [2], "max_size": None}

    def defaults(name, pretrained):
        return {"lr": 0.1, "epoch": 9, "max_size": 800, "dropout": 0.25, "unknown": 1}

    made = parse_options(TrainConfig, {"epoch": "4"}, stored, defaults)
    assert (made.epoch, made.lr, made.anchor_scales, made.max_size, made.dropout) == (4, 0.5, (2.0,), 800, 0.25)
    assert made.batch_size == 1
    assert stored == {"lr": 0.5, "epoch": 3, "anchor_scales": [2], "max_size": None}


def test_the_model_is_asked_under_its_name():
    asked = []
    defaults = lambda *args: asked.append(args) or {}  # noqa: E731
    parse_options(TrainConfig, {}, None, defaults)
    parse_options(TrainConfig, {"model": "b", "pretrained": "none"}, {"model": "a"}, defaults)
    parse_options(TrainConfig, {}, {"model": "a"}, defaults)
    assert asked == [("vgg16", "imagenet"), ("b", "none"), ("a", "imagenet")]


def test_what_the_model_says_is_checked():
    assert (
        refusal(TrainConfig, {}, defaults=lambda *_: {"lr": -1.0})
        == "--lr=-1: Input should be greater than or equal to 0"
    )


def test_without_an_option_model_nothing_is_filled_in():
    assert parse_options(EvalConfig, {"load_path": "a"}, None, model.defaults).score_thresh is None


def test_defaults_are_those_of_the_paper():
    made = parse_options(TrainConfig, {}, defaults=model.defaults)
    assert (made.min_size, made.max_size) == (600, 1000)
    assert (made.anchor_scales, made.anchor_ratios) == ((8, 16, 32), (0.5, 1, 2))
    assert (made.epoch, made.lr, made.lr_decay, made.lr_decay_epoch, made.lr_decay_step) == (14, 1e-3, 0.1, (10,), ())
    assert (made.momentum, made.weight_decay, made.batch_size, made.flip_prob) == (0.9, 5e-4, 1, 0.5)
    assert (made.rpn_n_sample, made.rpn_pos_ratio, made.rpn_pos_iou, made.rpn_neg_iou) == (256, 0.5, 0.7, 0.3)
    assert (made.n_sample, made.pos_ratio, made.pos_iou, made.neg_iou_hi, made.neg_iou_lo) == (128, 0.25, 0.5, 0.5, 0)
    assert (made.n_train_pre_nms, made.n_train_post_nms, made.n_test_pre_nms, made.n_test_post_nms) == (
        12000,
        2000,
        6000,
        300,
    )
    assert (made.rpn_nms_thresh, made.rpn_min_size, made.rpn_sigma, made.roi_sigma) == (0.7, 16, 3, 1)
    assert (made.score_thresh, made.nms_thresh, made.max_detections) == (0.05, 0.3, None)
    assert (made.pretrained, made.head_width, made.use_difficult) == ("imagenet", 4096, False)
    assert (made.frozen_convs, made.lr_warmup_steps, made.dropout) == (4, 0, 0)
    assert parse_options(EvalConfig, {"load_path": "a"}).precision == "fp32"
    assert parse_options(PredictConfig, {"load_path": "a"}).score_thresh == 0.7


def test_a_training_config_is_complete():
    made = parse_options(TrainConfig, {}, defaults=model.defaults).model_dump()
    assert {name for name, value in made.items() if value is None} == {
        "coco_images",
        "coco_annotations",
        "coco_eval_images",
        "coco_eval_annotations",
        "num_workers",
        "load_path",
        "max_steps",
        "batching",
        "max_detections",
        *("trainable_layers", "batch_norm", "rpn_score_thresh"),  # of other models
        "proposals_file",
        "rpn_lambda",
    }


def test_non_approximate_training_implies_its_roi_operation():
    def roi_op(texts, stored=None):
        return parse_options(TrainConfig, texts, stored, model.defaults).roi_op

    joint = {"joint": "non-approximate"}
    assert roi_op({}) == "pool"
    assert roi_op(joint) == roi_op({}, stored=joint) == roi_op(joint | {"roi_op": "warp"}) == "warp"
    words = "--roi-op=align has no gradient for boxes: leave it out, or --joint=approximate"
    assert refusal(TrainConfig, joint | {"roi_op": "align"}, defaults=model.defaults) == words
    for texts, source in ((joint, " (of --joint)"), (joint | {"roi_op": "warp"}, "")):
        words = f"--roi-op{source}: --model=plain has no such option"
        assert refusal(TrainConfig, texts | {"model": "plain"}, defaults=lambda *_: {"lr": 1.0}) == words


def test_stored_options_are_restored():
    made = parse_options(TrainConfig, {"env": "a", "lr_decay_epoch": "3,5"}, defaults=model.defaults)
    stored = made.model_dump(mode="json")
    assert stored["lr_decay_epoch"] == [3, 5]
    assert TrainConfig(**restore_options(TrainConfig, stored)) == made
    old = restore_options(TrainConfig, {"skip_nonfinite": 0, "data": "shapes"})  # written before an option went
    assert (old["data"], old["eval_split"], "skip_nonfinite" in old) == ("shapes", "test", False)
    with pytest.raises(OptionError, match="--lr=fast: Input should be a valid number"):
        restore_options(TrainConfig, {"lr": "fast"})


def test_a_checkpoint_is_evaluated_as_it_was_trained():
    stored = {"voc_data_dir": "mine", "eval_split": "val", "download": True, "invalid_boxes": "skip", "gone": 1}
    checkpoint = {"config": stored, "split_ids": {"val": ["a", "b"]}}
    made = training_options(EvalConfig(load_path="a"), checkpoint)
    assert (made.voc_data_dir, made.eval_split, made.download, made.invalid_boxes) == ("mine", "val", True, "skip")
    assert made.split_ids == {"val": ["a", "b"]}  # of a split that the training drew
    other = training_options(PredictConfig(load_path="a", split="test", voc_data_dir="b"), checkpoint, seed=7)
    assert (other.data, other.voc_data_dir, other.eval_split, other.download, other.seed) == (
        "voc",
        "b",
        "test",
        False,
        7,
    )
    assert other.split_ids == {"val": ["a", "b"]}  # used where the other folder has them
    files = {"coco_eval_images": "b", "coco_eval_annotations": "c"}
    for config in (EvalConfig(load_path="a", **files), PredictConfig(load_path="a", split="test", **files)):
        other = training_options(config, checkpoint)
        assert (other.data, other.coco_eval_images, other.coco_eval_annotations) == ("coco", "b", "c")
    checkpoint = {"config": {"data": "coco", "coco_images": "a", "coco_eval_images": "b", "coco_eval_annotations": "c"}}
    pair = {"coco_images": "d", "coco_annotations": "e"}
    for config in (EvalConfig(load_path="a", **pair), PredictConfig(load_path="a", **pair)):
        other = training_options(config, checkpoint)  # images of its own, not those of the training's evaluation
        assert (other.coco_images, other.coco_eval_images, other.coco_eval_annotations) == ("d", None, None)
    for half in ("coco_images", "coco_annotations", "coco_eval_images", "coco_eval_annotations"):
        with pytest.raises(OptionError, match=r"-images and --coco-(eval-)?annotations belong together: write both"):
            training_options(EvalConfig(load_path="a", **{half: "d"}), checkpoint)


# Help


@pytest.mark.parametrize("config_class", NEEDED)
def test_help_lists_every_option_with_default_meaning_and_source(config_class):
    usage, *lines = help_text(config_class, model.defaults()).splitlines()
    assert usage.startswith("usage: python ")
    assert usage.endswith(" [--OPTION=VALUE ...]")
    assert ("--load-path=FILE" in usage) == config_class.model_fields["load_path"].is_required()
    assert lines[0].startswith("example: " + config_class.__doc__.split(":")[0].split(" IMAGE")[0])
    assert ("--model=vgg16" if "model" in config_class.model_fields else "of the checkpoint's model") in lines[2]
    assert max(map(len, lines)) <= 100
    assert len([line for line in lines if line.startswith("  --")]) == len(config_class.model_fields)
    for name, field in config_class.model_fields.items():
        topic, source = field.json_schema_extra["topic"], field.json_schema_extra["source"]
        at = next(i for i, line in enumerate(lines) if line.startswith(f"  --{dashed(field.alias or name)}="))
        block = itertools.takewhile(lambda line: line.startswith(" " * 8), lines[at + 1 :])
        assert " ".join(line.strip() for line in block) == field.description + (f" ({source})" if source else "")
        assert [line for line in lines[:at] if line and not line.startswith(" ")][-1] == topic
        assert field.description


def test_help_shows_values_of_the_model_with_their_sources():
    lines = help_text(TrainConfig, model.defaults()).splitlines()
    assert lines[lines.index("  --min-size=600") + 1].endswith("(paper 3.3)")
    assert "  --anchor-scales=8,16,32" in lines
    assert "  --min-size=" in help_text(TrainConfig).splitlines()
    lines = help_text(PredictConfig, model.defaults()).splitlines()
    assert {"  --score-thresh=0.7", "  --nms-thresh="} <= {*lines}  # its own default wins; that of a checkpoint


@pytest.mark.parametrize(
    ("value", "text"),
    [(600, "600"), (1e-3, "0.001"), (5e-4, "0.0005"), (3.0, "3"), (True, "True"), (None, ""), ((0.5, 1), "0.5,1")],
)
def test_as_text(value, text):
    assert as_text(value) == text


# Commands


def test_fire_hands_over_texts_as_they_are():
    ((config, paths),) = call(["--env=007", "--max-steps", "5", "--resume", "--anchor-scales=2,4", "--classes=1,2"])
    assert (config.env, config.max_steps, config.resume, config.overwrite) == ("007", 5, True, False)
    assert (config.anchor_scales, config.classes, paths) == ((2.0, 4.0), ("1", "2"), ())


def test_positional_arguments_are_passed_on_where_they_are_allowed():
    ((config, paths),) = call(["7.png", "--load-path=a", "b c"], PredictConfig, positional=True)
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
    assert call(words, defaults=model.defaults) == []
    assert capsys.readouterr().out == help_text(TrainConfig, model.defaults()) + "\n"


def test_stored_values_are_asked_for_with_the_options():
    asked = []
    ((config, _),) = call(["--env=a", "--lr=2"], stored=lambda texts: asked.append(texts) or {"lr": 1.0, "epoch": 3})
    assert asked == [{"env": "a", "lr": "2"}]
    assert (config.env, config.lr, config.epoch) == ("a", 2.0, 3)


def test_only_errors_of_the_user_become_a_line():
    def main(config):
        raise RuntimeError("no such thing")

    with pytest.raises(SystemExit, match="error: no such thing"):
        call([], main=main, errors=(RuntimeError,))
    with pytest.raises(RuntimeError):
        call([], main=main, errors=(KeyError,))


def test_interrupting_a_command_is_a_line_and_the_code_of_its_signal(capsys):
    def main(config):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        call([], main=main)
    assert (caught.value.code, capsys.readouterr().err) == (130, "\ninterrupted\n")


def test_a_name_that_the_locale_cannot_write_is_one_line():  # LC_ALL=C PYTHONUTF8=0, a folder stored as UTF-8
    what = r"'d\\xe4t\\xe4' cannot be written in ascii, as the locale says: PYTHONUTF8=1"
    with pytest.raises(SystemExit, match=f"^error: {what}$"):
        call([], main=lambda config: "dätä".encode("ascii"))


@pytest.mark.parametrize(("number", "again"), [(signal.SIGTERM, 0), (signal.SIGHUP, 1)])
def test_a_signal_ends_a_command_but_not_its_finally(number, again):
    done = []

    def main(config):
        try:
            signal.raise_signal(number)
        finally:
            for _ in range(again):  # a second one of a closed terminal is ignored
                signal.raise_signal(number)
            done.append(number)

    with pytest.raises(SystemExit) as caught:
        call([], main=main)
    assert (caught.value.code, done) == (128 + number, [number])
    assert signal.getsignal(number) == signal.SIG_DFL


def test_a_second_signal_to_terminate_is_not_lost():
    def main(config):
        with contextlib.suppress(SystemExit):  # as in a destructor
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as caught:
        call([], main=main)
    assert caught.value.code == 128 + signal.SIGTERM


def test_an_ignored_signal_stays_ignored():  # as under nohup
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        call([], main=lambda config: signal.raise_signal(signal.SIGHUP))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_script_adds_options_of_its_own():
    class MineConfig(EvalConfig):
        """python mine.py: Do something."""

        times: int = option(2, "Mine", "how often", ge=1)

    ((config, _),) = call(["--times=3", "--load-path=a"], MineConfig)
    assert (config.times, config.split) == (3, None)
    assert help_text(MineConfig).endswith("Mine\n  --times=2\n        how often")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a, b", ("a", "b")),
        ("['a', \"b\"]", ("a", "b")),
        ("(a,)", ("a",)),
        ("car,car (old)", ("car", "car (old)")),
        ('pipe 5"', ('pipe 5"',)),
        ("~/a b", (os.path.expanduser("~/a b"),)),
    ],
)
def test_names_in_a_list(text, names):
    assert parse_options(TrainConfig, {"classes": text}).classes == names


@pytest.mark.parametrize("word", ["--noresume", "--no-resume", "--resume=False"])
def test_a_flag_can_be_turned_off(word):
    ((config, *_),) = call([word])
    assert config.resume is False


# Options without a value, paths, output


@pytest.mark.parametrize("words", [["--out", "--load-path=a"], ["--load-path=a", "--out"], ["--load-path=a", "--out="]])
def test_an_option_without_a_value_is_refused(words):
    with pytest.raises(SystemExit, match=r"^error: --out needs a value: write --out=VALUE$"):
        call(words, PredictConfig)


def test_an_option_without_a_value_is_refused_before_a_run_is_read():
    with pytest.raises(SystemExit, match=r"^error: --env needs a value: write --env=VALUE$"):
        call(["--resume", "--env"], stored=lambda texts: pytest.fail("was read"))


@pytest.mark.parametrize("name", ["train_split", "env", "data", "model", "device", "lr"])
def test_a_text_is_not_empty(name):
    assert refusal(TrainConfig, {name: ""}).startswith(f"--{dashed(name)} needs a value")


def test_options_of_coco_need_its_data():
    texts = {"load_path": "a", "coco_eval_images": "x", "coco_json": "y"}
    assert parse_options(EvalConfig, texts).coco_eval_images == "x"
    assert refusal(EvalConfig, texts | {"data": "voc"}) == "--coco-eval-images is of --data=coco only"
    assert refusal(TrainConfig, {"coco_images": "x"}) == "--coco-images is of --data=coco only"
    for other in ({"voc_data_dir": "x"}, {"data": "shapes"}):
        assert refusal(TrainConfig, {"download": "True"} | other).startswith("--download is of VOC2007 alone")
        assert not parse_options(TrainConfig, {"download": "false"} | other).download
    there = TrainConfig.model_fields["voc_data_dir"].default
    assert parse_options(TrainConfig, {"download": "True", "data": "voc", "voc_data_dir": there}).download
    for texts, again in (({"lr": "1"}, True), ({"voc_data_dir": "x"}, False), ({"data": "shapes"}, False)):
        assert parse_options(TrainConfig, texts, {"download": True}).download is again  # resumed
    assert parse_options(TrainConfig, {"coco_images": "x"}, {"data": "coco"}).data == "coco"


@pytest.mark.parametrize("data_dir", [None, "moved"])
def test_a_drawn_split_is_that_of_the_training(data_dir):
    drawn = {"train": ["b"], "val": ["a"]}
    config = EvalConfig(load_path="a", split="val", voc_data_dir=data_dir)
    checkpoint = {"config": {"voc_data_dir": "here"}, "split_ids": drawn, "file_sizes": {"a": [3], "b": [5]}}
    options = training_options(config, checkpoint)
    assert (options.split_ids, options.eval_split) == (drawn, "val")
    assert options.n_bytes == ((3, 5) if data_dir else ())  # in the same folder they are the same images
    other = training_options(EvalConfig(load_path="a", coco_images="x", coco_annotations="y"), checkpoint)
    assert other.n_bytes == (3, 5)
    older = training_options(config, {"config": {}})
    assert (older.split_ids, older.n_bytes) == (None, ())
    again = EvalConfig(load_path="a", val_ratio=0.5)
    assert training_options(again, {"config": {}, "split_ids": drawn}).split_ids is None


@pytest.mark.parametrize("name", ["env", "lr", "max_steps", "classes", "load_path", "precision"])
def test_only_a_flag_may_stand_alone(name):
    assert refusal(TrainConfig, {name: "True"}).startswith(f"--{dashed(name)} needs a value")
    assert parse_options(TrainConfig, {"resume": "True"}).resume


@pytest.mark.parametrize("name", ["load_path", "json", "plot", "voc_data_dir"])
def test_a_path_is_not_empty(name):  # as in --json=$UNSET
    assert refusal(EvalConfig, {"load_path": "a"} | {name: ""}).startswith(f"--{dashed(name)} needs a value")


def test_every_path_is_relative_to_the_home_folder_after_a_tilde(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    for config_class, needed in NEEDED.items():
        for name, field in config_class.model_fields.items():
            is_path = (
                any(word in name for word in ("path", "dir", "out", "json", "plot")) and field.annotation is not int
            )
            if is_path and name not in ("plot_every", "dropout", "n_train_post_nms"):
                made = parse_options(config_class, needed | {field.alias or name: "~/a"})
                assert getattr(made, name) == "/home/ann/a", name
    assert parse_options(TrainConfig, {"pretrained": "~/a"}).pretrained == "/home/ann/a"
    assert parse_options(TrainConfig, {"classes": "~/names.txt"}).classes == ("/home/ann/names.txt",)
    odd = parse_options(TrainConfig, dict.fromkeys(("voc_data_dir", "load_path", "classes"), "~/\udcff"))  # not UTF-8
    assert (odd.voc_data_dir, odd.load_path, odd.classes) == (
        "/home/ann/\udcff",
        "/home/ann/\udcff",
        ("/home/ann/\udcff",),
    )
    assert restore_options(TrainConfig, json.loads(json.dumps(odd.model_dump())))["load_path"] == "/home/ann/\udcff"
    with pytest.raises(OptionError, match="--load-path=3: Input should be an instance of str"):
        restore_options(TrainConfig, {"load_path": 3})
    ((_, paths),) = call(["~/*.jpg", "--load-path=a"], PredictConfig, positional=True)
    assert paths == ("/home/ann/*.jpg",)


@pytest.mark.parametrize("words", [[], ["--env=x"], ["tain"]])
def test_a_missing_word_names_the_command_and_an_example(words):
    with pytest.raises(SystemExit) as caught:
        call(words, word="train")
    first, example, last = caught.value.code.splitlines()
    assert first == "error: write python train.py train --OPTION=VALUE ..."
    assert example.startswith("example: python train.py train --env=")
    assert last == "python train.py train --help lists all options"
    ((config, _),) = call(["train", "--env=x"], word="train")
    assert config.env == "x"


def run_main(body, tmp_path, encoding="utf-8", **streams):
    """Run a program with `body` as the main function of a command; return its exit code."""
    code = f"""
import sys, warnings, fire
from tqdm import tqdm
from utils.command import command
from utils.config import Config
class MyConfig(Config):
    "python my.py: Try."
def main(config):
    {body}
    open({str(tmp_path / "done")!r}, "x").close()
fire.Fire(command(MyConfig, main))
"""
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | streams
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run([sys.executable, "-c", code], env=env, check=False, **streams)


PRINT = "print('x' * 100_000); [print(i, file=sys.stderr, flush=True) for i in tqdm(range(9))]; print('y', flush=True)"


@pytest.mark.parametrize("kind", ["pipe", "full", "closed"])
def test_a_lost_terminal_costs_nothing(tmp_path, kind):
    if kind == "closed":
        done = run_main(PRINT, tmp_path, stdout=None, stderr=None, preexec_fn=lambda: [os.close(1), os.close(2)])
    elif kind == "full":
        with open("/dev/full", "w") as full:
            done = run_main(PRINT, tmp_path, stdout=full, stderr=full)
    else:
        reading, writing = os.pipe()
        os.close(reading)  # as `| head` does
        done = run_main(PRINT, tmp_path, stdout=writing, stderr=writing)
        os.close(writing)
    assert done.returncode == 0
    assert (tmp_path / "done").exists()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_what_an_encoding_lacks_is_escaped(tmp_path, encoding):
    done = run_main(r"print('\u732b \udce9')", tmp_path, encoding, stdout=subprocess.PIPE)
    assert done.returncode == 0
    assert done.stdout.decode(encoding) == ("猫" if encoding == "utf-8" else r"\u732b") + " \\udce9\n"


def test_a_warning_is_one_line(tmp_path):
    done = run_main("warnings.warn('too many cats')", tmp_path, stderr=subprocess.PIPE)
    assert done.stderr == b"warning: too many cats\n"


def test_every_file_is_opened_with_its_encoding():
    for path in sorted(Path(__file__).parents[2].rglob("*.py")):
        if path.parts[-2] == "tests" or "tests" in path.parts or ".venv" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
            arguments = ast.unparse(node) if name in ("open", "read_text", "write_text") else "encoding="
            other = re.match(r"(Image|writer|os)\.open\(|(ckpt\.)?write_text\(", arguments)  # no text, or our UTF-8
            assert "encoding=" in arguments or "b'" in arguments or other, f"{path}: {arguments}"


@pytest.mark.parametrize(
    ("system", "words"),
    [
        ("linux", "--voc-data-dir='C:\\me\\data' --classes='a b,$c'"),
        ("win32", '--voc-data-dir=C:\\me\\data --classes="a b,$c"'),
    ],
)
def test_words_are_quoted_as_the_shell_of_the_system_does(monkeypatch, system, words):
    monkeypatch.setattr("utils.config.sys.platform", system)
    assert as_words({"voc_data_dir": "C:\\me\\data", "classes": ("a b", "$c")}) == words
