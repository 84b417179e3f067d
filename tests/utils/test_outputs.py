"""Tests of utils.outputs: files that a command is asked to write."""
import tempfile

import pytest

from bench import main as bench
from fit_anchors import fit_anchors
from utils.config import AnchorConfig, BenchConfig, OptionError
from utils.outputs import check_outputs, write_output, writing


def test_folders_are_made_and_nothing_else(tmp_path):
    check_outputs(tmp_path / "a/b/x.json", None, str(tmp_path / "c/y.png"))
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["a", "a/b", "c"]


def test_an_earlier_file_stays_until_it_is_replaced(tmp_path):
    (tmp_path / "x.json").write_text("old")
    check_outputs(tmp_path / "x.json")
    assert (tmp_path / "x.json").read_text() == "old"
    write_output(tmp_path / "x.json", "né")
    assert (tmp_path / "x.json").read_text(encoding="utf-8") == "né"


@pytest.mark.parametrize("path", ["file/x.json", "file/deep/x.json", "folder"])
def test_what_cannot_be_a_file(tmp_path, path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(OptionError, match=rf"{path} cannot be written \(.+\): make room, mend the permissions, or"):
        check_outputs(tmp_path / path)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_folder_that_takes_no_file(tmp_path, monkeypatch, error):
    def refuse(dir):
        raise error

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(OptionError, match=rf"x\.json cannot be written \({error.strerror}\)"):
        check_outputs(tmp_path / "x.json")


def test_a_disk_that_is_full_at_last(tmp_path):
    with pytest.raises(OptionError, match=r"x\.png cannot be written \(No space left on device\)"), \
            writing(tmp_path / "x.png"):
        raise OSError(28, "No space left on device")
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "x.png"):
        raise ZeroDivisionError
    with pytest.raises(OptionError, match=r"gone/x\.json cannot be written \(No such file or directory\)"):
        write_output(tmp_path / "gone/x.json", "text")


@pytest.mark.parametrize(("main", "config"), [
    (fit_anchors, AnchorConfig(voc_data_dir="not looked for", out="file/anchors.png")),
    (bench, BenchConfig(device="cpu", json="file/bench.json"))])
def test_commands_look_before_they_work(tmp_path, monkeypatch, main, config):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"file/\w+\.\w+ cannot be written \(.+\): make room"):
        main(config)
