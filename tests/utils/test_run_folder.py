"""The folder of a run: what is refused, what is emptied, what a resumed run keeps."""
import json
import tempfile

import pytest
import torch

from utils.config import OptionError, TrainConfig
from utils.run_folder import check_folder, make_folder, stored_options


@pytest.mark.parametrize("env", ["a/b", "/tmp", "../a", ".", "a/", "", "..", "é" * 101])
def test_a_run_has_a_plain_name(earlier_run, env):
    with pytest.raises(OptionError, match="must be a plain name"):
        check_folder(TrainConfig(env=env, overwrite=True))


def test_an_earlier_run_is_not_touched_unasked(earlier_run):
    with pytest.raises(OptionError, match=r"runs/old holds an earlier run.*--resume.*--overwrite.*--env"):
        check_folder(TrainConfig(env="old"))
    for config in (TrainConfig(env="new"), TrainConfig(env="old", resume=True), TrainConfig(env="old", overwrite=True)):
        check_folder(config)
    assert (earlier_run / "note").exists()


@pytest.mark.parametrize(("options", "kept"), [
    ({"overwrite": True}, False), ({"resume": True}, True), ({"resume": True, "overwrite": True}, True)])
def test_only_overwrite_empties_the_folder(earlier_run, options, kept):
    config = TrainConfig(env="old", lr=0.25, **options)
    make_folder(config, {"step": 3})
    assert (earlier_run / "note").exists() == kept
    written = json.loads((earlier_run / "config.json").read_text())
    assert (written["lr"], written["anchor_scales"]) == (0.25, [8, 16, 32])


def test_each_start_of_a_run_is_recorded(earlier_run):
    for options, start, expected in (({"overwrite": True}, 0, [0]), ({"resume": True}, 7, [0, 7]),
                                     ({"resume": True}, 9, [0, 7, 9]), ({"overwrite": True}, 0, [0])):
        make_folder(TrainConfig(env="old", **options), {"step": start})
        starts = json.loads((earlier_run / "environment.json").read_text())
        assert [start["step"] for start in starts] == expected


@pytest.mark.parametrize("word", ["True", "true"])
def test_resuming_takes_the_options_of_the_run(earlier_run, word):
    assert stored_options({"env": "old", "resume": "False", "lr": "1"}) == {}
    assert stored_options({"env": "old", "resume": "False"}) == {}
    stored = stored_options({"env": "old", "resume": word, "lr": "1"})
    assert (stored["lr"], stored["anchor_scales"]) == (0.5, (2, 4))


@pytest.mark.parametrize(("name", "text", "was"), [
    ("load_path", "b.pth", "a.pth"), ("seed", "1", "0"), ("reset_head", "True", "False"),
    ("preprocess", "caffe", "auto"), ("anchor_scales", "2,4,8", "2,4"), ("batch_size", "2", "1"),
    ("classes", "a,b", "none")])
def test_what_cannot_change_when_a_run_is_resumed(earlier_run, name, text, was):
    with pytest.raises(OptionError, match=f"={text}: this run was started with {was}, which cannot change: leave it"):
        stored_options({"env": "old", "resume": "True", name: text})
    assert stored_options({"env": "old", "resume": "True", "load_path": "a.pth", "seed": "0", "lr": "2"})


def test_a_damaged_record_of_the_starts_is_begun_anew(earlier_run):
    (earlier_run / "environment.json").write_text("[{")
    make_folder(TrainConfig(env="old", resume=True), {"step": 7})
    assert json.loads((earlier_run / "environment.json").read_text()) == [{"step": 7}]


@pytest.mark.parametrize(("content", "words"), [
    ("", "Expecting value"), ('{"lr": 0.5,', "Expecting property name"), ("[1]", "it holds no options"),
    ('{"lr": "fast"}', "'lr' is 'fast'"), ('{"lrr": 1}', "there is no option 'lrr'"),
    ('{"min_size": 2000}', "--min-size=2000 must not be above"), ("\xff", "codec")])
def test_damaged_options_are_named(earlier_run, content, words):
    (earlier_run / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(OptionError, match=rf"runs/old/config\.json is damaged \(.*{words}.*\): mend it by hand; "):
        stored_options({"env": "old", "resume": "True"})


def test_the_checkpoint_before_is_offered_where_the_last_is_missing(earlier_run):
    (earlier_run / "last.pth").unlink()
    torch.save({}, earlier_run / "last.pth.1")
    with pytest.raises(OptionError, match=r"last\.pth is missing: the one before it is whole: mv runs/old/last"):
        stored_options({"env": "old", "resume": "True"})


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_folder_that_takes_no_file_is_refused(earlier_run, monkeypatch, error):
    def refuse(dir):
        assert dir.name == "runs"  # the nearest that is there
        raise error

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OptionError, match=rf"runs/new: nothing can be written there \({error.strerror}\): make room"):
        check_folder(TrainConfig(env="new"))
    assert not (earlier_run.parent / "new").exists()


def test_a_file_in_the_place_of_the_folder(earlier_run):
    (earlier_run.parent / "new").touch()
    with pytest.raises(OptionError, match=r"runs/new: nothing can be written there \(it is a file\)"):
        check_folder(TrainConfig(env="new"))


def test_what_a_killed_process_was_writing_is_removed(earlier_run):
    for name in (".123.last.pth", ".123.last.pth.1", ".9.000040.png", ".mine"):
        (earlier_run / name).touch()
    make_folder(TrainConfig(env="old", resume=True), {"step": 3})
    assert [path.name for path in earlier_run.glob(".*")] == [".mine"]


@pytest.mark.parametrize("missing", ["config.json", "last.pth"])
def test_resuming_needs_a_run(earlier_run, missing):
    (earlier_run / missing).unlink()
    with pytest.raises(OptionError, match=rf"there is nothing to go on with, runs/old/{missing} is missing"):
        stored_options({"env": "old", "resume": "True"})
