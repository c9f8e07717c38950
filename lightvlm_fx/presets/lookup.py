"""Presets by name, with their options checked."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError, validate_call

from lightvlm_fx.errors import ScheduleError, UnknownName, shown
from lightvlm_fx.frozen import STRICT, readable
from lightvlm_fx.presets import before_decoder, caches, in_tower, inside, pyramid
from lightvlm_fx.schedule import Schedule

FUNCTIONS: tuple[Callable[..., Schedule], ...] = (
    pyramid.lightvlm, inside.fastv, inside.pyramiddrop, inside.feather, inside.shortv, before_decoder.divprune,
    before_decoder.visionzip, before_decoder.prumerge, before_decoder.prumerge_plus, before_decoder.score, before_decoder.folder,
    before_decoder.cdpruner, before_decoder.fourier, before_decoder.pool, before_decoder.dynamic_vlm, before_decoder.dycoke,
    before_decoder.framefusion, before_decoder.fastvid, inside.dart, inside.illava, inside.v2drop, inside.sparsevlm,
    before_decoder.hawk, inside.meteor, in_tower.tome, caches.streaming_llm, caches.h2o, caches.scissorhands, caches.snapkv,
    caches.pyramidkv, caches.vl_cache, caches.look_m, caches.meda, caches.aircache, caches.sparsevila, inside.random, inside.uniform,
    inside.none,
)  # fmt: skip
PRESETS = {f.__name__.replace("_plus", "+").replace("_", "-"): f for f in FUNCTIONS}


@functools.cache
def _checked(name: str) -> Callable[..., Schedule]:
    """The preset `name`, whose options must be of the types that it is written with."""
    return validate_call(config=STRICT)(PRESETS[name])


def defaults(name: str) -> dict[str, Any]:
    """Every option of the preset `name`, and what it is where it is not given."""
    plain = {p.name: p.default for p in inspect.signature(PRESETS[name]).parameters.values() if p.kind is not p.VAR_KEYWORD}
    return plain | (pyramid.METHOD | pyramid.CACHE if name == "lightvlm" else {})


def make(name: str, /, **options: object) -> Schedule:
    """The preset `name` with `options`. Raises UnknownName for either, ScheduleError for a bad value."""
    if not isinstance(name, str) or name not in PRESETS:
        raise UnknownName.of("preset", name, PRESETS)
    known = defaults(name)
    for option, value in options.items():
        if option not in known:
            raise UnknownName.of(f"option of preset {name!r}", option, known)
        usual = known[option]
        if isinstance(usual, tuple) and not isinstance(value, tuple | list):
            raise ScheduleError(f"{name}: {option} must be a list such as {list(usual)}, got {shown(value)}")
    try:
        return _checked(name)(**options)
    except ValidationError as error:
        raise readable(error, f"a valid option of preset {name!r}", list(known)) from None
