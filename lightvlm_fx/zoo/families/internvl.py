"""InternVL, and Qianfan-OCR of the same shape."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import IMAGE, decoder, plain, tower, vlm


def internvl_config(layers: int, text: str) -> dict[str, Any]:
    return vlm(decoder(layers, text), tower(32, 4), image_token_id=IMAGE, image_seq_length=16)


FAMILIES = {
    "internvl": plain(lambda n: internvl_config(n, "qwen2"), 32),
    "qianfan_ocr": plain(lambda n: internvl_config(n, "qwen3"), 32),
}
