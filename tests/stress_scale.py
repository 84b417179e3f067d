"""Measure how time and memory grow with the work; print two Markdown tables.

    python tests/stress_scale.py [--axes=side,proposals,objects,classes,annotations,images] [--device=cpu] [--rounds=5]
        [--precision=fp32]

side, proposals, objects, classes: a training step and a prediction of VGG16 with 600x800 pixels, 2000 (300) proposals,
5 objects and 20 classes, where one of them varies; medians of the rounds. annotations: `data.build`, with which a
training starts. images: the VOC metric with 100 detections and 3 objects per image. Every number comes from a process
of its own, whose peak memory is reported: on a GPU torch's, else all of the process.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: docs/benchmarks.md#a-busy-machine

import io
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import fire
import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import data  # noqa: E402
from data.voc_dataset import VOC_CLASSES  # noqa: E402
from tools import benchmark  # noqa: E402
from utils.distributed import pick_device, pick_dtype  # noqa: E402
from utils.voc_eval import eval_detection_voc  # noqa: E402

AXES = {
    "side": (300, 450, 600, 800, 1000),  # the shorter one, of 3:4
    "proposals": (50, 300, 1000, 2000),
    "objects": (1, 5, 50, 500),
    "classes": (1, 20, 100, 1000),
    "annotations": (100, 1000, 5000, 20_000),
    "images": (100, 1000, 5000, 20_000),
}
N_DETECTION, N_OBJECT = 100, 3  # per image


def measure_network(work, axis, value, device, precision, rounds):
    """Return the median seconds of "train" or "predict", and the peak GB of a process that does only this."""
    device, size, options = pick_device(device), (600, 800), {}
    if axis == "side":
        size = value, value * 4 // 3
    elif axis == "proposals":
        options = {"n_train_post_nms": value, "n_test_post_nms": value}
    else:
        options = {{"objects": "n_object", "classes": "n_fg_class"}[axis]: value}
    call = getattr(benchmark.Ours(device, pick_dtype(precision, device), size, **options), work)
    seconds = []
    for _ in range(benchmark.N_WARM_UP + rounds):
        start = benchmark.now(device)
        call()
        seconds.append(benchmark.now(device) - start)
    return statistics.median(seconds[benchmark.N_WARM_UP :]), benchmark.peak_gb(device)


def write_annotations(root, n_image):
    """Write a data set like VOC2007, with one picture many times: the split trainval, 1 to 4 objects per image."""
    buffer, shade = io.BytesIO(), np.add.outer(np.arange(375), np.arange(500)) % 256
    Image.fromarray(shade.astype(np.uint8)).convert("RGB").save(buffer, "JPEG")
    for folder in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    ids = [f"{i:06d}" for i in range(n_image)]
    (root / "ImageSets/Main/trainval.txt").write_text("\n".join(ids))
    for i, image_id in enumerate(ids):
        objects = "".join(
            f"<object><name>{VOC_CLASSES[(i + k) % 20]}</name><pose>Left</pose><truncated>1</truncated>"
            f"<difficult>0</difficult><bndbox><xmin>{10 + k}</xmin><ymin>20</ymin><xmax>{200 + k}</xmax>"
            "<ymax>300</ymax></bndbox></object>"
            for k in range(i % 4 + 1)
        )
        (root / f"Annotations/{image_id}.xml").write_text(
            f"<annotation><folder>VOC2007</folder><filename>{image_id}.jpg</filename><source><database>The VOC2007 "
            "Database</database><annotation>PASCAL VOC2007</annotation><image>flickr</image><flickrid>1</flickrid>"
            "</source><owner><flickrid>a</flickrid><name>b</name></owner><size><width>500</width><height>375</height>"
            f"<depth>3</depth></size><segmented>0</segmented>{objects}</annotation>"
        )
        (root / f"JPEGImages/{image_id}.jpg").write_bytes(buffer.getvalue())


def measure_start(n_image):
    """Return seconds and peak GB of opening a data set, whose files are in the memory of the system."""
    with tempfile.TemporaryDirectory() as name:
        write_annotations(Path(name, "voc"), n_image)
        start = time.perf_counter()
        (dataset,) = data.build("voc", SimpleNamespace(voc_data_dir=Path(name, "voc")), ("trainval",), VOC_CLASSES)
        seconds = time.perf_counter() - start
    assert len(dataset) == n_image
    return seconds, benchmark.peak_gb(pick_device("cpu"))


def measure_metric(n_image):
    """Return seconds and peak GB of the VOC metric."""
    rng = np.random.default_rng(0)

    def boxes(n):
        corner = rng.uniform(0, 300, (n, 2))
        return np.hstack((corner, corner + rng.uniform(20, 200, (n, 2)))).astype(np.float32)

    pred, gt = ([boxes(n) for _ in range(n_image)] for n in (N_DETECTION, N_OBJECT))
    pred_label, gt_label = ([rng.integers(0, 20, n) for _ in range(n_image)] for n in (N_DETECTION, N_OBJECT))
    score = [rng.random(N_DETECTION, np.float32) for _ in range(n_image)]
    start = time.perf_counter()
    eval_detection_voc(pred, pred_label, score, gt, gt_label, use_07_metric=True, n_class=20)
    return time.perf_counter() - start, benchmark.peak_gb(pick_device("cpu"))


def apart(function, *args):
    """Call a function in a process of its own; return its seconds and GB as two cells of a table."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        seconds, gb = pool.apply(function, args)
    return f"{seconds:.3g} | {gb:.2f}"


def main(axes=tuple(AXES), device="auto", precision="fp32", rounds=5):
    """Print the tables; see the top of the file."""
    axes = axes.split(",") if isinstance(axes, str) else axes
    networks = [axis for axis in axes if axis not in ("annotations", "images")]
    if networks:
        print("| | | training step, s | peak GB | prediction, s | peak GB |\n|---|---|---|---|---|---|")
    for axis in networks:
        for value in AXES[axis]:
            cells = (apart(measure_network, work, axis, value, device, precision, rounds) for work in benchmark.N_ROI)
            print(f"| {axis} | {value} | {' | '.join(cells)} |", flush=True)
    print("\n| | | s | peak GB |\n|---|---|---|---|")
    for axis, measure in (("annotations", measure_start), ("images", measure_metric)):
        for value in AXES[axis] if axis in axes else ():
            print(f"| {axis} | {value} | {apart(measure, value)} |", flush=True)


if __name__ == "__main__":
    fire.Fire(main)
