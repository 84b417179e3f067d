"""Evaluation around the metric: what is detected on, what is counted, how it is shown."""
import os

import numpy as np
import pytest
import torch

from data.voc import Sample
from eval import Evaluation, evaluate, names_for, predict_options, table, worker_count
from utils.config import OptionError, TrainConfig

GT = [  # bbox, label, difficult of three images
    ([[0, 0, 10, 20], [5, 30, 25, 40]], [0, 1], [False, False]),
    ([[2, 3, 12, 13], [20, 20, 30, 50]], [0, 0], [False, True]),
    ([], [], []),
]


class Dataset(list):
    classes = ("cat", "dog", "cow")

    def objects(self):
        return tuple([getattr(sample, name) for sample in self] for name in ("bbox", "label", "difficult"))


@pytest.fixture
def dataset():
    return Dataset(
        Sample(np.full((40, 60, 3), i, np.uint8), np.array(bbox, np.float32).reshape(-1, 4), np.array(label, int),
               np.array(difficult, bool), str(i)) for i, (bbox, label, difficult) in enumerate(GT))


class Oracle:
    """Finds the objects, and a false one in the last image, of which it is least sure."""

    loc_std = torch.zeros(4)

    def __init__(self):
        self.calls = []

    def predict(self, imgs, **options):
        (img,) = imgs
        bbox, label, _ = GT[img[0, 0, 0]]
        self.calls.append((int(img[0, 0, 0]), options, torch.is_autocast_enabled("cpu")))
        bbox, label = (bbox, label) if bbox else ([[0, 0, 9, 9]], [1])
        return [np.array(bbox, np.float32)], [np.array(label)], [np.full(len(bbox), 0.9 if len(bbox) > 1 else 0.1)]


def test_what_is_found_and_counted(dataset):
    model = Oracle()
    result = evaluate(model, dataset, score_thresh=0.2)
    assert result.ap == {"cat": 1, "dog": 1, "cow": None}
    assert result.map == 1
    assert result.n_object == {"cat": 2, "dog": 1, "cow": 0}  # without the difficult one
    assert result.n_detection == {"cat": 3, "dog": 2, "cow": 0}
    assert model.calls == [(i, {"score_thresh": 0.2}, False) for i in range(3)]


def test_the_first_so_many(dataset):
    model = Oracle()
    result = evaluate(model, dataset, limit=1)
    assert [index for index, *_ in model.calls] == [0]
    assert result.n_object == {"cat": 1, "dog": 1, "cow": 0}
    evaluate(model, dataset, limit=99)
    assert len(model.calls) == 1 + 3


def test_metric(dataset):
    class Half(Oracle):
        def predict(self, imgs, **options):
            return tuple([value[0][:1]] for value in super().predict(imgs, **options))

    # two images with two objects, one difficult: of "cat" all that counts is found, of "dog" nothing before a false one
    assert evaluate(Half(), dataset, "voc").ap == {"cat": 1, "dog": 0, "cow": None}
    dataset[1].difficult[1] = False
    assert evaluate(Half(), dataset, "voc").ap["cat"] == pytest.approx(2 / 3)
    assert evaluate(Half(), dataset, "voc07").ap["cat"] == pytest.approx(7 / 11)  # recalls 0 ... 0.6


def test_torchs_random_state_is_left_alone(dataset):
    before = torch.get_rng_state()
    evaluate(Oracle(), dataset)
    assert torch.equal(torch.get_rng_state(), before)


def test_names(tmp_path):
    checkpoint = {"class_names": ["cat", "dog"], "build": {"n_fg_class": 2}}
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    assert names_for(checkpoint, ()) == ("cat", "dog")
    assert names_for(checkpoint, ("cow", "hen")) == ("cow", "hen")
    assert names_for(checkpoint, (str(tmp_path / "names.txt"),)) == ("ant", "bee")
    with pytest.raises(OptionError, match="knows 2 classes, but there are 1 names: cow"):
        names_for(checkpoint, ("cow",))


def test_autocast(dataset):
    model = Oracle()
    evaluate(model, dataset, dtype=torch.bfloat16)
    assert all(autocast for *_, autocast in model.calls)


def test_table():
    evaluation = Evaluation(0.125, {"cat": 0.25, "dining table": None, "dog": 0.0},
                            {"cat": 12, "dining table": 0, "dog": 3}, {"cat": 345, "dining table": 6, "dog": 0})
    assert table(evaluation).splitlines() == [
        "class             AP  objects  detections",
        "cat           0.2500       12         345",
        "dining table     n/a        0           6",
        "dog           0.0000        3           0",
        "mean          0.1250       15         351"]


def test_options_of_predict():
    config = TrainConfig(score_thresh=0.1, nms_thresh=0.4, max_detections=7)
    assert predict_options(config) == {"score_thresh": 0.1, "nms_thresh": 0.4, "max_detections": 7}


def test_workers(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [worker_count(None, cpu), worker_count(None, cuda)] == [0, 3]
    assert [worker_count(n, device) for n in (0, 2) for device in (cpu, cuda)] == [0, 0, 2, 2]
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert worker_count(None, cuda) == 4
