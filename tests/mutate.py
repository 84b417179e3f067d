"""Makes one deliberate mistake at a time in a copy of the project and sees whether a test fails.

    python tests/mutate.py             all mistakes, two to five minutes on one core
    python tests/mutate.py NAME ...    those whose name contains one of these words, say bbox_iou or clamp

No test itself: a mistake that survives shows where one is missing. tests/test_mutate.py checks the table below.
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
FOLDERS = ("model", "data", "utils", "tests")
BROKEN = ("ImportError", "ModuleNotFoundError", "SyntaxError", "IndentationError", "NameError")


class Mistake(NamedTuple):
    """What somebody could have written instead."""

    what: str  # "topic: mistake"
    file: str
    right: str  # a piece of the file that occurs there once
    wrong: str  # what replaces it
    tests: tuple[str, ...]  # the files of tests that should notice


ANCHORS, BOXES, RPN_TARGET, PROPOSAL, HEAD_TARGET, SAMPLING, PREPROCESS, ROI_POOLING = (
    f"model/utils/{name}.py" for name in ("anchors", "bbox_tools", "anchor_target_creator", "proposal_creator",
                                          "proposal_target_creator", "sampling", "preprocess", "roi_pooling"))
NETWORK, TRAINER, METRIC = "model/faster_rcnn.py", "trainer.py", "utils/voc_eval.py"
READER, ANNOTATION, TRANSFORMS = "data/voc.py", "data/annotation.py", "data/transforms.py"


def own_tests(file):
    """The tests of one file, which stand where it stands: model/utils/a.py -> tests/model/utils/test_a.py."""
    path = Path("tests", file)
    return (path.with_name(f"test_{path.name}").as_posix(),)


MISTAKES = (
    Mistake("bbox2loc: axes swapped", BOXES,
            "((dst_y - src_y) / src_h, (dst_x - src_x) / src_w, dh, dw)",
            "((dst_x - src_x) / src_w, (dst_y - src_y) / src_h, dw, dh)", own_tests(BOXES)),
    Mistake("bbox2loc: height for width", BOXES,
            "(dst_x - src_x) / src_w", "(dst_x - src_x) / src_h", own_tests(BOXES)),
    Mistake("bbox2loc: sizes without the log", BOXES,
            "xp.log(dst_h.clip(eps, None) / src_h), xp.log(dst_w.clip(eps, None) / src_w)",
            "dst_h.clip(eps, None) / src_h, dst_w.clip(eps, None) / src_w", own_tests(BOXES)),
    Mistake("loc2bbox: height without the clamp", BOXES,
            "loc[..., 2].clip(None, MAX_LOG_RATIO)", "loc[..., 2]", own_tests(BOXES)),
    Mistake("loc2bbox: whole width for half of it", BOXES,
            "half_w = 0.5 * src_w", "half_w = src_w", own_tests(BOXES)),
    Mistake("bbox_iou: intersection counted twice in the union", BOXES,
            "area_a + area_b - intersection", "area_a + area_b", own_tests(BOXES)),
    Mistake("bbox_iou: two negative sides make an area", BOXES,
            "height.clip(0, None) * width.clip(0, None)", "(height * width).clip(0, None)", own_tests(BOXES)),
    Mistake("bbox_iou: touching counts as overlap", BOXES,
            "height.clip(0, None) * width.clip(0, None)", "(height + 1).clip(0, None) * (width + 1).clip(0, None)",
            own_tests(BOXES)),

    Mistake("anchors: scale by scale, not ratio by ratio", ANCHORS,
            'np.meshgrid(ratios, anchor_scales, indexing="ij")', "np.meshgrid(ratios, anchor_scales)",
            own_tests(ANCHORS)),
    Mistake("anchors: y runs fastest", ANCHORS,
            'xp.meshgrid(y, x, indexing="ij")', 'xp.meshgrid(y, x, indexing="xy")', own_tests(ANCHORS)),
    Mistake("anchors: ratio is width / height", ANCHORS,
            "(centre - half_h, centre - half_w, centre + half_h, centre + half_w)",
            "(centre - half_w, centre - half_h, centre + half_w, centre + half_h)", own_tests(ANCHORS)),
    Mistake("anchors: shifted by x in y", ANCHORS, "stack((y, x, y, x)", "stack((x, y, x, y)", own_tests(ANCHORS)),

    Mistake("AnchorTargetCreator: positive from 0.5 on", RPN_TARGET,
            "pos_iou_thresh=0.7", "pos_iou_thresh=0.5", own_tests(RPN_TARGET)),
    Mistake("AnchorTargetCreator: an unseen object matches all anchors", RPN_TARGET,
            "((iou == best_iou) & (best_iou > 0)).any(1)", "(iou == best_iou).any(1)", own_tests(RPN_TARGET)),
    Mistake("AnchorTargetCreator: inside (W, H)", RPN_TARGET,
            "(anchor[:, 2] <= img_size[0]) & (anchor[:, 3] <= img_size[1])",
            "(anchor[:, 2] <= img_size[1]) & (anchor[:, 3] <= img_size[0])", own_tests(RPN_TARGET)),
    Mistake("AnchorTargetCreator: negatives cross the border", RPN_TARGET,
            "negative = inside & (max_iou", "negative = (max_iou", own_tests(RPN_TARGET)),

    Mistake("ProposalCreator: min_size without scale", PROPOSAL,
            "self.min_size * scale", "self.min_size", own_tests(PROPOSAL)),
    Mistake("ProposalCreator: worst first", PROPOSAL,
            "xp.where(large, -score, np.inf)", "xp.where(large, score, np.inf)", own_tests(PROPOSAL)),
    Mistake("ProposalCreator: the small ones come back", PROPOSAL,
            "roi[survivor[large[survivor]]]", "roi[survivor]", own_tests(PROPOSAL)),
    Mistake("ProposalCreator: all enter the suppression", PROPOSAL, "[:n_pre_nms]", "", own_tests(PROPOSAL)),
    Mistake("ProposalCreator: blocks do not meet those before", PROPOSAL,
            "some = some[~near.any(1)]", "pass", own_tests(PROPOSAL)),
    Mistake("ProposalCreator: boxes of a block do not meet", PROPOSAL,
            "some = some[nms(roi[some], -some.to(roi.dtype), iou_thresh)]", "pass", own_tests(PROPOSAL)),
    Mistake("ProposalCreator: threshold in float64", PROPOSAL,
            "float(np.float32(iou_thresh))", "iou_thresh", own_tests(PROPOSAL)),
    Mistake("ProposalCreator: ends with one too few", PROPOSAL,
            "len(survivor) >= n:", "len(survivor) >= n - 1:", own_tests(PROPOSAL)),
    Mistake("ProposalCreator: does not end when there are enough", PROPOSAL,
            "len(survivor) >= n:", "False:", own_tests(PROPOSAL)),
    Mistake("ProposalCreator: numbers of test in training", PROPOSAL,
            "if train else", "if not train else", own_tests(PROPOSAL)),

    Mistake("ProposalTargetCreator: objects do not join the proposals", HEAD_TARGET,
            "roi = xp.concatenate((roi, bbox))  # (R + G, 4)\n        ", "", own_tests(HEAD_TARGET)),
    Mistake("ProposalTargetCreator: multiplied by the standard deviation", HEAD_TARGET,
            "- mean) / std", "- mean) * std", own_tests(HEAD_TARGET)),
    Mistake("ProposalTargetCreator: positive above the threshold only", HEAD_TARGET,
            "max_iou >= self.pos_iou_thresh", "max_iou > self.pos_iou_thresh", own_tests(HEAD_TARGET)),
    Mistake("ProposalTargetCreator: class 0 is the background", HEAD_TARGET,
            "label[nearest] + 1", "label[nearest]", own_tests(HEAD_TARGET)),
    Mistake("ProposalTargetCreator: background does not fill the rest", HEAD_TARGET,
            "[:self.n_sample]", "[:int(self.pos_ratio * self.n_sample)]", own_tests(HEAD_TARGET)),
    Mistake("ProposalTargetCreator: what fills up is background", HEAD_TARGET,
            "label[nearest] + 1, drawn[sample])", "label[nearest] + 1, 0)", own_tests(HEAD_TARGET)),

    Mistake("sampling: keys of the global generator", SAMPLING,
            "rng.random(len(like), dtype=np.float32)", "np.random.rand(len(like)).astype(np.float32)",
            own_tests(SAMPLING)),
    Mistake("sampling: order for rank", SAMPLING, "rank < n_kept", "order < n_kept", own_tests(SAMPLING)),
    Mistake("sampling: others take the places of candidates", SAMPLING, "group + key", "key", own_tests(SAMPLING)),
    Mistake("sampling: negatives do not fill the rest", SAMPLING,
            "n_sample - n_kept)", "n_sample - int(pos_ratio * n_sample))", own_tests(SAMPLING)),
    Mistake("sampling: what is both is negative", SAMPLING,
            "xp.where(positive, np.int64(0), xp.where(negative, np.int64(1), np.int64(2)))",
            "xp.where(negative, np.int64(1), xp.where(positive, np.int64(0), np.int64(2)))",
            own_tests(SAMPLING)),
    Mistake("sampling: keys lose their last bits", SAMPLING,
            "group + key", "group.astype(np.float32) + key", own_tests(SAMPLING)),

    Mistake("RoI pooling: boxes stay (y, x)", ROI_POOLING, "roi[:, [1, 0, 3, 2]]", "roi", own_tests(ROI_POOLING)),
    Mistake("RoI pooling: x before y without a gradient", ROI_POOLING, "y_min, x_min, y_max, x_max = bounds",
            "x_min, y_min, x_max, y_max = bounds", own_tests(ROI_POOLING)),
    Mistake("RoI pooling: half a cell before the map is in it", ROI_POOLING,
            "inside = (roi >= 0)", "inside = (cell >= 0)", own_tests(ROI_POOLING)),
    Mistake("RoI pooling: no cell where the end comes first", ROI_POOLING,
            "torch.maximum(first, last) + 1", "last + 1", own_tests(ROI_POOLING)),
    Mistake("de-normalisation: loc_std forgotten", NETWORK,
            "* self.loc_std + self.loc_mean", "+ self.loc_mean", own_tests(NETWORK)),
    Mistake("de-normalisation: loc_mean forgotten", NETWORK,
            "* self.loc_std + self.loc_mean", "* self.loc_std", own_tests(NETWORK)),

    Mistake("smooth L1: linear from 1 / sigma on", TRAINER, "beta=1 / sigma**2", "beta=1 / sigma", own_tests(TRAINER)),
    Mistake("smooth L1: sigmas of RPN and head swapped", TRAINER,
            "self.rpn_sigma = rpn_sigma\n        self.roi_sigma = roi_sigma",
            "self.rpn_sigma = roi_sigma\n        self.roi_sigma = rpn_sigma", own_tests(TRAINER)),
    Mistake("normaliser: the positives only", TRAINER,
            "(gt_label >= 0).sum()", "(gt_label > 0).sum()", own_tests(TRAINER)),
    Mistake("normaliser: 0 where nothing is sampled", TRAINER, ".sum().clamp(min=1)", ".sum()", own_tests(TRAINER)),
    Mistake("optimizer: biases at the rate of the weights", TRAINER, "lr, 2 * lr", "lr, lr", own_tests(TRAINER)),
    Mistake("optimizer: biases decay", TRAINER,
            '"params": biases, "weight_decay": 0.0', '"params": biases, "weight_decay": weight_decay',
            own_tests(TRAINER)),

    Mistake("11-point metric: 10 points", METRIC, "np.arange(11) * 0.1", "np.arange(10) * 0.1", own_tests(METRIC)),
    Mistake("11-point metric: best precision at this recall or a lower one", METRIC,
            "np.maximum.accumulate(precision[::-1])[::-1]", "np.maximum.accumulate(precision)", own_tests(METRIC)),
    Mistake("area metric: precision itself, not the best beyond", METRIC,
            "np.diff(recall, prepend=0.0) * best", "np.diff(recall, prepend=0.0) * precision", own_tests(METRIC)),
    Mistake("inclusive pixels: no 1 added to the detections", METRIC,
            "pred_bbox[:, 2:] += 1\n    ", "", own_tests(METRIC)),
    Mistake("difficult: counted among the objects", METRIC,
            "np.bincount(gt_label[~gt_difficult], minlength", "np.bincount(gt_label, minlength", own_tests(METRIC)),
    Mistake("difficult: found ones are false positives", METRIC,
            "outcome[pred[gt_difficult[gt]]] = -1", "outcome[pred[gt_difficult[gt]]] = 0", own_tests(METRIC)),
    Mistake("difficult: not left out by the reader", READER,
            "use_difficult | ~item.difficult", "~item.difficult | True", own_tests(READER)),
    Mistake("difficult: always trained on", "train.py",
            "classes, config.use_difficult, config.invalid_boxes", "classes, True, config.invalid_boxes",
            own_tests("train.py")),

    Mistake("VOC reader: 1 not subtracted", ANNOTATION, ".reshape(-1, 4) - 1 ", ".reshape(-1, 4) ",
            own_tests(ANNOTATION)),
    Mistake("flip: image without its boxes", TRANSFORMS,
            "img, bbox = img.flip(3), flip_bbox(bbox, img.shape[3])", "img = img.flip(3)", own_tests(TRANSFORMS)),
    Mistake("flip: off by one", TRANSFORMS,
            "width - bbox[:, 3], bbox[:, 2], width - bbox[:, 1]",
            "width - 1 - bbox[:, 3], bbox[:, 2], width - 1 - bbox[:, 1]", own_tests(TRANSFORMS)),
    Mistake("channel order: mean not permuted with the channels", PREPROCESS,
            '    pixel = (pixel * (preprocessing.value_range / 255) - mean) / std\n'
            '    if preprocessing.channel_order == "BGR":\n'
            '        pixel = pixel.flip(1)\n',
            '    if preprocessing.channel_order == "BGR":\n'
            '        pixel = pixel.flip(1)\n'
            '    pixel = (pixel * (preprocessing.value_range / 255) - mean) / std\n', own_tests(PREPROCESS)),
)


def mutated(root, mistake):
    """The source of the file with the mistake in it, and the line where it begins."""
    source = (root / mistake.file).read_text(encoding="utf-8")
    if source.count(mistake.right) != 1:
        raise ValueError(f"{mistake.file} has {mistake.right!r} {source.count(mistake.right)} times: "
                         f"the mistake {mistake.what!r} needs a piece that occurs once")
    line = source[:source.index(mistake.right)].count("\n") + 1
    return source.replace(mistake.right, mistake.wrong), line


def copy_project(root, copy):
    """Copies what the tests need, without compiled files: a file changed within a second looks unchanged to those."""
    for path in (*root.glob("*.py"), root / "pyproject.toml"):
        shutil.copy(path, copy)
    for name in FOLDERS:
        if (root / name).is_dir():
            shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))


def run_tests(root, tests):
    """Runs files of tests in `root` until one fails: (exit code of pytest, the first that failed or None, output)."""
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OMP_NUM_THREADS": "1",
                        "COLUMNS": "1000"}  # so wide that no line is cut
    done = subprocess.run([sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests], cwd=root,
                          env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    failed = (line.removeprefix("FAILED ") for line in done.stdout.splitlines() if line.startswith("FAILED "))
    return done.returncode, next(failed, None), done.stdout


def verdict(root, tests):
    """(whether a test caught it, its name or what happened instead)."""
    code, failed, output = run_tests(root, tests)
    if code == 0:
        return False, "SURVIVED"
    if code != 1 or not failed:
        error = next((line[1:].strip() for line in output.splitlines() if line.startswith("E ")), "see pytest's codes")
        return False, f"NOT ACCEPTED, no test failed but pytest exits with {code}: {error}"
    name, _, error = failed.partition(" - ")
    if error.startswith(BROKEN):
        return False, f"NOT ACCEPTED, the code is broken: {failed}"
    return True, name


def check(root, mistakes):
    """Makes the mistakes in a copy of `root`, one at a time, and prints a line for each; whether all were caught."""
    start, n_caught = time.monotonic(), 0
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copy = Path(folder)
        copy_project(root, copy)
        code, _, output = run_tests(copy, sorted({test for mistake in mistakes for test in mistake.tests}))
        if code:
            raise SystemExit(f"{output}\nthe tests fail on the unchanged copy, exit code {code}: mend that first")
        print("mistake | where | written | for | first test that failed", flush=True)
        for mistake in mistakes:
            source, line = mutated(copy, mistake)
            right, wrong = (" ".join(text.split()) or "nothing" for text in (mistake.right, mistake.wrong))
            print(f"{mistake.what} | {mistake.file}:{line} | {wrong} | {right} | ", end="", flush=True)
            path = copy / mistake.file
            unchanged = path.read_text(encoding="utf-8")
            path.write_text(source, encoding="utf-8")
            caught, outcome = verdict(copy, mistake.tests)
            path.write_text(unchanged, encoding="utf-8")
            print(outcome, flush=True)
            n_caught += caught
    print(f"{len(mistakes)} mistakes, {n_caught} caught in {time.monotonic() - start:.0f} seconds")
    return n_caught == len(mistakes)


def main(names):
    """Runs the mistakes that `names` choose, all without any; raises SystemExit where one was not caught."""
    for name in names:
        if not any(name in mistake.what for mistake in MISTAKES):
            raise SystemExit(f"no mistake is called {name!r}; there are:\n" + "\n".join(m.what for m in MISTAKES))
    chosen = [mistake for mistake in MISTAKES if not names or any(name in mistake.what for name in names)]
    sys.exit(not check(ROOT, chosen))


if __name__ == "__main__":
    main(sys.argv[1:])
