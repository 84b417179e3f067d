"""Export a detector to ONNX: `python -m tools.export_onnx IMAGE ... --load-path=FILE --out=FILE.onnx`.

The graph holds everything from the pixels to the detections: its input `img` is an (H, W, 3) uint8 RGB image of any
size; its outputs are `bbox` (D, 4), `label` (D,) and `score` (D,), as `FasterRCNN.predict` gives them for one image.

`FasterRCNN.predict` computes sizes in Python and proposals in NumPy, which no exporter can follow, so `Detector` does
both in torch. Images on the command line are detected with onnxruntime and with `predict`, and compared.

K: anchors. R: proposals. D: detections. L: foreground classes. H, W: sides of the image; H', W' after the resize.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: docs/benchmarks.md#a-busy-machine

import importlib.util
import time
import warnings

import fire
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.ops import nms, roi_align

import model
from data.validate import DataError
from data.voc_dataset import read_image
from model.faster_rcnn import FasterRCNN
from model.resnet_fpn import MIN_DETECTION, PADDED_TO, PyramidFasterRCNN
from model.utils.bbox_tools import bbox_iou, loc2bbox
from model.utils.roi_ops import roi_pool
from utils import checkpoint as ckpt
from utils.command import command
from utils.config import DETECTOR, Config, Count, OptionError, PathText, Share, counted, option, own

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXAMPLE = (375, 500)  # height and width of an image of VOC; the graph takes others as well
OUTPUTS = ["bbox", "label", "score"]


class ExportConfig(Config):
    """python -m tools.export_onnx [IMAGE ...]: Export a detector to ONNX; compare it with torch on images.

    example: python -m tools.export_onnx photo.jpg --load-path=runs/mine/last.pth --out=runs/mine.onnx
    """

    load_path: PathText = option(..., "Run", f"required; {DETECTOR}")
    out: PathText = option("runs/detector.onnx", "Run", "file for the graph with its weights")
    score_thresh: Share | None = own("Detection", "drop detections with a lower score", "py-faster-rcnn")
    nms_thresh: Share | None = own("Detection", "IoU threshold of NMS, class by class", "py-faster-rcnn")
    max_detections: Count | None = own("Detection", "detections to keep per image; empty: all", "py-faster-rcnn: 100")


class Detector(nn.Module):
    """`FasterRCNN.predict` for one image on the CPU, in operations of torch alone.

    Args:
        net: a `FasterRCNN`; if its RoI head pools with `roi_pool`, torchvision's kernel takes the place.
        score_thresh, nms_thresh, max_detections: None: the network's own.
    """

    def __init__(self, net, score_thresh=None, nms_thresh=None, max_detections=None):
        super().__init__()
        self.net = net.eval()
        self.rounding, self.min_side = torch.round, net.extractor.stride  # of the resized image
        self.score_thresh = net.score_thresh if score_thresh is None else score_thresh
        self.nms_thresh = net.nms_thresh if nms_thresh is None else nms_thresh
        self.max_detections = max_detections or net.max_detections
        if getattr(net.head, "roi_op", None) is roi_pool:  # it chooses a kernel by the values of the RoIs
            net.head.roi_op = _roi_pool

    def forward(self, img):
        """Detect objects in an (H, W, 3) uint8 image; return bbox (D, 4), label (D,) and score (D,)."""
        x, scale, size = self.prepare(img)
        feature = self.net.extractor(x)
        rpn_loc, rpn_score = self.net.rpn.head(feature)  # (K, 4), (K, 2)
        anchor = self.net.rpn.anchors(feature, size)  # (K, 4)
        roi = self.propose(feature, rpn_loc, rpn_score, anchor, scale, size)  # (R, 4)
        if torch.compiler.is_exporting():  # convolutions of a head branch on it; the graph takes 0 as well
            torch._check(roi.shape[0] > 0)
        return self.decode(roi, *self.net.head(feature, roi), size, img.shape[:2])

    def prepare(self, img):
        """Resize and normalise as `FasterRCNN.prepare`; return (1, 3, H', W'), the resize factor and [H', W']."""
        sides = _sides(img.shape[:2]).double()  # (2,), where float32 would round a half the other way
        limits = torch.tensor((self.net.min_size, self.net.max_size), dtype=sides.dtype)
        scale = (limits / torch.stack((sides.min(), sides.max()))).min()  # number / tensor is not exact
        size = [side.item() for side in self.rounding(sides * scale).clamp(min=self.min_side).long()]
        for side in size:  # for the exporter, which knows nothing about them
            torch._check(side >= self.min_side)
        x = F.interpolate(img.permute(2, 0, 1)[None].float(), size, mode="bilinear", align_corners=False)
        mean, std, value_range, order = self.net.preprocessing
        x = (x * (value_range / 255) - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
        return x.flip(1) if order == "BGR" else x, scale, size

    def propose(self, feature, rpn_loc, rpn_score, anchor, scale, size):
        """Create the proposals (R, 4) as `ProposalCreator` does for prediction."""
        creator, fg_score = self.net.rpn.proposal_creator, rpn_score.softmax(1)[:, 1]
        roi = _clip(loc2bbox(anchor, rpn_loc), size)  # (K, 4)
        large = (roi[:, 2:] - roi[:, :2] >= (creator.min_size * scale).float()).all(1)  # (K,)
        n_pre_nms = torch.sym_min(creator.n_test_pre_nms, roi.shape[0])
        order = torch.where(large, fg_score, -1).topk(n_pre_nms).indices  # small boxes last
        roi, large = roi[order], large[order]
        rank = torch.arange(n_pre_nms, dtype=roi.dtype)
        keep = nms(roi, -rank, creator.nms_thresh)[: creator.n_test_post_nms]
        return roi[keep[large[keep]]]

    def candidates(self, roi, roi_cls_loc, roi_score):
        """Return the boxes (D, 4), labels and scores (D,) above the threshold, in pixels of the network's input."""
        prob = roi_score.softmax(1)  # (R, L + 1)
        roi_index, label = (prob[:, 1:] > self.score_thresh).nonzero(as_tuple=True)  # (D,) each
        loc = roi_cls_loc[roi_index, label + 1] * self.net.loc_std + self.net.loc_mean  # (D, 4)
        return loc2bbox(roi[roi_index], loc), label, prob[roi_index, label + 1]

    def decode(self, roi, roi_cls_loc, roi_score, size, original_size):
        """Post-process as `FasterRCNN.decode`."""
        bbox, label, score = self.candidates(roi, roi_cls_loc, roi_score)
        bbox = _clip(bbox * _ratio(original_size, size), original_size)
        keep = _nms_apart(bbox, score, label, original_size, self.nms_thresh)[: self.max_detections]
        return bbox[keep], label[keep], score[keep]


class PyramidDetector(Detector):
    """`PyramidFasterRCNN.predict` for one image on the CPU, in operations of torch alone."""

    def __init__(self, net, *options, **thresholds):
        super().__init__(net, *options, **thresholds)
        self.rounding, self.min_side = torch.floor, 1
        net.head.roi_align = LevelRoIAlign(net.extractor.stride)

    def propose(self, feature, rpn_loc, rpn_score, anchor, scale, size):
        """Create the proposals (R, 4) as `PyramidProposalCreator` does for prediction."""
        creator, logit, best, level, start = self.net.rpn.proposal_creator, rpn_score[:, 1], [], [], 0
        for i, x in enumerate(feature.levels.values()):  # (1, 256, h, w)
            n_anchor = x.shape[2] * x.shape[3] * self.net.rpn.anchor_base.shape[1]
            n_pre_nms = torch.sym_min(creator.n_test_pre_nms, n_anchor)
            best.append(start + logit[start : start + n_anchor].topk(n_pre_nms).indices)
            level.append(torch.full_like(best[-1], i))
            start += n_anchor
        best, level = torch.cat(best), torch.cat(level)
        roi, prob = _clip(loc2bbox(anchor[best], rpn_loc[best]), size), logit[best].sigmoid()
        kept = (roi[:, 2:] - roi[:, :2] >= creator.min_size).all(1) & (prob >= creator.score_thresh)
        roi, prob, level = roi[kept], prob[kept], level[kept]
        return roi[_nms_apart(roi, prob, level, size, creator.nms_thresh)[: creator.n_test_post_nms]]

    def decode(self, roi, roi_cls_loc, roi_score, size, original_size):
        """Post-process as `PyramidFasterRCNN.decode`."""
        bbox, label, score = self.candidates(roi, roi_cls_loc, roi_score)
        bbox = _clip(bbox, size)
        large = (bbox[:, 2:] - bbox[:, :2] >= MIN_DETECTION).all(1)  # (D,)
        bbox, label, score = bbox[large], label[large], score[large]
        keep = _nms_apart(bbox, score, label, size, self.nms_thresh)[: self.max_detections]
        return _clip(bbox[keep] * _ratio(original_size, size), original_size), label[keep], score[keep]


class LevelRoIAlign(nn.Module):
    """`MultiScaleRoIAlign`, which computes scales in Python: each RoI from the level of its size (1612.03144, eq. 1).

    Args:
        stride: of the finest level; the strides double up to 32.
    """

    def __init__(self, stride):
        super().__init__()
        self.numbers = range(stride.bit_length() - 1, PADDED_TO.bit_length())  # k, of stride 2**k

    def forward(self, levels, rois, sizes):
        """Pool the RoIs (R, 4) of one image, x before y, to (R, 256, 7, 7)."""
        (roi,) = rois
        side = (roi[:, 2:] - roi[:, :2]).prod(1).sqrt()
        number = (4 + (side / 224).log2() + 1e-6).floor().clamp(self.numbers[0], self.numbers[-1])  # (R,)
        pool = roi.new_zeros(roi.shape[0], levels["0"].shape[1], 7, 7)
        for k, level in zip(self.numbers, levels.values(), strict=False):
            (place,) = (number == k).nonzero(as_tuple=True)
            pool[place] = roi_align(level, F.pad(roi[place], (1, 0)), 7, 2.0**-k, sampling_ratio=2)
        return pool


def _nms_apart(bbox, score, group, size, thresh):
    """Suppress boxes inside an image of `size` within each group: groups are moved apart before one NMS."""
    return nms(bbox + group[:, None] * (_sides(size).max() + 1), score, thresh)


def _sides(size):
    """Return two sides, which an exporter does not know, as a (2,) tensor."""
    return torch.stack([torch.scalar_tensor(side) for side in size])


def _ratio(after, before):
    """Return the factors (4,) of boxes from a size to another."""
    return (_sides(after).double() / _sides(before)).float().repeat(2)


def _clip(bbox, size):
    return torch.minimum(bbox.clamp(min=0), _sides(size).repeat(2))


def _roi_pool(feature, roi):
    return torchvision.ops.roi_pool(feature, F.pad(roi[:, [1, 0, 3, 2]], (1, 0)), 7, 1 / 16)


DETECTORS = {FasterRCNN: Detector, PyramidFasterRCNN: PyramidDetector}


def export(detector):
    """Return the `torch.onnx.ONNXProgram` of a `Detector`."""
    from onnxscript import opset18

    def max_roi_pool(feature, roi, spatial_scale: float, height: int, width: int):
        """torchvision::roi_pool, whose own translation does not take these arguments (onnxscript 0.7)."""
        pool = opset18.MaxRoiPool(feature, roi, pooled_shape=(height, width), spatial_scale=spatial_scale)
        return pool, opset18.Identity(pool)  # in place of the places of the maxima, which nobody reads

    img = torch.randint(256, (*EXAMPLE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sides = dict.fromkeys((0, 1), torch.export.Dim.DYNAMIC)
    with warnings.catch_warnings(action="ignore"), torch.no_grad():
        program = torch.export.export(detector, (img,), dynamic_shapes=(sides,), strict=False)
        table = {torch.ops.torchvision.roi_pool.default: max_roi_pool}
        names = {"input_names": ["img"], "output_names": OUTPUTS}
        return torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=table, **names)


def main(config, *paths):
    """Export as an `ExportConfig` says; compare the detections in images."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise OptionError(f"the export needs {', '.join(missing)}: pip install {' '.join(PACKAGES)}")
    checkpoint = ckpt.open_checkpoint(config.load_path)
    with ckpt.checkpoint_error(config.load_path):
        net, reference = model.restore(checkpoint), model.restore(checkpoint)
    if type(net) not in DETECTORS:
        name = checkpoint["build"]["name"]
        raise OptionError(f"{config.load_path}: {name} prepares or decodes in its own way, which is not exported yet")
    ckpt.check_writable(config.out)
    options = {name: getattr(config, name) for name in ("score_thresh", "nms_thresh", "max_detections")}
    program = export(DETECTORS[type(net)](net, **options))
    with ckpt.replacing(config.out) as partial:
        program.save(partial)
    names = [f"{i} {name}" for i, name in enumerate(checkpoint["class_names"]) if name != ckpt.UNUSED]
    labels = ", ".join(names) or "not named"
    print(f"written to {config.out}: img (H, W, 3) uint8 RGB -> {', '.join(OUTPUTS)}; labels: {labels}")
    if paths:
        compare(reference, config.out, paths, options)


def compare(net, out, paths, options):
    """Print, per image, how far the detections of the graph in the file `out` are from those of `net`."""
    from onnxruntime import InferenceSession

    session, seconds = InferenceSession(out, providers=["CPUExecutionProvider"]), []
    for path in paths:
        img, times = read_image(path), [time.perf_counter()]
        bbox, label, score = (values[0] for values in net.predict([img], **options))
        times.append(time.perf_counter())
        found = session.run(OUTPUTS, {"img": img})
        times.append(time.perf_counter())
        seconds.append(np.diff(times))
        print(f"{path}: {difference((bbox, label, score), found)}")
    torch_s, onnx_s = np.min(seconds, 0)
    print(f"fastest of {counted(len(paths), 'image')}: torch {torch_s:.2f} s, onnxruntime {onnx_s:.2f} s")


def difference(ours, theirs):
    """Describe in words how the detections (bbox, label, score) of `theirs` differ from `ours`.

    Each detection of ours is compared with the one of the same class that overlaps it most.
    """
    what = f"{len(ours[0])} and {len(theirs[0])} detections"
    if min(len(ours[0]), len(theirs[0])) == 0:
        return what
    iou = bbox_iou(ours[0], theirs[0]) * (ours[1][:, None] == theirs[1])
    nearest = iou.argmax(1)
    return f"{what}, IoU at least {iou.max(1).min():.4f}, scores within {abs(ours[2] - theirs[2][nearest]).max():.1e}"


if __name__ == "__main__":
    errors = (DataError, ckpt.CheckpointError)
    fire.Fire(command(ExportConfig, main, errors, positional=True, defaults=model.defaults))
