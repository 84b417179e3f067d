"""README and docs: code blocks run, links resolve, options and modules that are named exist."""

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fire
import numpy as np
import pytest
import torch

import data
import model
from research.alternating import AlternatingConfig
from utils.command import command
from utils.config import EvalConfig, PredictConfig, TrainConfig, dashed

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# these name options and files of other programs, too
OTHERS = "docs/coming-from-simple-faster-rcnn-pytorch.md", "docs/torchvision.md"
PAPER = (ROOT / "docs/paper.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def block(start):
    """The code block of the README that starts with a text."""
    return next(code for code in BLOCKS if code.startswith(start))


def config_classes():
    """Program -> the class of its options."""
    classes = {"train.py train": TrainConfig, "eval.py": EvalConfig, "predict.py": PredictConfig}
    for name in (path.stem for path in (ROOT / "tools").glob("*.py")):
        module = importlib.import_module(f"tools.{name}")
        own = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
        classes[f"-m tools.{name}"] = next(value for value in own if hasattr(value, "model_fields"))
    return classes | {"-m research.alternating": AlternatingConfig}


def command_lines():
    """The command lines of all pages: those that start a line, and those in backticks."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", "")
        for line in re.findall(r"^python (.*)", text, re.M) + re.findall(r"`python ([^`]*)`", text):
            yield from (part.removeprefix("python ") for part in line.split(" && "))


def known_options():
    """The options of all commands, dashed."""
    classes = config_classes().values()
    return {dashed(field.alias or name) for c in classes for name, field in c.model_fields.items()}


def links(page):
    """The links of a page that stay in the repository."""
    return [link for link in re.findall(r"\]\(([^)\s]+)\)", page) if not link.startswith("https://")]


def citations(text):
    """What a text cites: '3.1.2', 'table 2' of the paper, 'Fast R-CNN 2.3'; a bare '(3.1.2)' is the paper's."""
    kind = r"(?:table|equation|figure|footnote) \d+"
    item = rf"(?:{kind}|\d(?:\.\d)*)"
    named = rf"(paper|Fast R-CNN)[,:]? \(?(?:sections? )?({item}(?:(?:,| and) {item})*)"
    bare = rf"\((?:section )?((?:[34]\.\d(?:\.\d)?|{kind})(?:, {item})*)[):;,]"
    found = re.findall(f"{named}|{bare}", re.sub(r"\n *(# )?", " ", text))
    whose = {"Fast R-CNN": "Fast R-CNN "}
    return {whose.get(who, "") + part for who, *parts in found for part in re.findall(item, "".join(parts))}


def paper_rows():
    """The rows of docs/paper.md: what each cites, its files -> names in them, its options."""
    for line in re.findall(r"^\| (?!section|---)(.*) \|$", PAPER, re.M):
        section, _, where, *_ = line.split(" | ")
        files = {}
        for path, names in re.findall(r"\]\(\.\./(\S+)\)((?:,? `[\w.]+`)*)", where):
            files[path] = re.findall(r"`([\w.]+)`", names)
        yield citations(f"paper {section}".replace("paper Fast", "Fast")), files, set(re.findall(r"`--([\w-]+)", where))


def slugs(page):
    """The headings of a page as links name them: lower case, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", page, re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.fixture
def extension(tmp_path):
    """A folder with the backbone and the data set of the README, below model/ and data/."""
    for start in ("# model/", "# data/"):
        code = block(start)
        path = tmp_path / code.partition("\n")[0].removeprefix("# ")
        path.parent.mkdir()
        path.write_text(code)
    return tmp_path


def test_two_screens():
    assert len(README.encode()) <= 9216


def test_the_python_api(tmp_path, monkeypatch, tiny_model):
    (tmp_path / "runs/voc").mkdir(parents=True)
    (tmp_path / "runs/voc/last.pth").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("utils.checkpoint.load_checkpoint", lambda path: {"path": path})
    monkeypatch.setattr(model, "restore", lambda checkpoint: tiny_model)
    names = {"img": np.zeros((40, 60, 3), np.uint8)}
    exec(block("import model"), names)
    for result, shape in zip(("bboxes", "labels", "scores"), ((4,), (), ()), strict=True):
        assert [value.shape[1:] for value in names[result]] == [shape], result


def test_the_other_way_of_the_python_api():
    call = re.search(r"# or: net = (.*)", block("import model"))[1]
    assert 'pretrained="imagenet"' in call
    net = eval(call.replace('"imagenet"', "None, head_width=16"), {"model": model})
    assert isinstance(net, model.faster_rcnn.FasterRCNN)
    assert net.head.score.out_features == 21


def test_backbone_and_data_set_train_and_evaluate(extension):
    for name in ("model", "data", "utils", "research"):
        shutil.copytree(ROOT / name, extension / name, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    for name in ("train.py", "training.py", "trainer.py"):
        shutil.copy(ROOT / name, extension)

    def run(line):
        command = [sys.executable, *shlex.split(line)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=extension, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    printed = run(
        "train.py train --env=extended --model=vgg19 --data=squares --pretrained=none --max-steps=1 --epoch=1 "
        "--min-size=64 --max-size=96 --head-width=16 --device=cpu --precision=fp32 --visdom=off"
    )
    checkpoint = torch.load(extension / "runs/extended/last.pth", weights_only=True)
    assert checkpoint["class_names"] == ["square"]
    assert checkpoint["step"] == 1
    assert checkpoint["config"]["lr"] == 5e-4  # TRAINING
    assert "extractor.34.weight" in checkpoint["model"]  # conv5_4
    assert re.search(r"square +0\.\d+ +4 ", printed)  # evaluated, on 4 objects


def test_the_backbone_states_what_the_readme_says(extension, monkeypatch):
    monkeypatch.setattr(model, "__path__", [*model.__path__, str(extension / "model")])
    assert model.defaults("vgg19")["lr"] == 5e-4
    net = model.build("vgg19", n_fg_class=2, head_width=16, min_size=64, max_size=96)
    assert sum(isinstance(layer, torch.nn.Conv2d) for layer in net.extractor) == 16
    pixel, _ = net.prepare(np.zeros((64, 96, 3), np.uint8))
    with torch.no_grad():
        feature = net.extractor(pixel)
    assert feature.shape[1:] == (net.extractor.channels, 64 // net.extractor.stride, 96 // net.extractor.stride)
    sys.modules.pop("model.vgg19")


def test_the_data_set_has_what_a_training_asks_for(extension, monkeypatch):
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(extension / "data")])
    module = importlib.import_module("data.squares_dataset")
    train, test = module.build(None, ["train", "test"])
    assert (train.split, test.split) == ("train", "test")
    assert train.classes == ("square",)
    assert len(train) == len(train.ids) == len(train.bboxes) == len(train.labels) == len(train.difficults) == 4
    for i, sample in enumerate(train.without_difficult()):
        assert isinstance(sample, data.Sample)
        assert train.sizes[i] == sample.img.shape[:2]
        np.testing.assert_array_equal(train.bboxes[i], sample.bbox)
    sys.modules.pop("data.squares_dataset")


def test_the_loss_is_what_it_says(tiny_model):
    from trainer import FasterRCNNTrainer, build_optimizer

    names = {}
    exec(block("from trainer"), names)

    def losses(trainer_class):
        net = model.build(
            n_fg_class=3,
            head_width=16,
            min_size=64,
            max_size=96,
            anchor_scales=(1, 2, 4),
            generator=torch.Generator().manual_seed(0),
        )
        net.load_state_dict(tiny_model.state_dict())
        sample = data.Sample(
            np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8),
            np.array([[8, 8, 40, 40]], np.float32),
            np.array([1]),
            np.array([False]),
            "a",
            np.random.default_rng(0),
        )
        return trainer_class(net, build_optimizer(net, 1e-3)).train_step([sample])

    plain, changed = losses(FasterRCNNTrainer), losses(names["BoxTrainer"])
    assert plain.roi_loc > 0
    torch.testing.assert_close(changed.roi_loc, 2 * plain.roi_loc)
    torch.testing.assert_close(changed.total - plain.total, plain.roi_loc, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    if page.relative_to(ROOT).as_posix() in OTHERS:  # in their tables the first column is theirs
        text = re.sub(r"^\| [^|]* \|", "", text, flags=re.M)
    named = re.findall(r"(?<![-\w])--([a-z][a-z0-9-]*)", text)
    programs = {"help", "name", "nproc"}  # of any command; any; of torchrun: --nproc_per_node
    tests = {"steps", "kills", "rounds"}  # of the programs in tests/
    assert set(named) - known_options() <= programs | tests


def test_every_command_line_is_accepted():
    seen, classes = set(), config_classes()
    for line in command_lines():
        name = next((name for name in classes if f"{line} ".startswith(f"{name} ")), None)
        words = shlex.split(line.removeprefix(name or ""), comments=True)
        if name is None or {"...", "--help"} & set(words):
            continue
        if not words and any(field.is_required() for field in classes[name].model_fields.values()):  # mentioned only
            continue
        calls = []
        call = command(classes[name], lambda config, *paths, calls=calls: calls.append(config), positional=True)
        fire.Fire(call, command=words)
        assert len(calls) == 1, line
        seen.add(name)
    assert seen == set(classes)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in links(page.read_text(encoding="utf-8")):
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if heading:
            assert heading in slugs(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_program_that_is_named_exists(page):
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ([\w.]+)", text):
        if module.split(".")[0] in ("tools", "docs", "utils"):
            assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file(), module
    for script in re.findall(r"python ([\w/]+\.py)", text):
        assert script == "convert.py" or (ROOT / script).is_file(), script  # of docs/own-data.md
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?\bmake (demo|test|notebook|dashboard|lint)\b", text):
        assert re.search(rf"^{target}:", makefile, re.M), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_programs_import_is_there(page):
    own = "data|model|research|tools|trainer|training|utils"
    for name, parts in re.findall(rf"^from ((?:{own})[\w.]*) import (.*)", page.read_text(encoding="utf-8"), re.M):
        module = importlib.import_module(name)
        for part in parts.split(", "):
            assert hasattr(module, part) or importlib.util.find_spec(f"{name}.{part}"), f"{name}: {part}"


def test_every_page_is_linked():
    linked = {link for page in PAGES for link in links(page.read_text(encoding="utf-8"))}
    for page in PAGES[1:]:
        assert {f"docs/{page.name}", page.name} & {link.partition("#")[0] for link in linked}, page


def test_the_names_of_the_paper_page_exist():
    count = 0
    for _, files, _ in paper_rows():
        for path, names in files.items():
            module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
            for name in names:
                functools.reduce(getattr, name.split("."), module)  # raises AttributeError
                count += 1
    assert count > 50


def test_every_citation_is_on_the_paper_page():
    rows = list(paper_rows())
    listed = {(path, part) for cited, files, _ in rows for path in files for part in cited}
    folders = ("data", "model", "research", "tools", "utils")
    paths = [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    in_code = {(path, part) for path, text in texts.items() for part in citations(text) if path != "utils/config.py"}
    assert in_code - listed == set()
    for cited, files, _ in rows:
        for path in files:
            assert cited & citations(texts[path]), f"{path} does not cite {cited}"
    listed = {(name, part) for cited, _, options in rows for name in options for part in cited}
    for options in config_classes().values():
        for name, field in options.model_fields.items():
            for part in citations(field.json_schema_extra["source"]):
                assert (dashed(field.alias or name), part) in listed, f"--{dashed(name)}: {part}"


def test_the_paper_page_is_in_the_order_of_the_paper():
    for table in PAPER.split("\n## ")[1:3]:
        sections = re.findall(r"^\| (?:Fast R-CNN )?(\d[\d.]*)", table, re.M)
        assert len(sections) > 10
        assert sections == sorted(sections)


def test_citations():
    assert citations("(paper 3.1.2, equation 2) (3.3) Fast R-CNN 2, 2.3: x (paper, table\n    # 10)") == {
        *("3.1.2", "equation 2", "3.3", "Fast R-CNN 2", "Fast R-CNN 2.3", "table 10")
    }
    assert citations("(0.5, 1, 2) R-CNN 4.2 (1612.03144, equation 1) (4, 3)") == set()


def test_links_and_headings_are_found():
    assert len(links(README)) > 20
    assert links("[a](b.md#c) ![d](e.svg) [f](https://g.h)") == ["b.md#c", "e.svg"]
    assert slugs("# A `b` c, d\n## E-f\ng") == ["a-b-c-d", "e-f"]


def test_threads_wait_passively_before_torch_loads():
    """Waiting threads of OpenMP must not occupy the core of another program; a user's own setting wins."""
    scripts = ("train.py", "predict.py", "eval.py", "tools/benchmark.py", "tools/export_onnx.py", "tools/gpu_check.py")
    for name in (*scripts, "research/alternating.py", "tests/stress_scale.py"):
        first = (ROOT / name).read_text().partition("\nimport ")[2]  # what follows the first import
        assert first.startswith('os\n\nos.environ.setdefault("OMP_WAIT_POLICY", "passive")'), name
    own = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    own |= {"OMP_DISPLAY_ENV": "VERBOSE"}
    said = {"cwd": ROOT, "text": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    started = [
        subprocess.Popen([sys.executable, "predict.py", "--help"], env=env, **said)
        for env in (own, own | {"OMP_WAIT_POLICY": "active"})
    ]
    # of libgomp, whose OMP_WAIT_POLICY reads PASSIVE when it is not set, too
    spins = [re.findall(r"GOMP_SPINCOUNT\s*=\s*'(\w+)'", process.communicate()[1]) for process in started]
    assert spins[0] == ["0"] != spins[1]
