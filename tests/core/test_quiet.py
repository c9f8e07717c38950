"""Muted is what runs inside, and nothing that the caller had set up is lost."""

import logging
import warnings

import pytest

from lightvlm_fx.quiet import quiet


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
