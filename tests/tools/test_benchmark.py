"""`tools.benchmark`: the contestants do the same work, the tables add up."""

import json

import numpy as np
import pytest
import torch

from tools import benchmark
from tools.benchmark import CONTESTANTS, BenchConfig, count_work, find_contestants, main, peak_memory, report
from utils.config import OptionError

CPU, SIZE = torch.device("cpu"), (64, 96)


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setattr(benchmark, "WIDTH", 8)


@pytest.mark.parametrize("name", find_contestants())
def test_contestants_do_the_same_work(name, narrow):
    contestant = CONTESTANTS[name](CPU, None, SIZE)
    params = dict(contestant.net.named_parameters())
    assert sum(not param.requires_grad for param in params.values()) == 8
    assert [len(group["params"]) for group in contestant.optimizer.param_groups] == [16, 16]
    assert [group["weight_decay"] for group in contestant.optimizer.param_groups] == [5e-4, 0]
    before = {key: param.detach().clone() for key, param in params.items() if param.requires_grad}
    contestant.train()
    moved = [key for key, value in before.items() if not torch.equal(value, params[key])]
    assert len(moved) > 25  # a narrow head may have biases without a gradient
    contestant.predict()
    # features, RPN, head
    assert sum(param.numel() for param in params.values()) == pytest.approx(14.71e6 + 2.39e6 + 0.2e6, rel=0.01)


def test_memory_formats(narrow):
    nets = [make(CPU, None, SIZE).net.eval() for make in find_contestants().values()]
    features = [getattr(net, "backbone", None) or net.extractor for net in nets]
    maps = [network(torch.rand(1, 3, 64, 96)) for network in features]
    assert [feature.is_contiguous() for feature in maps] == [False, True, False]  # torchvision's: torch's default


def test_torchvisions_own_model_does_the_same_work():
    name, n_image, work = "mobilenet_v3_large_fpn", 2, []
    entered = find_contestants(name, n_image)
    assert [*entered] == ["ours", "padded", "torchvision"]
    for make in entered.values():
        contestant = make(CPU, None, SIZE, name, n_image)
        assert len({sample.img.tobytes() for sample in contestant.samples}) == n_image
        params = list(contestant.net.parameters())
        work.append(count_work(contestant) | {"sum": sum(param.double().sum().item() for param in params)})
        work[-1]["trained"] = sum(param.requires_grad for param in params)
        before = params[0].detach().clone()
        contestant.train()
        assert not torch.equal(params[0], before)  # the first layer, too
    assert work[0] == work[1] == pytest.approx(work[2])
    assert 18.9 < work[0]["parameters_m"] < 19.4  # torchvision: 19.39 with 91 classes


@pytest.mark.parametrize(
    ("name", "n_image", "entered"), [("zf", 2, "ours"), ("vgg16", 2, "ours torchvision lower_bound")]
)
def test_contestants_that_a_backbone_lacks(name, n_image, entered):
    assert [*find_contestants(name, n_image)] == entered.split()


def test_objects_lie_in_the_image(narrow):
    (sample,) = CONTESTANTS["ours"](CPU, None, SIZE).samples
    assert sample.img.shape == (*SIZE, 3)
    assert (sample.bbox >= 0).all()
    assert (sample.bbox[:, 2:] > sample.bbox[:, :2]).all()
    assert (sample.bbox[:, 2:] <= SIZE).all()


def test_rounds_are_in_random_order_and_the_first_do_not_count(monkeypatch):
    order = []

    def recorder(name):
        work = dict.fromkeys(("train", "predict"), lambda self: order.append(name))
        return type(name, (), {"__init__": lambda self, *args: None} | work)

    monkeypatch.setattr(benchmark, "CONTESTANTS", {name: recorder(name) for name in find_contestants()})
    seconds = benchmark.measure(5, CPU, None, SIZE)
    assert {len(values) for by_work in seconds.values() for values in by_work.values()} == {5}
    assert len(seconds) == 3
    turns = order[::2]
    assert turns == order[1::2]
    rounds = {tuple(turns[i : i + 3]) for i in range(0, len(turns), 3)}
    assert all(sorted(names) == sorted(seconds) for names in rounds)
    assert len(rounds) > 2


def test_a_gpu_is_waited_for(monkeypatch):
    waited, cuda = [], torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    benchmark.now(CPU)
    assert waited == []
    benchmark.now(cuda)
    assert waited == [cuda]


def test_report(capsys):
    seconds = {
        "ours": {"train": [3, 1, 2], "predict": [0.5, 0.5]},
        "torchvision": {"train": [4, 4, 5], "predict": [1, 1]},
        "lower_bound": {"train": [1.5, 1.6, 1.6], "predict": [0.25, 0.25]},
    }
    figures = report("fp32", seconds, {"ours": 2.5, "torchvision": None, "lower_bound": 1.0})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:2] == ["train,", "fp32"]
    # medians of 3/4, 1/4, 2/5 and of 3/1.5, 1/1.6, 2/1.6
    assert lines[2] == ["ours", "2.0000", "(1.0000", "to", "3.0000)", "0.40", "1.25", "2.50"]
    assert lines[3][5:] == ["1.00", "2.67"]
    assert lines[7] == ["ours", "0.5000", "(0.5000", "to", "0.5000)", "0.50", "2.00"]
    assert figures["median"]["ours"] == {"train": 2, "predict": 0.5}
    report("fp32", {"ours": seconds["ours"]}, {"ours": 2.5})  # nothing to compare with
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[2] == ["ours", "2.0000", "(1.0000", "to", "3.0000)", "2.50"]


def test_the_whole_command(monkeypatch, tmp_path, capsys, narrow):
    monkeypatch.setattr(benchmark, "peak_memory", lambda *args: 1.5)
    monkeypatch.setattr(benchmark, "N_WARM_UP", 0)
    path = tmp_path / "new" / "a.json"
    main(BenchConfig(device="cpu", precision="fp32", size="64x96", steps=1, json=str(path)))
    printed = capsys.readouterr().out
    assert "model vgg16, batch_size 1, size 64x96, steps 1" in printed
    assert "ours: 17.3 million parameters" in printed
    written = json.loads(path.read_text())
    assert [len(written["fp32"]["seconds"][name]["train"]) for name in find_contestants()] == [1] * 3


@pytest.mark.parametrize("size", ["600", "0x800", "-64x96", "600x800x3"])
def test_sizes_that_are_refused(size):
    with pytest.raises(OptionError, match=f"HEIGHTxWIDTH, such as 600x800, each at least 32, not '{size}'"):
        main(BenchConfig(size=size, device="cpu"))


def test_memory_is_that_of_a_process_of_its_own():
    ballast = np.ones(2 * 10**9, np.uint8)
    peak = peak_memory("ours", CPU, None, SIZE, "mobilenet_v3_large_320_fpn")
    assert 0.3 < peak < ballast.nbytes / 1e9  # 19 million weights, their gradients and momenta, and torch itself
