"""Ovis 2: a tower that answers with shares of a visual vocabulary."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import BOI, BREAK, EOI, FAKE, GRID, HIDDEN, IMAGE, VOCAB, decoder, pixels, span, tower, vlm
from lightvlm_fx.zoo.recipe import Recipe

INDICATORS = (BOI, EOI, BREAK, FAKE, GRID)


def ovis2_config(layers: int) -> dict[str, Any]:
    vision = tower(32, 4, hidden_stride=2, vocab_size=48, num_visual_indicator_tokens=len(INDICATORS))
    ids = {"image_token_id": IMAGE, "visual_indicator_token_ids": list(INDICATORS)}
    return vlm(decoder(layers, "qwen2"), vision, vocab_size=VOCAB, hidden_size=HIDDEN, **ids)


FAMILIES = {
    "ovis2": Recipe(ovis2_config, span(16, [BOI], [GRID, EOI]), pixels(32, 32)),
}
