"""Our parts against independent ones (torchvision, pycocotools, scikit-image, plain loops) on random inputs.

Heights and widths differ everywhere, so that a y taken for an x shows.
"""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pycocotools.mask
import pytest
import skimage.transform
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import box_iou, clip_boxes_to_image, nms, remove_small_boxes, roi_align

from model.faster_rcnn import FasterRCNN, FasterRCNNOutput
from model.rpn import RPNOutput
from model.utils.anchor_target_creator import AnchorTargetCreator
from model.utils.anchors import enumerate_shifted_anchor, generate_anchor_base
from model.utils.bbox_tools import bbox2loc, bbox_iou, loc2bbox
from model.utils.preprocess import CAFFE, TORCHVISION, prepare
from model.utils.proposal_creator import ProposalCreator
from model.utils.proposal_target_creator import ProposalTarget, ProposalTargetCreator
from model.utils.roi_ops import roi_pool
from model.vgg16 import VGG16RoIHead
from trainer import FasterRCNNTrainer, detection_losses

PLAIN_CODER, HEAD_CODER = BoxCoder((1, 1, 1, 1)), BoxCoder((10, 10, 5, 5))  # locs there: dx, dy, dw, dh


def xy(bbox):
    """Swap y and x in boxes or locs; return a tensor."""
    return torch.as_tensor(bbox)[..., [1, 0, 3, 2]]


def random_bbox(rng, n, size=(40, 90), least=2, extent=(60, 150)):
    """(n, 4) float32 boxes of sides from `least` to `size`, whose upper left corners are in `extent`."""
    corner = rng.uniform(0, extent, (n, 2))
    return np.concatenate((corner, corner + rng.uniform(least, size, (n, 2))), 1).astype(np.float32)


def greedy_nms(bbox, score, thresh):
    """NMS as a plain loop: keep the best box, drop those that overlap it by more than `thresh`, repeat."""

    def iou(a, b):
        inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
        return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)

    bbox, keep = bbox.tolist(), []
    for i in score.argsort(descending=True).tolist():
        if all(iou(bbox[i], bbox[k]) <= thresh for k in keep):
            keep.append(i)
    return keep


def test_iou():
    rng = np.random.default_rng(0)
    a, b = random_bbox(rng, 50), random_bbox(rng, 30)
    iou = bbox_iou(a, b)
    assert ((iou > 0.2).sum(), (iou == 0).sum()) > (20, 20)
    np.testing.assert_allclose(iou, box_iou(xy(a), xy(b)), rtol=1e-5)
    corner_and_size = [
        np.hstack((box[:, :2], box[:, 2:] - box[:, :2])) for box in (xy(a).double().numpy(), xy(b).double().numpy())
    ]
    theirs = pycocotools.mask.iou(*corner_and_size, np.zeros(30, np.uint8))
    np.testing.assert_allclose(iou, theirs, rtol=1e-4, atol=1e-7)


def test_locs():
    rng = np.random.default_rng(1)
    src, dst = random_bbox(rng, 50), random_bbox(rng, 50, (90, 40))
    loc = PLAIN_CODER.encode_single(xy(dst), xy(src))
    np.testing.assert_allclose(bbox2loc(src, dst), xy(loc), rtol=1e-4, atol=1e-5)
    loc = rng.normal(0, (1, 1, 4, 4), (50, 4)).astype(np.float32)
    assert (loc > np.log(1000 / 16)).any(0).tolist() == [False, False, True, True]  # the clamp is active
    bbox = PLAIN_CODER.decode_single(xy(loc), xy(src))
    np.testing.assert_allclose(loc2bbox(src, loc), xy(bbox), rtol=1e-4, atol=1e-3)


def test_targets_of_the_head():
    rng = np.random.default_rng(2)
    bbox = random_bbox(rng, 5, least=30)
    label = np.array([3, 0, 2, 0, 1])
    near = np.repeat(bbox, 8, 0) + rng.normal(0, 4, (40, 4)).astype(np.float32)
    roi = np.concatenate((random_bbox(rng, 40), near))
    ours = ProposalTargetCreator(n_sample=10**6, pos_ratio=1)(roi, bbox, label, rng)
    roi, bbox = torch.from_numpy(np.concatenate((roi, bbox))), torch.from_numpy(bbox)
    match = Matcher(0.5, 0.5)(box_iou(xy(bbox), xy(roi)))  # -1: background
    positive, negative = (match >= 0).nonzero()[:, 0], (match < 0).nonzero()[:, 0]
    assert min(len(positive), len(negative)) > 15
    nearest = match[positive]
    np.testing.assert_array_equal(ours.sample_roi, roi[torch.cat((positive, negative))])
    np.testing.assert_array_equal(ours.gt_roi_label, [*label[nearest] + 1, *np.zeros(len(negative))])
    loc = xy(HEAD_CODER.encode_single(xy(bbox[nearest]), xy(roi[positive])))
    np.testing.assert_allclose(ours.gt_roi_loc[: len(positive)], loc, rtol=1e-4, atol=1e-4)


# integers: IoUs are exact in both libraries, so that ties are ties in both
IMG_SIZE = (160, 256)
ANCHOR = enumerate_shifted_anchor(generate_anchor_base(16, (0.25, 1, 4), (2, 4)), 16, 10, 16)
INSIDE = (ANCHOR[:, :2] >= 0).all(1) & (ANCHOR[:, 2:] <= IMG_SIZE).all(1)


def anchor_target(bbox):
    return AnchorTargetCreator(n_sample=10**6)(bbox, ANCHOR, IMG_SIZE, np.random.default_rng(0))


def matched(bbox, anchor, low_quality=True):
    """Labels by torchvision's matcher, 1 object, 0 background, -1 neither, and the index of the object."""
    match = Matcher(0.7, 0.3, allow_low_quality_matches=low_quality)(box_iou(xy(bbox), xy(anchor)))
    return torch.where(match >= 0, 1, torch.where(match == Matcher.BELOW_LOW_THRESHOLD, 0, -1)), match


@pytest.mark.parametrize("seed", range(4))
def test_targets_of_the_rpn(seed):
    """On inside anchors, with objects that at least one of them overlaps, the conventions agree."""
    rng = np.random.default_rng(seed)
    bbox = np.concatenate(
        (
            np.round(random_bbox(rng, 6, (60, 80), 10, (100, 170))),
            ANCHOR[INSIDE][rng.integers(0, INSIDE.sum(), 3)] + [2, -6, -4, 1],
            [[20, 30, 130, 200]],
        )
    ).astype(np.float32)  # several anchors are equally good for the last
    anchor = ANCHOR[INSIDE]
    assert (box_iou(xy(anchor), xy(bbox)).amax(0) > 0).all()
    label, match = matched(bbox, anchor)
    strict, _ = matched(bbox, anchor, low_quality=False)
    assert (strict == 1).any()
    assert ((label == 1) & (strict < 1)).sum() > 3
    ours = anchor_target(bbox)
    np.testing.assert_array_equal(ours.label[INSIDE], label)
    positive = label == 1
    loc = xy(PLAIN_CODER.encode_single(xy(bbox[match[positive]]), xy(anchor[positive])))
    np.testing.assert_allclose(ours.loc[INSIDE][positive], loc, rtol=1e-4, atol=1e-5)


def test_where_the_targets_of_the_rpn_differ():
    """No inside anchor overlaps the first object; the best anchor of the second crosses the border."""
    corner, border, plain = [0, 0, 6, 5], [40, 0, 72, 23], [50, 100, 90, 140]
    without, given = (anchor_target(np.array(bbox, np.float32)) for bbox in ([plain], [corner, plain]))
    np.testing.assert_array_equal(given.label, without.label)  # ours: an object without overlap has no effect
    assert (without.label == 0).any()
    assert (matched(np.float32([corner, plain]), ANCHOR[INSIDE])[0] == 1).all()  # torchvision: all anchors match it

    border = np.array([border], np.float32)
    ours, theirs = anchor_target(border).label, matched(border, ANCHOR)[0].numpy()
    assert (ours[~INSIDE] == -1).all()  # ours: ignored; the best inside anchors are positive
    assert (ours == 1).any()
    assert INSIDE[theirs == 1].tolist() == [False]


@pytest.mark.parametrize("nms", [nms, greedy_nms])
@pytest.mark.parametrize(("train", "n_pre", "n_post"), [(True, 90, 20), (False, 60, 200)])
def test_proposals(train, n_pre, n_post, nms):
    """Compose torchvision's functions in our order; its own RPN ranks before it drops small boxes."""
    rng, img_size = np.random.default_rng(4), (100, 220)
    # three with a side of exactly 12 are kept, one with less is not
    exact = np.array([[0, 0, 12, 40], [0, 50, 30, 62], [70, 200, 82, 212], [70, 0, 81.9, 60]], np.float32)
    around = random_bbox(rng, 400, extent=(120, 250)) - np.float32(25)  # some cross the border
    anchor = np.concatenate((exact, around))
    loc = rng.normal(0, 0.3, anchor.shape).astype(np.float32)
    loc[:4] = 0
    score = np.concatenate((500 + np.arange(4), rng.permutation(400))).astype(np.float32)
    creator = ProposalCreator(0.5, 90, 20, 60, 200, min_size=8)
    roi = creator(loc, score, anchor, img_size, 1.5, train)

    bbox = clip_boxes_to_image(PLAIN_CODER.decode_single(xy(loc), xy(anchor)), img_size)
    large = remove_small_boxes(bbox, 8 * 1.5)
    assert large[large < 4].tolist() == [0, 1, 2]
    assert len(large) > n_pre
    best = large[torch.from_numpy(score)[large].topk(n_pre).indices]
    keep = nms(bbox[best], torch.from_numpy(score)[best], 0.5)
    assert 20 < len(keep) < n_pre  # limited to 20 in training; the other limit has no effect
    np.testing.assert_allclose(roi, xy(bbox[best][keep][:n_post]), atol=1e-4)


@pytest.mark.parametrize("n_roi", [60, 900])
def test_decode(n_roi):
    """A loop over classes: no class suppresses another. `batched_nms` has one algorithm for few boxes, one for many."""
    generator, n_class = torch.Generator().manual_seed(n_roi), 5
    img_size, original_size, score_thresh, nms_thresh = (300, 480), (150, 320), 0.1, 0.4
    roi = torch.from_numpy(random_bbox(np.random.default_rng(n_roi), n_roi, (90, 160), 20, (120, 250)))
    loc = 2 * torch.randn(n_roi, n_class, 4, generator=generator)
    logit = 2 * torch.randn(n_roi, n_class, generator=generator)
    model = FasterRCNN(None, None, None, TORCHVISION)
    output = FasterRCNNOutput(RPNOutput(None, None, None, roi, None), loc, logit)
    bbox, label, score = model.decode(output, img_size, original_size, score_thresh, nms_thresh)

    prob, found = F.softmax(logit, 1), []
    for c in range(1, n_class):
        likely = prob[:, c] > score_thresh
        theirs = HEAD_CODER.decode_single(xy(loc[likely, c]), xy(roi[likely]))
        theirs = theirs * torch.tensor([320 / 480, 150 / 300] * 2)
        theirs = clip_boxes_to_image(theirs, original_size)
        keep = nms(theirs, prob[likely, c], nms_thresh)
        assert 0 < len(keep) < likely.sum()
        found += [(s, c - 1, b) for s, b in zip(prob[likely, c][keep], theirs[keep], strict=True)]
    found.sort(key=lambda detection: -detection[0])
    assert (((prob[:, 1:] > score_thresh).sum() > 1000) == (n_roi == 900)).item()  # `batched_nms` switches at 1000
    torch.testing.assert_close(score, torch.stack([detection[0] for detection in found]))
    assert label.tolist() == [detection[1] for detection in found]
    torch.testing.assert_close(bbox, xy(torch.stack([detection[2] for detection in found])), rtol=1e-4, atol=1e-3)


class Answers(nn.Module):
    """A stub of a network, whose head returns its own parameters."""

    def __init__(self, roi_cls_loc, roi_score):
        super().__init__()
        self.roi_cls_loc, self.roi_score = nn.Parameter(roi_cls_loc), nn.Parameter(roi_score)

    def head(self, feature, roi):
        return self.roi_cls_loc, self.roi_score


def plain_loss(score, roi_cls_loc, label, gt_loc, beta):
    """torchvision's `fastrcnn_loss` for any beta; its own is fixed at 1 / 9."""
    (label,), (gt_loc,) = label, gt_loc
    row = (label > 0).nonzero()[:, 0]
    loc = roi_cls_loc.reshape(len(label), -1, 4)[row, label[row]]
    return F.cross_entropy(score, label), F.smooth_l1_loss(loc, gt_loc[row], beta=beta, reduction="sum") / len(label)


@pytest.mark.parametrize(
    ("sigma", "loss"),
    [
        (3, fastrcnn_loss),
        (3, lambda *args: plain_loss(*args, beta=1 / 9)),
        (1, lambda *args: plain_loss(*args, beta=1)),
    ],
)
def test_losses_of_the_head(sigma, loss):
    generator, n = torch.Generator().manual_seed(5), 40
    label = torch.randint(-1, 4, (n,), generator=generator)
    gt_loc = torch.randn(n, 4, generator=generator)
    ours = Answers(gt_loc[:, None] + torch.randn(n, 4, 4, generator=generator), torch.randn(n, 4, generator=generator))
    target = ProposalTarget(np.zeros((n, 4), np.float32), gt_loc.numpy(), label.numpy())
    trainer = FasterRCNNTrainer(ours, None, proposal_target_creator=lambda *args: target, rpn_sigma=2, roi_sigma=sigma)
    loc_loss, cls_loss, _ = trainer.head_losses(None, torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0).long(), None)
    (loc_loss + 3 * cls_loss).backward()

    counts = label >= 0  # without the ignored rows
    assert 0 < counts.sum() < n
    theirs = Answers(ours.roi_cls_loc.detach(), ours.roi_score.detach())
    theirs_cls, theirs_loc = loss(
        theirs.roi_score[counts], theirs.roi_cls_loc[counts].flatten(1), [label[counts]], [gt_loc[counts]]
    )
    (theirs_loc + 3 * theirs_cls).backward()
    torch.testing.assert_close(loc_loss, theirs_loc)
    torch.testing.assert_close(cls_loss, theirs_cls)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)


def test_losses_of_the_rpn():
    """Cross entropy of two logits is the logistic loss of their difference."""
    generator, n = torch.Generator().manual_seed(6), 60
    label = torch.randint(-1, 2, (n,), generator=generator)
    loc, gt_loc = torch.randn(2, n, 4, generator=generator)
    score = torch.randn(n, 2, generator=generator).requires_grad_()
    loc_loss, cls_loss = detection_losses(loc, score, gt_loc, label, 3)
    counts = label >= 0
    logistic = F.binary_cross_entropy_with_logits((score[:, 1] - score[:, 0])[counts], label[counts].float())
    smooth = F.smooth_l1_loss(loc[label == 1], gt_loc[label == 1], beta=1 / 9, reduction="sum") / counts.sum()
    torch.testing.assert_close(cls_loss, logistic)
    torch.testing.assert_close(loc_loss, smooth)
    torch.testing.assert_close(*(torch.autograd.grad(one, score)[0] for one in (cls_loss, logistic)))


def pooled(feature, bbox, size=7, scale=1 / 16):
    """The input of fc6 in `VGG16RoIHead`: (R, 512, size, size)."""
    head = VGG16RoIHead(1, width=1, roi_op=partial(roi_pool, size=size, spatial_scale=scale))
    head.fc6 = torch.nn.Linear(512 * size * size, 1)
    seen = SimpleNamespace()
    with torch.no_grad(), head.fc6.register_forward_pre_hook(lambda layer, args: vars(seen).update(pool=args[0])):
        head(feature, torch.as_tensor(bbox))
    return seen.pool.reshape(-1, 512, size, size)


def roi_pool_by_definition(feature, bbox, size, scale):
    """RoI pooling of a (C, h, w) map: the corners are rounded to cells, halves up, and the last cell counts.

    Bins begin at the floor and end at the ceiling of their share, so neighbours may overlap; a bin outside the
    map gives 0. Bins are exact here. torchvision computes them in float32, which takes in a cell too many where
    a RoI is 57 cells wide (for 7 bins); those here are narrower.
    """
    pool = np.zeros((len(bbox), len(feature), size, size), np.float32)
    for r, corner in enumerate(np.floor(bbox * scale + 0.5).astype(int)):
        y, x = (
            [slice(max(start + i * n // size, 0), max(start - (-(i + 1) * n // size), 0)) for i in range(size)]
            for start, n in ((corner[0], corner[2] - corner[0] + 1), (corner[1], corner[3] - corner[1] + 1))
        )
        for i, j in np.ndindex(size, size):
            cells = feature[:, y[i], x[j]]
            if cells.size:
                pool[r, :, i, j] = cells.max((1, 2))
    return pool


@pytest.mark.parametrize(("size", "scale"), [(7, 1 / 16), (3, 1 / 8)])
def test_roi_pooling(size, scale):
    rng = np.random.default_rng(7)
    feature = rng.normal(-1, 1, (512, 9, 23)).astype(np.float32)  # mostly negative: 0 is not the minimum
    height, width = 9.9 / scale, 23.9 / scale  # an image whose last pixels have no cell
    corner = np.sort(rng.uniform(0, 1, (30, 2, 2)), 1) * (height, width)
    bbox = np.concatenate(
        (
            corner.reshape(-1, 4),
            [  # rows (y_min, x_min), (y_max, x_max)
                [0, 0, height, width],
                [9.7 / scale, 0, height, width],  # the second lies below the map
                [2.5 / scale, 3.5 / scale, 4.5 / scale, 7.5 / scale],  # halves
                [2.6 / scale, 3.6 / scale, 2.7 / scale, 3.7 / scale],  # a single cell
            ],
        )
    ).astype(np.float32)
    expected = roi_pool_by_definition(feature, bbox, size, scale)
    assert not expected[31].any()
    pool = pooled(torch.from_numpy(feature)[None], bbox, size, scale)
    np.testing.assert_array_equal(pool, expected)


def test_roi_pooling_against_roi_align():
    """On a map that is linear in y and x, RoIAlign is exact, and RoIPool's maximum is not far from it.

    Let a RoI be h cells high. A bin's last row in RoIPool less the middle of the same bin in RoIAlign is
    h / 14 from the middle to the edge, and rounding: of corners by 1/2, of the bin's end by 1, and the share of
    the last cell that counts. Altogether it is between h / 14 - 1.5 and h / 14 + 1.5. Same for columns.
    """
    slope_y, slope_x = 1.0, 5.0
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    feature = (slope_y * y + slope_x * x).expand(1, 512, -1, -1)
    rng = np.random.default_rng(8)
    corner = rng.uniform((0, 15), (5, 20), (40, 2)) * 16
    side = rng.uniform((1, 1), (10, 18), (40, 2)) * 16
    bbox = torch.from_numpy(np.concatenate((corner, corner + side), 1).astype(np.float32))
    pool = pooled(feature, bbox)[:, 0]  # (R, 7, 7)

    def misses(as_xy):
        """Return by how much RoIPool lies outside the bounds around RoIAlign, per RoI."""
        align = roi_align(feature[:, :1], [as_xy], 7, 1 / 16, 2, aligned=False)[:, 0]  # (R, 7, 7)
        edge = (as_xy[:, 2:] - as_xy[:, :2]) / 16 / 14 @ torch.tensor([slope_x, slope_y])  # (R,)
        miss = (pool - align - edge[:, None, None]).abs() - 1.5 * (slope_y + slope_x)
        return miss.amax((1, 2))

    assert (misses(xy(bbox)) < 1e-4).all()
    assert (misses(bbox) > 5).all()  # y for x


# in grey values; we compute pixel positions in float32, scikit-image in float64
GREY = 5e-3


@pytest.mark.parametrize(
    ("size", "expected"),
    [((23, 37), (60, 97)), ((61, 87), (60, 86)), ((161, 190), (60, 71)), ((23, 61), (38, 100)), ((300, 90), (100, 30))],
)
def test_prepare(size, expected):
    """Including the border, where both repeat the edge."""
    img = np.random.default_rng(9).integers(0, 256, (*size, 3), np.uint8)
    resized = skimage.transform.resize(
        img.astype(np.float64), expected, order=1, mode="edge", anti_aliasing=False, preserve_range=True
    )
    pixel = [
        prepare(img, preprocessing, 60, 100, "cpu")[0][0].permute(1, 2, 0) for preprocessing in (TORCHVISION, CAFFE)
    ]
    rgb = (resized / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(pixel[0], rgb, atol=GREY / 255 / 0.224)
    bgr = np.stack([resized[..., 2] - 102.9801, resized[..., 1] - 115.9465, resized[..., 0] - 122.7717], -1)
    np.testing.assert_allclose(pixel[1], bgr, atol=GREY)


def test_anchors():
    """torchvision centres anchors on the corner of a cell and rounds them; ours are centred on the cell and exact."""
    height, width, stride = 5, 9, 16
    ours = enumerate_shifted_anchor(generate_anchor_base(), stride, height, width) - stride / 2
    generator = AnchorGenerator(((128, 256, 512),), ((0.5, 1.0, 2.0),))
    img_size = (stride * height, stride * width)
    (theirs,) = generator(ImageList(torch.zeros(1, 3, *img_size), [img_size]), [torch.zeros(1, 1, height, width)])
    np.testing.assert_array_equal(np.round(ours), xy(theirs))
    assert np.abs(ours - xy(theirs).numpy()).max() > 0.2
