"""Signals, as a process of its own gets them; teams; what is put back."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.dist import ALONE, Team
from utils.interrupt import Interrupt, catch_signals, ignore_signals

ROOT = Path(__file__).parents[2]
LOOP = """
import signal, sys, time
from utils.dist import ALONE
from utils.interrupt import catch_signals
with catch_signals(ALONE) as interrupt:
    print("ready", flush=True)
    for step in range(60):
        time.sleep(float(sys.argv[1]))
        if interrupt.asked():
            break
    print("saved", flush=True)
    interrupt.leave()
    print("not reached", flush=True)
"""
AT_ONCE = LOOP.replace("    for step", "    with interrupt.at_once():\n        time.sleep(30)\n    for step")


def run(code, step=0.1):
    process = subprocess.Popen([sys.executable, "-c", code, str(step)], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_lets_the_step_end_and_the_second_does_not(number, code):
    slow, patient, evaluating = run(LOOP, 30), run(LOOP), run(AT_ONCE)
    for process in (slow, patient, evaluating):
        process.send_signal(number)
    out, err = patient.communicate(timeout=20)
    assert (out, patient.returncode) == ("saved\n", code)
    assert "finishing the step" in err
    assert err.endswith(f"ended by {number.name}: --resume goes on\n")
    assert evaluating.communicate(timeout=20)[0] == ""
    assert evaluating.returncode == code
    time.sleep(0.3)
    assert slow.poll() is None
    slow.send_signal(number)
    assert slow.communicate(timeout=20)[0] == ""
    assert slow.returncode == code


def test_what_signals_did_before_comes_back():
    before = signal.getsignal(signal.SIGINT)
    with catch_signals(ALONE):
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_team_agrees_where_it_may_wait_and_one_key_counts_once(monkeypatch):
    asked, ended = [], []
    monkeypatch.setattr(Team, "any", lambda team, flag: asked.append(flag) or True)
    monkeypatch.setattr(os, "_exit", ended.append)
    interrupt = Interrupt(Team(1, 2))
    assert not interrupt.asked(False)
    assert interrupt.asked(True)  # another process was asked to end
    assert asked == [False]
    interrupt._receive(signal.SIGINT, None)
    interrupt._receive(signal.SIGINT, None)  # torchrun passes on what the terminal has sent to all
    assert not ended
    interrupt._since -= 3
    interrupt._receive(signal.SIGINT, None)
    assert ended == [130]


def test_a_block_where_nothing_is_to_be_saved_is_not_begun_after_a_signal():
    interrupt = Interrupt(ALONE)
    with interrupt.at_once():
        pass
    interrupt._receive(signal.SIGTERM, None)  # after such a block a step is finished again
    begun = []
    with pytest.raises(SystemExit) as caught, interrupt.at_once():
        begun.append(1)
    assert (caught.value.code, begun) == (143, [])


def test_readers_do_not_hear_what_is_meant_for_the_training():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ignore_signals(0)
        assert [signal.getsignal(number) for number in before] == [signal.SIG_IGN] * 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
