"""Files that are there whole or not at all."""
import contextlib
import os
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """A temporary name beside `path`; what was written there takes its place when the block ends without an error."""
    path = Path(path)
    partial = path.with_name(f".{os.getpid()}.{path.name}")  # keeps the suffix, by which some choose a format
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # on the disk before it has the name
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path, text):
    """Writes `text` to `path`, in UTF-8."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
