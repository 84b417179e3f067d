"""`tools.run_seeds`: narrow runs from end to end, interrupted and gone on with; the processes that it starts."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import fire
import pytest
from fixtures import OPTIONS

import eval as evaluation_script
import model
import train
from tools import run_seeds
from tools.run_seeds import SeedsConfig, as_words, format_row, main
from utils.command import command, parse_options
from utils.config import EvalConfig, OptionError, TrainConfig
from utils.run_folder import stored_options

RUN = OPTIONS | {"epoch": "1", "eval_every": "0", "env": "tiny"}


def make_config(**options):
    return parse_options(SeedsConfig, RUN | options, defaults=model.defaults)


@pytest.fixture
def launched(place, monkeypatch):
    """The scripts run in this process, which keeps the network narrow; their names are returned."""
    calls = []

    def launch(script, *words):
        calls.append(script)
        if script == "train.py":
            call = command(TrainConfig, train.main, word="train", stored=stored_options, defaults=model.defaults)
        else:
            call = command(EvalConfig, evaluation_script.main, defaults=model.defaults)
        fire.Fire(call, command=list(words))

    monkeypatch.setattr(run_seeds, "launch", launch)
    return calls


def test_from_end_to_end(place, launched, capsys, monkeypatch):
    config = make_config(seeds="3,5", max_steps="4")
    with monkeypatch.context() as patch:  # the second evaluation is interrupted
        patch.setattr(evaluation_script.json, "dumps", interrupt_after(1, json.dumps))
        with pytest.raises(SystemExit):
            main(config)
    assert launched == ["train.py", "eval.py"] * 2
    launched.clear()
    saved = Path("runs/tiny-3/last.pth").stat().st_mtime_ns
    main(config)
    assert launched == ["train.py", "train.py", "eval.py"]  # train.py says that the run is finished
    assert Path("runs/tiny-3/last.pth").stat().st_mtime_ns == saved
    results = [json.loads(Path(f"runs/tiny-{seed}/eval.json").read_text()) for seed in (3, 5)]
    assert [(result["step"], result["precision"], result["n_image"]) for result in results] == [(4, "fp32", 3)] * 2
    assert json.loads(Path("runs/tiny-5/config.json").read_text())["seed"] == 5
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| voc val, 3 images, evaluated in fp32, 2 seeds | `python -m tools.run_seeds --")
    words = last.split("`")[1].split()[3:]
    assert {"--seeds=3,5", "--max-steps=4", "--voc-data-dir=voc"} <= {*words}
    assert not {"--lr=0.001", "--batch-size=1"} & {*words}

    calls = []  # the command of the row means the same
    fire.Fire(command(SeedsConfig, calls.append, defaults=model.defaults), command=words)
    assert calls == [config]

    launched.clear()
    with pytest.raises(OptionError, match=r"runs/tiny-3 was trained with --lr=0\.001, not 0\.002: --overwrite"):
        main(make_config(seeds="3,5", max_steps="4", lr="2e-3"))
    assert launched == []
    Path("runs/tiny-3/last.pth").rename("runs/tiny-3/best.pth")  # kept to save space
    with pytest.raises(SystemExit, match="runs/tiny-3 exists"):
        main(config)
    main(make_config(seeds="3", max_steps="2", overwrite="True"))
    assert json.loads(Path("runs/tiny-3/eval.json").read_text())["step"] == 2


def interrupt_after(n_call, function):
    """A function that is interrupted at the call after `n_call` calls with a result of eval.py."""
    count = iter(range(99))

    def call(value, *args, **kwargs):
        if "n_image" in value and next(count) == n_call:
            raise KeyboardInterrupt
        return function(value, *args, **kwargs)

    return call


def test_options_reach_the_scripts_unchanged():
    options = {"lr": "0.00123456789", "classes": "a b,c", "lr_decay_epoch": "()", "anchor_ratios": "0.5,2"}
    config = make_config(**options, seeds="0,1,2")
    words = as_words(config)
    assert {"--lr=0.00123456789", "--classes=a b,c", "--lr-decay-epoch=()", "--anchor-ratios=0.5,2.0"} <= {*words}
    calls = []
    fire.Fire(command(SeedsConfig, calls.append, defaults=model.defaults), command=words)
    assert calls == [config]


def test_row():
    result = {"data": "sets/VOC2007", "split": "test", "n_image": 4952, "precision": "bf16"}
    config = SeedsConfig(seeds=(4, 0), download=True, resume=True)
    assert format_row(config, [result | {"map": value} for value in (0.7, 0.691)]) == (
        "| VOC2007 test, 4952 images, evaluated in bf16, 2 seeds "
        "| `python -m tools.run_seeds --seeds=4,0 --download=True` | 0.696 (0.691 to 0.700) |"
    )
    assert format_row(config, [result | {"map": None}]).endswith("| n/a |")  # the split contains nothing to find


def test_a_failing_script_ends_the_command(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import sys; sys.exit(int(sys.argv[1]))")
    run_seeds.launch(script, "0")
    with pytest.raises(SystemExit, match=r"fails\.py ended with exit code 3"):
        run_seeds.launch(script, "3")


@pytest.mark.parametrize("env", ["runs/q", "~/q", "/q"])
def test_a_name_is_no_path(env):
    with pytest.raises(OptionError, match=r"^--env must be a plain name"):
        run_seeds.main(SeedsConfig(env=env))


def test_resume_is_not_needed():
    with pytest.raises(OptionError, match=r"^--resume: leave it out, the same command goes on"):
        run_seeds.main(SeedsConfig(resume=True))


def test_a_signal_lets_the_training_save_first(tmp_path, capsys):
    script, ready, saved = (tmp_path / name for name in ("train.py", "ready", "saved"))
    script.write_text(
        "import pathlib, signal, sys, time\n"
        "def save(*_): time.sleep(0.5); pathlib.Path(sys.argv[2]).touch(); sys.exit(143)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "pathlib.Path(sys.argv[1]).touch(); time.sleep(60)"
    )

    def interrupt():
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        run_seeds.launch(script, ready, saved)
    assert saved.exists()
    assert capsys.readouterr().out == "the same command of tools.run_seeds goes on from there\n"
