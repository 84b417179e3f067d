"""What is recorded beside a run."""
import subprocess

import pytest
import torch

from utils import environment
from utils.environment import describe_environment

CPU = torch.device("cpu")


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A git repository with one commit in the place of this project."""
    def git(*words):
        name = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", tmp_path, *name, *words], check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    return git


def test_commit(repository, tmp_path):
    commit = repository("rev-parse", "HEAD").strip()
    (tmp_path / "new").write_text("not tracked")
    found = describe_environment(CPU)
    assert (found["commit"], found["modified"]) == (commit, False)
    (tmp_path / "file").write_text("2")
    assert describe_environment(CPU)["modified"] is True


def test_no_repository(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)  # that of a folder above says nothing of this one
    (tmp_path / "copy").mkdir()
    monkeypatch.setattr(environment, "_ROOT", tmp_path / "copy")
    found = describe_environment(CPU)
    assert (found["commit"], found["modified"]) == (None, None)


def test_no_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert describe_environment(CPU)["commit"] is None


def test_versions(monkeypatch):
    monkeypatch.setattr(environment, "_PACKAGES", ("torch", "no-such-package"))
    found = describe_environment(CPU)
    assert torch.__version__.startswith(found["torch"].split("+")[0])
    assert found["no-such-package"] is None
    assert found["cuda"] is None
    assert found["threads"] == torch.get_num_threads()
    assert all(isinstance(value, str | int | None) for value in found.values())
