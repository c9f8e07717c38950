"""GOT-OCR 2, and PP-Chart2Table of the same shape: the tower of Segment Anything."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import IMAGE, decoder, plain, tower, vlm, without


def got_config(layers: int) -> dict[str, Any]:
    windows = {"output_channels": 32, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 48}
    vision = without(tower(64, 4, **windows), "intermediate_size")
    return vlm(decoder(layers, "qwen2"), vision, image_token_index=IMAGE, image_seq_length=16)


FAMILIES = {
    "got_ocr2": plain(got_config, 64),
    "pp_chart2table": plain(got_config, 64),
}
