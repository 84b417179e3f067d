"""Losses that are not finite, on whatever device; what goes wrong while images are read and trained on."""
import math
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from utils.faults import Guard, TrainingFault, all_finite, reading


class Losses(NamedTuple):
    one: torch.Tensor
    total: torch.Tensor


def losses(value):
    return Losses(torch.tensor(1.5), torch.tensor(float(value)))


def descend(values, allowed, momentum=0.9, guarded=True):
    """Takes a step for each loss, with a gradient of 1 or one like the loss; weights before each, and the guard."""
    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = torch.optim.SGD([weight], lr=0.5, momentum=momentum, fused=True)
    guard, path = Guard(allowed), []
    for value in values:
        path.append(weight.detach().clone())
        weight.grad = torch.tensor([1.0, 2.0]) if math.isfinite(value) else torch.full((2,), float(value))
        if guarded:
            guard(torch.stack(losses(value)), optimizer)
        optimizer.step()
    return torch.stack([*path, weight.detach()]), guard


@pytest.mark.parametrize("momentum", [0, 0.9])
def test_finite_losses_change_nothing(momentum):
    guarded, free = (descend([1, 2, 3], 0, momentum, guarded)[0] for guarded in (True, False))
    assert torch.equal(guarded, free)
    assert not torch.equal(guarded[2], guarded[3])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_bad_step_is_left_out_as_if_it_were_not_there(bad, momentum, at):
    values = [1.0, 2, 3]
    path, _ = descend([*values[:at], bad, *values[at:]], 1, momentum)
    assert torch.equal(path[at], path[at + 1])
    clean, _ = descend(values, 0, momentum)
    assert torch.equal(torch.cat((path[:at], path[at + 1:])), clean)


def test_after_one_too_many_the_weights_stay_as_they_were_before_it():
    path, _ = descend([1, math.nan, 1, math.nan, 1, 1], 1)
    assert torch.equal(path[3], path[6])
    assert not torch.equal(path[2], path[3])


def test_the_host_sees_what_happened_when_it_looks():
    guard = Guard(2)
    assert guard.seen(4, [7], losses(1), False) == []
    assert guard.seen(5, [8, 3], losses(math.nan), False) == []
    assert guard.n_seen == 0
    (fault,) = guard.seen(6, [2], losses(2), True)
    assert (fault.step, fault.index, fault.losses["one"]) == (5, [8, 3], 1.5)
    assert math.isnan(fault.losses["total"])
    guard.seen(7, [1], losses(math.inf), False)
    guard.seen(8, [1], losses(1), False)
    guard.seen(9, [1], losses(-math.inf), False)
    assert [fault.step for fault in guard.seen(10, [1], losses(math.nan), True)] == [7, 9]  # two were allowed
    assert guard.n_seen == 3


def test_all_finite():
    assert all_finite([torch.ones(2), torch.zeros(0)])
    assert not all_finite([torch.ones(2), torch.tensor([1.0, math.inf])])


def test_a_full_gpu_is_a_sentence_with_the_image_and_its_size():
    sample = SimpleNamespace(id="000005", img=np.zeros((375, 500, 3), np.uint8))
    with pytest.raises(TrainingFault) as caught, reading([[], [sample]]) as batches:  # noqa: PT012
        for batch in batches:
            if batch:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nand more")
    text = str(caught.value)
    assert text.startswith("the GPU's memory is full, at the image 000005 (375 x 500 pixels): take a smaller --min-")
    assert text.endswith("CUDA out of memory. Tried to allocate 2 GiB.")
    with pytest.raises(TrainingFault, match="memory is full: take"), reading(()):
        raise torch.cuda.OutOfMemoryError("x")


class Images(torch.utils.data.Dataset):
    """Sample 2 ends its process, or fails there."""

    def __init__(self, fault):
        self.fault = fault

    def __len__(self):
        return 4

    def __getitem__(self, index):
        if index == 2:
            import os
            if self.fault == "dies":
                os._exit(9)
            raise ValueError("c.jpg: cut off, copy it again")
        return index


@pytest.mark.parametrize(("fault", "error", "words"), [
    ("dies", TrainingFault, r"^a process that reads images died, .*--num-workers.*$"),
    ("fails", ValueError, r"^c\.jpg: cut off, copy it again$")])
def test_a_reading_process_that_goes_wrong_is_a_sentence(fault, error, words):
    loader = DataLoader(Images(fault), batch_size=None, num_workers=1)
    with pytest.raises(error, match=words), reading(loader) as batches:  # noqa: PT012
        for index in map(int, (batch for batch in batches)):
            assert index < 2


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match=r"^something else$"), reading([]):
        raise RuntimeError("something else")
