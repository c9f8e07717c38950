"""Step 3.7: a decoder of experts."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import IMAGE, decoder, plain, tower, vlm


def step_config(layers: int) -> dict[str, Any]:
    experts = {"moe_intermediate_size": 32, "share_expert_dim": 32, "num_local_experts": 4}
    text = decoder(layers, sliding_window=16, n_routed_experts=4, num_experts_per_tok=2, **experts)
    return vlm(text, tower(64, 4), image_token_id=IMAGE)


FAMILIES = {
    "step3p7": plain(step_config, 64),
}
