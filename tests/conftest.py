"""What several tests share."""
import json
from dataclasses import asdict

import pytest
import torch

import model
from utils.config import TrainConfig


@pytest.fixture(scope="session")
def tiny_model():
    """Faster R-CNN with VGG16's convolutions and a narrow head, for 64 x 96. Copy it to change it."""
    generator = torch.Generator().manual_seed(0)
    return model.build(n_fg_class=3, head_width=16, min_size=64, max_size=96, anchor_scales=(1, 2, 4),
                       generator=generator)


@pytest.fixture
def earlier_run(tmp_path, monkeypatch):
    """runs/old with a config.json, a last.pth and a file of its own."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "old"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(asdict(TrainConfig(
        env="old", lr=0.5, anchor_scales=(2, 4), overwrite=True, load_path="a.pth"))))
    (folder / "last.pth").touch()
    (folder / "note").touch()
    return folder
