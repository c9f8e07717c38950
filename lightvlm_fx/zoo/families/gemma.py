"""PaliGemma, Gemma 3 and what is made of it, Gemma 4."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from lightvlm_fx.zoo.parts import (
    AUDIO,
    BOI,
    BOS,
    ENCODER_DECODER,
    EOI,
    HEAD_DIM,
    HIDDEN,
    IMAGE,
    KINDS,
    MEDIA_IDS,
    VOCAB,
    alternate,
    decoder,
    mark,
    marked,
    pixels,
    plain,
    span,
    tower,
    vlm,
    without,
)
from lightvlm_fx.zoo.recipe import Batch, Picture, Recipe

AUDIO_START, AUDIO_END = 16, 17


def paligemma_config(layers: int) -> dict[str, Any]:
    widths = {"projection_dim": HIDDEN, "hidden_size": HIDDEN, "vocab_size": VOCAB}
    vision = tower(32, 8, "siglip_vision_model")
    return vlm(decoder(layers, "gemma"), vision, image_token_index=IMAGE, **widths)


def gemma3_config(layers: int) -> dict[str, Any]:
    kinds = alternate(layers, "sliding_attention")
    # attention is sharp (scale 1, not 1/4): after its norms a random decoder would forget what it read
    text = decoder(layers, sliding_window=16, layer_types=kinds, query_pre_attn_scalar=1)
    ids = {"image_token_index": IMAGE, "boi_token_index": BOI, "eoi_token_index": EOI}
    return vlm(text, tower(64, 8, "siglip_vision_model"), mm_tokens_per_image=16, **ids)


def t5gemma2_config(layers: int) -> dict[str, Any]:
    return {
        "encoder": gemma3_config(2),
        "decoder": gemma3_config(layers)["text_config"],
        "image_token_index": IMAGE,
    }


def decoder_start(batch: Batch) -> Batch:
    return {"decoder_input_ids": torch.full((len(batch["input_ids"]), 1), BOS)}


def gemma4_config(layers: int, vision: dict[str, Any], **text: Any) -> dict[str, Any]:
    kinds = alternate(layers, "sliding_attention")
    language = decoder(layers, sliding_window=16, layer_types=kinds, global_head_dim=HEAD_DIM, **text)
    audio = {
        "audio_config": None,
        "audio_token_id": AUDIO,
        "boa_token_id": AUDIO_START,
        "eoa_token_index": AUDIO_END,
    }
    return vlm(language, vision, boi_token_id=BOI, eoi_token_id=EOI, **MEDIA_IDS, **audio)


def gemma4_tower_config(layers: int) -> dict[str, Any]:
    heads = {"num_key_value_heads": 2, "head_dim": HEAD_DIM}
    vision = without(tower(64, 8, pooling_kernel_size=2, position_embedding_size=16, **heads), "image_size")
    return gemma4_config(layers, vision, vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=16)


def gemma4_unified_config(layers: int) -> dict[str, Any]:
    widths = {"mm_embed_dim": HIDDEN, "mm_posemb_size": 16, "output_proj_dims": HIDDEN}
    return gemma4_config(layers, {"patch_size": 8, "pooling_kernel_size": 2} | widths)


def placed(height: int, width: int, size: int) -> Picture:
    """A picture as patches in 0..1 of one size and the (x, y) place of each."""
    places = torch.tensor([[x, y] for y in range(height) for x in range(width)])

    def picture(draw: Generator) -> Batch:
        flat = torch.rand(1, height * width, size, generator=draw)
        return {"pixel_values": flat, "image_position_ids": places[None]}

    return picture


FAMILIES = {
    "paligemma": Recipe(paligemma_config, span(16), pixels(32, 32), finish=mark("token_type_ids")),
    "gemma3": plain(gemma3_config, 64, finish=mark("token_type_ids", IMAGE)),
    "shieldgemma2": plain(gemma3_config, 64, finish=mark("token_type_ids", IMAGE)),
    "t5gemma2": plain(t5gemma2_config, 64, finish=decoder_start, caveat=ENCODER_DECODER),
    "gemma4": Recipe(gemma4_tower_config, marked(12), placed(6, 8, 3 * 8 * 8), KINDS),
    "gemma4_unified": Recipe(gemma4_unified_config, marked(12), placed(3, 4, 3 * 16 * 16), KINDS),
}
