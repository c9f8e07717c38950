"""Cosmos 3: Omni has the shape of Qwen3-VL, Edge a decoder and a tower of its own."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.families.qwen import qwen3_vl_config
from lightvlm_fx.zoo.parts import QWEN_IDS, decoder, flat_tower, grid, mrope, vlm


def cosmos_edge_config(layers: int) -> dict[str, Any]:
    text = decoder(layers, rope_parameters=mrope(4, 2, 2))
    return vlm(text, flat_tower(num_patches=64), projector_hidden_size=64, **QWEN_IDS)


FAMILIES = {
    "cosmos3_edge": grid(cosmos_edge_config, 3 * 8 * 8),
    "cosmos3_omni": grid(qwen3_vl_config),
}
