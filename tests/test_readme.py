"""The README names what is there: every option with its default, every file of the house."""
import dataclasses
import re
from pathlib import Path

import pytest

from utils.config import BenchConfig, CheckConfig, EvalConfig, PredictConfig, TrainConfig, as_text, dashed

ROOT = Path(__file__).parent.parent
CONFIGS = [TrainConfig, CheckConfig, EvalConfig, PredictConfig, BenchConfig]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_option_is_there_with_its_default(config_class):
    for field in dataclasses.fields(config_class):
        default = as_text(field.default)
        assert f"`--{dashed(field.name)}{'=' + default if default else ''}`" in README, field.name


def test_every_option_that_it_names_exists():
    known = {dashed(field.name) for c in CONFIGS for field in dataclasses.fields(c)}
    assert set(re.findall(r"--([a-z][a-z0-9-]*)", README)) - known <= {"help", "name", "nproc"}  # any; torchrun's


def test_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("https://")]
    assert len(links) > 20
    for link in links:
        assert (ROOT / link).exists(), link


def test_every_module_is_on_the_map():
    rooms = [file for room in ("model", "data", "utils") for file in (ROOT / room).rglob("*.py")]
    for path in [*ROOT.glob("*.py"), *rooms]:
        assert path.name in README or path.name == "__init__.py", path


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@[A-Z_]+@", README)
