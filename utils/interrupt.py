"""SIGINT (Ctrl-C) and SIGTERM: a training finishes its step and saves before it ends with the signal's code."""
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

from utils.dist import Team

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_KEY = 2  # seconds in which several processes may get one Ctrl-C twice: from the terminal and from torchrun


class Interrupt:
    """What signals asked for while `catch_signals` is active: to end after the step, or, in `at_once`, now."""

    def __init__(self, team: Team):
        self.team = team
        self.number: int | None = None  # of the first signal
        self._since, self._holds = 0.0, True

    def _receive(self, number, frame):
        now = time.monotonic()
        if self.number is None:
            self.number, self._since = number, now
            if not self._holds:
                self._exit()
            # print could be entered a second time here
            os.write(2, b"\nfinishing the step, then saving; the same again ends at once, without saving\n")
        elif self.team.size == 1 or now - self._since > _ONE_KEY:
            os._exit(128 + number)

    def asked(self, may_wait: bool = True) -> bool:
        """Whether to end after this step.

        Several processes agree on it, which waits for the device: they do so only in calls with `may_wait`, in which
        all must come together.
        """
        if self.team.size == 1:
            return self.number is not None
        return may_wait and self.team.any(self.number is not None)

    def leave(self) -> None:
        """End with the signal's code, 130 or 143, if one was received in any process; all must come here."""
        if self.team.any(self.number is not None):
            self.team.wait()  # the first process has saved; torchrun ends the others as soon as one has ended
            self._exit()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In this block nothing is to be saved: the first signal ends it."""
        self._holds = False
        try:
            if self.number is not None:
                self._exit()
            yield
        finally:
            self._holds = True

    def _exit(self):
        number = self.number or signal.SIGTERM
        os.write(2, f"\nended by {signal.Signals(number).name}: --resume goes on\n".encode())
        sys.exit(128 + number)


@contextlib.contextmanager
def catch_signals(team: Team) -> Iterator[Interrupt]:
    """Take SIGINT and SIGTERM from here on; what they did before comes back at the end of the block."""
    interrupt = Interrupt(team)
    if threading.current_thread() is not threading.main_thread():  # Python lets only that one
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt._receive) for number in _SIGNALS}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals(*_) -> None:
    """For processes that read images: signals often go to them, too, and the training still needs them."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
