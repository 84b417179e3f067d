"""The benchmark: its contestants do the same work, its clock and its tables add up."""
import json

import numpy as np
import pytest
import torch

import bench
from bench import (
    CONTESTANTS,
    GPU_CONTESTANTS,
    Clock,
    Ours,
    contestants_for,
    data_path,
    main,
    make_sample,
    metric,
    report,
    where_time_goes,
)
from model.utils import array
from utils.config import BenchConfig, OptionError

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(bench, "WIDTH", 8)


@pytest.mark.parametrize("name", GPU_CONTESTANTS)
def test_contestants(name):
    contestant = GPU_CONTESTANTS[name](CPU, None, 64, 96)
    params = dict(contestant.net.named_parameters())
    frozen = [param for param in params.values() if not param.requires_grad]
    assert len(frozen) == 8
    assert sum(param.numel() for param in frozen) == 3 * 64 * 9 + 64 * 64 * 9 + 64 * 128 * 9 + 128 * 128 * 9 + 384
    optimizer = contestant.trainer.optimizer if name.startswith("ours") else contestant.optimizer
    assert [len(group["params"]) for group in optimizer.param_groups] == [16, 16]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0]
    before = {key: param.detach().clone() for key, param in params.items() if param.requires_grad}
    contestant.train()
    moved = [key for key, value in before.items() if not torch.equal(value, params[key])]
    assert len(moved) > 25  # a narrow head may have biases without a gradient
    contestant.predict()
    assert sum(param.numel() for param in params.values()) == pytest.approx(14.71e6 + 2.39e6 + 0.2e6, rel=0.01)


def test_the_floor_has_two_memory_formats():
    formats = [CONTESTANTS[name](CPU, None, 64, 96).img.is_contiguous() for name in ("floor", "floor, channels first")]
    assert formats == [False, True]


def test_objects_lie_in_the_image():
    sample = make_sample(64, 96)
    assert sample.img.shape == (64, 96, 3)
    assert (sample.bbox >= 0).all()
    assert (sample.bbox[:, 2:] > sample.bbox[:, :2]).all()
    assert (sample.bbox[:, 2:] <= (64, 96)).all()


def test_the_clock_takes_off_what_is_inside(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    clock = Clock(CPU)
    inner = clock.wrap("inner", wait)

    def outer():
        wait(1)
        inner(10)
        inner(20)
        return "result"

    assert clock.wrap("outer", outer)() == "result"
    inner(100)
    assert clock.spent == {"outer": 1, "inner": 130}


@pytest.mark.parametrize("work", ["train", "predict"])
def test_creators_on_numpy_are_asked_for_just_as_long_as_it_takes(monkeypatch, work):
    seen, before = [], array._usable_cupy
    monkeypatch.setattr(Ours, work, lambda self: seen.append(array._usable_cupy()))
    getattr(GPU_CONTESTANTS["ours, creators on NumPy"](CPU, None, 64, 96), work)()
    assert seen == [None]
    assert array._usable_cupy is before
    assert contestants_for(CPU) == CONTESTANTS
    assert contestants_for(torch.device("cuda", 1)).keys() - CONTESTANTS.keys() == {"ours, creators on NumPy"}


def test_nobody_always_comes_after_the_same_one(monkeypatch):
    order = []

    def recorder(name):
        work = dict.fromkeys(("train", "predict"), lambda self: order.append(name))
        return type(name, (), {"__init__": lambda self, *args: None} | work)

    monkeypatch.setattr(bench, "contestants_for", lambda device: {name: recorder(name) for name in CONTESTANTS})
    monkeypatch.setattr(bench, "where_time_goes", lambda *args: {})
    bench.measure(CPU, None, 64, 96, 5)
    turns = order[::2]
    assert turns == order[1::2]
    assert all(sorted(turns[i:i + 4]) == sorted(CONTESTANTS) for i in range(0, len(turns), 4))
    for name in CONTESTANTS:
        before = [turns[i - 1] for i in range(16, len(turns)) if turns[i] == name]  # after the warm-up
        assert max(map(before.count, before)) < 4


def test_a_gpu_is_waited_for(monkeypatch):
    waited, cuda = [], torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    bench.timed(lambda: None, CPU)
    assert waited == []
    bench.timed(lambda: None, cuda)
    assert waited == [cuda]


def test_parts_of_a_step():
    parts = where_time_goes(CONTESTANTS["ours"](CPU, None, 64, 96), 1)
    assert parts.keys() == {"image", "extractor", "RPN", "proposals", "anchor targets", "RoI targets",
                            "RoI pooling, head", "losses", "optimizer", "backward"}
    assert all(seconds > 0 for seconds in parts.values())
    assert parts["backward"] > parts["losses"]


def test_the_table(capsys):
    seconds = {"ours": {"train": [3, 1, 2], "predict": [0.5, 0.5]}, "peer": {"train": [4, 4, 5], "predict": [1, 1]},
               "floor": {"train": [2.5, 2.5, 2.5], "predict": [0.25, 0.25]},
               "floor, channels first": {"train": [1.5, 1.6, 1.6], "predict": [9, 9]}}
    figures = report("fp32", seconds, {"ours": 2.5},
                     {"backward": 6.0, "proposals": 1.0, "losses": 0.5, "anchor targets": 0.3, "RoI targets": 0.2})
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:24].strip(): line[24:].split() for line in lines if line.startswith(("ours", "peer", "floor"))}
    train = {line[:24].strip(): line[24:].split() for line in lines[:lines.index("", 1)]}
    assert train["ours"] == ["2.0000", "(1.0000", "to", "3.0000)", "0.50", "0.40", "1.25", "2.50"]
    assert train["peer"][4:] == ["0.25", "1.00", "2.67"]  # 4 / 1.5, 4 / 1.6, 5 / 1.6
    assert rows["ours"][4:] == ["2.00", "0.50", "2.00"]  # of predicting, which comes last
    assert lines[-2] == ("our training step, fp32: backward 6.0000 (75.0%), proposals 1.0000 (12.5%), losses 0.5000 "
                         "(6.2%), anchor targets 0.3000 (3.8%), RoI targets 0.2000 (2.5%)")
    assert lines[-1] == "creators and losses together: 25.0%"
    assert figures["median"]["ours"]["train"] == 2


def test_the_whole_of_it(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "peak_memory", lambda *args: 1.5)
    monkeypatch.setattr(bench, "data_path", lambda: 12.0)
    monkeypatch.setattr(bench, "metric", lambda: 0.5)
    main(BenchConfig(device="cpu", precision="bf16", size="64x96", steps=1, json=str(tmp_path / "new" / "a.json")))
    printed = capsys.readouterr().out
    assert "size 64x96, steps 1" in printed
    assert "metric: 0.50 s" in printed
    written = json.loads((tmp_path / "new" / "a.json").read_text())
    assert written["data_images_per_second"] == 12
    assert [len(written["bf16"]["seconds"][name]["train"]) for name in CONTESTANTS] == [1] * 4
    for size in ("600", "0x800", "-64x96", "600x800x3"):
        with pytest.raises(OptionError, match=f"HEIGHTxWIDTH, as in 600x800, each at least 32, not '{size}'"):
            main(BenchConfig(size=size))


def test_memory_is_that_of_a_process_of_its_own():
    peak = bench.peak_memory("floor", CPU, None, 64, 96)
    assert 1.6 < peak < 10  # weights of full width, their gradients and momenta


def test_data_path_and_metric():
    threads = torch.get_num_threads()
    assert data_path(2) > 0
    assert torch.get_num_threads() == threads
    assert metric(5, 4) > 0
    assert np.isfinite(metric(1, 1))
