"""The video of `lightvlm bench prefill --frames N`: a Qwen2-VL with the shape's decoder, and one video a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lightvlm_fx.errors import InputError

if TYPE_CHECKING:
    from lightvlm_fx.bench.prefill import Shape

PATCH, MERGE, TEMPORAL = 4, 2, 2  # pixels of a patch's side, patches of a token's side, pictures that become one frame
VIDEO, TEXT = 4, 10  # ids


def config(shape: Shape) -> Any:
    """Of a Qwen2-VL with this decoder and a tower that is next to nothing."""
    from transformers import Qwen2VLConfig

    half = shape.hidden // shape.heads // 2  # of a head's frequencies a quarter is for time, the rest for height and width
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [half // 4, 3 * half // 8, half - half // 4 - 3 * half // 8]}
    text = {"vocab_size": 2048, "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "max_position_embeddings": 32768,
            "rope_parameters": rope, "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}  # fmt: skip
    vision = {"depth": 1, "embed_dim": 32, "hidden_size": shape.hidden, "mlp_ratio": 1, "num_heads": 2, "in_channels": 3,
              "patch_size": PATCH, "spatial_merge_size": MERGE, "temporal_patch_size": TEMPORAL}  # fmt: skip
    return Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=3, video_token_id=VIDEO, vision_start_token_id=5,
                         vision_end_token_id=6, tie_word_embeddings=False)  # fmt: skip


def example(shape: Shape, frames: int, batch: int, text: int, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """In each row a video of so many frames, `shape.visual` tokens in all, and `text` tokens around it."""
    each, rest = divmod(shape.visual, frames)
    if rest:
        raise InputError(f"frames={frames} does not divide the shape's {shape.visual} visual tokens; give a number that does")
    rows = next(r for r in range(int(each**0.5), 0, -1) if each % r == 0)
    ids = torch.full((batch, shape.visual + text), TEXT, device=device)
    ids[:, 1 : 1 + shape.visual] = VIDEO
    pixels = torch.randn(batch * shape.visual * MERGE**2, 3 * TEMPORAL * PATCH**2, device=device, dtype=dtype)
    grid = torch.tensor([[frames, rows * MERGE, each // rows * MERGE]] * batch, device=device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values_videos": pixels, "video_grid_thw": grid,
            "mm_token_type_ids": 2 * (ids == VIDEO).long()}  # fmt: skip
