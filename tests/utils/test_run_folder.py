"""The folder of a run: its name, who may write it, its options when it is resumed."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

import model
import training
from utils import run_folder
from utils.command import parse_options
from utils.config import OptionError, TrainConfig
from utils.run_folder import changed_options, check_run_folder, describe_environment, stored_options


def make_config(**options):
    """The options of a run of VGG16, resolved."""
    return parse_options(TrainConfig, {"device": "cpu"} | options, defaults=model.defaults)


@pytest.fixture
def earlier_run(tmp_path, monkeypatch):
    """runs/old with a config.json, a last.pth and files of its own."""
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/old")
    folder.mkdir(parents=True)
    config = make_config(env="old", lr="0.5", anchor_scales="2,4", overwrite="True", load_path="a.pth")
    (folder / "config.json").write_text(config.model_dump_json())
    for name in ("last.pth", "note", ".123.last.pth"):
        (folder / name).touch()
    return folder


def test_a_run_is_not_replaced_by_one_that_starts_from_it(earlier_run):
    with pytest.raises(
        OptionError, match=r"^--overwrite would delete runs/../runs/old/last\.pth: choose another --env"
    ):
        check_run_folder(earlier_run, False, True, None, "none", "runs/../runs/old/last.pth")
    check_run_folder(earlier_run, False, True, None, "runs/older/last.pth", "last.pth")
    check_run_folder(earlier_run, True, True, "runs/old/last.pth")
    check_run_folder(Path("runs/new"), False, False, None, None, "runs/new/rois.npz")


@pytest.mark.parametrize("env", ["a/b", "/tmp", "../a", ".", "", "..", "é" * 101, "runs/a", "/runs/a"])
def test_a_run_has_a_plain_name(env):
    with pytest.raises(OptionError, match="must be a plain name"):
        check_run_folder(Path("runs") / env, resume=False, overwrite=True)


def test_an_earlier_run_is_not_replaced_unasked(earlier_run):
    with pytest.raises(OptionError, match=r"runs/old exists: --resume .*--overwrite .*--env"):
        check_run_folder(earlier_run, resume=False, overwrite=False)
    (earlier_run / "last.pth").rename("last.pth")  # as after a first epoch that failed
    check_run_folder(earlier_run, resume=False, overwrite=False)
    (earlier_run / "pictures").mkdir()
    (earlier_run / "pictures/000006.png").touch()  # weights were deleted, results were not
    with pytest.raises(OptionError, match=r"^runs/old exists: --resume"):
        check_run_folder(earlier_run, resume=False, overwrite=False)
    Path("last.pth").rename(earlier_run / "last.pth")
    for folder, options in (("new", (False, False)), ("old", (True, False)), ("old", (False, True))):
        check_run_folder(Path("runs") / folder, *options)
    for i, name in enumerate(("last.pth", "best.pth", "1-rpn/last.pth")):  # copied from another machine
        file = Path(f"runs/{i}", name)
        file.parent.mkdir(parents=True)
        file.touch()
        with pytest.raises(OptionError, match=f"runs/{i} exists"):
            check_run_folder(Path(f"runs/{i}"), resume=False, overwrite=False)


@pytest.mark.parametrize(
    ("options", "left"),
    [({"overwrite": "True"}, False), ({"resume": "True"}, True), ({"resume": "True", "overwrite": "True"}, True)],
)
def test_only_overwrite_deletes(earlier_run, options, left):
    config = make_config(env="old", lr="0.25", visdom="off", **options)
    training.build_logger(config, earlier_run, 0, torch.device("cpu"))
    assert (earlier_run / "note").exists() == left
    assert not (earlier_run / ".123.last.pth").exists()  # half-written when a process was killed
    assert json.loads((earlier_run / "config.json").read_text())["lr"] == 0.25
    assert json.loads((earlier_run / "environment.json").read_text())["threads"] == torch.get_num_threads()


def test_resuming_takes_the_options_of_the_run(earlier_run):
    assert stored_options({"env": "old", "lr": "1"}) == stored_options({"env": "old", "resume": "False"}) == {}
    texts = {"env": "old", "resume": "true", "lr": "1", "load_path": "a.pth", "seed": "0", "anchor_scales": "2,4"}
    stored = stored_options(texts)
    assert (stored["lr"], stored["anchor_scales"]) == (0.5, (2, 4))
    assert parse_options(TrainConfig, texts, stored, model.defaults).lr == 1


def resumed(env, texts):
    """The options of a resumed run."""
    texts = {"env": env, "resume": "True"} | texts
    return parse_options(TrainConfig, texts, stored_options(texts), model.defaults)


def test_what_resuming_changes(earlier_run):
    texts = {"lr": "1", "load_path": "a.pth", "max_steps": "7", "num_workers": "2", "lr_decay": "0.1"}
    changed = {"lr": [0.5, 1], "max_steps": [None, 7]}
    assert changed_options(resumed("old", texts), model.defaults) == changed
    assert changed_options(resumed("old", {}), model.defaults) == {}
    assert changed_options(make_config(env="old", lr="1"), model.defaults) == {}


def test_a_path_may_be_given_again_with_a_tilde(earlier_run, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    path = earlier_run / "config.json"
    path.write_text(path.read_text().replace("a.pth", "/home/ann/a.pth"))
    assert changed_options(resumed("old", {"load_path": "~/a.pth"}), model.defaults) == {}


@pytest.mark.parametrize(
    ("name", "text", "was"),
    [
        ("load_path", "b.pth", "a.pth"),
        ("model", "resnet50", "vgg16"),
        ("seed", "1", "0"),
        ("anchor_scales", "2,4,8", "2,4"),
        ("batch_size", "2", "1"),
        ("val_ratio", "0.4", "0.2"),
    ],
)
def test_what_resuming_cannot_change(earlier_run, name, text, was):
    words = f"={text}: the run was started with {was}, which cannot change; leave it out, or start another run"
    with pytest.raises(OptionError, match=words):
        changed_options(resumed("old", {name: text}), model.defaults)


@pytest.mark.parametrize(
    "content", ["", '{"lr": 0.5,', "[1]", '{"lr": "fast"}', '{"min_size": 2, "max_size": 1}', "\xff"]
)
def test_a_damaged_config_json_is_named(earlier_run, content):
    (earlier_run / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(OptionError, match=r"^runs/old/config\.json is damaged \(.*\): last\.pth has"):
        stored_options({"env": "old", "resume": "True"})


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("config.json", "config.json: --env=NEW --load-path=runs/old/last.pth starts from its weights"),
        ("last.pth", "last.pth: --env=NEW --load-path=runs/old/best.pth starts from its weights"),
        ("last.pth best.pth", "last.pth: start again with --overwrite"),
    ],
)
def test_resuming_needs_a_run(earlier_run, missing, advice):
    with pytest.raises(OptionError, match=r"^--resume: runs/odl does not exist, see --env; runs that are there: old$"):
        stored_options({"env": "odl", "resume": "True"})
    (earlier_run / "best.pth").touch()
    for name in missing.split():
        (earlier_run / name).unlink()
    with pytest.raises(OptionError, match=f"^--resume: runs/old lacks {advice}$"):
        stored_options({"env": "old", "resume": "True"})


def test_describe_environment(tmp_path, monkeypatch):
    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *name, *words], check=True, capture_output=True, text=True).stdout

    (tmp_path / "utils").mkdir()
    monkeypatch.setattr(run_folder, "__file__", str(tmp_path / "utils" / "run_folder.py"))
    cpu = torch.device("cpu")
    found = describe_environment(cpu)
    assert found["commit"] is None
    assert torch.__version__.startswith(found["torch"].split("+")[0])
    assert found["threads"] == torch.get_num_threads()
    assert all(isinstance(value, str | int | None) for value in found.values())
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    commit = git("rev-parse", "HEAD").strip()
    assert describe_environment(cpu)["commit"] == commit
    (tmp_path / "file").write_text("2")
    assert describe_environment(cpu)["commit"] == f"{commit}-dirty"
    monkeypatch.setenv("PATH", "")
    assert describe_environment(cpu)["commit"] is None
