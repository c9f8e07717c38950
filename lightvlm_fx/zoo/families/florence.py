"""Florence-2: an encoder-decoder."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import ENCODER_DECODER, EOS, HIDDEN, IMAGE, TEXT_IDS, pixels, span, vlm
from lightvlm_fx.zoo.recipe import Recipe


def florence2_config(layers: int) -> dict[str, Any]:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 512}
    depth = {"encoder_layers": 2, "decoder_layers": layers, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    text = {"model_type": "bart", "d_model": HIDDEN, "decoder_start_token_id": EOS} | heads | depth | TEXT_IDS
    cut = {
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
    }
    shape = {
        "depths": [1, 1],
        "embed_dim": [16, 32],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "window_size": 4,
    }
    return vlm(text, cut | shape | {"projection_dim": HIDDEN}, image_token_id=IMAGE)


FAMILIES = {
    "florence2": Recipe(
        florence2_config,
        span(37),
        pixels(48, 48),
        caveat=f"{ENCODER_DECODER}; left padding changes the answer",
    ),
}
