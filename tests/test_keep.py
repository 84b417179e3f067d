"""What a run keeps when something goes wrong: real runs of a tiny network whose losses, weights or disk are spoiled."""
import json
import shutil
import signal

import kill
import numpy as np
import pytest
import tiny
import torch

import keep
import train
from utils.checkpoint import CheckpointError, load_checkpoint
from utils.config import OptionError, TrainConfig, make_config
from utils.faults import TrainingFault

LOSSES = ["rpn_loc", "rpn_cls", "roi_loc", "roi_cls", "total"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("model.vgg16.LAYERS", tiny.NARROW)
    monkeypatch.setattr("utils.log.plot_curves", lambda records, path: None)
    tiny.write_tiny(tmp_path / "voc", {"train": 4, "val": 2})
    return tmp_path


def start(**options):
    config = make_config(TrainConfig, kill.RUN | {"env": "a", "epoch": "3", "eval_every": "0"} | options)
    torch.set_num_threads(1)
    return train.train(config)


@pytest.fixture
def spoil(monkeypatch):
    """A function that makes the head's loss NaN in some steps, counted from 1."""
    def at(*steps):
        number = [0]
        real = train.FasterRCNNTrainer.head_losses

        def head_losses(trainer, *args):
            number[0] += 1
            loc, cls = real(trainer, *args)
            return loc, cls * float("nan") if number[0] in steps else cls

        monkeypatch.setattr(train.FasterRCNNTrainer, "head_losses", head_losses)
    return at


def test_a_loss_that_is_not_finite_stops_and_names_step_image_and_losses(place, spoil):
    spoil(7)
    with pytest.raises(TrainingFault) as caught:
        start()
    (index,) = train.batches(4, 1, 0, 1)[2]  # the third step of the second epoch
    text = str(caught.value)
    assert text.startswith("step 7: the loss is not finite (rpn_loc ")
    assert f"roi_cls nan), on the image train{index:05d}: stopped" in text
    assert "; last.pth is as it was. Try" in text
    assert "--skip-nonfinite=N" in text
    assert "\n" not in text
    folder = place / "runs/a"
    assert load_checkpoint(folder / "last.pth")["step"] == 4
    about = json.loads((folder / "nonfinite-000007.json").read_text())
    assert (about["step"], about["epoch"], about["image"], about["index"]) == (7, 1, [f"train{index:05d}"], [index])
    assert list(about["losses"]) == LOSSES
    assert about["losses"]["roi_cls"] == about["losses"]["total"] == "nan"
    kept = load_checkpoint(folder / "nonfinite-000007.pth")
    assert kept["step"] == 6  # the weights with which step 7 began
    assert all(value.isfinite().all() for value in kept["model"].values())
    start(env="b", max_steps="6")
    assert kill.same(kept["model"], load_checkpoint(place / "runs/b/last.pth")["model"])


def test_a_fault_before_the_first_checkpoint_offers_none(place, spoil):
    spoil(2)
    with pytest.raises(TrainingFault, match=r"; there is no last\.pth yet\. Try a lower --lr"):
        start()


def test_some_steps_may_be_left_out(place, spoil, capsys):
    spoil(2, 3)
    start(skip_nonfinite="2")
    assert load_checkpoint(place / "runs/a/last.pth")["step"] == 12
    out = capsys.readouterr().out
    assert "step 2: the loss is not finite" in out
    assert "left out, see runs/a/nonfinite-000003.json" in out
    assert not list((place / "runs/a").glob("nonfinite*.pth"))
    assert all(value.isfinite().all() for value in load_checkpoint(place / "runs/a/last.pth")["model"].values())


def test_one_too_many(place, spoil):
    spoil(2, 3, 6)
    with pytest.raises(TrainingFault, match=r"^step 6: "):
        start(skip_nonfinite="2")
    assert [path.name for path in sorted((place / "runs/a").glob("nonfinite*"))] == [
        "nonfinite-000002.json", "nonfinite-000003.json", "nonfinite-000006.json", "nonfinite-000006.pth"]


def test_weights_that_are_not_finite_are_not_saved(place, monkeypatch):
    steps = []
    real = train.FasterRCNNTrainer.train_step

    def train_step(trainer, *args):
        losses = real(trainer, *args)
        steps.append(1)
        if len(steps) == 8:  # the last of the second epoch
            trainer.model.rpn.conv.weight.data[0, 0, 0, 0] = float("inf")
        return losses

    monkeypatch.setattr(train.FasterRCNNTrainer, "train_step", train_step)
    with pytest.raises(TrainingFault, match="after step 8 there are weights that are not finite"):
        start()
    assert load_checkpoint(place / "runs/a/last.pth")["step"] == 4


def test_a_disk_without_room_is_refused_before_anything_is_written(place, monkeypatch):
    monkeypatch.setattr(keep.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 10**6))
    with pytest.raises(OptionError, match=r"runs/a: the disk has 0\.00 GB for checkpoints, this run needs 0\.\d\d \("):
        start()
    assert not (place / "runs").exists()


def test_the_room_is_that_of_the_files_and_those_of_before_make_some(place, monkeypatch):
    start(max_steps="2")
    last, best = ((place / "runs/a" / name).stat().st_size for name in ("last.pth", "best.pth"))
    need, there = 3 * last + 2 * best, last + best  # those on the disk are a little larger than their tensors
    run = train.open_run(make_config(TrainConfig, kill.RUN | {"env": "a", "overwrite": "True"}))
    free = [need - there]
    monkeypatch.setattr(keep.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, free[0]))
    keep.check_room(run)
    free[0] -= 0.05 * need
    with pytest.raises(OptionError, match="make room"):
        keep.check_room(run)


def test_a_disk_that_fills_up_leaves_the_checkpoint_before(place, monkeypatch):
    real, saved = torch.save, []

    def save(state, path):
        saved.append(path)
        if len(saved) == 3:
            path.write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
        real(state, path)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(CheckpointError, match=r"last\.pth could not be written \(.*No space left"):
        start()
    folder = place / "runs/a"
    assert load_checkpoint(folder / "last.pth")["step"] == 8
    assert load_checkpoint(folder / "last.pth.1")["step"] == 4
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize(("keys", "value"), [
    (["optimizer"], 5), (["optimizer", "state", 0, "momentum_buffer"], torch.zeros(3)),
    (["optimizer", "param_groups", 0, "momentum"], "x"), (["rng"], {}), (["rng", "cpu"], torch.zeros(3))])
def test_nonsense_in_the_state_of_a_run_is_named(place, keys, value):
    start(max_steps="2")
    path = place / "runs/a/last.pth"
    checkpoint = part = torch.load(path, weights_only=True)
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    torch.save(checkpoint, path)
    with pytest.raises(CheckpointError, match=r"^runs/a/last\.pth: its 'optimizer' or 'rng' is not that of this run"):
        start(resume="True")


def test_nonsense_about_the_network_is_named_before_a_run_goes_on(place):
    start(max_steps="2")
    path = place / "runs/a/last.pth"
    torch.save(torch.load(path, weights_only=True) | {"preprocessing": (1, 2, 3, 4, 5)}, path)
    with pytest.raises(CheckpointError, match=r"^runs/a/last\.pth does not describe a network"):
        start(resume="True")


@pytest.mark.parametrize("damage", [b"rubbish", None])
def test_a_damaged_best_checkpoint_does_not_end_a_run(place, capsys, damage):
    start(max_steps="2")
    best = place / "runs/a/best.pth"
    if damage:
        best.write_bytes(damage)
    else:
        kept = torch.load(best, weights_only=True)
        torch.save({name: value for name, value in kept.items() if name != "map"}, best)
    start(resume="True", max_steps="4")
    assert load_checkpoint(best)["step"] == 4
    assert "best.pth is damaged: the weights of now take its place" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_in_the_midst_of_an_epoch_and_resuming_changes_nothing(place, monkeypatch, number, code):
    start(env="calm")
    steps, real = [], train.FasterRCNNTrainer.train_step

    def train_step(trainer, *args):
        steps.append(1)
        if len(steps) == 6:
            signal.raise_signal(number)
        return real(trainer, *args)

    with monkeypatch.context() as patch:
        patch.setattr(train.FasterRCNNTrainer, "train_step", train_step)
        with pytest.raises(SystemExit) as caught:
            start()
    assert caught.value.code == code
    assert load_checkpoint(place / "runs/a/last.pth")["step"] == 6
    start(resume="True")
    assert not kill.differences(place / "runs/calm", place / "runs/a")


def test_an_evaluation_that_was_interrupted_is_made_up_for(place, monkeypatch):
    start(env="calm", eval_every="1")

    def interrupted(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", interrupted)
        with pytest.raises(SystemExit) as caught:
            start(eval_every="1")
    assert caught.value.code == 143
    assert not (place / "runs/a/best.pth").exists()
    start(eval_every="1", resume="True")
    assert not kill.differences(place / "runs/calm", place / "runs/a")


def test_killed_three_times_the_run_ends_as_if_it_had_not_been(place):
    *kills, last = kill.survive(3, np.random.default_rng(5))
    assert sum(line.startswith("kill ") for line in kills) == 3
    assert last.endswith("times: all equal"), last
