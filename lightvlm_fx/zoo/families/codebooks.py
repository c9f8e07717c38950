"""Families with a tower that turns a picture into entries of a codebook: Janus, Chameleon, Emu 3, Apertus."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import (
    AUDIO,
    BOI,
    BREAK,
    HIDDEN,
    IMAGE,
    ROWS_SPAN,
    VOCAB,
    decoder,
    marked,
    plain,
    sized_pixels,
    tower,
    vlm,
    without,
)
from lightvlm_fx.zoo.recipe import Recipe

CODES = 32  # entries of the codebook; their ids come after the text


def codebook(levels: int, name: str, **extra: Any) -> dict[str, Any]:
    """Config of such a tower; name is what it calls the number of its entries."""
    sizes = {
        "latent_channels": 16,
        "base_channels": 32,
        "channel_multiplier": [1] * levels,
        "num_res_blocks": 1,
    }
    return sizes | {name: CODES, "embed_dim": 16} | extra


def janus_config(layers: int) -> dict[str, Any]:
    drawn = {"num_patches": 16, "projection_dim": HIDDEN, "image_token_embed_dim": HIDDEN}
    painter = codebook(2, "num_embeddings", **drawn) | {"latent_channels": 32, "embed_dim": 8}
    vision = tower(32, 8, projection_dim=HIDDEN, num_image_tokens=16)
    return vlm(decoder(layers, "llama"), vision, vq_config=painter, image_token_id=IMAGE)


def chameleon_config(layers: int) -> dict[str, Any]:
    letters = ["".join(chr(ord("A") + int(digit)) for digit in str(code)) for code in range(CODES)]
    names = {"<image>": IMAGE} | {f"IMGIMG{word}Z": VOCAB + code for code, word in enumerate(letters)}
    coder = codebook(4, "num_embeddings", resolution=32)
    return decoder(layers) | {"vocab_size": VOCAB + CODES, "vocabulary_map": names, "vq_config": coder}


def emu3_config(layers: int) -> dict[str, Any]:
    names = {"<image>": IMAGE, "<|extra_200|>": BREAK}
    names |= {f"<|visual token {code:06d}|>": VOCAB + code for code in range(CODES)}
    small = {"hidden_size": 32, "attn_resolutions": [], "embed_dim": 4, "latent_channels": 4}
    coder = codebook(4, "codebook_size", temporal_downsample_factor=4) | small
    text = decoder(layers) | {"vocab_size": VOCAB + CODES}
    return {"text_config": text, "vq_config": coder, "vocabulary_map": names}


def apertus1p5_config(layers: int) -> dict[str, Any]:
    coder = codebook(4, "codebook_size", attn_resolutions=[])
    sizes = {"codebook_size": 8, "hidden_size": 16, "codebook_dim": 16, "num_filters": 2, "num_lstm_layers": 1}
    audio = {"model_type": "wavtokenizer_encoder"} | sizes
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = decoder(layers, rope_parameters=rope) | {"vocab_size": VOCAB + CODES + 8, "output_vocab_size": VOCAB}
    ids = {"image_token_offset": VOCAB, "audio_token_offset": VOCAB + CODES, "image_token_id": IMAGE, "audio_token_id": AUDIO}
    return vlm(without(text, "head_dim"), coder, audio_config=audio, **ids)


FAMILIES = {
    "janus": plain(janus_config, 32),
    "chameleon": plain(chameleon_config, 32),
    "emu3": Recipe(emu3_config, marked(4 * (4 + 1)), sized_pixels(32, 32)),
    "apertus1p5": Recipe(apertus1p5_config, (BOI, *ROWS_SPAN), sized_pixels(32, 24)),
}
