"""Files that are there whole or not at all."""
import contextlib
import os
import tempfile
from pathlib import Path


@contextlib.contextmanager
def replacing(path, keep=False):
    """A temporary name beside `path`; what was written there takes its place when the block ends without an error.

    With `keep`, the file that it replaces stays as `previous(path)`. At every moment `path` is the old file or the new
    one, both whole and on the disk.
    """
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix, by which some choose a format
    link = partial.with_name(f"{partial.name}.1")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # on the disk before it has the name
        if keep and path.exists():
            try:
                os.link(path, link)  # a second name: the first one stays until the new file takes it
                os.replace(link, previous(path))
            except OSError:  # a disk without such links
                os.replace(path, previous(path))
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)
        link.unlink(missing_ok=True)


def previous(path):
    """Where `replacing` keeps the file that it replaced: last.pth.1 for last.pth."""
    return Path(path).with_name(f"{Path(path).name}.1")


def remove_partial(folder):
    """Removes what a process left in `folder` that was killed while it was writing."""
    for path in Path(folder).glob(".[0-9]*.*"):
        path.unlink(missing_ok=True)


def write_text(path, text):
    """Writes `text` to `path`, in UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def check_writable(folder):
    """Raises OSError if files could not be written into `folder`, which need not be there yet; leaves no trace."""
    folder = Path(folder).absolute()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    with tempfile.TemporaryFile(dir=there) as file:
        file.write(bytes(4096))
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder):
    """Has the disk keep the names in a folder, where the system can be asked for it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
