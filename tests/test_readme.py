"""README and docs name what is there: every option with its default, every file of the house, links that resolve."""
import dataclasses
import re
from pathlib import Path

import pytest

from utils.config import AnchorConfig, BenchConfig, CheckConfig, EvalConfig, PredictConfig, TrainConfig, as_text, dashed

ROOT = Path(__file__).parent.parent
CONFIGS = [TrainConfig, CheckConfig, AnchorConfig, EvalConfig, PredictConfig, BenchConfig]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def links(page):
    """The links of a page of Markdown that stay in the repository."""
    found = [link or source for link, source in re.findall(r"\]\(([^)\s]+)\)|src=['\"]([^'\"]+)", page)]
    return [link for link in found if not link.startswith("https://")]


def slugs(page):
    """The headings of a page as links name them: lower case, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", page, re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("config_class", CONFIGS)
def test_every_option_is_there_with_its_default(config_class):
    for field in dataclasses.fields(config_class):
        default = as_text(field.default)
        assert f"`--{dashed(field.name)}{'=' + default if default else ''}`" in README, field.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_is_named_exists(page):
    known = {dashed(field.name) for c in CONFIGS for field in dataclasses.fields(c)}
    named = re.findall(r"(?<!-)--([a-z][a-z0-9-]*)", page.read_text(encoding="utf-8"))
    assert set(named) - known <= {"help", "name", "nproc"}  # any; torchrun's


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in links(page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            assert heading in slugs(target.read_text(encoding="utf-8")), link


def test_the_pages_are_read():
    assert {page.name for page in PAGES} >= {"README.md", "own-data.md"}
    assert len(links(README)) > 20
    assert links("[a](b.md#c) ![d](e.svg) [f](https://g.h) <img src='i.png'>") == ["b.md#c", "e.svg", "i.png"]
    assert slugs("# A `b` c, d\n## E-f\ng") == ["a-b-c-d", "e-f"]


def test_every_module_is_on_the_map():
    rooms = [file for room in ("model", "data", "utils") for file in (ROOT / room).rglob("*.py")]
    for path in [*ROOT.glob("*.py"), *rooms]:
        assert path.name in README or path.name == "__init__.py", path


def test_nothing_is_left_to_fill_in():
    assert not re.search(r"@[A-Z_]+@", README)
