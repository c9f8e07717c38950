"""The bundled model, which nearly every test of the front door asks, loaded once a worker, and its graphs captured once."""

import functools

import pytest

import lightvlm_fx as lightvlm
from lightvlm_fx import bundled


@pytest.fixture(scope="session", autouse=True)
def one_bundled_model():
    """What compiles it for backend "eager" gets what `compile` would give, over shared captures (`with_schedule`)."""
    load, compiled, first = functools.cache(bundled.load), lightvlm.compile, []

    def once(model, schedule, **options):
        if model is not load()[0] or options != {"backend": "eager"}:
            return compiled(model, schedule, **options)
        first[:] = first or [compiled(model, "none", backend="eager")]
        return first[0].lightvlm.with_schedule(schedule)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundled, "load", load)
        patch.setattr(lightvlm, "compile", once)
        yield
