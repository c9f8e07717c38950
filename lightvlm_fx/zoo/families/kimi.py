"""Kimi K2.5: the decoder of DeepSeek-V3."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import QWEN_IDS, grid, latent, no_kinds, tower, vlm, without


def kimi_config(layers: int) -> dict[str, Any]:
    text = latent(layers, "deepseek_v3", n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1)
    vision = without(tower(64, 8, pos_emb_height=8, pos_emb_width=8, merge_kernel_size=[2, 2]), "image_size")
    return vlm(text, vision, projection_hidden_size=32, **QWEN_IDS)


FAMILIES = {
    "kimi_k25": grid(kimi_config, 3, 8, 8, finish=no_kinds),
}
