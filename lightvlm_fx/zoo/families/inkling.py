"""Inkling 2 with a loop: some layers of its decoder run twice."""

from __future__ import annotations

from typing import Any

from lightvlm_fx.zoo.parts import BOI, HEAD_DIM, HIDDEN, IMAGE, VOCAB, decoder, flat_tower, patches, span, vlm, without
from lightvlm_fx.zoo.recipe import Recipe


def inkling2_loop_config(layers: int) -> dict[str, Any]:
    heads = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": HEAD_DIM}
    experts = {"num_experts_per_tok": 2, "n_routed_experts": 4, "moe_intermediate_size": 32}
    loop = {"loop_layer_index_start": 2, "loop_layer_index_end": 4, "loop_num_passes": 2, "loop_gate_rank": 8}
    kinds = ["hybrid" if (layers - i) % 2 else "hybrid_sliding" for i in range(layers)]
    reach = {"sliding_window_size": 16, "rel_extent": 64, "d_rel": 8, "n_layers_per_attn_res_block": 2}
    text = decoder(layers, layer_types=kinds, unpadded_vocab_size=VOCAB, **heads, **experts, **loop, **reach)
    widths = {"projection_hidden_dim": 64, "posemb_grid_size": 8, "text_hidden_size": HIDDEN}
    vision = flat_tower(model_type="inkling2_vision", **widths)
    return vlm(without(text, "intermediate_size"), vision, image_token_id=IMAGE)


FAMILIES = {
    "inkling2_loop": Recipe(inkling2_loop_config, span(12, [BOI]), patches(3, 4, 16, 16, 3)),
}
