"""docs/options.md is what `--help` prints."""

import importlib
import re
from pathlib import Path

import pytest

import model
from utils import config
from utils.command import help_text
from utils.config import Config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/options.md").read_text(encoding="utf-8")
SECTIONS = re.findall(r"## `python ([^`]*)`\n\n```\n(.*?)```\n", PAGE, re.S)


def options_class(module):
    """The class of a module whose docstring starts with a command line."""
    own = [value for value in vars(module).values() if isinstance(value, type) and value.__module__ == module.__name__]
    return next(value for value in own if issubclass(value, Config) and value.__doc__.startswith("python "))


def test_every_command_is_there():
    tools = [f"-m tools.{path.stem}" for path in sorted((ROOT / "tools").glob("*.py"))]
    assert sorted(name for name, _ in SECTIONS) == sorted(["train.py train", "eval.py", "predict.py", *tools])


@pytest.mark.parametrize(("name", "text"), SECTIONS, ids=[name for name, _ in SECTIONS])
def test_the_page_is_up_to_date(name, text):
    classes = {"train.py train": config.TrainConfig, "eval.py": config.EvalConfig, "predict.py": config.PredictConfig}
    shown = classes.get(name) or options_class(importlib.import_module(name.removeprefix("-m ")))
    assert text == help_text(shown, model.defaults()) + "\n", "run: make options"
