"""Published methods and baselines as schedules. A preset is a function from named options to a Schedule."""

from lightvlm_fx.presets.before_decoder import (
    cdpruner,
    divprune,
    dycoke,
    dynamic_vlm,
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

__all__ = [
    "PRESETS", "aircache", "cdpruner", "dart", "defaults", "divprune", "dycoke", "dynamic_vlm", "fastv", "feather", "folder", "fourier",
    "framefusion", "h2o", "hawk", "illava", "lightvlm", "look_m", "make", "meda", "meteor", "none", "pool", "prumerge", "prumerge_plus",
    "pyramiddrop", "pyramidkv", "random", "scissorhands", "score", "shortv", "snapkv", "sparsevila", "sparsevlm", "streaming_llm",
    "uniform", "v2drop", "visionzip", "vl_cache",
]  # fmt: skip
