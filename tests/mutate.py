"""Make one deliberate mistake at a time in a copy of the project and check that a test detects it.

    python tests/mutate.py             all mutations, about ten minutes on one core
    python tests/mutate.py NAME ...    those whose name contains one of these words, for example bbox_iou or clamp

This is no test: a mutation that survives shows where a test is missing. tests/test_mutate.py checks the table below.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDERS = ("model", "data", "utils", "research", "tests")
BROKEN = ("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "NameError")


class Mutation(NamedTuple):
    """A plausible mistake in one place of one file."""

    name: str  # "topic: mistake"
    file: str
    original: str  # text that occurs in the file exactly once
    replacement: str
    tests: tuple[str, ...]  # files of tests that must detect it


def mutations_of(file, *rows, tests=None):
    """Make the mutations of one file from rows (name, original, replacement).

    The tests of model/utils/a.py are tests/model/utils/test_a.py, unless `tests` names another file.
    """
    path = Path("tests", file)
    tests = (tests or path.with_name(f"test_{path.name}").as_posix(),)
    return tuple(Mutation(name, file, original, replacement, tests) for name, original, replacement in rows)


MUTATIONS = (
    *mutations_of(
        "model/utils/bbox_tools.py",
        (
            "bbox2loc: axes swapped",
            "((dst_y - src_y) / src_h, (dst_x - src_x) / src_w, dh, dw)",
            "((dst_x - src_x) / src_w, (dst_y - src_y) / src_h, dw, dh)",
        ),
        ("bbox2loc: height for width", "(dst_x - src_x) / src_w", "(dst_x - src_x) / src_h"),
        (
            "bbox2loc: sizes without the logarithm",
            "xp.log(dst_h.clip(eps, None) / src_h), xp.log(dst_w.clip(eps, None) / src_w)",
            "dst_h.clip(eps, None) / src_h, dst_w.clip(eps, None) / src_w",
        ),
        ("loc2bbox: height without the clamp", "loc[..., 2].clip(None, MAX_LOG_RATIO)", "loc[..., 2]"),
        ("loc2bbox: whole width instead of half", "half_w = 0.5 * src_w", "half_w = src_w"),
        (
            "clip_bbox: height for width",
            "bbox[..., 2].clip(0, height), bbox[..., 3].clip(0, width)",
            "bbox[..., 2].clip(0, width), bbox[..., 3].clip(0, height)",
        ),
        ("resize_bbox: ratios swapped", "* ratio[i] for i", "* ratio[3 - i] for i"),
        ("resize_bbox: to the old size", "float(after / before)", "float(before / after)"),
        ("bbox_iou: intersection counted twice", "area_a + area_b - intersection", "area_a + area_b"),
        (
            "bbox_iou: two negative sides make an area",
            "height.clip(0, None) * width.clip(0, None)",
            "(height * width).clip(0, None)",
        ),
        (
            "bbox_iou: touching counts as overlap",
            "height.clip(0, None) * width.clip(0, None)",
            "(height + 1).clip(0, None) * (width + 1).clip(0, None)",
        ),
    ),
    *mutations_of(
        "model/zf.py",
        ("ZF: smaller windows at the border", "self.size // 2)", "self.size // 2, count_include_pad=False)"),
        ("ZF: poolings without padding", "nn.MaxPool2d(3, 2, padding=1)", "nn.MaxPool2d(3, 2)"),
        ("ZF: 7x7 bins", "ROI_SIZE = 6", "ROI_SIZE = 7"),
    ),
    *mutations_of(
        "model/truncated_svd.py",
        ("truncated SVD: the smallest values", "eigenvectors[:, -t:]", "eigenvectors[:, :t]"),
        ("truncated SVD: bias in the wrong layer", "nn.Linear(n_input, t, bias=False)", "nn.Linear(n_input, t)"),
    ),
    *mutations_of(
        "data/proposals.py",
        ("windows: ratio upside down", "(s * r**0.5 / 2, s / r**0.5 / 2)", "(s / r**0.5 / 2, s * r**0.5 / 2)"),
        ("windows: in the resized image", "* STEP / scale  # (shapes, 2)", "* STEP  # (shapes, 2)"),
        ("proposals: in the order of the file", "[rois[image_id] for image_id in dataset.ids]", "[*rois.values()]"),
    ),
    *mutations_of(
        "utils/ablation.py",
        ("ablation: NMS without scores", 'in ("no NMS", "no cls") else', 'in ("no NMS",) else'),
        ("ablation: anchors with regression", '(without != "no reg")', "(without != n)"),
    ),
    *mutations_of(
        "utils/ablation.py",
        ("ablation: proposals in the wrong input", "roi = roi * roi.new_tensor(ratio * 2)", "roi = roi * 1"),
        tests="tests/test_eval.py",
    ),
    *mutations_of(
        "utils/coco_eval.py",
        ("proposals: in pixels of the input", "roi * roi.new_tensor(ratio * 2)", "roi * 1"),
        tests="tests/utils/test_metrics.py",
    ),
    *mutations_of(
        "utils/metrics.py",
        ("given proposals: not resized", "* anchor.new_tensor(ratio * 2)", "* 1"),
        tests="tests/test_eval.py",
    ),
    *mutations_of(
        "model/utils/anchors.py",
        (
            "anchors: scale-major",
            'np.meshgrid(ratios, anchor_scales, indexing="ij")',
            "np.meshgrid(ratios, anchor_scales)",
        ),
        ("anchors: y runs fastest", 'xp.meshgrid(y, x, indexing="ij")', 'xp.meshgrid(y, x, indexing="xy")'),
        (
            "anchors: ratio is width / height",
            "(centre - half_h, centre - half_w, centre + half_h, centre + half_w)",
            "(centre - half_w, centre - half_h, centre + half_w, centre + half_h)",
        ),
        ("anchors: shifted by x in y", "stack((y, x, y, x)", "stack((x, y, x, y)"),
    ),
    *mutations_of(
        "model/utils/anchor_target_creator.py",
        ("AnchorTargetCreator: positive from 0.5 on", "pos_iou_thresh: float = 0.7", "pos_iou_thresh: float = 0.5"),
        (
            "AnchorTargetCreator: an object without overlap matches all anchors",
            "((iou == gt_max_iou) & (gt_max_iou > 0)).any(1)",
            "(iou == gt_max_iou).any(1)",
        ),
        ("AnchorTargetCreator: inside (W, H)", "clip_bbox(anchor, img_size)", "clip_bbox(anchor, img_size[::-1])"),
        ("AnchorTargetCreator: nothing may cross the border", "<= self.allowed_border", "<= 0"),
        ("AnchorTargetCreator: negatives cross the border", "negative = inside & (max_iou", "negative = (max_iou"),
        ("AnchorTargetCreator: best anchors are not positive", "(is_best | (max_iou", "((max_iou"),
    ),
    *mutations_of(
        "model/utils/proposal_creator.py",
        ("ProposalCreator: min_size without scale", "self.min_size * scale", "self.min_size"),
        ("ProposalCreator: worst first", "xp.where(large, -score, np.inf)", "xp.where(large, score, np.inf)"),
        ("ProposalCreator: small boxes are kept", "return index[large[index]]", "return index"),
        ("ProposalCreator: all boxes enter NMS", "[:n_pre_nms]", ""),
        (
            "ProposalCreator: test numbers in training",
            "n_post_nms = self.n_train_post_nms if train",
            "n_post_nms = self.n_train_post_nms if not train",
        ),
        ("NMS: only the first prefix", "if len(keep) >= n or length >= len(bbox):", "if True:"),
        ("NMS: ends with one box too few", "len(keep) >= n or", "len(keep) >= n - 1 or"),
        ("NMS: returns more than n", "to_array(keep[:n])", "to_array(keep)"),
        ("NMS: worst first", "-rank[:length]", "rank[:length]"),
    ),
    *mutations_of(
        "model/utils/proposal_target_creator.py",
        (
            "ProposalTargetCreator: ground truth does not join the proposals",
            "roi = xp.concatenate((roi, bbox))  # (R + G, 4)\n        ",
            "",
        ),
        ("ProposalTargetCreator: multiplied by loc_std", "- mean) / std", "- mean) * std"),
        (
            "ProposalTargetCreator: positive above the threshold only",
            "max_iou >= self.pos_iou_thresh",
            "max_iou > self.pos_iou_thresh",
        ),
        ("ProposalTargetCreator: class 0 is the background", "label[gt_index] + 1", "label[gt_index]"),
        (
            "ProposalTargetCreator: background does not fill the rest",
            "[: self.n_sample]",
            "[: int(self.pos_ratio * self.n_sample)]",
        ),
        (
            "ProposalTargetCreator: padding is background",
            "label[gt_index] + 1, sampled[index])",
            "label[gt_index] + 1, 0)",
        ),
    ),
    *mutations_of(
        "model/utils/sampling.py",
        (
            "sampling: keys from the global generator",
            "rng.random(len(like), dtype=np.float32)",
            "np.random.rand(len(like)).astype(np.float32)",
        ),
        ("sampling: order for rank", "rank < n_sampled", "order < n_sampled"),
        ("sampling: others take the places of candidates", "group + key", "key"),
        ("sampling: negatives do not fill the rest", "n_sample - n_sampled)", "n_sample - int(pos_ratio * n_sample))"),
        (
            "sampling: a candidate that is both is negative",
            "xp.where(positive, np.int64(0), xp.where(negative, np.int64(1), np.int64(2)))",
            "xp.where(negative, np.int64(1), xp.where(positive, np.int64(0), np.int64(2)))",
        ),
        ("sampling: keys lose their last bits", "group + key", "group.astype(np.float32) + key"),
    ),
    *mutations_of(
        "model/utils/preprocess.py",
        (
            "preprocessing: mean not permuted with the channels",
            "    x = (x * (preprocessing.value_range / 255) - mean) / std\n"
            '    if preprocessing.channel_order == "BGR":\n'
            "        x = x.flip(1)\n",
            '    if preprocessing.channel_order == "BGR":\n'
            "        x = x.flip(1)\n"
            "    x = (x * (preprocessing.value_range / 255) - mean) / std\n",
        ),
        ("preprocessing: the larger factor wins", "scale = min(", "scale = max("),
        ("preprocessing: a thin image vanishes", "max(rounding(width * scale), min_side)", "rounding(width * scale)"),
    ),
    *mutations_of(
        "model/rpn.py",
        ("RPN: locs in the order of the channels", "self.loc(hidden).permute(0, 2, 3, 1)", "self.loc(hidden)"),
        ("RPN: score of the background", "softmax(1)[:, 1]", "softmax(1)[:, 0]"),
        ("RPN: proposes as in prediction", "img_size, scale, train)  # (R, 4)", "img_size, scale, False)"),
    ),
    *mutations_of(
        "model/utils/roi_ops.py",
        (
            "RoI pooling: boxes stay (y, x)",
            "indexed = F.pad(roi.unflatten(1, (2, 2)).flip(2).flatten(1), (1, 0))  # (R, 5): image index, x, y, x, y\n"
            "        return torchvision.ops.roi_pool",
            "indexed = F.pad(roi, (1, 0))\n        return torchvision.ops.roi_pool",
        ),
        tests="tests/model/test_roi_pool.py",
    ),
    *mutations_of(
        "model/utils/roi_warping.py",
        ("RoI warping: axes swapped", "torch.stack((x[:, None]", "torch.stack((y[:, None]"),
        ("RoI warping: corners of the bins", "device=roi.device) + 0.5) / n", "device=roi.device)) / n"),
        ("RoI warping: no gradient for boxes", "step = (", "roi = roi.detach()\n    step = ("),
        tests="tests/model/test_roi_warping.py",
    ),
    *mutations_of(
        "model/rpn_variants.py",
        (
            "RPN with one score: background for object",
            "(torch.zeros_like(logit), logit)",
            "(logit, torch.zeros_like(logit))",
        ),
        ("RPN with one score: scores in blocks", "logit), 2).flatten", "logit), 1).flatten"),
    ),
    *mutations_of(
        "research/non_approximate.py",
        ("non-approximate: no gradient for boxes", "output.rpn_loc[index])", "output.rpn_loc[index].detach())"),
        ("non-approximate: anchors of other proposals", "(R,) the surviving anchors", "\n    index = index.flip(0)"),
        ("non-approximate: RoIs of the last proposal", ".byte().argmax(1)", ".byte().argmin(1)"),
    ),
    *mutations_of(
        "research/fast_rcnn.py",
        ("RPN alone: positives counted as RoIs", "(()), *counts, *rest)", "(()), *rest, *counts)"),
        (
            "Fast R-CNN: its losses for the RPN's",
            "Losses(zero, zero, loc_loss, cls_loss, loc",
            "Losses(loc_loss, cls_loss, zero, zero, loc",
        ),
    ),
    *mutations_of(
        "research/alternating.py",
        ("alternating: convolutions stay trained", "net.extractor.requires_grad_(False)", "pass"),
        ("alternating: the detector starts from the RPN's network", "if name in STEPS[:2]:", "if name in STEPS[:1]:"),
        ("alternating: the first step's proposals for all", "rois = [add_", "rois = rois or [add_"),
        ("alternating: the detector proposes before it can", "rois[1] if name == STEPS[1] else eval_set", "eval_set"),
        ("alternating: proposals computed again", "if not (path.exists() and", "if not (False and"),
    ),
    *mutations_of(
        "research/paper_loss.py",
        ("paper's loss: divided by anchors", "len(loc) / n_anchor", "len(loc)"),
        ("paper's loss: divided by samples, too", "loc_loss * n_sample *", "loc_loss *"),
        ("paper's loss: lambda on both", "n_position), cls_loss", "n_position), cls_loss * rpn_lambda"),
    ),
    *mutations_of(
        "research/adam.py", ("Adam: biases at the rate of weights", '("params", "lr", "weight', '("params", "weight')
    ),
    *mutations_of(
        "model/vgg16.py",
        ("RoI pooling: another operation is ignored", "self.roi_op(feature, roi)", "roi_pool(feature, roi)"),
        (
            "RoI head: classes and coordinates swapped",
            "reshape(-1, self.n_class, 4)",
            "reshape(-1, 4, self.n_class).mT",
        ),
        (
            "VGG16: pooling keeps partial cells",
            "nn.MaxPool2d(2, ceil_mode=ceil_mode)",
            "nn.MaxPool2d(2, ceil_mode=True)",
        ),
    ),
    *mutations_of(
        "model/faster_rcnn.py",
        ("decode: loc_std forgotten", "* self.loc_std + self.loc_mean", "+ self.loc_mean"),
        ("decode: loc_mean forgotten", "* self.loc_std + self.loc_mean", "* self.loc_std"),
        (
            "decode: boxes of the class before",
            "output.roi_cls_loc[roi_index, label + 1]",
            "output.roi_cls_loc[roi_index, label]",
        ),
        ("decode: boxes stay in pixels of the input", "resize_bbox(bbox, img_size, original_size)", "bbox"),
        (
            "decode: classes suppress each other",
            "batched_nms(bbox, score, label, nms",
            "batched_nms(bbox, score, 0 * label, nms",
        ),
        ("predict: own threshold ignored", "self.nms_thresh if nms_thresh is None", "0.3 if nms_thresh is None"),
    ),
    *mutations_of(
        "trainer.py",
        ("smooth L1: linear from 1 / sigma on", "beta=1 / sigma**2", "beta=1 / sigma"),
        (
            "smooth L1: sigma of the RPN in the head",
            "target.gt_roi_loc, gt_label, self.roi_sigma",
            "target.gt_roi_loc, gt_label, self.rpn_sigma",
        ),
        ("losses: normalised by positives only", "(gt_label >= 0).sum()", "(gt_label > 0).sum()"),
        ("losses: nothing sampled gives NaN", ".sum().clamp(min=1)", ".sum()"),
        (
            "losses: negatives regress, too",
            "torch.where(gt_label > 0, loc_loss, 0)",
            "torch.where(gt_label >= 0, loc_loss, 0)",
        ),
        (
            "losses: locs of the background",
            "gt_label.device), gt_label.clamp(min=0)]",
            "gt_label.device), 0 * gt_label]",
        ),
        ("step: sum instead of mean", "(losses.total / n_sample).backward()", "losses.total.backward()"),
        ("step: gradients of the last step stay", "        self.optimizer.zero_grad(set_to_none=True)\n", ""),
        (
            "step: boxes not resized with the image",
            "upload(resize_bbox(sample.bbox, *sizes), device)",
            "upload(sample.bbox, device)",
        ),
        ("step: given proposals ignored", "roi = rpn.roi if roi is None else roi", "roi = rpn.roi"),
        ("step: loc normalisation of the model ignored", "ProposalTargetCreator(**loc)", "ProposalTargetCreator()"),
        ("optimizer: biases at the rate of weights", "bias_lr_mult=2", "bias_lr_mult=1"),
        ("optimizer: biases decay", '"weight_decay": bias_decay', '"weight_decay": weight_decay'),
    ),
    *mutations_of(
        "utils/voc_eval.py",
        ("11-point metric: 10 points", "np.arange(11) * 0.1", "np.arange(10) * 0.1"),
        (
            "11-point metric: best precision at lower recalls",
            "np.maximum.accumulate(precision[::-1])[::-1]",
            "np.maximum.accumulate(precision)",
        ),
        (
            "area metric: precision is not interpolated",
            "np.diff(recall, prepend=0.0) * best",
            "np.diff(recall, prepend=0.0) * precision",
        ),
        ("inclusive pixels: no 1 added to the detections", "pred_bbox[:, 2:] += 1\n    ", ""),
        (
            "difficult: counted as objects",
            "np.bincount(gt_label[~gt_difficult], minlength",
            "np.bincount(gt_label, minlength",
        ),
        (
            "difficult: their detections are false positives",
            "outcome[pred[gt_difficult[gt]]] = -1",
            "outcome[pred[gt_difficult[gt]]] = 0",
        ),
    ),
    *mutations_of("data/voc_annotation.py", ("VOC reader: 1 not subtracted", "origin=1)", "origin=0)")),
    *mutations_of(
        "data/voc_dataset.py",
        ("difficult: not left out", "[~difficult for difficult in", "[difficult | True for difficult in"),
    ),
    *mutations_of(
        "data/transforms.py",
        ("flip: image without its boxes", "bbox=flip_bbox(sample.bbox, width), ", ""),
        ("flip: image without its proposals", "else flip_bbox(sample.roi, width)", "else sample.roi"),
        (
            "flip: off by one",
            "width - bbox[:, 3], bbox[:, 2], width - bbox[:, 1]",
            "width - 1 - bbox[:, 3], bbox[:, 2], width - 1 - bbox[:, 1]",
        ),
        ("flip: the same in every epoch", "[self.seed, self.epoch, index]", "[self.seed, index]"),
    ),
    *mutations_of(
        "training.py",
        (
            "difficult: always trained on",
            "train_set if config.use_difficult else train_set.without_difficult()",
            "train_set",
        ),
        ("schedule: decay one epoch late", "epoch >= milestone", "epoch > milestone"),
        tests="tests/test_train.py",
    ),
)


def mutated(root, mutation):
    """Return the source of the file with the mistake in it, and the line where it begins."""
    source = (root / mutation.file).read_text(encoding="utf-8")
    if source.count(mutation.original) != 1:
        raise ValueError(
            f"{mutation.file} contains {mutation.original!r} {source.count(mutation.original)} times: "
            f"the mutation {mutation.name!r} needs a text that occurs once"
        )
    line = source[: source.index(mutation.original)].count("\n") + 1
    return source.replace(mutation.original, mutation.replacement), line


def copy_project(root, copy):
    """Copy what the tests need, without compiled files: a file changed within a second looks unchanged to those."""
    for path in (*root.glob("*.py"), root / "pyproject.toml"):
        shutil.copy(path, copy)
    for name in FOLDERS:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))


def run_tests(root, tests):
    """Run files of tests in `root` until one fails: (exit code of pytest, first failed test or None, output)."""
    variables = {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1"}
    variables |= {"COLUMNS": "1000"}  # so wide that no line is cut
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(
        command, cwd=root, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    failed = (line.removeprefix("FAILED ") for line in done.stdout.splitlines() if line.startswith("FAILED "))
    return done.returncode, next(failed, None), done.stdout


def verdict(root, tests):
    """Return whether a test detects the mistake in `root`, and its name or what happened instead."""
    code, failed, output = run_tests(root, tests)
    if code == 0:
        return False, "SURVIVED"
    if code != 1 or not failed:
        error = next((line[1:].strip() for line in output.splitlines() if line.startswith("E ")), "see pytest's codes")
        return False, f"INVALID, no test failed but pytest exits with {code}: {error}"
    name, _, error = failed.partition(" - ")
    if error.startswith(BROKEN):
        return False, f"INVALID, the code is broken: {failed}"
    return True, name


def check(root, mutations):
    """Apply mutations to a copy of `root`, one at a time, print a line each, and return whether all were detected."""
    start, n_detected = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copy = Path(folder)
        copy_project(root, copy)
        code, _, output = run_tests(copy, sorted({test for mutation in mutations for test in mutation.tests}))
        if code:
            raise SystemExit(f"{output}\nthe tests fail without a mutation, exit code {code}: correct that first")
        print("mutation | where | replacement | original | first test that failed", flush=True)
        for mutation in mutations:
            source, line = mutated(copy, mutation)
            texts = (" ".join(text.split()) or "nothing" for text in (mutation.replacement, mutation.original))
            print(f"{mutation.name} | {mutation.file}:{line} | {' | '.join(texts)} | ", end="", flush=True)
            path = copy / mutation.file
            unchanged = path.read_text(encoding="utf-8")
            path.write_text(source, encoding="utf-8")
            detected, outcome = verdict(copy, mutation.tests)
            path.write_text(unchanged, encoding="utf-8")
            print(outcome, flush=True)
            n_detected += detected
    print(f"{len(mutations)} mutations, {n_detected} detected in {time.monotonic() - start:.0f} seconds")
    return n_detected == len(mutations)


def main(words):
    """Apply the mutations that `words` choose, all without any; exit with 1 if one was not detected."""
    for word in words:
        if not any(word in mutation.name for mutation in MUTATIONS):
            names = "\n".join(mutation.name for mutation in MUTATIONS)
            raise SystemExit(f"no mutation is called {word!r}; there are:\n{names}")
    chosen = [mutation for mutation in MUTATIONS if not words or any(word in mutation.name for word in words)]
    sys.exit(not check(ROOT, chosen))


if __name__ == "__main__":
    main(sys.argv[1:])
