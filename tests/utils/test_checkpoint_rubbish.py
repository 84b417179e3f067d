"""Files of weights with random damage: a `CheckpointError` or an answer, and no other exception.

In a zip file a wrong byte is found by its checksum. Somebody may have made it on purpose: so the parts of a file are
changed too and packed again, with the right checksums.
"""
import io
import time
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from utils.checkpoint import CheckpointError, load_backbone, load_checkpoint, read_tensors

SETTINGS = settings(max_examples=250, deadline=None, derandomize=True, database=None)
STATE = {"format": 1, "model": OrderedDict(weight=torch.arange(6.0).reshape(2, 3), bias=torch.tensor([7])),  # (2, 3)
         "build": {"name": "vgg16", "n_fg_class": 2}, "class_names": ["cat", "dog"], "preprocessing": (0.4, "RGB"),
         "config": {"lr": 1e-3, "pretrained": None, "resume": True}, "epoch": 3, "step": np.int64(41),
         "optimizer": {0: torch.zeros(2, 3, dtype=torch.bfloat16)}, "rng": torch.zeros(5, dtype=torch.uint8)}


def written(write):
    file = io.BytesIO()
    write(file)
    return file.getvalue()


NEW = written(lambda file: torch.save(STATE, file))
OLD = written(lambda file: torch.save(STATE, file, _use_new_zipfile_serialization=False))
NPZ = written(lambda file: np.savez(file, **{"conv/W": np.arange(6.0), "conv/b": np.array([7], ">i2")}))
# opcodes of pickle, and numbers that are too large
PIECES = st.sampled_from([bytes([code]) for code in b"(.012FGIJKLMNPQRSTUVX]abcdehijlopqrstu})\x80\x81\x85\x86\x87\x8a"]
                         + [b"", b"-", b"\xff" * 4, b"\x8a\x08" + b"\x7f" * 8, b"9" * 30, b"cos\nsystem\n"])
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 1, 2, 8]), PIECES | st.binary(max_size=4)),
                   min_size=1, max_size=3)


def changed(data, changes):
    for share, length, piece in changes:
        start = round(share * len(data))
        data = data[:start] + piece + data[start + length:]
    return data


def repacked(data, name, change):
    """A zip file with its part `name` changed; left out where `change` gives None."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {part: archive.read(part) for part in archive.namelist()}
    parts[name] = change(parts[name])

    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            for part, content in parts.items():
                if content is not None:
                    archive.writestr(part, content)

    return written(write)


def names(data):
    return zipfile.ZipFile(io.BytesIO(data)).namelist()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("rubbish") / "weights"


def check_answer(path, data):
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read in (read_tensors, load_checkpoint, load_backbone):
            start = time.process_time()
            try:
                read(path)
            except CheckpointError as error:
                assert str(error).startswith(str(path))  # noqa: PT017
            assert time.process_time() - start < 5  # of the processor: others may keep it busy


@SETTINGS
@given(st.sampled_from([NEW, OLD, OLD, NPZ]), CHANGES)
def test_mutated_bytes_give_an_answer_or_a_sentence(path, whole, changes):
    check_answer(path, changed(whole, changes))


@SETTINGS
@given(st.sampled_from([(data, name) for data in (NEW, NPZ) for name in names(data) * (4 if data is NPZ else 1)]
                       + [(NEW, name) for name in names(NEW) if name.endswith("data.pkl")] * 20), CHANGES)
def test_mutated_parts_give_an_answer_or_a_sentence(path, part, changes):
    check_answer(path, repacked(*part, lambda content: changed(content, changes)))


@pytest.mark.parametrize(("data", "name"), [(data, name) for data in (NEW, NPZ) for name in names(data)])
def test_a_part_that_is_missing(path, data, name):
    check_answer(path, repacked(data, name, lambda content: None))


VALUES = st.recursive(st.none() | st.booleans() | st.integers(-2**40, 2**40) | st.floats() | st.text(max_size=3)
                      | st.sampled_from([torch.zeros(0), torch.zeros(2, dtype=torch.cfloat), torch.eye(2).to_sparse(),
                                         torch.tensor(torch.nan)]),
                      lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner,
                                                                                  max_size=2), max_leaves=3)


@settings(SETTINGS, max_examples=100)
@given(VALUES | st.dictionaries(st.sampled_from([*STATE, "rpn.conv1.weight", "features.0.weight"]) | st.integers(),
                                VALUES))
@example({**STATE, "format": True})
def test_a_whole_file_with_any_content(path, state):
    check_answer(path, written(lambda file: torch.save(state, file)))
