"""What can go wrong inside a training: losses that are not finite, no memory on the GPU, a reading process that dies.

G: losses of a step (four and their sum).
"""
import contextlib
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor


class TrainingFault(RuntimeError):
    """A training cannot go on; the message is one sentence that says why, where, and what to do."""


class NonFinite(NamedTuple):
    """A step whose losses were not finite."""

    step: int  # counted from 0
    index: list  # of its images in the data set
    losses: dict  # name -> number


class Guard:
    """Leaves out the updates of steps whose losses are not finite, without waiting for the device.

    The trainer calls it with the losses of each step, before the update: on the device they are counted, and
    `found_inf`, by which torch's fused optimizers are told to do nothing, is set. Once more than `allowed` were counted
    all later updates are left out, too: so whenever the host looks, with `seen`, the weights are still those with which
    that step began. Finite losses change nothing.
    """

    def __init__(self, allowed: int = 0):
        self.allowed = allowed
        self.n_seen = 0  # by the host
        self._n_bad, self._pending = None, []

    def __call__(self, losses: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Take note of (5,) losses, and tell the optimizer whether to take the next step."""
        bad = ~losses.isfinite().all()
        if self._n_bad is None:
            self._n_bad = torch.zeros_like(bad, dtype=torch.int64)
            if bad:  # the first update makes the momenta, even where it is left out: torch leaves them undefined
                for group in optimizer.param_groups:
                    for param in group["params"] * (group["momentum"] != 0):
                        optimizer.state[param].setdefault("momentum_buffer", torch.zeros_like(param))
        self._n_bad = self._n_bad + bad
        optimizer.found_inf = (bad | (self._n_bad > self.allowed)).float()

    def seen(self, step: int, index: list, losses: NamedTuple, wait: bool) -> list[NonFinite]:
        """The faults since they were last looked for, up to the first that is one too many; [] unless `wait`.

        To be called after each step, with the `losses` that the trainer returned; it waits for the device only where
        `wait` says so.
        """
        self._pending.append((step, index, losses))
        if not wait:
            return []
        totals = torch.stack([losses.total for _, _, losses in self._pending]).tolist()
        bad = [NonFinite(step, index, {name: loss.item() for name, loss in losses._asdict().items()})
               for (step, index, losses), total in zip(self._pending, totals, strict=True) if not math.isfinite(total)]
        self._pending = []
        bad = bad[:self.allowed + 1 - self.n_seen]
        self.n_seen += len(bad)
        return bad


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether all numbers in `tensors` are finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


@contextlib.contextmanager
def reading(loader: Iterable) -> Iterator[Iterator[list]]:
    """The batches of a `DataLoader`, lists of samples (img, id), for a block that trains on them.

    Raises TrainingFault for what goes wrong there: no memory on the device (names the images at work), a reading
    process that died. An error of such a process is raised as it would be without it.
    """
    at_work = []

    def noted():
        for samples in loader:
            at_work[:] = samples if isinstance(samples, list) else ()
            yield samples

    try:
        yield noted()
    except torch.OutOfMemoryError as error:
        images = ", ".join(f"{sample.id} ({sample.img.shape[0]} x {sample.img.shape[1]} pixels)" for sample in at_work)
        where = f", at the image {images}" if at_work else ""
        raise TrainingFault(
            f"the GPU's memory is full{where}: take a smaller --min-size and --max-size, "
            "--precision=bf16, fewer --n-train-pre-nms, or a smaller --head-width (images go through one by one, so "
            f"--batch-size changes nothing), or another GPU; {str(error).splitlines()[0]}") from error
    except Exception as error:
        text = str(error)
        if "DataLoader worker (pid" in text:  # torch raises it wherever the program is
            raise TrainingFault(
                "a process that reads images died, most often because the memory of the machine was full: go on "
                f"with --resume, if there is a last.pth, and fewer --num-workers (0: none); "
                f"{text.splitlines()[0]}") from error
        if "in DataLoader worker process" in text:
            raise type(error)(text.strip().splitlines()[-1].split(": ", 1)[-1]) from error
        raise
