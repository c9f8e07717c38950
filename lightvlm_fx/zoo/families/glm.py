"""GLM-4V and its successors, which share one shape."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import BOI, EOI, MEDIA_IDS, decoder, grid, grid_tower, mrope, vlm

IDS = MEDIA_IDS | {"image_start_token_id": BOI, "image_end_token_id": EOI}
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def glm4v_config(layers: int, **text: Any) -> dict[str, Any]:
    language = decoder(layers, rope_parameters=mrope(1, 1, 2, partial_rotary_factor=0.5), **text)
    return vlm(language, grid_tower(image_size=64), tie_word_embeddings=False, **IDS)


FAMILIES = {
    "glm4v": grid(glm4v_config),
    "glm4v_moe": grid(lambda n: glm4v_config(n, **EXPERTS)),
    "glm46v": grid(glm4v_config),
    "glmga": grid(glm4v_config),
    "glm_ocr": grid(glm4v_config),
}
