"""The layers of the house, read from its syntax trees: `model`, `data`, `utils`; above them trainer and scripts."""
import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("model", "data", "utils")
KNOW_VISDOM = ("utils/boards.py", "utils/dashboard.py")


def sources(root):
    """The files of the house: those at the top, which are scripts and the trainer, and those of the rooms."""
    return [*sorted(root.glob("*.py")), *(path for room in ROOMS for path in sorted((root / room).rglob("*.py")))]


def imported(node, package):
    """The full names that a node of a syntax tree imports, if it is an import; `package` is that of its file."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = [*package[:len(package) - node.level + 1]] if node.level else []
        base += [node.module] if node.module else []
        return [".".join([*base, alias.name]) for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
        constants = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
        return [value for value in constants if isinstance(value, str)][:1]  # as in f"model.{name}"
    return []


def faults(root):
    """One line for each place that breaks a rule; so only scripts can import scripts."""
    files = sources(root)
    ours = {*ROOMS, *(path.stem for path in root.glob("*.py"))}
    found = []
    for path in files:
        where = path.relative_to(root)
        package = where.parts[:-1]
        tree = ast.parse(path.read_text(encoding="utf-8"))
        inside = {id(node) for function in ast.walk(tree) if isinstance(function, ast.FunctionDef | ast.Lambda)
                  for node in ast.walk(function)}
        for node in ast.walk(tree):
            for name in imported(node, package):
                top = name.split(".")[0]
                line = f"{where}:{node.lineno}: {name}"
                if package and top in ours - {package[0]}:
                    found.append(f"{line}: a room knows only itself")
                if where == Path("utils/voc_eval.py") and top in ours:
                    found.append(f"{line}: the metric stands alone")
                if where == Path("trainer.py") and top in ours and name.split(".")[:2] != ["model", "utils"]:
                    found.append(f"{line}: the trainer knows only model.utils")
                if top == "visdom" and (str(where) not in KNOW_VISDOM or id(node) not in inside):
                    found.append(f"{line}: only {' and '.join(KNOW_VISDOM)} know visdom, inside a function")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
                found.append(f"{where}:{node.lineno}: .cuda() decides on a device")
    return found


def test_the_house_is_in_order():
    assert faults(ROOT) == []


def test_the_checker_reads_the_whole_house():
    read = {str(path.relative_to(ROOT)) for path in sources(ROOT)}
    assert {"train.py", "trainer.py", "data/voc.py", "utils/voc_eval.py", "model/utils/bbox_tools.py"} <= read
    assert len(read) > 20


@pytest.mark.parametrize(("where", "text"), [
    ("model/vgg16.py", "import utils.log"),
    ("model/utils/anchors.py", "from data.voc import CLASSES"),
    ("model/rpn.py", "def f():\n    from utils import files"),
    ("model/__init__.py", "importlib.import_module(f'utils.{name}')"),
    ("data/voc.py", "from model import build"),
    ("data/transforms.py", "import numpy, model.faster_rcnn"),
    ("data/shapes.py", "from utils.files import write_text"),
    ("data/voc.py", "from trainer import Losses"),
    ("utils/log.py", "import data"),
    ("utils/vis.py", "__import__('model')"),
    ("utils/config.py", "import train"),
    ("model/new.py", "if True:\n    from eval import evaluate"),
    ("data/voc.py", "import predict as p"),
    ("utils/voc_eval.py", "from utils.files import write_text"),
    ("utils/voc_eval.py", "from .files import write_text"),
    ("utils/voc_eval.py", "from . import files"),
    ("trainer.py", "from model import build"),
    ("trainer.py", "from model.faster_rcnn import FasterRCNN"),
    ("trainer.py", "import utils.log"),
    ("trainer.py", "from data.transforms import flip_bbox"),
    ("trainer.py", "from train import train"),
    ("train.py", "import visdom"),
    ("utils/vis.py", "def f():\n    from visdom import Visdom"),
    ("utils/log.py", "def f():\n    import visdom"),
    ("utils/boards.py", "import visdom"),
    ("model/rpn.py", "x = y.cuda()"),
    ("predict.py", "net.to(1).cuda(0)"),
])
def test_the_checker_finds_a_planted_fault(tmp_path, where, text):
    plant(tmp_path, where, text)
    found = faults(tmp_path)
    assert found
    for line in found:
        assert line.startswith(f"{where}:")


@pytest.mark.parametrize(("where", "text"), [
    ("model/vgg16.py", "from model.utils.array import on_arrays\nfrom torchvision.models import vgg16"),
    ("model/rpn.py", "from .utils import array\nimport torch.utils.data"),
    ("data/__init__.py", "from data.voc import CLASSES"),
    ("utils/boards.py", "def f():\n    import visdom"),
    ("trainer.py", "from model.utils.array import on_arrays\nfrom model.utils import array\nimport model.utils.array"),
    ("train.py", "from eval import evaluate\nfrom model import build\nfrom data import find_root\nimport trainer"),
    ("utils/config.py", "torch.cuda.is_available()\nx = torch.device('cuda')"),
])
def test_the_checker_lets_pass_what_is_allowed(tmp_path, where, text):
    plant(tmp_path, where, text)
    assert faults(tmp_path) == []


def plant(root, where, text):
    """A house of empty files, but for one."""
    for path in map(root.joinpath, ("train.py", "eval.py", "predict.py", "trainer.py", where)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    (root / where).write_text(text)
