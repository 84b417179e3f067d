"""Which file may import which, read from the syntax trees; and that no backbone is named outside its own file.

`model`, `data` and `utils` never import one another; trainer.py imports only `model.utils`; scripts, `tools` and
`research` wire them and are imported by nobody. Between them stands training.py: scripts and `research` import it, and
it imports `research`, as do `tools`. Only utils/logger.py imports visdom, inside a function.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("model", "data", "utils")
WIRING = ("tools", "docs", "research")  # folders whose files may import the layers and the trainer
LOGGER = "utils/logger.py"
BACKBONES = re.compile(r"vgg|resnet|resnext|alexnet|mobilenet|swin|\bzf", re.IGNORECASE)
GENERIC = ("trainer.py", "training.py", "train.py", "model/utils")  # these work for every backbone


def sources(root):
    """Return the files that the rules are about: scripts and trainer at the top, and those of the folders."""
    return [*sorted(root.glob("*.py")), *(path for name in (*LAYERS, *WIRING) for path in (root / name).rglob("*.py"))]


def imported(node, package):
    """Return the full names that a node of a syntax tree imports; `package` is that of its file."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = [*package[: len(package) - node.level + 1]] if node.level else []
        base += [node.module] if node.module else []
        return [".".join([*base, alias.name]) for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        constants = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
        return [value for value in constants if isinstance(value, str)][:1]  # as in f"model.{name}"
    return []


def import_violation(where, name, ours, in_function):
    """Return the rule that the file `where` breaks by importing `name`, or None."""
    top, package = name.split(".")[0], where.parts[:-1]
    if top == "visdom":
        allowed = where.as_posix() == LOGGER and in_function
        return None if allowed else f"only {LOGGER} imports visdom, inside a function"
    if top not in ours:
        return None
    if package[:1] and package[0] in LAYERS and top != package[0]:
        return "a layer imports only itself"
    if where.as_posix() == "utils/voc_eval.py":
        return "the metric stands alone"
    if where.as_posix() == "trainer.py" and name.split(".")[:2] != ["model", "utils"]:
        return "the trainer imports only model.utils"
    own = package[:1] == (top,) or (top == "training" and package in ((), ("research",)))
    own = own or (top == "research" and (where.as_posix() == "training.py" or where.parts[0] == "tools"))
    return f"{top} is a script or a tool: nobody imports it" if top not in (*LAYERS, "trainer") and not own else None


def violations(root):
    """Return one line per place that breaks a rule."""
    ours, found = {*LAYERS, *WIRING, *(path.stem for path in root.glob("*.py"))}, []
    for path in sources(root):
        where, tree = path.relative_to(root), ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.Lambda)]
        in_function = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(tree):
            for name in imported(node, where.parts[:-1]):
                if rule := import_violation(where, name, ours, id(node) in in_function):
                    found.append(f"{where}:{node.lineno}: {name}: {rule}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                found.append(f"{where}:{node.lineno}: .cuda() decides on a device")
    return found


def backbones_named(root):
    """Return one line per place in the generic files that names a backbone."""
    files = [path for name in GENERIC for path in ([root / name] if name.endswith(".py") else (root / name).glob("*"))]
    return [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in files
        if path.suffix == ".py"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if BACKBONES.search(line)
    ]


def test_layers():
    assert violations(ROOT) == []


def test_all_files_are_checked():
    checked = {path.relative_to(ROOT).as_posix() for path in sources(ROOT)}
    assert {"train.py", "trainer.py", "data/voc_dataset.py", "model/utils/anchors.py", LOGGER} <= checked
    assert len(checked) > 20


def test_generic_files_name_no_backbone():
    assert backbones_named(ROOT) == []


def test_every_backbone_is_looked_for():
    backbones = [path.stem for path in ROOT.glob("model/*.py") if re.search(r"^def build\(", path.read_text(), re.M)]
    assert "vgg16" in backbones
    assert [name for name in backbones if not BACKBONES.search(name) and name != "__init__"] == []


@pytest.mark.parametrize("where", ["trainer.py", "train.py", "model/utils/anchors.py"])
def test_a_named_backbone_is_found(tmp_path, where):
    write_project(tmp_path, where, "x = 1\nVGG16_SIZE = 2  # conv\n")
    assert backbones_named(tmp_path) == [f"{where}:2: VGG16_SIZE = 2  # conv"]


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("model/utils/anchors.py", "from data import Sample"),
        ("model/__init__.py", "importlib.import_module(f'utils.{name}')"),
        ("data/voc_dataset.py", "def f():\n    from model import build"),
        ("utils/vis.py", "import numpy, data"),
        ("utils/config.py", "import train"),
        ("model/new.py", "from trainer import Losses"),
        ("utils/voc_eval.py", "from . import checkpoint"),
        ("trainer.py", "from model.faster_rcnn import FasterRCNN"),
        ("trainer.py", "import utils.logger"),
        ("trainer.py", "from data import Sample"),
        ("train.py", "from eval import main"),
        ("tools/new.py", "from predict import find_images"),
        ("train.py", "from research.choices import TRAINERS"),
        ("tools/new.py", "from training import fit"),
        ("trainer.py", "import training"),
        ("trainer.py", "import research"),
        ("research/new.py", "import train"),
        ("train.py", "from tools.check_data import main"),
        ("train.py", "def f():\n    import visdom"),
        (LOGGER, "import visdom"),
        ("predict.py", "net.to(1).cuda(0)"),
    ],
)
def test_a_violation_is_found(tmp_path, where, text):
    write_project(tmp_path, where, text)
    (line,) = violations(tmp_path)
    assert line.startswith(f"{where}:{1 + text.count(chr(10))}: ")


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("model/rpn.py", "from .utils import anchors\nimport torch.utils.data\nfrom torchvision.models import vgg16"),
        ("data/__init__.py", "importlib.import_module(f'data.{name}_dataset')"),
        (LOGGER, "def f():\n    import visdom"),
        (
            "trainer.py",
            "from model.utils.anchors import f\nfrom model.utils import anchors\nimport model.utils.anchors",
        ),
        ("train.py", "from model import build\nfrom data import Sample\nimport training, trainer"),
        ("tools/new.py", "from research.padded import PaddedTrainer"),
        ("training.py", "from research.choices import TRAINERS\nimport data, model, utils.vis, trainer"),
        ("research/new.py", "from research.adam import to_adam\nfrom training import fit\nimport data, utils.vis"),
        ("tools/new.py", "import tools.benchmark\nfrom trainer import Losses\nimport data, model, utils.vis"),
        ("utils/config.py", "torch.cuda.is_available()\nx = torch.device('cuda')"),
    ],
)
def test_what_is_allowed_is_no_violation(tmp_path, where, text):
    write_project(tmp_path, where, text)
    assert violations(tmp_path) == []


def write_project(root, where, text):
    """Write a project of empty files, and the file `where` with `text`."""
    files = (
        "train.py",
        "training.py",
        "eval.py",
        "predict.py",
        "trainer.py",
        "tools/check_data.py",
        "model/utils/anchors.py",
        where,
    )
    for path in map(root.joinpath, files):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (root / where).write_text(text)
