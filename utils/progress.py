"""A line on the screen while something takes its time."""

import contextlib
from collections.abc import Iterator

from tqdm import tqdm


@contextlib.contextmanager
def working_on(what: str, shown: bool = True) -> Iterator[None]:
    """Show "`what` ..." for as long as the block runs, then wipe it away."""
    with tqdm(desc=what, bar_format="{desc} ...", leave=False, disable=not shown):
        yield
