"""BLIP, and BLIP-2 and InstructBLIP with query tokens between tower and decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator

from lightvlm_fx.zoo.parts import EOS, HIDDEN, IMAGE, ONE_PICTURE, PAD, SOME_PICTURE, VOCAB, decoder, pixels, span, tower, vlm, without
from lightvlm_fx.zoo.recipe import Batch, Recipe


def blip_config(layers: int) -> dict[str, Any]:
    text = decoder(layers, encoder_hidden_size=32, is_decoder=True) | {"sep_token_id": EOS}
    return vlm(text, tower(32, 8))


def blip2_config(layers: int, **ids: Any) -> dict[str, Any]:
    text = decoder(layers, "opt", word_embed_proj_dim=HIDDEN, ffn_dim=96)
    bridge = without(tower(0, 0, encoder_hidden_size=32, vocab_size=VOCAB), "image_size", "patch_size")
    return vlm(text, tower(32, 8), qformer_config=bridge, num_query_tokens=9, **ids)


def video_picture(draw: Generator) -> Batch:
    return {"pixel_values": torch.randn(1, 4, 3, 32, 32, generator=draw)}


def qformer_text(batch: Batch) -> Batch:
    """The text alone, right-padded, as the second tokenizer gives it."""
    is_text = (batch["input_ids"] != IMAGE) & batch["attention_mask"].bool()
    rows = [ids[keep] for ids, keep in zip(batch["input_ids"], is_text, strict=True)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "qformer_input_ids": ids,
        "qformer_attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
    }


FAMILIES = {
    "blip": Recipe(blip_config, (), pixels(32, 32), caveat=f"{ONE_PICTURE}; no output embeddings"),
    "blip-2": Recipe(lambda n: blip2_config(n, image_token_index=IMAGE), span(9), pixels(32, 32), caveat=SOME_PICTURE),
    "instructblip": Recipe(
        lambda n: blip2_config(n, image_token_index=IMAGE),
        span(9),
        pixels(32, 32),
        qformer_text,
        caveat=ONE_PICTURE,
    ),
    "instructblipvideo": Recipe(
        lambda n: blip2_config(n, video_token_index=IMAGE),
        span(4 * 9),
        video_picture,
        qformer_text,
        caveat=f"a picture is a video of 4 frames; {ONE_PICTURE}",
    ),
}
