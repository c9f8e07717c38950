"""Published methods and baselines as schedules. A preset is a function from named options to a Schedule."""

from lightvlm_fx.presets.before_decoder import (
    cdpruner,
    divprune,
    dycoke,
    dynamic_vlm,
    fastvid,
    folder,
    fourier,
    framefusion,
    hawk,
    pool,
    prumerge,
    prumerge_plus,
    score,
    visionzip,
)
from lightvlm_fx.presets.caches import (
    aircache,
    h2o,
    look_m,
    meda,
    pyramidkv,
    scissorhands,
    snapkv,
    sparsevila,
    streaming_llm,
    vl_cache,
)
from lightvlm_fx.presets.in_tower import tome
from lightvlm_fx.presets.inside import (
    dart,
    fastv,
    feather,
    illava,
    meteor,
    none,
    pyramiddrop,
    random,
    shortv,
    sparsevlm,
    uniform,
    v2drop,
)
from lightvlm_fx.presets.lookup import PRESETS, defaults, make
from lightvlm_fx.presets.pyramid import lightvlm
