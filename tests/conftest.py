"""Fixtures that several tests share."""

import shutil
import signal

import fixtures
import pytest
import torch

import model

# a shell in the background or nohup has signals ignored, which the programs under test respect
for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session")
def tiny_model():
    """Faster R-CNN with VGG16's convolutions and a narrow head, for 64 x 96. Copy it to change it."""
    generator = torch.Generator().manual_seed(0)
    return model.build(
        n_fg_class=3, head_width=16, min_size=64, max_size=96, anchor_scales=(1, 2, 4), generator=generator
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The current folder, with a data set in voc/; VGG16 is narrow, and one thread computes. Removed at the end."""
    folder, n_thread = tmp_path_factory.mktemp("place"), torch.get_num_threads()
    fixtures.write_voc(folder / "voc", {"train": 6, "val": 3})
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("model.vgg16.LAYERS", fixtures.NARROW)
        patch.setattr("utils.logger.plot_curves", lambda records, path: path.touch())
        yield folder
    torch.set_num_threads(n_thread)
    shutil.rmtree(folder)  # checkpoints are large
