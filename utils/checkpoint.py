"""Checkpoints: written whole or not at all, read back without running code, and the random state they carry.

A checkpoint is one dict of tensors and plain Python values, written by torch.save.
"""

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

from utils.files import replacing

FORMAT = 1
KEYS = ("model", "build", "class_names", "preprocessing", "config", "epoch", "step")
RESUME_KEYS = ("optimizer", "rng")

_PLAIN = (torch.Tensor, torch.nn.Parameter, int, float, bool, str, type(None))


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message is one sentence that says why."""


def save_checkpoint(path: str | Path, state: dict) -> None:
    """Write `state` (with KEYS, and RESUME_KEYS where training may go on) to `path`, making its folder.

    The file appears under its name only when it is complete and on the disk: whatever fails, an older one
    stays as it was. Raises CheckpointError where a key is missing, a value is neither a tensor nor plain
    Python, or the disk refuses.
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
        raise CheckpointError(f"{path} could not be written ({reason}): nothing was changed there") from error


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu", resume: bool = False) -> dict:
    """Read what `save_checkpoint` wrote, its tensors on `map_location`; `resume` demands RESUME_KEYS too.

    Raises CheckpointError where the file is missing, damaged, unsafe, of a newer format or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file: name a checkpoint, such as runs/voc/last.pth")
    damaged = CheckpointError(f"{path} is damaged, cut short, or was never a checkpoint: copy it again")
    if not _is_whole(path):
        raise damaged
    try:
        # Mapped, tensors that nobody uses take no memory; but who resumes keeps them and replaces the file.
        state = torch.load(path, map_location, weights_only=True, mmap=not resume)
    except RuntimeError as error:
        if "PytorchStreamReader" not in str(error):  # the others are about the device
            raise
        raise damaged from error
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        name = name[1] if name else "an unknown object"
        raise CheckpointError(
            f"{path} holds {name}, which could run code: only tensors and plain Python values are accepted"
        ) from error
    _check(path, state)
    missing = [key for key in RESUME_KEYS if key not in state]
    if resume and missing:
        raise CheckpointError(f"{path} has weights but no {_names(missing)}: resume from a last.pth instead")
    return state


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


def _is_whole(path):
    """Tell whether `path` is a file of torch.save with every checksum right: torch.load does not look."""
    try:
        with zipfile.ZipFile(path) as archive:
            is_torch = any(name.endswith("/data.pkl") for name in archive.namelist())
            return is_torch and archive.testzip() is None
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception:  # damaged bytes trip zipfile in many ways
        return False


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
