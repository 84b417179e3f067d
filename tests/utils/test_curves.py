"""Tests of utils.curves: what is plotted of a run."""

import gc

import numpy as np
import pytest
from PIL import Image

from utils import curves
from utils.curves import FIGURES, LOSSES, PANELS, ap_lines, plot_curves, smooth


def run(n_train, n_eval):
    train = [
        {"kind": "train", "step": 40 * i, "epoch": 0}
        | {name: (k + 1.0) / (i + 1) for k, name in enumerate(FIGURES)}
        for i in range(1, n_train + 1)
    ]
    return train + [
        {"kind": "eval", "step": 80 * i, "epoch": i, "map": 0.1 * i, "ap": {"cat": 0.2 * i, "dog": None}}
        for i in range(1, n_eval + 1)
    ]


@pytest.fixture
def drawn(monkeypatch):
    """The axes of the figures saved so far, by title without what follows a comma or colon."""
    axes, savefig = {}, curves.Figure.savefig

    def spy(self, *args, **kwargs):
        axes.update({ax.get_title().split(",")[0].split(":")[0]: ax for ax in self.axes})
        return savefig(self, *args, **kwargs)

    monkeypatch.setattr(curves.Figure, "savefig", spy)
    return axes


@pytest.mark.parametrize(("n_train", "n_eval"), [(0, 0), (1, 0), (2, 1), (0, 2), (300, 6)])
@pytest.mark.filterwarnings("error")
def test_curves_are_a_whole_picture(tmp_path, n_train, n_eval):
    path = tmp_path / "curves.png"
    plot_curves(run(n_train, n_eval), path)
    img = np.array(Image.open(path).convert("RGB")).astype(int)
    assert img.shape == (900, 1600, 3)
    colorful = img.max(axis=2) - img.min(axis=2) > 80
    assert colorful[60:480, :700].any() == (n_train > 0)  # the losses, below their legend
    assert colorful[:480, 800:].any() == (n_eval > 0)  # average precision
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_every_figure_has_a_line_and_a_name(tmp_path, drawn):
    plot_curves(run(40, 3), tmp_path / "curves.png")
    for panel in PANELS.values():
        axes = drawn[panel.title]
        assert len(axes.lines) == len(panel.lines) * (1 + panel.smooth)  # raw below smoothed
        if len(panel.lines) > 1:
            texts = [text.get_text().rsplit(" ", 1)[0] for text in axes.get_legend().get_texts()]
            assert texts == [label for label, _ in panel.lines.values()]
    raw, strong = drawn["losses"].lines[:2]
    np.testing.assert_allclose(raw.get_ydata(), [1 / (i + 1) for i in range(1, 41)])
    np.testing.assert_allclose(strong.get_ydata(), smooth(raw.get_ydata()))
    assert raw.get_alpha() < 0.5
    assert strong.get_alpha() is None
    np.testing.assert_array_equal(raw.get_xdata(), 40 * np.arange(1, 41))


def test_average_precision_is_drawn_by_class_name(tmp_path, drawn):
    plot_curves(run(2, 3), tmp_path / "curves.png")
    axes = drawn[curves.AP_TITLE]
    assert "mean (black) 0.3000, best 0.3000" in axes.get_title()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cat 0.600", "dog n/a"]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.2, 0.4, 0.6])
    np.testing.assert_allclose(axes.lines[-1].get_ydata(), [0.1, 0.2, 0.3])


def test_lines_of_average_precision():
    (mean, cat, dog) = ap_lines(run(0, 2))
    assert (mean[0], mean[1].tolist()) == ("mAP", [0.1, 0.2])
    assert (cat[0], cat[1].tolist()) == ("cat", [0.2, 0.4])
    assert dog[0] == "dog"
    assert np.isnan(dog[1]).all()
    assert len({color for _, _, color in (mean, cat, dog)}) == 3
    assert [name for name, _, _ in ap_lines([])] == ["mAP"]


@pytest.mark.filterwarnings("error")
def test_curves_bear_gaps_zeros_and_figures_of_an_older_version(tmp_path):
    records = run(40, 3)
    records[3]["roi_loc"] = 0.0
    records[5]["total"] = None
    records[-1]["map"] = None
    for record in records[:40]:
        record["lr"] = 0.0
        del record["n_proposal"], record["rpn_recall_pos"]
    plot_curves(records, tmp_path / "curves.png")
    plot_curves([record | {"map": None} for record in records[40:]], tmp_path / "curves.png")
    Image.open(tmp_path / "curves.png").verify()


def test_failed_drawing_keeps_the_old_picture(tmp_path, monkeypatch):
    def fill_the_disk(self, path, **kwargs):
        path.write_bytes(b"half a picture")
        raise OSError("disk full")

    path = tmp_path / "curves.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(curves.Figure, "savefig", fill_the_disk)
    with pytest.raises(OSError, match="disk full"):
        plot_curves(run(2, 1), path)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["curves.png"]


def test_smoothing_is_a_local_mean_without_gaps():
    value = np.full(64, 2.0)
    value[10] = np.nan
    np.testing.assert_allclose(smooth(value), 2.0)
    smoothed = smooth(np.repeat([1.0, 3.0], 50))
    np.testing.assert_allclose(smoothed[[0, 99]], [1.0, 3.0])
    assert (np.diff(smoothed) >= -1e-12).all()
    assert 1.5 < smoothed[48] < 2.0
    np.testing.assert_array_equal(smooth(np.array([1.0, 5.0])), [1.0, 5.0])


def test_losses_are_those_of_the_trainer():
    trainer = pytest.importorskip("trainer")
    assert trainer.Losses._fields == LOSSES


def test_nothing_of_a_figure_stays_in_memory(tmp_path):
    """It is full of cycles: 7 MB would stay until Python's next full collection, and leave holes in the heap."""
    gc.collect()
    gc.disable()
    try:
        plot_curves(run(2, 1), tmp_path / "curves.png")
        assert not [thing for thing in gc.get_objects() if isinstance(thing, curves.Figure)]
    finally:
        gc.enable()
