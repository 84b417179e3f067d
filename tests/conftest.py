"""Fixtures that several tests share."""

import pytest
import torch

import model


@pytest.fixture(scope="session")
def tiny_model():
    """Faster R-CNN with VGG16's convolutions and a narrow head, for 64 x 96. Copy it to change it."""
    generator = torch.Generator().manual_seed(0)
    return model.build(
        n_fg_class=3, head_width=16, min_size=64, max_size=96, anchor_scales=(1, 2, 4), generator=generator
    )
