"""Fetch and unpack VOC2007."""

import os
import socket
import tarfile
import tempfile
from collections.abc import Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets.utils import calculate_md5, check_integrity, download_url
from torchvision.datasets.voc import DATASET_YEAR_DICT

from data.voc import DataError

VOC2007 = (DATASET_YEAR_DICT["2007"], DATASET_YEAR_DICT["2007-test"])
TIMEOUT = 20.0  # seconds without a byte after which a server counts as gone


class DownloadError(DataError):
    """An archive cannot be had; the message is one sentence that says why and what to do instead."""


def download_voc2007(root: str | Path, archives: Sequence[dict] = VOC2007) -> Path:
    """Fetch the archives of VOC2007 into `root`, unpack them there and return root/VOCdevkit/VOC2007.

    `archives` are dicts of "url", "filename" and "md5". An archive that is already there and intact is not
    fetched again; a VOC2007 folder that is already there is returned as it is. The folder appears only when
    all archives are unpacked. Raises DownloadError where a server cannot be reached, a checksum is wrong, or an
    archive holds anything but plain files and folders that stay inside `root`.
    """
    root = Path(root).expanduser()
    voc = root / "VOCdevkit" / "VOC2007"
    if voc.is_dir():
        return voc
    root.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        _fetch(archive["url"], root / archive["filename"], archive["md5"])
    with tempfile.TemporaryDirectory(prefix=".unpack", dir=root) as folder:
        for archive in archives:
            _unpack(root / archive["filename"], folder)
        unpacked = Path(folder, "VOCdevkit", "VOC2007")
        if not unpacked.is_dir():
            raise DownloadError(f"the archives in {root} hold no VOCdevkit/VOC2007: they are not those of VOC2007")
        voc.parent.mkdir(exist_ok=True)
        os.replace(unpacked, voc)
    return voc


def _unpack(path, folder):
    """Put what the archive `path` holds into `folder`, and nothing anywhere else."""
    try:
        with tarfile.open(path, "r:") as archive:
            archive.extractall(folder, filter=_plain)
    except (OSError, tarfile.TarError) as error:
        raise DownloadError(f"{path} cannot be unpacked ({error}): name a copy of VOC2007 with --voc-data-dir, or use "
                            "--data=shapes") from None


def _plain(member, folder):
    """Python's filter for the data of strangers, and stricter: a data set has no links and no devices."""
    if not (member.isfile() or member.isdir()) or member.name.startswith("/"):
        raise tarfile.FilterError(f"{member.name!r} is no plain file or folder inside the data set")
    return tarfile.data_filter(member, folder)


def _fetch(url, path, md5):
    """Bring the file at `url` to `path`, unless it is there with the right checksum."""
    if check_integrity(path, md5):
        return
    partial = path.with_name(f"{path.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        with _timeout(TIMEOUT):
            download_url(url, partial.parent, partial.name)
        found = calculate_md5(partial)
        if found != md5:
            raise DownloadError(
                f"{path.name} from {url} has md5 {found} instead of {md5}, and was removed: try again, or "
                f"fetch it yourself and put it into {path.parent}"
            )
        os.replace(partial, path)
    except (OSError, HTTPException) as error:
        raise DownloadError(
            f"{url} cannot be fetched ({error}): name a copy of VOC2007 with --voc-data-dir, or use "
            "--data=shapes, which needs no download"
        ) from None
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _timeout(seconds):
    """Limit how long new sockets wait: download_url has no setting for it and would hang for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
