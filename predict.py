"""Detect objects in images: `python predict.py IMAGE_OR_DIRECTORY_OR_PATTERN ... --load-path=runs/voc/last.pth`.

Without a checkpoint, the detector that torchvision trained on COCO is fetched. With `--split=test` instead of images,
those of a split of the data set.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch loads: docs/benchmarks.md#a-busy-machine

import glob
import json
from collections import Counter
from pathlib import Path

import fire
import torch
from tqdm import tqdm

import data
import model
from data.validate import FORMATS, IMAGE_SUFFIXES, DataError
from data.voc_dataset import VOC_CLASSES, read_image
from model.truncated_svd import compress_head
from utils import checkpoint as ckpt
from utils import distributed
from utils.coco_eval import check_results_file, coco_results, number_ids
from utils.command import command, training_options
from utils.config import OptionError, PredictConfig, counted, quoted
from utils.vis import contact_sheet, draw_bbox, save_picture, sheet_columns, shrink

SHEET, N_SHEET, SHEET_WIDTH = "contact_sheet", 16, 1600  # its name, number of images, about its width in pixels


def main(config, *paths):
    """Detect as a `PredictConfig` says; write pictures, predictions.json and the contact sheet."""
    if bool(paths) == bool(config.split):
        raise OptionError("name images, directories or patterns, or else a split of the data set with --split=NAME")
    check_results_file(config.coco_json)
    device = distributed.pick_device(config.device, config.deterministic)
    dtype = distributed.pick_dtype(config.precision, device)
    out, dataset, images = Path(config.out), None, [] if config.split else find_images(paths)[: config.limit]
    checkpoint = ckpt.open_checkpoint(config.load_path, config.preprocess)
    classes = ckpt.resolve_class_names(checkpoint, data.read_class_names(config.classes), VOC_CLASSES)
    if config.split:
        dataset = read_split(config, checkpoint, classes)
        images = dataset.ids[: config.limit]
        names = picture_names([f"{image_id}.jpg" for image_id in images])
        folders = {Path(root).resolve() for root in str(dataset.root).split(",") if root}
    else:
        names, folders = picture_names(images), {path.resolve().parent for path in images}
    if folders & {out.resolve(), *(out.resolve().parents if config.split else ())}:
        raise OptionError(f"--out={out} is where the images are: choose another directory")
    with ckpt.checkpoint_error(config.load_path):
        net = model.restore(checkpoint).to(device)
        if config.svd:
            compress_head(net.head, config.svd)
    ckpt.check_writable(out / "predictions.json", config.coco_json)
    with torch.autocast(device.type, dtype, enabled=dtype is not None):  # one for all casts the weights once
        rows, sheet, unreadable = detect(net, dataset, images, names, classes, config)
    if sheet:
        save_picture(out / f"{SHEET}.png", contact_sheet(list(sheet.values()), list(sheet)))
        found = f"{counted(len(rows), 'object')} in {counted(len(images) - len(unreadable), 'image')}"
        files = f"NAME.png, {SHEET}.png, predictions.json (boxes are [y_min, x_min, y_max, x_max])"
        print(f"{found}, written to {out}: {files}")
        if n_other := len({path.stem for path in out.glob("*.png")} - {*names, SHEET}):
            print(f"note: {out} holds {counted(n_other, 'other picture')}, as of earlier calls")
        if not rows:
            print(f"nothing has a score above {config.score_thresh:g}: try a lower --score-thresh")
    if unreadable:
        title = f"{len(unreadable)} of {counted(len(images), 'image')} cannot be read:"
        raise DataError("\n".join([title, *unreadable]))


def read_split(config, checkpoint, classes):
    """Read the split `config.split` with the options of the training, unchecked, and print what it is."""
    unchecked = {"invalid_boxes": "skip", "unknown_classes": "ignore", "proposals_file": None}
    options = training_options(config, checkpoint, **unchecked, val_ratio=0)  # of other data all, as eval.py
    try:
        (dataset,) = data.build(options.data, options, [config.split], classes)
    except DataError as error:
        raise DataError(f"{error}\nwithout annotations, name the images or their folder instead of --split") from None
    n_image = min(len(dataset), config.limit or len(dataset))
    print(f"{dataset.root}, split {dataset.split}: {counted(n_image, 'image')}", *dataset.notes, sep="\n")
    return dataset


def detect(net, dataset, images, names, classes, config):
    """Detect in each image; write its picture, and all detections to predictions.json and COCO's file.

    Args:
        net: `FasterRCNN`.
        dataset: data set whose first samples are the images; None: `images` are files.
        images: their files or ids.
        names: of their pictures.
        classes: names of the classes.
        config: `PredictConfig`.

    Returns:
        Rows of predictions.json, name -> small picture of the first images, texts about what cannot be read.
    """
    rows, results, sheet, unreadable, out = [], [], {}, [], Path(config.out)
    options = {name: getattr(config, name) for name in ("score_thresh", "nms_thresh", "max_detections")}
    image_ids, category_ids = getattr(dataset, "image_ids", number_ids(names)), getattr(dataset, "category_ids", None)
    height = SHEET_WIDTH // sheet_columns(min(N_SHEET, len(images))) * 3 // 4
    try:
        for i, name in enumerate(tqdm(names, desc="predict", unit="img", dynamic_ncols=True)):
            try:
                img = dataset[i].img if dataset else read_image(images[i], upright=True)
            except DataError as error:
                unreadable.append(str(error))
                continue
            bbox, label, score = (values[0] for values in net.predict([img], **options))
            used = [classes[k] != ckpt.UNUSED for k in label]
            bbox, label, score = bbox[used], label[used], score[used]
            columns = bbox.astype(float).round(2), label, score.astype(float).round(6)
            for box, k, value in zip(*(column.tolist() for column in columns), strict=True):
                rows.append({"image": str(images[i]), "bbox": box, "label": k, "name": classes[k], "score": value})
            results += coco_results(image_ids[i], bbox, label, score, category_ids)
            save_picture(out / f"{name}.png", draw_bbox(img, bbox, label, score, classes))
            if len(sheet) < N_SHEET:
                sheet[name] = draw_bbox(*shrink(img, bbox, height), label, score, classes)
    finally:  # also after an interruption
        ckpt.write_text(out / "predictions.json", json.dumps(rows, indent=1, ensure_ascii=False))
        if config.coco_json:
            ckpt.write_text(config.coco_json, json.dumps(results))
    return rows, sheet, unreadable


def find_images(paths):
    """List the image files that `paths` name, each once: files, those in directories, those that match patterns.

    A pattern may hold *, ?, [abc], and ** for directories at any depth; the directories that exist at its start are
    taken literally. Hidden files are left out.
    """
    found = []
    for path in map(Path, paths):
        if path.is_file():
            found.append(path)
            continue
        if path.is_dir():
            named = [file for file in path.iterdir() if not file.name.startswith(".")]
        else:
            folder = next(parent for parent in path.parents if parent.is_dir())
            pattern = str(path.relative_to(folder))
            named = [folder / name for name in glob.glob(pattern, root_dir=folder, recursive=True)]
        files = [file for file in named if file.is_file()]
        inside = sorted(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)
        if not inside:
            what = "contains" if path.is_dir() else "does not exist, and as a pattern it matches"
            there = sorted({file.suffix.lower() for file in files if file.suffix})[:5]
            hint = f", only {' '.join(there)}" if there else ""
            hint += f": {quoted(f'{path}/**')} takes those in its folders" if len(files) < len(named) else ""
            raise DataError(f"{path} {what} no image ({FORMATS}){hint}")
        if len(files) > len(inside):
            print(f"{path}: {counted(len(files) - len(inside), 'file')} passed over, not {FORMATS}")
        found += inside
    return list(dict.fromkeys(found))


def picture_names(images):
    """Name the picture of each image by its stem; where several have it, by folders and suffix, too: cam1_a.jpg.

    Folders are those below the folder that all images share.
    """
    absolute = [Path(os.path.abspath(path)) for path in images]
    shared = os.path.commonpath([path.parent for path in absolute])
    count = Counter([SHEET, *(path.stem.casefold() for path in absolute)])
    names = []
    for path in absolute:
        alone = count[path.stem.casefold()] == 1
        names.append(path.stem if alone else "_".join(path.relative_to(shared).parts))
    repeated = [name for name, n in Counter(map(str.casefold, names)).items() if n > 1]
    if repeated:
        raise OptionError(f"several images would have the picture {repeated[0]}.png: rename one of them")
    return names


if __name__ == "__main__":
    errors = (DataError, ckpt.CheckpointError)
    fire.Fire(command(PredictConfig, main, errors, positional=True, defaults=model.defaults))
