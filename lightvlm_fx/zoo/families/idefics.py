"""IDEFICS by its three ways to the decoder: cross-attention, a resampler, merged patches (as SmolVLM has it)."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import FAKE, GRID, HIDDEN, IMAGE, SOME_PICTURE, decoder, pixels, seen, span, tower, vlm, without
from lightvlm_fx.zoo.recipe import Batch, Config, Recipe


def idefics_config(layers: int) -> dict[str, Any]:
    vision = without(tower(32, 8, embed_dim=32), "hidden_size")
    added = {"cross_layer_interval": min(2, layers), "alpha_initializer": "ones", "additional_vocab_size": 0}
    return decoder(layers, vision_config=vision, perceiver_config={"use_resampler": False}, **added)


def idefics_finish(batch: Batch) -> Batch:
    return {"image_attention_mask": seen(batch).long()} if "pixel_values" in batch else {}


def idefics2_config(layers: int) -> dict[str, Any]:
    queries = {
        "resampler_n_latents": 9,
        "resampler_depth": 1,
        "resampler_n_heads": 4,
        "resampler_head_dim": 16,
    }
    resampler = queries | {"hidden_size": HIDDEN, "num_key_value_heads": 2}
    return vlm(decoder(layers, "mistral"), tower(64, 8), perceiver_config=resampler, image_token_id=IMAGE)


def idefics3_config(layers: int) -> dict[str, Any]:
    return vlm(decoder(layers, "llama"), tower(64, 8), image_token_id=IMAGE, scale_factor=2)


def masked(config: Config, span: tuple[int, ...]) -> Recipe:
    """A family whose pictures lie in (row, picture) order with a mask of their real pixels."""
    return Recipe(config, span, pixels(64, 64, mask="pixel_attention_mask"), per_row=True)


FAMILIES = {
    "idefics": Recipe(  # one placeholder a picture, which reaches the decoder by cross-attention
        idefics_config,
        span(1, [FAKE], [FAKE]),
        pixels(32, 32),
        idefics_finish,
        per_row=True,
        caveat=SOME_PICTURE,
    ),
    "idefics2": masked(idefics2_config, span(9, [FAKE], [FAKE])),
    "idefics3": masked(idefics3_config, span(16, [FAKE, GRID], [FAKE])),
    "smolvlm": masked(idefics3_config, span(16, [FAKE, GRID], [FAKE])),
}
