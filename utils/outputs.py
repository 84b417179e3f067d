"""Files that a command is asked to write: refused before the work, and one sentence if it fails after all."""
import contextlib
from pathlib import Path

from utils.config import OptionError
from utils.files import check_writable, write_text


def check_outputs(*paths):
    """Makes the folders of the files that a command will write; None is passed over.

    Raises OptionError for a file that could not be written, before hours are spent on what belongs into it.
    """
    for path in filter(None, paths):
        with writing(path):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if Path(path).is_dir():
                raise IsADirectoryError(0, "it is a folder")
            check_writable(Path(path).parent)


def write_output(path, text):
    """Writes `text` to `path`, whole or not at all; raises OptionError where that fails."""
    with writing(path):
        write_text(path, text)


@contextlib.contextmanager
def writing(path):
    """A block that writes `path`; what the disk refuses is raised as OptionError."""
    try:
        yield
    except OSError as error:
        raise OptionError(f"{path} cannot be written ({error.strerror or error}): make room, mend the permissions, or "
                          "choose another place") from None
