"""docs/figures.py: positions, colors and texts, read back from matplotlib."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex

from docs import figures
from docs.figures import Boxes

IMG = np.full((20, 30, 3), 200, np.uint8)


def rectangles(axes):
    """(x, y, width, height, color) of the boxes in a panel."""
    return [
        (*patch.get_xy(), patch.get_width(), patch.get_height(), to_hex(patch.get_edgecolor()))
        for patch in axes.patches
    ]


def test_describe_prints_shape_type_and_range(capsys):
    figures.describe(loc=torch.tensor([[-1.5, 2]], requires_grad=True), none=np.zeros((0, 4), np.float32))
    loc, none = capsys.readouterr().out.splitlines()
    assert loc.split() == ["loc", "(1,", "2)", "float32", "-1.500", "to", "2.000"]
    assert none.split() == ["none", "(0,", "4)", "float32"]


def test_boxes_have_their_position_and_name():
    figure = figures.boxes(IMG, ("a", Boxes([[2, 5, 9, 25]], "#ff0000", "object")), ("b", Boxes(np.zeros((0, 4)), "k")))
    left, right = figure.axes
    assert rectangles(left) == [(5, 2, 20, 7, "#ff0000")]
    assert rectangles(right) == []
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["object"]
    assert right.get_legend() is None
    assert left.get_xlim() == (0, 30)
    assert left.get_ylim() == (20, 0)  # y points down


def test_float_image_is_clipped_and_rounded():
    axes = figures.boxes(np.array([[[-3.0, 99.6, 300]]]), ("a",)).axes[0]
    assert axes.images[0].get_array().tolist() == [[[0, 100, 255]]]


def test_highlight_is_white_where_the_weight_is_largest():
    weight = np.zeros((20, 30))
    weight[4, 7], weight[5, 8] = 2, 0.5
    out = figures.highlight(IMG, torch.from_numpy(weight))
    assert out[4, 7].tolist() == [255] * 3
    assert out[5, 8].tolist() == [172] * 3  # half of each: the root of a quarter
    assert out[0, 0].tolist() == [90] * 3


def test_grid_draws_boxes_on_every_map():
    figure = figures.grid(torch.rand(5, 4, 6), list("abcde"), columns=3, bbox=[[1, 2, 3, 5]])
    assert [axes.get_title() for axes in figure.axes] == list("abcde")
    assert all(rectangles(axes) == [(2, 1, 3, 2, "#ffffff")] for axes in figure.axes)
    assert not figures.grid([IMG]).axes[0].patches


def test_pooling_marks_the_maximum_of_every_bin():
    channel = torch.arange(24.0).reshape(4, 6)
    channel[1, 3] = 50
    edges = [(0, 1), (1, 3)], [(0, 2), (1, 3)]
    figure = figures.pooling(channel, (1, 2, 4, 5), edges, torch.tensor([[50.0, 50], [21, 22]]))
    whole, inside, result = figure.axes
    assert rectangles(whole)[0][:4] == (2, 1, 3, 3)
    marks = [tuple(map(float, line.get_xydata()[0])) for line in inside.lines]
    assert marks == [(1.5, 0.5), (1.5, 0.5), (1.5, 2.5), (2.5, 2.5)]
    assert [text.get_text() for text in result.texts] == ["50.0", "50.0", "21.0", "22.0"]


def test_bars_and_lines_show_the_values():
    axes = figures.bars(("loss", ["a", "b"], torch.tensor([0.25, 2.0])), ("c", ["d"], [1])).axes
    assert [patch.get_width() for patch in axes[0].patches] == [0.25, 2]
    assert [label.get_text() for label in axes[0].get_yticklabels()] == ["a", "b"]
    curve = figures.lines(torch.tensor([0.0, 1]), {"f": torch.tensor([3.0, 4])}, "title", "x").axes[0].lines[0]
    assert curve.get_label() == "f"
    assert curve.get_ydata().tolist() == [3, 4]


@pytest.mark.parametrize("has_gradient", [True, False])
def test_an_arrow_without_gradient_is_dashed_and_red(has_gradient):
    figure = figures.gradient_flow({"a": (1, 1), "b": (3, 2)}, [("a", "b", has_gradient)])
    arrow = figure.axes[0].patches[0]
    assert (arrow.get_linestyle() == "-") == has_gradient
    assert (to_hex(arrow.get_edgecolor()) == figures.RED) == (not has_gradient)
