"""The tables of docs/torchvision.md: names exist on both sides, defaults are equal."""

import importlib
import inspect
import re
from functools import reduce
from pathlib import Path

import pytest
from torchvision import ops
from torchvision.models import detection
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.detection.faster_rcnn import FasterRCNN
from torchvision.ops import poolers

import model
from model.resnet_fpn import NAMES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/torchvision.md").read_text(encoding="utf-8")
FILES = "generalized_rcnn", "transform", "anchor_utils", "image_list", "rpn", "roi_heads", "faster_rcnn", "_utils"
THEIRS = [importlib.import_module(f"{detection.__name__}.{name}") for name in FILES]
THEIRS += [detection.backbone_utils, ops, ops.boxes, ops.feature_pyramid_network, poolers]


def table(heading):
    """The rows of the table below a heading, as lists of cells."""
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)[1]
    rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("|")]
    assert len(rows) > 6
    return [[cell.strip() for cell in row] for row in rows[2:]]


def quoted(cell):
    return re.findall(r"`([^`]+)`", cell)


def find(name, modules):
    """The object with a dotted name in one of the modules, or None."""
    for module in modules:
        found = reduce(lambda part, attribute: getattr(part, attribute, None), name.split("."), module)
        if found is not None:
            return found
    return None


def test_every_argument_is_there_with_its_default():
    rows = table("Arguments of `FasterRCNN`")
    parameters = inspect.signature(FasterRCNN.__init__).parameters
    assert [name for row in rows for name in quoted(row[0])] == list(parameters)[1:]
    ours = model.defaults("resnet50_fpn")
    with_default = [(quoted(names)[0], float(default), here) for names, default, here in rows if default]
    numbers = {
        name: parameter.default for name, parameter in parameters.items() if type(parameter.default) in (int, float)
    }
    assert {name: default for name, default, _ in with_default} == numbers
    for name, default, here in with_default:
        (option,) = re.findall(r"`--([a-z-]+)`", here)
        assert ours[option.replace("-", "_")] == default, name


@pytest.mark.parametrize("row", table("Classes"), ids=lambda row: row[0])
def test_every_class_is_there(row):
    theirs, here, files = row
    for name in quoted(theirs):
        assert find(name, THEIRS) is not None, name
    paths = [path.removeprefix("../") for path in re.findall(r"\]\(([^)]+)\)", files)]
    modules = [importlib.import_module(path.removesuffix(".py").replace("/", ".")) for path in paths]
    source = "".join(inspect.getsource(module) for module in modules)
    for name in (name for name in quoted(here) if not name.startswith("--")):
        assert find(name, modules) is not None or re.search(rf"self\.{name} = ", source), name


def test_the_builders_are_there():
    rows = table("Builders")
    builders = [quoted(theirs)[0] for theirs, _ in rows[:4]]
    assert builders == [f"fasterrcnn_{name}" for name in NAMES]
    assert [f"--model={name}" for name in NAMES] == [quoted(here)[0] for _, here in rows[:4]]
    assert all(hasattr(detection, name) for name in builders)
    arguments = {quoted(theirs)[0] for theirs, _ in rows[4:]}
    assert arguments == set(inspect.signature(fasterrcnn_resnet50_fpn).parameters) - {"kwargs"}
