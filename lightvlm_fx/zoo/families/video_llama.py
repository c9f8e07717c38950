"""VideoLLaMA 3: patches merged by a size that goes with each picture."""

from __future__ import annotations

from typing import Any

import torch

from lightvlm_fx.zoo.parts import MEDIA_IDS, decoder, grid, no_kinds, tower, vlm, without


def video_llama3_config(layers: int) -> dict[str, Any]:
    return vlm(decoder(layers, "qwen2"), without(tower(64, 8), "image_size"), **MEDIA_IDS)


FAMILIES = {
    "video_llama_3": grid(video_llama3_config, 3 * 8 * 8, finish=no_kinds, image_merge_sizes=torch.tensor([2])),
}
