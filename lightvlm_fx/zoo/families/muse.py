"""Muse: Glimmer, and Spark with experts and an audio tower."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import AUDIO, HIDDEN, MEDIA_IDS, decoder, grid, no_kinds, tower, vlm, without


def muse_config(layers: int, text: dict[str, Any] | None = None, **extra: Any) -> dict[str, Any]:
    vision = without(tower(64, 8, pos_emb_height=8, pos_emb_width=8), "image_size")
    widths = {"out_hidden_size": 128, "projector_hidden_size": 64}
    return vlm(decoder(layers, sliding_window=16, **(text or {})), vision, **MEDIA_IDS, **widths, **extra)


def muse_spark_config(layers: int) -> dict[str, Any]:
    experts = {
        "moe_intermediate_size": 32,
        "moe_hidden_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    audio = {"out_hidden_size": HIDDEN, "hidden_sizes": [8] * 4, "depths": [1] * 4}
    return muse_config(layers, experts, audio_config=audio, audio_token_id=AUDIO)


FAMILIES = {
    "muse_glimmer": grid(muse_config, finish=no_kinds),
    "muse_spark": grid(muse_spark_config, finish=no_kinds),
}
