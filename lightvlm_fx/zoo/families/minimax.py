"""MiniMax M3 VL: a decoder of experts."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import IMAGE, VIDEO, decoder, grid, no_kinds, tower, vlm


def minimax_config(layers: int) -> dict[str, Any]:
    experts = {"num_experts_per_tok": 2, "num_local_experts": 4, "dense_intermediate_size": 96}
    text = decoder(layers, shared_intermediate_size=32, rotary_dim=8, **experts)
    vision = tower(64, 8, temporal_patch_size=2, spatial_merge_size=2)
    return vlm(text, vision, image_token_index=IMAGE, video_token_index=VIDEO, projector_hidden_size=64)


FAMILIES = {
    "minimax_m3_vl": grid(minimax_config, finish=no_kinds),
}
