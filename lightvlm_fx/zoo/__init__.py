"""Tiny random models of every family, for tests and docs/support.md.

from lightvlm_fx import zoo
tiny = zoo.build("llava")
tiny.model.generate(**tiny.inputs(text=(7,), images=(1,)))
"""

from lightvlm_fx.zoo import more
from lightvlm_fx.zoo.tiny import (
    BOI,
    BOS,
    EOI,
    FAMILIES,
    FIRST_TEXT,
    HEAD_DIM,
    HIDDEN,
    IMAGE,
    PAD,
    VIDEO,
    TinyVLM,
    build,
    decoder,
    image_text_to_text_types,
    patches,
    redraw,
    span,
    tiles,
    tower,
    vlm,
)
