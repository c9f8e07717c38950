"""The bundled model, which nearly every test of the front door asks, loaded once a worker, and its graphs captured once."""

import functools

import pytest

import lightvlm_fx as lightvlm
from lightvlm_fx import bundled

LOAD, COMPILE = functools.cache(bundled.load), lightvlm.compile


@functools.cache
def captured():
    return COMPILE(LOAD()[0], "none", backend="eager")


@pytest.fixture(scope="module", autouse=True)  # no longer: tests of other folders run in the same worker
def one_bundled_model():
    """What compiles it for backend "eager" gets what `compile` would give, over shared captures (`with_schedule`)."""

    def once(model, schedule, **options):
        if model is not LOAD()[0] or options != {"backend": "eager"}:
            return COMPILE(model, schedule, **options)
        return captured().lightvlm.with_schedule(schedule)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "load", LOAD)
        patch.setattr(lightvlm, "compile", once)
        yield
