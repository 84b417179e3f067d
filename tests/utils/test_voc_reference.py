"""The VOC metric against the figures of voc_ap.npz in tests/reference (see its README)."""

from pathlib import Path

import numpy as np
import pytest

from utils.voc_eval import eval_detection_voc

PATH = Path(__file__).parents[1] / "reference" / "voc_ap.npz"


@pytest.mark.parametrize(
    ("name", "use_07_metric", "with_difficult"),
    [("ap_07", True, True), ("ap_area", False, True), ("ap_07_difficult_ignored_flag_absent", True, False)],
)
def test_voc_ap(name, use_07_metric, with_difficult):
    with np.load(PATH) as arrays:
        theirs = dict(arrays)
    images = range(theirs["n_image"])
    pred = [[theirs[f"pred_{part}"][theirs["pred_image"] == i] for i in images] for part in ("bbox", "label", "score")]
    gt = [[theirs[f"gt_{part}"][theirs["gt_image"] == i] for i in images] for part in ("bbox", "label", "difficult")]
    assert sum(map(len, pred[0])) == len(theirs["pred_bbox"])
    gt[2] = gt[2] if with_difficult else None
    result = eval_detection_voc(*pred, *gt, use_07_metric=use_07_metric)
    np.testing.assert_allclose(result["ap"], theirs[name], rtol=1e-4, atol=1e-4)
    assert result["map"] == pytest.approx(theirs[name].mean(), rel=1e-4)
