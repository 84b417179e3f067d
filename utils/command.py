"""From a command line to a `Config` of utils/config.py, by python-fire, and from its fields to the text of `--help`."""

import contextlib
import difflib
import inspect
import itertools
import os
import signal
import sys
import textwrap
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import fire
import pydantic

from utils.config import MODEL, PRETRAINED, Config, DatasetConfig, OptionError, PathText, TrainConfig, as_text, dashed

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SYNONYMS = {"learning_rate": "lr", "weights": "load_path", "checkpoint": "load_path", "batch": "batch_size"}
SYNONYMS |= {"thresh": "score_thresh", "threshold": "score_thresh", "conf": "score_thresh", "iou": "nms_thresh"}
SYNONYMS |= {"split": "train_split", "splits": "train_split", "data_path": "voc_data_dir", "data_dir": "voc_data_dir"}
SYNONYMS |= {"name": "env", "run_name": "env", "output_dir": "out env", "output": "out env", "out": "env"}
SYNONYMS |= {
    "dataset": "voc_data_dir",
    "max_iter": "max_steps",
    "lr_steps": "lr_decay_step",
    "imgsz": "min_size",
    "gpu": "device",
}
Values = dict[str, Any]
Defaults = Callable[[str, str], Values] | None


def parse_options(
    config_class: type[Config], texts: Values, stored: Values | Callable | None = None, defaults: Defaults = None
) -> Config:
    """Build a config from the texts of a command line.

    Args:
        config_class: class of the config.
        texts: name -> text, dashes replaced by underscores, as fire gives them.
        stored: name -> value of options that are not given, or see `command`.
        defaults: see `command`.

    Raises:
        OptionError: an option is unknown (the message names the nearest), invalid or missing.
    """
    fields = {field.alias or name: field for name, field in config_class.model_fields.items()}
    values = {}
    for name, text in texts.items():
        if name not in fields:
            near = [*SYNONYMS.get(name, "").split(), *difflib.get_close_matches(name, fields, 1, cutoff=0.72)]
            near = (f"did you mean --{dashed(n)} ({fields[n].description})? " for n in near if n in fields)
            hint = next(near, "")
            raise OptionError(f"there is no option --{dashed(name)}: {hint}--help lists all")
        field, kinds = fields[name], typing.get_args(fields[name].annotation)
        filled = field.annotation is str or PathText in kinds or "own" in field.json_schema_extra  # others may be empty
        if (text == "True" and field.annotation is not bool) or (text == "" and filled):  # fire reads --out as True
            raise OptionError(f"--{dashed(name)} needs a value: write --{dashed(name)}=VALUE")
        values[name] = None if type(None) in kinds and text in ("", "None") else text
    values = ((stored(texts) if callable(stored) else stored) or {}) | values
    coco = next((name for name in texts if name in DatasetConfig.model_fields and name.startswith("coco_")), None)
    if coco and (values.get("data") or fields["data"].default) not in (None, "coco"):
        raise OptionError(f"--{dashed(coco)} is of --data=coco only")
    default = DatasetConfig.model_fields["voc_data_dir"].default
    if texts.get("voc_data_dir", default) != default or values.get("data", "voc") != "voc":
        if texts.get("download", "").lower() == "true":
            raise OptionError("--download is of VOC2007 alone, it would replace your data: leave it out")
        values |= {"download": False} if "download" in values else {}  # of a run that is resumed elsewhere
    implied = {"roi_op": "warp"} if values.get("joint") == "non-approximate" else {}  # unless it is given
    values = implied | values
    if defaults and "model" in fields:
        name, pretrained = values.get("model", MODEL), values.get("pretrained", PRETRAINED)
        try:
            model_values = defaults(name, pretrained)
        except ValueError as error:  # there is no such model
            raise OptionError(str(error)) from None
        for own in (own for own, field in fields.items() if "own" in field.json_schema_extra):
            if own not in model_values and own in texts | implied:
                source = "" if own in texts else " (of --joint)"
                raise OptionError(f"--{dashed(own)}{source}: --model={name} has no such option")
            if values.get(own) is None:
                values[own] = model_values.get(own)
    return _validate(config_class, values)


def restore_options(config_class: type[Config], stored: Values) -> Values:
    """Return all options of a class as a config.json or a checkpoint stores them, without those that it does not know.

    Raises:
        OptionError: a value is invalid.
    """
    known = {name: value for name, value in stored.items() if name in config_class.model_fields}
    return _validate(config_class, known).model_dump()


def training_options(config: Config, checkpoint: Values, **values: Any) -> TrainConfig:
    """Return the options with which a command reads the data set of a checkpoint.

    They are those of the training, unless `config` gives others; its `split` is `eval_split`. `split_ids` are the ids
    of splits that the training drew, unless `config` has a `val_ratio`, `n_bytes` the sizes of the files of its
    images, if the folder is another. `values` replace options without being checked.
    """
    trained = restore_options(TrainConfig, checkpoint["config"])
    read = DatasetConfig.model_fields.keys() - {"classes"} | {"proposals_file"}
    given = config.model_dump(include=read, exclude_none=True)
    if "voc_data_dir" in given:
        given = {"data": "voc", "download": False} | given
    elif coco := [name for name in given if name.startswith("coco_")]:
        for images, annotations in (("coco_images", "coco_annotations"), ("coco_eval_images", "coco_eval_annotations")):
            if (images in coco) != (annotations in coco):
                raise OptionError(f"--{dashed(images)} and --{dashed(annotations)} belong together: write both")
        none = "coco_eval_images", "coco_eval_annotations"  # of the training, if there are others to evaluate on
        given = {"data": "coco"} | dict.fromkeys(none if "coco_images" in coco else ()) | given
    options = TrainConfig(**trained | given | {"eval_split": config.split or trained["eval_split"]})
    split_ids = None if given.get("val_ratio") else checkpoint.get("split_ids")
    moved = any(given.get(name) not in (None, trained[name]) for name in ("voc_data_dir", "coco_images"))
    n_bytes = tuple(itertools.chain(*checkpoint.get("file_sizes", {}).values())) if moved else ()
    return options.model_copy(update={"split_ids": split_ids, "n_bytes": n_bytes} | values)


def _validate(config_class, values):
    try:
        return config_class(**values)
    except pydantic.ValidationError as caught:
        error = caught.errors()[0]
    if not error["loc"]:  # of a model validator
        raise OptionError(str(error["ctx"]["error"]))
    name = error["loc"][0]
    if name not in values:
        raise OptionError(f"--{dashed(name)} is missing: --help lists all options")
    field = config_class.model_fields.get(name)
    if field and field.description.startswith("no option here"):
        raise OptionError(f"--{dashed(name)}: {field.description}")
    what = {"missing": "it needs more values", "bool_type": f"write --{dashed(name)} alone, or =False"}
    what = what.get(error["type"], error["msg"])
    raise OptionError(f"--{dashed(name)}={as_text(values[name])}: {what}")


def help_text(config_class: type[Config], model_values: Values | None = None) -> str:
    """Return the text of `--help`: usage, then options with default, meaning and source, by topic.

    `model_values` are shown for options declared by `own`.
    """
    usage, purpose, example = _describe(config_class)
    topics, note = {}, ""
    for name, field in config_class.model_fields.items():
        default = None if field.is_required() else field.default
        own_default = model_values and "own" in field.json_schema_extra
        if own_default and "model" in config_class.model_fields:
            default, note = model_values.get(name), f"\nDefaults that belong to the model are those of --model={MODEL}."
        elif own_default:
            default, note = None, "\nEmpty thresholds and numbers of detections: those of the checkpoint's model."
        source = f" ({field.json_schema_extra['source']})" if field.json_schema_extra["source"] else ""
        text = textwrap.fill(field.description + source, 92, break_long_words=False, break_on_hyphens=False)
        lines = topics.setdefault(field.json_schema_extra["topic"], [])
        lines.append(f"  --{dashed(field.alias or name)}={as_text(default)}\n{textwrap.indent(text, ' ' * 8)}")
    blocks = ["\n".join([topic, *lines]) for topic, lines in topics.items()]
    head = f"usage: {usage} [--OPTION=VALUE ...]\n{example}\n{purpose}{note}".replace("\n\n", "\n")
    return "\n\n".join([head, *blocks])


def _describe(config_class):
    """Return usage, purpose and example from the docstring of an options class and its required options."""
    usage, _, text = inspect.cleandoc(config_class.__doc__).partition(": ")
    required = [f" --{dashed(name)}=FILE" for name, field in config_class.model_fields.items() if field.is_required()]
    return usage + "".join(required), *text.partition("\n\n")[::2]


class _Output:
    """A text stream that escapes what its encoding lacks, and drops what is written once it is closed or full."""

    def __init__(self, stream):
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        try:
            self._stream.write(text)
            self._stream.flush()  # nothing is left for Python to write at its end
        except OSError:
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def _leave(number, frame):
    """Raise SystemExit, so that `finally` is run."""
    if number != signal.SIGTERM:  # a terminal that is closed may send SIGHUP twice
        signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


@contextlib.contextmanager
def handling(numbers: Iterable[int], handler: Callable) -> Iterator[None]:
    """Have `handler` called by these signals; one that is ignored, as SIGHUP under nohup, stays ignored."""
    before = {n: signal.signal(n, handler) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}
    try:
        yield
    finally:
        for item in before.items():
            signal.signal(*item)


def command(
    config_class: type[Config],
    main: Callable[..., None],
    errors: tuple[type[Exception], ...] = (),
    positional: bool = False,
    word: str = "",
    stored: Callable[[Values], Values] | None = None,
    defaults: Defaults = None,
) -> Callable[..., None]:
    """Make a function for fire that calls `main` with the config of a command line.

    fire reports unknown options only after the call; this function takes all of them and checks them first.

    Args:
        config_class: class of the config; its docstring is 'command line: purpose', a blank line, 'example: ...'.
        main: called with the config, then with the positional arguments.
        errors: exceptions that are reported as one line with exit code 1, without a stack trace.
        positional: whether positional arguments are allowed.
        word: word that must come first, as `train` in `python train.py train`.
        stored: texts of the given options -> values of others, e.g. of a run that is resumed.
        defaults: (model, pretrained) -> name -> the model's own value. They replace None in a class with an option
            `model`; `--help` of every class shows them.
    """

    @fire.decorators.SetParseFn(str)
    def call(*words, **texts):
        warnings.formatwarning = lambda text, *_, **__: f"warning: {text}\n"  # one line
        output = contextlib.redirect_stdout(_Output(sys.stdout)), contextlib.redirect_stderr(_Output(sys.stderr))
        with output[0], output[1], handling(SIGNALS[1:], _leave):
            run(list(words), {name.lstrip("_"): text for name, text in texts.items()})  # _resume: of --no-resume

    def run(words, texts):
        if {"h", "help"} & texts.keys():
            print(help_text(config_class, defaults(MODEL, PRETRAINED) if defaults else None))
            return
        try:
            if word and words[:1] != [word]:
                usage, _, example = _describe(config_class)
                raise OptionError(f"write {usage} --OPTION=VALUE ...\n{example}\n{usage} --help lists all options")
            if "--" in sys.argv:
                raise OptionError("delete --: what follows it would be ignored")
            words = [os.path.expanduser(path) for path in words[bool(word) :]]
            if words and not positional:
                raise OptionError(f"{words[0]!r} is not an option: write --name=value; --help lists all options")
            main(parse_options(config_class, texts, stored, defaults), *words)
        except (OptionError, OSError, *errors) as error:
            sys.exit(f"error: {error}")
        except UnicodeEncodeError as error:  # of a file's name
            sys.exit(f"error: {error.object!a} cannot be written in {error.encoding}, as the locale says: PYTHONUTF8=1")
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)

    return call
