"""Mistral's families with a Pixtral tower, and LightOnOCR, which has it below a decoder of Qwen3."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import IMAGE, INDEXER, ROWS_SPAN, decoder, latent, sized_pixels, tower, vlm
from lightvlm_fx.zoo.recipe import Config, Recipe


def pixtral(text: dict[str, Any], **ids: Any) -> dict[str, Any]:
    """Config of a decoder and a tower whose patches are merged 2 by 2."""
    return vlm(text, tower(64, 8, "pixtral"), spatial_merge_size=2, **ids)


def mistral3_config(layers: int) -> dict[str, Any]:
    return pixtral(decoder(layers, "mistral"), image_token_index=IMAGE)


def mistral_large4_config(layers: int) -> dict[str, Any]:
    return pixtral(latent(layers, n_routed_experts=4, **INDEXER), image_token_index=IMAGE)


def lighton_config(layers: int) -> dict[str, Any]:
    return pixtral(decoder(layers, "qwen3"), image_token_id=IMAGE)


def in_rows(config: Config) -> Recipe:
    """A family whose picture is 8 x 6 patches, its rows closed by markers."""
    return Recipe(config, ROWS_SPAN, sized_pixels(64, 48))


FAMILIES = {
    "mistral3": in_rows(mistral3_config),
    "mistral_large4": in_rows(mistral_large4_config),
    "lighton_ocr": in_rows(lighton_config),
}
