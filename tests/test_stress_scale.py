"""tests/stress_scale.py measures what it says."""

import pytest
import stress_scale

from tools import benchmark


@pytest.mark.parametrize(
    ("axis", "value", "shapes"),
    [
        ("side", 60, ((60, 80, 3), 5, 21, 300)),
        ("proposals", 7, ((600, 800, 3), 5, 21, 7)),
        ("objects", 50, ((600, 800, 3), 50, 21, 300)),
        ("classes", 2, ((600, 800, 3), 5, 3, 300)),
    ],
)
def test_one_thing_varies(monkeypatch, axis, value, shapes):
    monkeypatch.setattr(benchmark, "WIDTH", 8)
    calls = []
    monkeypatch.setattr(benchmark.Ours, "predict", lambda self: calls.append(self))
    seconds, _ = stress_scale.measure_network("predict", axis, value, "cpu", "fp32", 3)
    assert len(calls) == benchmark.N_WARM_UP + 3
    assert seconds < 1
    (sample,), net = calls[0].samples, calls[0].net
    n_proposal = net.rpn.proposal_creator.n_test_post_nms
    assert (sample.img.shape, len(sample.bbox), net.head.score.out_features, n_proposal) == shapes
    assert sample.label.max() < shapes[2] - 1


def test_tables(monkeypatch, capsys):
    monkeypatch.setattr(stress_scale, "AXES", {"side": (64,), "annotations": (3, 12), "images": (5,)})
    monkeypatch.setattr(stress_scale, "measure_network", lambda *args: (1.23456, 2))
    monkeypatch.setattr(stress_scale, "apart", lambda measure, *args: f"{measure(*args)[0] < 60} | 1")
    stress_scale.main(axes="side,annotations,images")
    assert capsys.readouterr().out.split("\n") == [
        "| | | training step, s | peak GB | prediction, s | peak GB |",
        "|---|---|---|---|---|---|",
        "| side | 64 | True | 1 | True | 1 |",
        "",
        "| | | s | peak GB |",
        "|---|---|---|---|",
        "| annotations | 3 | True | 1 |",
        "| annotations | 12 | True | 1 |",
        "| images | 5 | True | 1 |",
        "",
    ]
