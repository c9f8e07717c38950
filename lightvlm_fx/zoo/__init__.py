"""Tiny random models of every family, for tests and docs/support.md.

from lightvlm_fx import zoo
tiny = zoo.build("llava")
tiny.model.generate(**tiny.inputs(text=(7,), images=(1,)))
"""

from lightvlm_fx.zoo.families import FAMILIES
from lightvlm_fx.zoo.model import TinyVLM, build, image_text_to_text_types, redraw
from lightvlm_fx.zoo.parts import (
    BOI,
    BOS,
    EOI,
    FIRST_TEXT,
    HEAD_DIM,
    HIDDEN,
    IMAGE,
    PAD,
    VIDEO,
    decoder,
    patches,
    span,
    tiles,
    tower,
    vlm,
)
from lightvlm_fx.zoo.untried import NO_RECIPE
