"""Cohere's: Aya Vision, Command A Vision, Compass."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import IMAGE, QWEN_IDS, alternate, decoder, grid, grid_tower, mrope, plain, tower, vlm


def cohere_config(layers: int, **extra: Any) -> dict[str, Any]:
    text = decoder(layers, "cohere2", sliding_window=16, sliding_window_pattern=2, logit_scale=1.0)
    return vlm(text, tower(32, 4, "siglip_vision_model"), downsample_factor=2, **extra)


def compass_config(layers: int) -> dict[str, Any]:
    kinds = alternate(layers, "sliding_attention")
    rope = {kind: mrope(4, 2, 2) for kind in ("full_attention", "sliding_attention")}
    text = decoder(layers, layer_types=kinds, sliding_window=16, rope_parameters=rope, logit_scale=1.0)
    vision = grid_tower(num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    return vlm(text, vision, tie_word_embeddings=False, **QWEN_IDS)


FAMILIES = {
    "aya_vision": plain(lambda n: cohere_config(n, image_token_index=IMAGE), 32),
    "cohere2_vision": plain(lambda n: cohere_config(n, image_token_id=IMAGE, alignment_intermediate_size=64), 32),
    "cohere_compass": grid(compass_config),
}
