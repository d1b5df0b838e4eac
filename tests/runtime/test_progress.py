"""What a long block says, and that a short one says nothing."""

import io
import time

import pytest

from hfgd_jax.runtime.progress import Doing, Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_quick_block_says_nothing():
    stream = io.StringIO()
    with Doing("compiling", stream=stream, seconds=1.0):
        pass
    assert stream.getvalue() == ""


def test_a_long_one_tells_how_far_it_is_ever_less_often():
    stream = io.StringIO()
    with Doing("evaluating", 10, stream=stream, seconds=0.1) as doing:
        time.sleep(0.2)
        doing(5)
        time.sleep(0.8)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "evaluating: 0/10" and lines[1] == "evaluating: 5/10, ETA 0:00"
    assert 2 <= len(lines) <= 4  # after 0.1, 0.3, 0.7 seconds


def test_a_terminal_has_one_line_which_is_removed():
    stream = Terminal()
    with Doing("compiling", stream=stream, seconds=0.05):
        time.sleep(0.3)
    assert stream.getvalue().count("\n") == 0 and stream.getvalue().startswith("\r\x1b[Kcompiling: 0:00")
    assert stream.getvalue().endswith("\r\x1b[K")


def test_the_time_left_goes_by_what_is_done():
    doing = Doing("evaluating", 100)
    doing(25)
    assert doing.line(30.0) == "evaluating: 25/100, ETA 1:30"
    assert Doing("compiling").line(3725.0) == "compiling: 1:02:05"


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_overwrites_its_line_on_terminals_alone(terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    progress = Progress(stream, seconds=1000)
    progress.seconds = 1000
    for split, total in (("train", 3), ("val", 1)):
        for done in range(1, total + 1):
            progress(f"toy {split}: {done}/{total}")
    start = "\r" if terminal else ""
    assert stream.getvalue() == f"{start}toy train: 3/3\n{start}toy val: 1/1\n"
    progress.seconds = 0
    progress("toy test: 1/2")
    assert stream.getvalue().endswith("\rtoy test: 1/2" if terminal else "toy test: 1/2\n")
