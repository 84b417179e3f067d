"""The whole network: `predict` on the outputs of stubs, and on a real network."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from model.faster_rcnn import FasterRCNN, FasterRCNNOutput
from model.rpn import RPNOutput
from model.utils.preprocess import TORCHVISION, prepare

IMG = np.zeros((40, 60, 3), np.uint8)  # not resized with `min_size=40`


class Extractor(nn.Module):
    """Return the image as the feature map."""

    stride = 16

    def forward(self, img):
        self.grad = torch.is_grad_enabled()
        return img


class RPN(nn.Module):
    """Propose the given boxes; record the arguments."""

    def __init__(self, roi):
        super().__init__()
        self.roi = torch.tensor(roi, dtype=torch.float32).reshape(-1, 4)

    def forward(self, feature, img_size, scale, train):
        self.asked = tuple(img_size), scale, train
        return RPNOutput(None, None, None, self.roi, None)


class Head(nn.Module):
    """Return the given locs and probabilities; `inner` is a submodule with a mode of its own."""

    def __init__(self, loc, prob):
        super().__init__()
        self.loc = torch.tensor(loc, dtype=torch.float32)
        self.score = torch.tensor(prob, dtype=torch.float32).log()
        self.inner = nn.Dropout()

    def forward(self, feature, roi):
        return self.loc, self.score


def detector(roi, prob, loc=None, min_size=40, **options):
    """Build a network that proposes `roi` (R, 4) and predicts `prob` (R, L + 1) and `loc` (R, L + 1, 4)."""
    loc = np.zeros((*np.shape(prob), 4)) if loc is None else loc
    return FasterRCNN(Extractor(), RPN(roi), Head(loc, prob), TORCHVISION, min_size, 1000, **options)


def one(model, img=IMG, **options):
    """Boxes, labels and scores of one image."""
    (bbox,), (label,), (score,) = model.predict([img], **options)
    return bbox, label, score


def test_boxes_are_in_the_images_own_pixels():
    img = np.zeros((30, 47, 3), np.uint8)  # becomes 20 x 31, not 31.33
    loc = np.zeros((1, 3, 4))
    loc[0, 2] = 1, -2, math.log(2) / 0.2, math.log(0.5) / 0.2
    model = detector([[2, 4, 12, 20]], [[0.1, 0.2, 0.7]], loc, min_size=20)
    bbox, label, score = one(model, img, score_thresh=0.3)
    # from 10 x 16 around (7, 12) to 20 x 8 around (8, 8.8), clipped at the upper border; then (30/20, 47/31)
    np.testing.assert_allclose(bbox, [[0, 4.8 * 47 / 31, 27, 12.8 * 47 / 31]], rtol=1e-5, atol=1e-5)
    assert label.tolist() == [1]
    np.testing.assert_allclose(score, [0.7], rtol=1e-5)
    assert (bbox.dtype, label.dtype, score.dtype) == (np.float32, np.int64, np.float32)
    assert model.rpn.asked == ((20, 31), 20 / 30, False)  # as in prediction
    assert not model.extractor.grad


def test_normalisation_of_locs_is_undone():
    loc = np.zeros((1, 2, 4))
    loc[0, 1] = 1, 2, 3, 4
    model = detector(
        [[10, 10, 20, 30]], [[0.2, 0.8]], loc, loc_mean=(0.1, -0.2, 0.3, 0.5), loc_std=(0.2, 0.05, 0.1, -0.2)
    )
    # (0.3, -0.1, 0.6, -0.3): from 10 x 20 around (15, 20) to a centre of (18, 18)
    half_h, half_w = 5 * math.exp(0.6), 10 * math.exp(-0.3)
    bbox, _, _ = one(model)
    np.testing.assert_allclose(bbox, [[18 - half_h, 18 - half_w, 18 + half_h, 18 + half_w]], rtol=1e-5)


def test_every_class_has_its_own_box():
    loc = np.zeros((1, 3, 4))
    loc[0, :, 1] = 99, 5, -5  # half a width to the right or to the left
    bbox, label, score = one(detector([[10, 20, 20, 30]], [[0.3, 0.3, 0.4]], loc))
    np.testing.assert_allclose(bbox, [[10, 15, 20, 25], [10, 25, 20, 35]], rtol=1e-5)
    assert label.tolist() == [1, 0]
    np.testing.assert_allclose(score, [0.4, 0.3], rtol=1e-5)


ROI = [[0, 0, 10, 20], [0, 0, 10, 15], [30, 30, 40, 50], [0, 40, 10, 50], [0, 0, 10, 6]]
PROB = [[0.3, 0.6, 0.1], [0.0, 0.7, 0.3], [0.1, 0.05, 0.85], [0.55, 0.0, 0.45], [0.5, 0.5, 0.0]]


def test_nms_within_a_class_and_order():
    bbox, label, score = one(detector(ROI, PROB), score_thresh=0.2, nms_thresh=0.6)
    # class 0: the second suppresses the first (IoU 3/4) but not the last (2/5)
    assert bbox.tolist() == [ROI[2], ROI[1], ROI[4], ROI[3], ROI[1]]
    assert label.tolist() == [1, 0, 0, 1, 1]
    np.testing.assert_allclose(score, [0.85, 0.7, 0.5, 0.45, 0.3], rtol=1e-5)
    assert len(one(detector(ROI, PROB), score_thresh=0.2, nms_thresh=0.8)[0]) == 6
    assert len(one(detector(ROI, PROB), score_thresh=0.2)[0]) == 4  # 0.3 by default


def test_default_thresholds():
    prob = [[0.94, 0.06], [0.96, 0.04], [0.1, 0.9], [0.2, 0.8], [0.3, 0.7]]
    roi = [[0, 0, 10, 20], [20, 0, 30, 20], [0, 30, 10, 50], [0, 30, 10, 37], [0, 45, 10, 50]]
    bbox, _, _ = one(detector(roi, prob))
    assert bbox.tolist() == [roi[2], roi[4], roi[0]]  # IoU 7/20 is too much, 5/20 is not


def test_thresholds_of_the_model_itself():
    model = detector(ROI, PROB, score_thresh=0.2, nms_thresh=0.6, max_detections=4)
    np.testing.assert_allclose(one(model)[2], [0.85, 0.7, 0.5, 0.45], rtol=1e-5)
    np.testing.assert_allclose(one(model, score_thresh=0.6, max_detections=9)[2], [0.85, 0.7], rtol=1e-5)
    np.testing.assert_allclose(one(model, nms_thresh=0.2, max_detections=9)[2], [0.85, 0.7, 0.45, 0.3], rtol=1e-5)
    np.testing.assert_allclose(one(model, max_detections=1)[2], [0.85], rtol=1e-5)


def test_score_must_be_above_the_threshold():
    model = detector([[0, 0, 10, 20]], np.full((1, 4), 0.25))
    assert len(one(model, score_thresh=0.25)[0]) == 0
    assert len(one(model, score_thresh=0.24)[0]) == 3


@pytest.mark.parametrize(("n", "left"), [(None, 5), (9, 5), (3, 3), (0, 0)])
def test_max_detections(n, left):
    score = one(detector(ROI, PROB), score_thresh=0.2, nms_thresh=0.6, max_detections=n)[2]
    np.testing.assert_allclose(score, [0.85, 0.7, 0.5, 0.45, 0.3][:left], rtol=1e-5)


@pytest.mark.parametrize("model", [detector(ROI, PROB), detector(np.zeros((0, 4)), np.zeros((0, 3)))])
def test_nothing_found(model):
    bbox, label, score = one(model, score_thresh=0.99)
    assert (bbox.shape, label.shape, score.shape) == ((0, 4), (0,), (0,))
    assert (bbox.dtype, label.dtype, score.dtype) == (np.float32, np.int64, np.float32)


def test_one_entry_per_image():
    model = detector(ROI, PROB)
    assert model.predict([]) == ([], [], [])
    bboxes, labels, scores = model.predict([IMG, np.zeros((80, 60, 3), np.uint8)], score_thresh=0.8)
    assert bboxes[0].tolist() == [ROI[2]]
    # 80 x 60 becomes 53 x 40, where the box is clipped at 40
    np.testing.assert_allclose(bboxes[1], [[30 * 80 / 53, 45, 40 * 80 / 53, 60]], rtol=1e-6)
    assert [label.tolist() for label in labels] == [[1], [1]]
    assert len(scores) == 2


def test_rounding_leaves_boxes_inside_the_image():
    img = np.zeros((91, 107, 3), np.uint8)  # 67 / 91 and 79 / 107 are not exact in float32
    bbox, _, _ = one(detector([[-5, -5, 99, 99]], [[0.1, 0.9]], min_size=67), img)
    np.testing.assert_allclose(bbox, [[0, 0, 91, 107]])
    assert (bbox[0] <= [91, 107, 91, 107]).all()


@pytest.mark.parametrize(("imgs", "error"), [([IMG], None), ([IMG, "cat.jpg"], ValueError)])
@pytest.mark.parametrize("training", [True, False])
def test_modes_are_restored(imgs, error, training):
    model = detector(ROI, PROB).train(training)
    model.head.inner.train(not training)
    before = [module.training for module in model.modules()]
    assert len(set(before)) == 2
    seen = []

    def look(*_):
        seen.extend(module.training for module in model.modules())

    with model.extractor.register_forward_hook(look):
        if error:
            with pytest.raises(error):
                model.predict(imgs)
        else:
            model.predict(imgs)
    assert not any(seen)
    assert [module.training for module in model.modules()] == before


def test_prepare_uses_what_the_network_was_built_with():
    img = np.random.default_rng(0).integers(0, 256, (31, 50, 3), np.uint8)
    model = FasterRCNN(Extractor(), RPN([]), Head(0, 1), TORCHVISION, 62, 80)
    pixel, scale = model.prepare(img)
    expected, _ = prepare(img, TORCHVISION, 62, 80, "cpu")
    assert scale == 80 / 50
    assert torch.equal(pixel, expected)


@pytest.mark.parametrize("stride", [16, 32])
def test_a_thin_image_has_a_cell_in_the_feature_map(tiny_model, stride):
    model = detector(ROI, PROB)
    model.extractor.stride = stride
    for size in ((3000, 1), (1, 3000)):
        img = np.zeros((*size, 3), np.uint8)
        assert min(model.prepare(img)[0].shape[2:]) == stride
        with torch.no_grad():
            pixel, _ = tiny_model.prepare(img)
            assert tiny_model.extractor(pixel).shape[2:] == ((6, 1) if size[1] == 1 else (1, 6))
        assert tiny_model.predict([img], score_thresh=0)[0][0].shape[1] == 4


@pytest.fixture
def img():
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)


@torch.no_grad()
def test_forward_answers_alike_in_both_modes_and_keeps_no_state(tiny_model, img):
    pixel, scale = tiny_model.prepare(img)
    state = {key: value.clone() for key, value in tiny_model.state_dict().items()}
    attributes = [set(vars(module)) for module in tiny_model.modules()]
    creator, mode = dict(vars(tiny_model.rpn.proposal_creator)), tiny_model.training
    try:
        outputs = [tiny_model.train(train)(pixel, scale) for train in (True, False)]
    finally:
        tiny_model.train(mode)
    for output in outputs:
        assert type(output) is FasterRCNNOutput
        assert type(output.rpn) is RPNOutput
        n_anchor, n_roi = 4 * 6 * 9, len(output.rpn.roi)
        assert [tuple(tensor.shape) for tensor in output.rpn] == [
            (n_anchor, 4),
            (n_anchor, 2),
            (n_anchor,),
            (n_roi, 4),
            (n_anchor, 4),
        ]
        assert n_roi > 10
        assert output.roi_cls_loc.shape == (n_roi, 4, 4)
        assert output.roi_score.shape == (n_roi, 4)
        assert {tensor.dtype for tensor in (*output.rpn, *output[1:])} == {torch.float32}
    torch.testing.assert_close(outputs[0].rpn.rpn_score, outputs[1].rpn.rpn_score)
    assert [set(vars(module)) for module in tiny_model.modules()] == attributes
    assert vars(tiny_model.rpn.proposal_creator) == creator
    for key, value in tiny_model.state_dict().items():
        assert torch.equal(value, state[key])


@torch.no_grad()
def test_mode_of_the_network_chooses_the_number_of_proposals():
    model = detector(ROI, PROB)
    for train in (True, False):
        model.train(train)(torch.zeros(1, 3, 40, 60), 1.5)
        assert model.rpn.asked == ((40, 60), 1.5, train)


def test_real_network_predicts(tiny_model, img):
    imgs = [img, img[:50, :40]]
    bboxes, labels, scores = tiny_model.predict(imgs, score_thresh=0.1, max_detections=7)
    for img, bbox, label, score in zip(imgs, bboxes, labels, scores, strict=True):
        assert (len(bbox), len(label), len(score)) == (7, 7, 7)
        assert (bbox >= 0).all()
        assert (bbox <= [*img.shape[:2]] * 2).all()
        assert (bbox[:, 2:] > bbox[:, :2]).all()
        assert set(label) <= {0, 1, 2}
        assert (np.diff(score) <= 0).all()
    alone, _, _ = tiny_model.predict(imgs[1:], score_thresh=0.1, max_detections=7)
    np.testing.assert_array_equal(alone[0], bboxes[1])  # images do not affect each other
