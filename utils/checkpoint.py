"""Checkpoints: written whole or not at all, read back without running code, and the random state they carry.

A checkpoint is one dict of tensors and plain Python values, written by torch.save.
"""

import contextlib
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from utils import foreign
from utils.files import previous

FORMAT = 1
KEYS = ("model", "build", "class_names", "preprocessing", "config", "epoch", "step")
RESUME_KEYS = ("optimizer", "rng")
_KINDS = {"model": dict, "build": dict, "class_names": list, "config": dict}  # what is used before it is looked at

_OLD_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # how files of torch before 1.6 start
_MOST_UNPACKED = 20  # times the size of a file: weights hardly shrink, so what unpacks to more is to fill the memory
_PLAIN = (torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None))


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message is one sentence that says why."""


@contextlib.contextmanager
def replacing(path: str | Path):
    """Yield a temporary path beside `path` that takes its place when the block ends without an error.

    The file is on the disk before it gets its name; whatever fails, an older file stays as it was.
    """
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix, by which some choose a format
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, whole or not at all."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_checkpoint(path: str | Path, state: dict, keep: bool = False) -> None:
    """Write `state` (with KEYS, and RESUME_KEYS where training may go on) to `path`, making its folder.

    The file appears under its name only when it is complete and on the disk: whatever fails, an older one
    stays as it was; with `keep`, it is kept as `path`.1 where the new one takes its place. Raises CheckpointError
    where a key is missing, a value is neither a tensor nor plain Python, or the disk refuses.
    """
    path = Path(path)
    state = {**state, "format": FORMAT}
    _check(path, state)
    _check_plain(state, "state")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            torch.save(state, partial)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as the latter
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} could not be written ({reason}): nothing was changed there; see whether the "
                              "disk is full") from error


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu", resume: bool = False) -> dict:
    """Read what `save_checkpoint` wrote, its tensors on `map_location`; `resume` demands RESUME_KEYS too.

    The detector of another program is brought into the same form (see `foreign.as_checkpoint`; it has "layout" and
    no "format"). Raises CheckpointError where the file is missing, damaged, unsafe, of a newer format or of no
    known layout.
    """
    path = Path(path)
    state = read_tensors(path, map_location, resume)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, wanted is a dict with a detector's weights")
    if "format" not in state:
        with _named(path):
            state = foreign.as_checkpoint(state)
        if resume:
            raise CheckpointError(f"{path} was written by {state['layout']}: start from it with --load-path instead")
        return state
    _check(path, state)
    missing = [key for key in RESUME_KEYS if key not in state]
    if resume and missing:
        raise CheckpointError(f"{path} has weights but no {_names(missing)}: resume from a last.pth instead")
    return state


def load_weights(model: torch.nn.Module, checkpoint: dict, path: str | Path, reset_head: bool = False) -> None:
    """Fill `model` with the weights of a checkpoint, read from `path`; with `reset_head`, not the head's last layers.

    Raises CheckpointError where they do not fit.
    """
    weights = checkpoint["model"]
    if reset_head:
        own = model.state_dict()
        weights = weights | {name: own[name] for name in own if name.startswith(("head.cls_loc", "head.score"))}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[1:2] or [str(error)]
        raise CheckpointError(
            f"{path} does not fit the options (classes, anchors, head width): {first[0].strip()}"
        ) from None


def load_backbone(path: str | Path) -> dict:
    """Read a VGG16 classifier, of whatever program: see `foreign.as_backbone`. Raises CheckpointError as above."""
    if not Path(path).is_file():
        raise CheckpointError(f"--pretrained={path} is no file, and is none of imagenet, caffe and none")
    state = read_tensors(path)
    with _named(path):
        return foreign.as_backbone(state if isinstance(state, dict) else {})


def read_tensors(path: str | Path, map_location: str | torch.device = "cpu", keep: bool = True) -> object:
    """Read a file of torch.save, old or new, or an .npz of NumPy, without running code.

    With `keep`, the tensors stay good when the file is replaced; otherwise those that nobody uses take no memory.
    Raises CheckpointError where the file is missing, damaged, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file: name a checkpoint, such as runs/voc/last.pth")
    torch.empty(0, device=map_location)  # a device that is not here is no fault of the file
    kind = _kind(path)
    damaged = CheckpointError(f"{path} ({path.stat().st_size} bytes) is damaged, cut short, or was never a checkpoint "
                              f"(a file of torch.save, or an .npz): {offer_previous(path) or 'copy it again'}")
    if kind is None:
        raise damaged
    try:
        if kind == "npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: _tensor(arrays[name]).to(map_location) for name in arrays}
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location, weights_only=True, mmap=kind == "torch" and not keep)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        if kind == "old torch" and not name:
            raise damaged from error
        name = name[1] if name else "an unknown object"
        raise CheckpointError(
            f"{path} holds {name}, which could run code: only tensors and plain Python values are accepted"
        ) from error
    except torch.OutOfMemoryError:  # of a GPU
        raise
    except Exception as error:  # damaged bytes trip torch and NumPy in many ways
        if kind == "npz" and "allow_pickle" in str(error):
            raise CheckpointError(f"{path} holds objects, which could run code: only arrays are accepted") from error
        raise damaged from error


def offer_previous(path: str | Path) -> str:
    """What to do without the checkpoint `path`, where the one before it is whole; else nothing."""
    before = previous(path)
    if not (before.is_file() and _kind(before)):
        return ""
    return f"the one before it is whole: mv {before} {path}"


def rng_state() -> dict:
    """Return the state of torch's CPU generator and, once CUDA is in use, of one a device: uint8 tensors."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_rng_state(state: dict) -> None:
    """Put back what `rng_state` returned; devices that this machine does not have are left out."""
    torch.set_rng_state(state["cpu"].cpu())
    for device, cuda in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(cuda.cpu(), device)


def _names(keys):
    return ", ".join(map(repr, keys))


def _tensor(array):
    """An array of any byte order as a tensor."""
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


@contextlib.contextmanager
def _named(path):
    """Puts the name of the file before what is wrong with its tensors."""
    try:
        yield
    except foreign.LayoutError as error:
        raise CheckpointError(f"{path} {error}") from None


def _kind(path):
    """"torch", "old torch" (before 1.6) or "npz", each with every checksum right that it has; else None."""
    try:
        with path.open("rb") as file:
            if file.read(len(_OLD_TORCH)) == _OLD_TORCH:
                return "old torch"
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if sum(part.file_size for part in archive.infolist()) > _MOST_UNPACKED * path.stat().st_size:
                return None
            if any(name.endswith("/data.pkl") for name in names):
                return "torch" if archive.testzip() is None else None  # torch.load does not look
        return "npz" if names and all(name.endswith(".npy") for name in names) else None
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception:  # damaged bytes trip zipfile in many ways
        return None


class _NumpyType:
    """Stands for numpy.dtype when somebody's checkpoint holds a NumPy number, such as the best mAP."""

    def __init__(self, code, *_):
        self.code = code

    def __setstate__(self, state):
        pass


def _numpy_number(kind, data):
    """The plain number that a pickled NumPy number is; None for anything else."""
    return np.frombuffer(data, kind.code)[0].item() if kind.code in ("f4", "f8", "i4", "i8") else None


_STAND_INS = [(_NumpyType, "numpy.dtype"), (_numpy_number, "numpy.core.multiarray.scalar"),
              (_numpy_number, "numpy._core.multiarray.scalar")]


def _check(path, state):
    """Raise CheckpointError unless `state`, which is or will be the content of `path`, can be used."""
    found = state if isinstance(state, dict) else {}
    number = found.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise CheckpointError(f"{path} has format {number}, this version reads {FORMAT}: use a newer version")
    wanted = ("format", *KEYS)
    missing = [key for key in wanted if key not in found]
    if missing:
        holds = _names([*found][:10]) + ", ..." * (len(found) > 10) if found else f"a {type(state).__name__}"
        raise CheckpointError(
            f"{path} is no checkpoint of this library: it needs {_names(wanted)}, lacks {_names(missing)}, "
            f"and holds {holds}"
        )
    for key, kind in _KINDS.items():
        if not isinstance(found[key], kind):
            raise CheckpointError(f"{path} is no checkpoint of this library: its {key!r} is a "
                                  f"{type(found[key]).__name__}, not a {kind.__name__}")


def _check_plain(value, where):
    """Raise CheckpointError if `value` holds anything that torch.load(weights_only=True) could refuse."""
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            _check_plain(key, f"a key of {where}")
            _check_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for i, item in enumerate(value):
            _check_plain(item, f"{where}[{i}]")
    elif type(value) not in _PLAIN:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise CheckpointError(f"{where} is a {kind}: convert it to a tensor or a plain Python value")
