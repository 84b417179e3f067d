"""Write and read checkpoints: dicts of tensors and plain Python values, loaded without running code.

A checkpoint holds "model" (weights), "build" (name and keyword arguments of `model.build`), "class_names",
"preprocessing", "config" (options of the run), "epoch" and "step"; to resume from, also "optimizer" and "rng".
"""

import argparse
import contextlib
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import torch
from torchvision.models import get_model_weights

from utils.config import OptionError, as_text, counted, dashed, quoted
from utils.convert_weights import convert_backbone, convert_detector

# torchvision's detectors that are trained on COCO, without `fasterrcnn_`
PUBLISHED = ("resnet50_fpn", "resnet50_fpn_v2", "mobilenet_v3_large_fpn", "mobilenet_v3_large_320_fpn")
UNUSED = "N/A"  # torchvision's name of an output without a class: COCO's categories are numbered with gaps
FORMAT = 2
KEYS = ("model", "build", "class_names", "preprocessing", "config", "epoch", "step")
_LAST_LAYERS = ("head.cls_loc.", "head.score.")
_SCALAR = np._core.multiarray.scalar  # checkpoints of others hold NumPy numbers, such as the best mAP
# torchvision's references/detection stores its options, a Namespace
_PLAIN = [_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar"), np.dtype, argparse.Namespace]
_PLAIN += [type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8")]


class CheckpointError(ValueError):
    """A checkpoint cannot be written, read or used; the message is one sentence that names the file."""


@contextlib.contextmanager
def replacing(path: str | Path):
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    The file is on the disk before it gets its name; whatever fails, an older file stays as it was. The folder is
    created where it is missing.
    """
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix, by which some choose a format
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        with open(partial, "r+b") as file:  # Windows syncs only a file that is open for writing
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if error.errno:  # of the system, such as a full disk; others have only a text
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # of file names that are not UTF-8


def check_writable(*paths: str | Path | None) -> None:
    """Create the folders of files that a command will write.

    Raises:
        OptionError: a file is named twice.
        OSError: a file cannot be written.
    """
    paths = [*map(Path, filter(None, paths))]
    for path in paths:
        if paths.count(path) > 1:
            raise OptionError(f"{path} is named for two outputs")
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        path.open("ab").close()
        if not path.is_file():
            raise OSError(f"{path} is no regular file, which could be replaced")
        if new:
            path.unlink()


@contextlib.contextmanager
def checkpoint_error(path: str | Path):
    """Raise what goes wrong with the content of the checkpoint `path` as CheckpointError.

    For building a network from a checkpoint: invalid keyword arguments, weights that do not fit.
    """
    try:
        yield
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        lines = str(error).splitlines() or [type(error).__name__]
        reason = lines[1 if len(lines) > 1 else 0].strip()  # the first of several lines is a title
        reason += " is missing" * isinstance(error, KeyError)
        if "size mismatch for rpn.score" in reason:
            reason = "it has another number of anchors per cell: pass its --anchor-scales and --anchor-ratios"
        raise CheckpointError(f"{path} cannot be used: {reason}") from error


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write a checkpoint and its folder; an older file stays as it was until the new one is complete.

    Args:
        path: File to write.
        state: Dict with the keys named above, tensors and plain Python values.

    Raises:
        CheckpointError: The file system refused.
    """
    try:
        with replacing(path) as partial:
            torch.save(state | {"format": FORMAT}, partial)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path} could not be written ({reason}), check that the disk has room") from error


def load_checkpoint(path: str | Path, resume: bool = False, mmap: bool = False, hint: str = "") -> dict:
    """Read a checkpoint of this library or the detector of another program.

    Args:
        path: File of `save_checkpoint`, of torchvision or simple-faster-rcnn-pytorch, an .npz of chainercv, or one of
            `PUBLISHED`, which is fetched.
        resume: Demand "optimizer" and "rng", too.
        mmap: Leave the tensors in the file until they are used.
        hint: See `convert_weights.convert_detector`; empty: the name of the file.

    Returns:
        Dict with the keys named above, tensors on the CPU. The detector of another program has "layout", the program,
        instead of "format"; see `convert_weights.convert_detector`.

    Raises:
        CheckpointError: The file is missing, damaged, unsafe, of another format or of an unknown layout, or cannot be
            fetched.
    """
    published = str(path) in PUBLISHED and not Path(path).exists()
    state = _fetch(path) if published else _read(Path(path), mmap)
    with checkpoint_error(path):
        if "format" not in state:
            state = convert_detector(state, hint or Path(path).name)
        elif state["format"] != FORMAT:
            stored = state["format"]
            raise ValueError(f"its format {stored} is not {FORMAT}: use the version of this library that wrote it")
        elif missing := [key for key in KEYS if key not in state]:
            raise ValueError(f"it lacks {', '.join(missing)}")
    if resume and (missing := [key for key in ("optimizer", "rng") if key not in state]):
        raise CheckpointError(f"{path} has no {' and '.join(missing)}: start from it with --load-path instead")
    return state


def load_backbone(path: str | Path) -> dict:
    """Read the weights of a backbone; see `convert_weights.convert_backbone`. Raises CheckpointError as above."""
    with checkpoint_error(path):
        return convert_backbone(_read(Path(path)))


def load_weights(model: torch.nn.Module, checkpoint: dict, path: str | Path, reset_head: bool = False) -> None:
    """Load the weights of a checkpoint, read from `path`, into a network.

    Args:
        model: Network to fill.
        checkpoint: Dict of `load_checkpoint`.
        path: Named in errors.
        reset_head: Keep the network's own `head.cls_loc` and `head.score`, for other classes (paper 4.3).

    Raises:
        CheckpointError: A tensor is missing, unexpected, or of another shape.
    """
    own = {name: value for name, value in model.state_dict().items() if name.startswith(_LAST_LAYERS)}
    with checkpoint_error(path):
        model.load_state_dict(checkpoint["model"] | (own if reset_head else {}))


def open_checkpoint(path: str | Path, preprocess: str = "auto", hint: str = "") -> dict:
    """Read a checkpoint, choose its preprocessing, and print what it is.

    Args:
        path: File, see `load_checkpoint`.
        preprocess: Preprocessing of weights whose file does not state it, a name of model.utils.preprocess; "auto":
            torchvision's.
        hint: See `load_checkpoint`.

    Returns:
        Dict of `load_checkpoint`, with "preprocessing" set.

    Raises:
        CheckpointError: As `load_checkpoint`.
        OptionError: `preprocess` is given for a checkpoint that states its own.
    """
    checkpoint = load_checkpoint(path, hint=hint)
    if "format" in checkpoint:
        if preprocess != "auto":
            raise OptionError(f"--preprocess={preprocess}: {path} states its own preprocessing, leave it at auto")
        print(f"{path}: a checkpoint of this library, step {checkpoint['step']}")
        if given := checkpoint["config"].get("proposals_file"):
            print(f"note: it was trained on the proposals of {given}, its RPN was not: only eval.py uses proposals")
        return checkpoint
    if preprocess != "auto":
        checkpoint["preprocessing"], source = preprocess, "from --preprocess"
    elif checkpoint["preprocessing"]:
        source = "as its file says"
    else:
        checkpoint["preprocessing"], source = "torchvision", "assumed (the other is --preprocess=caffe-rgb-mean)"
    what = f"a detector of {checkpoint['layout']}, {counted(checkpoint['build']['n_fg_class'], 'class')}"
    print(f"{path}: {what}, preprocessing {checkpoint['preprocessing']}, {source}")
    return checkpoint


def resolve_class_names(checkpoint: dict, given: tuple[str, ...], default: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of a checkpoint's classes: its own, else `given`, else `default` if there are as many.

    The names that `convert_weights.convert_detector` supposes give way to `given`.

    Raises:
        OptionError: `given` differs from the names in the checkpoint, or there is not one name per class.
    """
    n_class, own = checkpoint["build"]["n_fg_class"], tuple(checkpoint["class_names"])
    if own and given and own != tuple(given) and "layout" not in checkpoint:
        known = ", ".join(own)
        raise OptionError(f"the checkpoint's classes are {known}: leave out --classes={','.join(given)}, which differs")
    names = tuple(given) or own or (tuple(default) if n_class == len(default) else ())
    if len(names) != n_class:
        has, given = counted(n_class, "class"), ", ".join([counted(len(names), "name"), *names])
        raise OptionError(f"the checkpoint has {has}, but there are {given}: pass --classes=a,b,c")
    if not (given or own):
        print(f"note: the checkpoint does not name its classes: taken to be {', '.join(names)} (--classes=a,b,c)")
    return names


def check_compatible(path: str, checkpoint: dict, classes: tuple, build_kwargs: dict, reset_head=False) -> None:
    """Check that training can start from the weights of a checkpoint; print what differs.

    Args:
        path: Where the checkpoint was read.
        checkpoint: Dict of `load_checkpoint`.
        classes: Names of the classes to train on.
        build_kwargs: What "build" will be in the checkpoints of the new run, with "name".
        reset_head: Whether the last layers start anew, so that the classes may differ.

    Raises:
        CheckpointError: Backbone, width of the head, or classes differ.
    """
    old, names = checkpoint["build"], checkpoint["class_names"]
    if not reset_head and (old["n_fg_class"] != len(classes) or (names and names != list(classes))):
        before = ", ".join([counted(old["n_fg_class"], "class"), *names[:10], *["..."] * (len(names) > 10)])
        now = ", ".join([str(len(classes)), *classes[:10], *["..."] * (len(classes) > 10)])
        own = {*classes} <= {*names} and f"--classes={quoted(','.join(names))} keeps its own, "
        advice = f"{own or ''}--reset-head initializes the last layers anew"
        raise CheckpointError(f"{path} has {before}, the data have {now}: {advice}")
    for name in ("name", "head_width", "anchor_scales", "anchor_ratios", "min_size", "max_size", "roi_op"):
        then, now = as_text(old.get(name)), as_text(build_kwargs.get(name))  # empty where not stated
        if then and now and then != now:
            note = f"was trained with --{'model' if name == 'name' else dashed(name)}={then}, now it is {now}"
            if name in ("name", "head_width"):
                raise CheckpointError(f"{path} {note}: give that value")
            print(f"note: {path} {note}")
    if not (names or reset_head):
        print(f"note: {path} does not name its classes; they are taken to be {', '.join(classes)}, in this order")


def resume_training(path: str | Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, run: dict) -> int:
    """Restore weights, optimizer and random state from a last.pth.

    Args:
        path: File of a run with the same data.
        model, optimizer: Objects to fill.
        run: "class_names", "ids" of the training images and "processes" of this run, which must be the same.

    Returns:
        Number of optimizer steps taken.

    Raises:
        CheckpointError: The file cannot be read, or classes, images or number of processes differ.
    """
    stored = load_checkpoint(path, resume=True)
    for name, what in (("class_names", "classes"), ("ids", "training images"), ("processes", "number of processes")):
        before, now = stored.get(name, run[name]), run[name]
        if before != now:
            same = "the same"
            if name == "ids":  # too many to show
                if sorted(before) == sorted(now):
                    same = f"the order of {Path(path).parent}/*.txt"
                k = next((i for i, pair in enumerate(zip(before, now, strict=False)) if pair[0] != pair[1]), -1)
                before, now = (f"{counted(len(ids), 'image')}, e.g. {ids[k]}" for ids in (before, now))
            elif name == "class_names" and ({*before} <= {*now} or {*now} <= {*before}):
                same = f"--classes={quoted(','.join(before))}"
                same += " --unknown-classes=ignore" * (len(before) < len(now))
            what = f"the {what} differ ({before} in the checkpoint, {now} in this run): resume with {same}, or start"
            reset = " --reset-head" * (name == "class_names")
            raise CheckpointError(f"{path}: {what} another run with --load-path={quoted(path)}{reset}")
    if stored.get("eval_ids", run["eval_ids"]) != run["eval_ids"]:
        print(f"note: {path}: the images to evaluate on were others so far, also those of best.pth")
    load_weights(model, stored, path)
    with checkpoint_error(path):
        model.preprocessing = type(model.preprocessing)(*stored["preprocessing"])
        optimizer.load_state_dict(stored["optimizer"])
        set_rng_state(stored["rng"])
        return stored["step"]


def count_seen(dataset, checkpoint: dict) -> int:
    """Count the ids of a data set that a training saw; in another folder, only files of a size that it saw.

    An id may have gained folders since: where other images of its name came, or in data of several folders.
    """
    trained, ids = checkpoint["config"], {*checkpoint.get("ids", ())}
    n_bytes = checkpoint.get("file_sizes", {}).get(trained.get("train_split"), ())
    coco, here = trained.get("data") == "coco", Path(dataset.root).resolve()
    root = Path(trained.get("coco_images" if coco else "voc_data_dir", "")).resolve()
    # its images to evaluate on, where others may have the same names, and some of these the same sizes
    others = coco and Path(trained.get("coco_eval_images") or root).resolve() == here != root
    n_seen = n_alike = 0
    for image_id, path in zip(dataset.ids, getattr(dataset, "paths", None) or dataset.ids, strict=True):
        parts = f"{here.name}/{image_id}".split("/")
        alike = not ids.isdisjoint("/".join(parts[i:]) for i in range(len(parts)))
        same = here == root and image_id in ids
        n_seen += same or (alike and (not n_bytes or path == image_id or os.path.getsize(path) in n_bytes))
        n_alike += alike
    return 0 if others and (not n_bytes or 2 * n_seen <= n_alike) else n_seen


def rng_state() -> dict:
    """Return the states of torch's generators, uint8 tensors: "cpu", and "cuda", one per device once CUDA is in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict) -> None:
    """Restore what `rng_state` returned, except for devices that this machine does not have."""
    torch.set_rng_state(state["cpu"])
    for device, cuda in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(cuda, device)


def _fetch(name):
    """Fetch the state of one of `PUBLISHED`, unless torch has it already."""
    weights = get_model_weights(f"fasterrcnn_{name}").COCO_V1
    print(f"{name}: torchvision's detector, trained on COCO (a download of {weights.meta['_file_size']:.0f} MB, once)")
    try:
        return weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a partial or wrong file, more than tensors
        reason = str(error).partition("\n")[0]
        what = f"{weights.url} cannot be fetched ({reason}): fetch that file elsewhere and name it"
        raise CheckpointError(f"{what} with --load-path=FILE") from None


def _read(path, mmap=False):
    """Read a file of torch.save, old or new, or an .npz of NumPy, as a dict with tensors on the CPU."""
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file: name one, such as runs/voc/last.pth, or {', '.join(PUBLISHED)}")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays}
        if zipfile.is_zipfile(path) and zipfile.ZipFile(path).testzip():  # torch.load ignores checksums
            raise zipfile.BadZipFile
        with torch.serialization.safe_globals(_PLAIN):
            state = torch.load(path, "cpu", weights_only=True, mmap=mmap)
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: permission denied") from error
    except Exception as error:  # damaged bytes raise nearly anything in torch and NumPy
        size, unsafe = path.stat().st_size, re.search(r"GLOBAL (\S+)|Object arrays", str(error))
        if unsafe:
            what = f"{unsafe[1] or 'Python objects'}, which could run code: save tensors and plain values alone"
            raise CheckpointError(f"{path} holds {what}, as model.state_dict()") from error
        what = f"{path} ({size} bytes) is damaged (copy it again) or not written by torch.save"
        raise CheckpointError(what) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not a dict of weights")
    return state
