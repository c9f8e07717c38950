"""Qwen-VL from 2 to 3.5, and what is made of them with an audio tower."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import (
    AUDIO,
    HEAD_DIM,
    HIDDEN,
    IMAGE,
    QWEN_IDS,
    VIDEO,
    alternate,
    decoder,
    grid,
    grid_tower,
    mrope,
    no_kinds,
    vlm,
)

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def qwen_config(layers: int, *section: int, text: dict[str, Any] | None = None, **vision: Any) -> dict[str, Any]:
    language = decoder(layers, rope_parameters=mrope(*section), **(text or {}))
    return vlm(language, grid_tower(**vision), tie_word_embeddings=False, **QWEN_IDS)


def qwen2_vl_config(layers: int) -> dict[str, Any]:
    # in this tower embed_dim is the width and hidden_size is the width it hands to the decoder
    return qwen_config(layers, 2, 3, 3, embed_dim=32, hidden_size=HIDDEN, mlp_ratio=2)


def qwen2_5_vl_config(layers: int) -> dict[str, Any]:
    return qwen_config(layers, 2, 3, 3, window_size=32, fullatt_block_indexes=[1])


def qwen3_vl_config(layers: int, **text: Any) -> dict[str, Any]:
    return qwen_config(layers, 4, 2, 2, text=text, num_position_embeddings=64, deepstack_visual_indexes=[0, 1])


def qwen3_5_text(layers: int, **extra: Any) -> dict[str, Any]:
    """Config of a decoder of linear and full attention by turns."""
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    dims = {"linear_key_head_dim": HEAD_DIM, "linear_value_head_dim": HEAD_DIM}
    rope = mrope(2, 1, 1, partial_rotary_factor=0.5)
    kinds = alternate(layers, "linear_attention")
    return decoder(layers, rope_parameters=rope, layer_types=kinds, **heads, **dims, **extra)


def qwen3_5_config(layers: int, **text: Any) -> dict[str, Any]:
    return vlm(qwen3_5_text(layers, **text), grid_tower(num_position_embeddings=64), **QWEN_IDS)


def omni(config: dict[str, Any], **ids: Any) -> dict[str, Any]:
    """Config with an audio tower of one layer beside it."""
    shape = {"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    audio = shape | {"d_model": 32, "output_dim": HIDDEN, "max_source_positions": 32, "n_window": 4}
    return config | {"audio_config": audio | {"downsample_hidden_size": 16}} | ids


def omni2_5_config(layers: int) -> dict[str, Any]:
    return omni(qwen2_5_vl_config(layers), image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=AUDIO)


def omni3_config(layers: int) -> dict[str, Any]:
    return omni(qwen3_vl_config(layers, **EXPERTS), audio_token_id=AUDIO)


FAMILIES = {
    "qwen2_vl": grid(qwen2_vl_config),
    "qwen2_5_vl": grid(qwen2_5_vl_config),
    "qwen3_vl": grid(qwen3_vl_config),
    "qwen3_vl_moe": grid(lambda n: qwen3_vl_config(n, **EXPERTS)),
    "qwen3_5": grid(qwen3_5_config),
    "qwen3_5_moe": grid(lambda n: qwen3_5_config(n, **EXPERTS, shared_expert_intermediate_size=32)),
    "qwen2_5_omni_thinker": grid(omni2_5_config, finish=no_kinds),
    "qwen3_omni_moe_thinker": grid(omni3_config, finish=no_kinds),
}
