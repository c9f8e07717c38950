"""Muted is what runs inside, and nothing that the caller had set up is lost."""

import io
import logging
import sys
import warnings
from threading import Barrier, Event, Thread

import pytest

from lightvlm_fx.quiet import muted, quiet


def test_mutes_warnings_and_the_log(recwarn, caplog):
    with quiet():
        warnings.warn("a warning", stacklevel=1)
        logging.getLogger("theirs").warning("a line")
    logging.getLogger("theirs").warning("after it")
    assert not recwarn
    assert caplog.messages == ["after it"]


@pytest.mark.parametrize("disabled", [logging.NOTSET, logging.INFO, logging.CRITICAL])
def test_leaves_what_the_caller_had_disabled(disabled):
    logging.disable(disabled)
    filters = list(warnings.filters)
    try:
        with pytest.raises(ZeroDivisionError), quiet():
            _ = 1 / 0
        assert (logging.root.manager.disable, warnings.filters) == (disabled, filters)
    finally:
        logging.disable(logging.NOTSET)


def test_mutes_one_thread_and_lets_others_speak(capsys):
    before, inside, spoken = sys.stderr, Event(), Event()

    def other():
        inside.wait(9)
        print("theirs", file=sys.stderr)
        spoken.set()

    thread = Thread(target=other)
    thread.start()
    with muted("stderr"):
        with muted("stderr"):
            print("ours", file=sys.stderr)
        inside.set()
        assert spoken.wait(9)
        sys.stderr.writelines(["ours\n", "still ours\n"])
        print("to stdout")
    thread.join()
    print("after it", file=sys.stderr)
    assert sys.stderr is before
    assert tuple(capsys.readouterr()) == ("to stdout\n", "theirs\nafter it\n")


def test_the_last_of_two_threads_puts_the_stream_back(capsys):
    before, both, first_left = sys.stderr, Barrier(2), Event()

    def first():
        with muted("stderr"):
            both.wait(9)
        print("first", file=sys.stderr)
        first_left.set()

    thread = Thread(target=first)
    thread.start()
    with muted("stderr"):
        both.wait(9)
        assert first_left.wait(9)
        print("second", file=sys.stderr)
    thread.join()
    assert sys.stderr is before
    assert capsys.readouterr().err == "first\n"


def test_puts_the_stream_back_after_an_error():
    before = sys.stdout
    with pytest.raises(ZeroDivisionError), muted("stdout"):
        _ = 1 / 0
    assert sys.stdout is before


def test_leaves_a_stream_that_another_set_meanwhile(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    with muted("stderr"):
        print("nowhere", file=sys.stderr)
        sys.stderr = theirs = io.StringIO()
    assert sys.stderr is theirs
