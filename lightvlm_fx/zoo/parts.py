"""What the recipes of several kins of families are made of: ids, configs, pictures, and what a processor adds to a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from lightvlm_fx.zoo.recipe import Batch, Config, Picture, Recipe

VOCAB = 120
HIDDEN = 64
HEAD_DIM = 16

# Ids below FIRST_TEXT are special and never win the argmax of a tiny model; text is drawn from the rest.
PAD, BOS, EOS, IMAGE, BOI, EOI, VIDEO, FAKE, BREAK, GRID = range(10)
AUDIO = 15
FIRST_TEXT = 20

TEXT_IDS = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
MEDIA_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
QWEN_IDS = MEDIA_IDS | {"vision_start_token_id": BOI, "vision_end_token_id": EOI}

# caveats
ONE_PICTURE = "exactly one picture a row"
SOME_PICTURE = "no batch without a picture"
ENCODER_DECODER = "encoder-decoder: generate returns decoder ids only"


# --- configs -------------------------------------------------------------------------------------------


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The config without keys this family does not have or works out itself."""
    return {key: value for key, value in config.items() if key not in keys}


def vlm(text: dict[str, Any], vision: dict[str, Any], **extra: Any) -> dict[str, Any]:
    """Config of the whole model."""
    return {"text_config": text, "vision_config": vision} | extra


def decoder(layers: int, model_type: str | None = None, /, **extra: Any) -> dict[str, Any]:
    """Config of a decoder: 4 heads of 16, 2 key-value heads; without a type it is the family's own."""
    named = {"model_type": model_type} if model_type else {}
    shape = {
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "head_dim": HEAD_DIM,
    }
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    return named | shape | heads | TEXT_IDS | extra


def latent(layers: int, model_type: str | None = None, **extra: Any) -> dict[str, Any]:
    """Config of a decoder with latent attention and experts."""
    ranks = {"kv_lora_rank": 16, "q_lora_rank": 32, "num_key_value_heads": 4}
    dims = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    experts = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return without(decoder(layers, model_type, **ranks, **dims, **experts, **extra), "head_dim")


# An indexer that keeps every key: with fewer, eager transformers chooses others in a left-padded row.
INDEXER = {"index_topk": 512, "index_head_dim": 16, "index_n_heads": 2}


def alternate(layers: int, first: str) -> list[str]:
    """Layer types: one kind and full attention by turns, full attention last."""
    return ["full_attention" if (layers - i) % 2 else first for i in range(layers)]


def mrope(*section: int, **extra: Any) -> dict[str, Any]:
    """Rope parameters with frequencies shared out over time, height and width."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)} | extra


def tower(image: int, patch: int, model_type: str | None = None, /, **extra: Any) -> dict[str, Any]:
    """Config of a tower for square pictures: 2 layers of width 32; without a type it is the family's own."""
    named = {"model_type": model_type} if model_type else {}
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return named | shape | {"image_size": image, "patch_size": patch} | extra


def grid_tower(**extra: Any) -> dict[str, Any]:
    """Config of a tower that takes patches and a (time, height, width) grid: patches of 8, merged 2 by 2."""
    shape = {"depth": 2, "num_heads": 2, "hidden_size": 32, "intermediate_size": 48, "in_channels": 3}
    merge = {"patch_size": 8, "temporal_patch_size": 2, "spatial_merge_size": 2, "out_hidden_size": HIDDEN}
    return shape | merge | extra


def flat_tower(**extra: Any) -> dict[str, Any]:
    """Config of a tower of the other naming that takes patches and a grid."""
    return without(tower(64, 8, spatial_merge_size=2, **extra), "image_size")


# --- the ids and tensors of one picture ----------------------------------------------------------------


def span(count: int, before: Sequence[int] = (), after: Sequence[int] = ()) -> tuple[int, ...]:
    """Placeholder ids of one picture between its markers."""
    return (*before, *(IMAGE,) * count, *after)


def marked(count: int) -> tuple[int, ...]:
    """Placeholder ids of one picture between a marker of its beginning and one of its end."""
    return span(count, [BOI], [EOI])


# 4 rows of 3, each row closed by a marker
ROWS_SPAN = (IMAGE, IMAGE, IMAGE, BREAK) * 3 + (IMAGE, IMAGE, IMAGE, EOI)


def pixels(height: int, width: int, *, mask: str | None = None) -> Picture:
    """A picture as (1, 3, height, width); mask names a (1, height, width) mask of its real pixels."""

    def picture(draw: Generator) -> Batch:
        out = {"pixel_values": torch.randn(1, 3, height, width, generator=draw)}
        return out | ({mask: torch.ones(1, height, width, dtype=torch.bool)} if mask else {})

    return picture


def sized_pixels(height: int, width: int) -> Picture:
    """A picture and its size."""
    return lambda draw: pixels(height, width)(draw) | {"image_sizes": torch.tensor([[height, width]])}


def tiles(count: int, side: int, size: tuple[int, int], **fixed: Tensor) -> Picture:
    """A picture cut into tiles (the first is the whole picture, small), its own size, and fixed tensors."""

    def picture(draw: Generator) -> Batch:
        cut = torch.randn(1, count, 3, side, side, generator=draw)
        return {"pixel_values": cut, "image_sizes": torch.tensor([size])} | fixed

    return picture


def patches(height: int, width: int, *shape: int, **fixed: Tensor) -> Picture:
    """A picture as height * width patches of one shape, its (time, height, width) grid, fixed tensors."""

    def picture(draw: Generator) -> Batch:
        flat = torch.randn(height * width, *shape, generator=draw)
        return {"pixel_values": flat, "image_grid_thw": torch.tensor([[1, height, width]])} | fixed

    return picture


# --- what a processor adds to a batch ------------------------------------------------------------------


def mark(name: str, *ids: int) -> Callable[[Batch], Batch]:
    """Tensor of the batch that is 1 where a token is one of ids and 0 elsewhere."""
    return lambda batch: {name: torch.isin(batch["input_ids"], torch.tensor(ids, dtype=torch.long)).long()}


KINDS = mark("mm_token_type_ids", IMAGE)


def no_kinds(batch: Batch) -> Batch:
    return {}


def seen(batch: Batch) -> Tensor:
    """(row, token, picture): True where the picture stands at or before the token."""
    count = (batch["input_ids"] == IMAGE).cumsum(-1)[..., None]
    return (count > torch.arange(batch["pixel_values"].shape[1])) & batch["attention_mask"].bool()[..., None]


# --- recipes of one shape ------------------------------------------------------------------------------


def plain(config: Config, side: int, **extra: Any) -> Recipe:
    """A family whose picture is a square of pixels and 16 tokens between markers."""
    return Recipe(config, marked(16), pixels(side, side), **extra)


def grid(config: Config, *shape: int, finish: Callable[[Batch], Batch] = KINDS, **fixed: Tensor) -> Recipe:
    """A family whose picture is 6 x 8 patches (3 colours, 2 frames, 8 x 8 pixels) merged to 12 tokens."""
    return Recipe(config, marked(12), patches(6, 8, *(shape or (3 * 2 * 8 * 8,)), **fixed), finish)
