"""EXAONE and HyperCLOVA X: decoders of their own below the tower of Qwen2.5-VL, which attends within windows."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import MEDIA_IDS, decoder, grid, grid_tower, no_kinds, vlm


def windowed(layers: int, text: str, **vision: Any) -> dict[str, Any]:
    """Config of a decoder of a named type and a tower with window attention."""
    return vlm(decoder(layers, text), grid_tower(window_size=32, fullatt_block_indexes=[1], **vision), **MEDIA_IDS)


FAMILIES = {
    "exaone4_5": grid(lambda n: windowed(n, "exaone4", num_key_value_heads=1), finish=no_kinds),
    "hyperclovax_vision_v2": grid(lambda n: windowed(n, "hyperclovax", model_type="qwen2_5_vl_vision"), finish=no_kinds),
}
