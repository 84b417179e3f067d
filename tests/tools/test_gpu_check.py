"""`tools.gpu_check` on the CPU: what each check finds, and that none hides another."""

import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import fire
import pytest
import torch
from fixtures import OPTIONS

import model
import train
from tools import benchmark, gpu_check
from tools.gpu_check import GpuConfig, format_table, main, run_apart
from utils.command import command
from utils.config import OptionError, TrainConfig, dashed
from utils.run_folder import stored_options

CPU, CONFIG = torch.device("cpu"), GpuConfig(device="cpu", size="64x96")


@pytest.fixture
def small(monkeypatch):
    for module, values in (
        (benchmark, {"WIDTH": 8, "N_WARM_UP": 0, "peak_memory": lambda *args: 1.5}),
        (gpu_check, {"N_ROUND": 1, "N_PROFILED": 1, "pick_dtype": lambda *args: None}),
    ):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)


def test_marked_tests(tmp_path, monkeypatch):
    values = "[0, 1, pytest.param(1, marks=pytest.mark.skip)]"
    test = (
        f"import pytest\n@pytest.mark.cuda\n@pytest.mark.parametrize('value', {values})\ndef test(value): assert value"
    )
    (tmp_path / "test_a.py").write_text(test)
    (tmp_path / "test_b.py").write_text("def test_that_is_not_marked(): assert False")
    monkeypatch.setattr(gpu_check, "TESTS", tmp_path)
    figures = gpu_check.run_tests(CONFIG, CPU, None)
    assert "assert 0" in figures.pop("fault")
    assert figures == {"passed": 1, "failed": 1, "skipped": 1}


def test_none_of_the_marked_tests_may_be_skipped_on_a_gpu(monkeypatch):
    done = subprocess.CompletedProcess([], 0, "...\n2 passed, 1 skipped, 900 deselected in 3.21s\n", "")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
    assert gpu_check.run_tests(CONFIG, CPU, None) == {"passed": 2, "skipped": 1, "fault": None}
    assert "1 skipped" in gpu_check.run_tests(CONFIG, torch.device("cuda"), None)["fault"]


def test_precisions(small, monkeypatch):
    figures = gpu_check.compare_precisions(CONFIG, CPU, None)
    assert len(figures) == 2 * 2 * 5
    assert figures["total, fp32, the same proposals"] > 2
    assert figures["roi_cls, tf32, the same proposals"] == "+0.000% of the total"
    bf16 = iter([None, None, torch.bfloat16])
    monkeypatch.setattr(gpu_check, "set_precision", lambda name: next(bf16))
    monkeypatch.setattr(gpu_check, "LOSS_CHANGE", 0)
    figures = gpu_check.compare_precisions(CONFIG, CPU, None)
    assert figures["fault"] == "tf32 changes a loss by more than 0% of the total"


def test_bf16_is_left_out_where_there_are_no_instructions(monkeypatch):
    for dtype, names in ((torch.bfloat16, "fp32 tf32 bf16"), (None, "fp32 tf32")):
        monkeypatch.setattr(gpu_check, "pick_dtype", lambda name, device, dtype=dtype: dtype)
        assert gpu_check.find_precisions(CPU) == names.split()


def test_precision_of_float32_layers():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    for name, dtype, arithmetic in (("tf32", None, "tf32"), ("bf16", torch.bfloat16, "ieee"), ("fp32", None, "ieee")):
        assert gpu_check.set_precision(name) is dtype
        assert (matmul.fp32_precision, conv.fp32_precision) == (arithmetic, arithmetic)
    matmul.fp32_precision, conv.fp32_precision = before


def test_speed(small, monkeypatch):
    seconds = {"ours": {"train": [1, 2, 4], "predict": [1]}, "torchvision": {"train": [4, 4, 4], "predict": [3]}}
    monkeypatch.setattr(benchmark, "measure", lambda *args: seconds)
    figures = gpu_check.measure(CONFIG, CPU, None)
    assert figures["train, fp32, ours, seconds"] == 2
    assert figures["train, tf32, torchvision / ours"] == 2  # of 4, 2 and 1
    assert figures["predict, tf32, torchvision / ours"] == 3
    assert figures["train, fp32, ours, peak GB"] == 1.5


def test_waits(small, monkeypatch):
    # softmax: of the RPN and of the head in a prediction; of the RPN and of two losses in a step
    monkeypatch.setattr(gpu_check, "WAITS", ("aten::_softmax", "aten::_log_softmax"))
    figures = gpu_check.count_waits(CONFIG, CPU, None)
    assert figures == {"train, waits": 3, "predict, waits": 2, "fault": "3 waits per training step, not 2"}


def test_a_profiler_that_sees_no_gpu(small, monkeypatch):
    monkeypatch.setattr(benchmark, "Ours", lambda *args: SimpleNamespace(train=list, predict=list))
    for device, fault in ((CPU, None), (torch.device("cuda"), "0 waits per training step, not 2")):
        assert gpu_check.count_waits(CONFIG, device, None)["fault"] == fault


@pytest.fixture
def in_process(place, monkeypatch):
    """train.py trains in this process, which keeps the network narrow, on the data set in voc/."""

    def run(words, cwd, **kwargs):
        assert Path(cwd) == Path.cwd()
        call = command(TrainConfig, train.main, word="train", stored=stored_options, defaults=model.defaults)
        fire.Fire(call, command=list(map(str, words[2:])))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(gpu_check, "subprocess", SimpleNamespace(run=run))
    monkeypatch.setattr(gpu_check, "TOY", [f"--{dashed(name)}={value}" for name, value in OPTIONS.items()])
    yield
    torch.use_deterministic_algorithms(False)


def test_learning(in_process, place, monkeypatch):
    monkeypatch.setattr(gpu_check, "N_LEARN", 10)
    figures = gpu_check.learn(CONFIG, CPU, place)
    assert figures["loss, first third"] == figures["loss, last third"] > 0
    assert figures["images per second, median"] > 0
    assert figures["fault"] == "the loss does not fall"

    def records(*args):
        return [{"kind": "train", "total": total, "images_per_second": 2} for total in (9, 2, 5)] + [{"kind": "eval"}]

    monkeypatch.setattr(gpu_check, "train", records)
    assert gpu_check.learn(CONFIG, CPU, place)["fault"] is None
    monkeypatch.setattr(gpu_check, "FALL", 0.5)
    assert gpu_check.learn(CONFIG, CPU, place)["fault"] == "the loss does not fall"


def test_a_cpu_repeats_a_training(in_process, place, monkeypatch):
    monkeypatch.setattr(gpu_check, "N_REPEAT", 8)
    assert set(gpu_check.repeat(CONFIG, CPU, place).values()) == {0.0, None}
    steps = {env: torch.load(f"runs/{env}/last.pth", weights_only=True)["step"] for env in ("one", "two", "resumed")}
    assert steps == {"one": 8, "two": 8, "resumed": 8}


def test_a_training_that_fails(monkeypatch):
    done = subprocess.CompletedProcess([], 1, "", "error: there is no option --learning-rate")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: done)
    with pytest.raises(RuntimeError, match=r"train\.py: error: there is no option --learning-rate"):
        gpu_check.train("folder", "a", CPU)


@pytest.mark.parametrize(
    ("device", "weights", "fault"),
    [
        ("cpu", (3.0, 3.0, 3.0), None),
        ("cpu", (3.0, 3.0, 3.0001), "a whole and a resumed run differ"),
        ("cuda", (3.0, 3.0001, 2.998), None),
        ("cuda", (3.0, 3.1, 3.0), "two equal runs differ"),
        ("cuda", (3.0, 3.1, math.nan), "two equal runs differ; a whole and a resumed run differ"),
    ],
)
def test_repeating(tmp_path, monkeypatch, device, weights, fault):
    calls, values = [], dict(zip(("one", "two", "resumed"), weights, strict=True))

    def write_weights(folder, env, device, *options):
        calls.append((env, *options))
        path = Path(folder, "runs", env, "last.pth")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": {"weight": torch.tensor([4.0, 0]), "bias": torch.tensor(values[env])}}, path)

    monkeypatch.setattr(gpu_check, "train", write_weights)
    figures = gpu_check.repeat(CONFIG, torch.device(device), tmp_path)
    assert figures["fault"] == fault
    assert figures["of a whole and a resumed run"] == pytest.approx(abs(weights[2] - 3) / 5, rel=0.01, nan_ok=True)
    assert calls[2:] == [
        ("resumed", "--deterministic", "--max-steps=20", "--max-steps=10"),
        ("resumed", "--resume", "--max-steps=20"),
    ]


# checks of the next test, by their names, for processes of their own


def good(config, device, folder):
    print("in", os.getpid())
    return {"figure": 1.25}


def crashing(config, device, folder):
    os.kill(os.getpid(), signal.SIGKILL)


def hanging(config, device, folder):
    pid = os.fork()
    Path(folder, f"{pid}.pid").touch() if pid else None
    time.sleep(100)


def failing(config, device, folder):
    raise ZeroDivisionError("a | b")


def test_a_check_hides_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check, "START", "fork")  # a process that loads torch anew takes seconds
    checks = {"failing": (failing, 60), "crashing": (crashing, 60), "good": (good, 60)}
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    with pytest.raises(SystemExit) as caught:
        main(GpuConfig(device="cpu", out=str(tmp_path / "new" / "check")))
    assert caught.value.code == 1
    results = json.loads((tmp_path / "new" / "check.json").read_text())
    assert results["threads"] == torch.get_num_threads()
    faults = {name: figures["fault"] for name, figures in results["checks"].items()}
    assert faults.pop("crashing").startswith("BrokenProcessPool: ")
    assert faults == {"failing": "ZeroDivisionError: a | b", "good": None}
    table = (tmp_path / "new" / "check.md").read_text()
    assert "| **failing** | ZeroDivisionError: a / b |" in table
    assert "\n| good | figure | 1.25 |\n" in table
    assert table in capsys.readouterr().out

    main(GpuConfig(device="cpu", checks=("good",), out=str(tmp_path / "one")))
    assert list(json.loads((tmp_path / "one.json").read_text())["checks"]) == ["good"]
    with pytest.raises(OptionError, match="--checks=bad: choose from failing,crashing,good"):
        main(GpuConfig(device="cpu", checks=("bad",)))


def test_a_process_uses_the_device(monkeypatch):
    used = []
    monkeypatch.setattr(os, "setsid", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", used.append)
    gpu_check.start_process(torch.device("cuda", 1))
    assert used == [torch.device("cuda", 1)]


def test_a_check_that_hangs_ends_with_all_that_it_started(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "START", "fork")
    figures = run_apart(hanging, 2, CONFIG, CPU, tmp_path)
    assert figures["fault"] == "not done after 2 seconds"
    (path,) = tmp_path.glob("*.pid")
    end = time.monotonic() + 30
    while is_running(path.stem):
        assert time.monotonic() < end
        time.sleep(0.01)


def is_running(pid):
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_all_checks_together_take_9_minutes():
    assert sum(seconds for _, seconds in gpu_check.CHECKS.values()) <= 540


def test_table():
    figures = {"speed, fp32": 0.0123456, "waits": 1, "mAP": None, "fault": None, "seconds": 12.6}
    table = format_table({"size": "600x800", "device": "a GPU", "commit": None, "checks": {"a": figures}})
    assert table.splitlines() == [
        "size 600x800, device a GPU",
        "",
        "| check | figure | value |",
        "|---|---|---|",
        "| **a** | ok | 13 s |",
        "| a | speed, fp32 | 0.01235 |",
        "| a | waits | 1 |",
        "| a | mAP | None |",
    ]
