"""Further families for `lightvlm_fx.zoo`, to see that the compiler takes them or refuses them with a reason.

They build, run and generate. Where eager transformers itself falls short of what the families of `tiny` do
(one picture a row, left padding that changes the answer, ...), the row says so in `caveat`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from lightvlm_fx.zoo.tiny import (
    BOI,
    BOS,
    BREAK,
    EOI,
    EOS,
    EXPERTS,
    FAKE,
    FAMILIES,
    HEAD_DIM,
    HIDDEN,
    IMAGE,
    KINDS,
    PAD,
    QWEN_IDS,
    ROWS_SPAN,
    VIDEO,
    VOCAB,
    Batch,
    Config,
    Picture,
    Recipe,
    alternate,
    decoder,
    gemma3_config,
    glm4v_config,
    grid,
    grid_tower,
    mark,
    mrope,
    patches,
    pixels,
    qwen3_vl_config,
    qwen_config,
    sized_pixels,
    span,
    tiled,
    tiled_config,
    tiles,
    tower,
    vlm,
)

MARKED_16 = span(16, [BOI], [EOI])
MEDIA_IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO}
OWN_IDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS, "vocab_size": VOCAB}
AUDIO, AUDIO_START, AUDIO_END = 15, 16, 17
CODES = 32  # codebook entries of a discrete tower; their ids come after the text
NO_SIZE = ("image_size",)

ONE_PICTURE = "exactly one picture a row"
SOME_PICTURE = "no batch without a picture"
ENCODER_DECODER = "encoder-decoder: generate returns decoder ids only"


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The config without keys this family does not have or works out itself."""
    return {key: value for key, value in config.items() if key not in keys}


# --- one tower, one decoder ----------------------------------------------------------------------------


def simple_config(layers: int, text: str, vision: dict[str, Any], **extra: Any) -> dict[str, Any]:
    """Config of a decoder of a named type and a tower."""
    return vlm(decoder(layers, text), vision, **extra)


def cohere_config(layers: int, **extra: Any) -> dict[str, Any]:
    text = decoder(layers, "cohere2", sliding_window=16, sliding_window_pattern=2, logit_scale=1.0)
    return vlm(text, tower(32, 4, "siglip_vision_model"), downsample_factor=2, **extra)


def idefics2_config(layers: int) -> dict[str, Any]:
    queries = {
        "resampler_n_latents": 9,
        "resampler_depth": 1,
        "resampler_n_heads": 4,
        "resampler_head_dim": 16,
    }
    resampler = queries | {"hidden_size": HIDDEN, "num_key_value_heads": 2}
    return vlm(decoder(layers, "mistral"), tower(64, 8), perceiver_config=resampler, image_token_id=IMAGE)


def got_config(layers: int) -> dict[str, Any]:
    windows = {"output_channels": 32, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 48}
    vision = without(tower(64, 4, **windows), "intermediate_size")
    return simple_config(layers, "qwen2", vision, image_token_index=IMAGE, image_seq_length=16)


def deepseek_hybrid_config(layers: int) -> dict[str, Any]:
    windows = {"output_channels": 16, "window_size": 4, "global_attn_indexes": [1], "mlp_dim": 48}
    high = without(tower(64, 8, "sam_vision_model", **windows), "intermediate_size")
    low = tower(32, 8, "siglip_vision_model")
    return simple_config(layers, "llama", low, high_res_vision_config=high, image_token_id=IMAGE)


def llama4_config(layers: int) -> dict[str, Any]:
    experts = {"intermediate_size_mlp": 96, "num_local_experts": 4, "num_experts_per_tok": 1}
    text = decoder(layers, attention_chunk_size=64, no_rope_layer_interval=2, **experts)
    widths = {"projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}
    vision = tower(32, 4, **widths, intermediate_size=128)  # 128: four shuffled patches of 32
    return vlm(text, vision, image_token_index=IMAGE, boi_token_index=BOI, eoi_token_index=EOI)


def lfm2_config(layers: int) -> dict[str, Any]:
    text = decoder(layers, "lfm2", layer_types=alternate(layers, "conv"), block_ff_dim=96)
    vision = tower(64, 8, "siglip2_vision_model", num_patches=64, vision_use_head=False)
    return vlm(text, without(vision, *NO_SIZE), image_token_id=IMAGE, projector_hidden_size=64)


def granite_docling_config(layers: int) -> dict[str, Any]:
    scales = {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0}
    text = decoder(layers, attention_multiplier=0.25, **scales)
    vision = tower(64, 8, out_hidden_size=HIDDEN, scale_factor=2, use_fine_route=False)
    return vlm(text, vision, image_token_id=IMAGE, pad_token_id=PAD)


def granite4_config(layers: int) -> dict[str, Any]:
    bridge = {"vocab_size": VOCAB, "num_hidden_layers": 1, "intermediate_size": 48}
    vision = tower(32, 8, "clip_vision_model", hidden_size=64, projection_dim=32)
    inserted = {"deepstack_layer_map": [[-2, 0], [-1, 1]], "spatial_target_layers": [1, 2, 3, 3]}
    ids = {"image_token_index": IMAGE, "image_grid_pinpoints": [[64, 32], [32, 64], [64, 64]]}
    text = decoder(layers, attention_multiplier=0.25)
    return vlm(text, vision, qformer_config=bridge, downsample_rate="2/4", **inserted, **ids)


def mistral_large4_config(layers: int) -> dict[str, Any]:
    # the indexer keeps every key: with fewer, eager transformers chooses others in a left-padded row
    text = latent(layers, n_routed_experts=4, index_topk=512, index_head_dim=16, index_n_heads=2)
    return vlm(text, tower(64, 8, "pixtral"), image_token_index=IMAGE, spatial_merge_size=2)


def step_config(layers: int) -> dict[str, Any]:
    experts = {"moe_intermediate_size": 32, "share_expert_dim": 32, "num_local_experts": 4}
    text = decoder(layers, sliding_window=16, n_routed_experts=4, num_experts_per_tok=2, **experts)
    return vlm(text, tower(64, 4), image_token_id=IMAGE)


def molmo2_config(layers: int) -> dict[str, Any]:
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 32}
    text = decoder(layers, additional_vocab_size=8)
    vision = tower(48, 8, **heads, num_position_embeddings=36) | {"image_size": [48, 48]}
    adapter = heads | {"vision_feature_layer": [-1, -2], "intermediate_size": 48, "text_hidden_size": HIDDEN}
    frames = {"frame_start_token_id": 11, "frame_end_token_id": 12}
    ids = {"image_patch_id": IMAGE, "image_start_token_id": BOI, "image_end_token_id": EOI}
    return vlm(text, vision, adapter_config=adapter, low_res_image_start_token_id=10, **ids, **frames)


def latent(layers: int, model_type: str | None = None, **extra: Any) -> dict[str, Any]:
    """Config of a decoder with latent attention and experts."""
    ranks = {"kv_lora_rank": 16, "q_lora_rank": 32, "num_key_value_heads": 4}
    dims = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    experts = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
    return without(decoder(layers, model_type, **ranks, **dims, **experts, **extra), "head_dim")


# --- patches with a grid -------------------------------------------------------------------------------


def windowed(layers: int, text: str, model_type: str | None = None, **vision: Any) -> dict[str, Any]:
    """Config of a decoder of a named type and a tower with window attention."""
    named = {"model_type": model_type} if model_type else {}
    tower_config = grid_tower(window_size=32, fullatt_block_indexes=[1], **vision)
    return vlm(decoder(layers, text), tower_config | named, **MEDIA_IDS)


def flat_tower(**extra: Any) -> dict[str, Any]:
    """Config of a tower of the other naming that takes patches and a grid."""
    return without(tower(64, 8, spatial_merge_size=2, **extra), *NO_SIZE)


def hy_v4_config(layers: int) -> dict[str, Any]:
    # as in mistral_large4, the indexer keeps every key
    text = latent(layers, n_routed_experts=4, rope_parameters=mrope(2, 1, 1), index_topk=512, index_head_dim=16, index_n_heads=2)
    return vlm(text, flat_tower(out_hidden_size=HIDDEN, max_image_size=64), **MEDIA_IDS)


def inkling2_loop_config(layers: int) -> dict[str, Any]:
    heads = {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": HEAD_DIM}
    experts = {"num_experts_per_tok": 2, "n_routed_experts": 4, "moe_intermediate_size": 32}
    loop = {"loop_layer_index_start": 2, "loop_layer_index_end": 4, "loop_num_passes": 2, "loop_gate_rank": 8}
    kinds = ["hybrid" if (layers - i) % 2 else "hybrid_sliding" for i in range(layers)]
    reach = {"sliding_window_size": 16, "rel_extent": 64, "d_rel": 8, "n_layers_per_attn_res_block": 2}
    text = decoder(layers, layer_types=kinds, unpadded_vocab_size=VOCAB, **heads, **experts, **loop, **reach)
    vision = flat_tower(projection_hidden_dim=64, posemb_grid_size=8, text_hidden_size=HIDDEN, model_type="inkling2_vision")
    return vlm(without(text, "intermediate_size"), vision, image_token_id=IMAGE)


def compass_config(layers: int) -> dict[str, Any]:
    kinds = alternate(layers, "sliding_attention")
    rope = {kind: mrope(4, 2, 2) for kind in ("full_attention", "sliding_attention")}
    text = decoder(layers, layer_types=kinds, sliding_window=16, rope_parameters=rope, logit_scale=1.0)
    vision = grid_tower(num_position_embeddings=64, deepstack_visual_indexes=[0, 1])
    return vlm(text, vision, tie_word_embeddings=False, **QWEN_IDS)


def qwen3_5_text(layers: int, **extra: Any) -> dict[str, Any]:
    """Config of a decoder of linear and full attention by turns."""
    heads = {"linear_num_key_heads": 2, "linear_num_value_heads": 4}
    dims = {"linear_key_head_dim": HEAD_DIM, "linear_value_head_dim": HEAD_DIM}
    rope = mrope(2, 1, 1, partial_rotary_factor=0.5)
    kinds = alternate(layers, "linear_attention")
    return decoder(layers, rope_parameters=rope, layer_types=kinds, **heads, **dims, **extra)


def qwen3_5_config(layers: int, **text: Any) -> dict[str, Any]:
    return vlm(qwen3_5_text(layers, **text), grid_tower(num_position_embeddings=64), **QWEN_IDS)


def minicpm_config(layers: int, **extra: Any) -> dict[str, Any]:
    text = qwen3_5_text(layers, model_type="qwen3_5_text")
    vision = tower(64, 8, insert_layer_id=1, window_kernel_size=[2, 2])
    return vlm(text, vision, insert_layer_id=1, **MEDIA_IDS, **extra)


def minicpm4_7_config(layers: int) -> dict[str, Any]:
    slices = {"slice_start_id": 10, "slice_end_id": 11, "newline_id": BREAK}
    return minicpm_config(layers, image_size=64, image_start_id=BOI, image_end_id=EOI, **slices)


def paddle_config(layers: int) -> dict[str, Any]:
    return vlm(decoder(layers, rope_parameters=mrope(2, 3, 3)), tower(64, 8), **QWEN_IDS)


def kimi_config(layers: int) -> dict[str, Any]:
    text = latent(layers, "deepseek_v3", n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1)
    vision = without(tower(64, 8, pos_emb_height=8, pos_emb_width=8, merge_kernel_size=[2, 2]), *NO_SIZE)
    return vlm(text, vision, projection_hidden_size=32, **QWEN_IDS)


def ernie_config(layers: int) -> dict[str, Any]:
    experts = {
        "moe_intermediate_size": [32, 32],
        "moe_k": 2,
        "moe_num_experts": 4,
        "moe_num_shared_experts": 1,
    }
    kinds = ["sparse" if i else "dense" for i in range(layers)]
    text = decoder(layers, rope_parameters=mrope(3, 3, 2), mlp_layer_types=kinds, **experts)
    vision = without(grid_tower(temporal_merge_size=2), "temporal_patch_size", "out_hidden_size")
    videos = {"video_start_token_id": 10, "video_end_token_id": 11}
    return vlm(text, vision, image_start_token_id=BOI, image_end_token_id=EOI, **MEDIA_IDS, **videos)


def hunyuan_config(layers: int) -> dict[str, Any]:
    sizes = {"max_image_size": 64, "min_image_size": 32, "img_max_token_num": 64}
    vision = flat_tower(out_hidden_size=HIDDEN, text_hidden_size=HIDDEN, temporal_patch_size=1, **sizes)
    ids = {"image_token_id": IMAGE, "im_start_id": BOI, "im_end_id": EOI, "im_newline_id": BREAK}
    return vlm(decoder(layers, rope_parameters=mrope(2, 2, 2, 2)), vision, **ids)


def lfm3_config(layers: int) -> dict[str, Any]:
    text = decoder(layers, "lfm3", layer_types=alternate(layers, "conv"), sliding_window=16)
    vision = flat_tower(num_key_value_heads=1, temporal_patch_size=2)
    return vlm(text, vision, projector_hidden_size=64, **QWEN_IDS)


def cosmos_edge_config(layers: int) -> dict[str, Any]:
    text = decoder(layers, rope_parameters=mrope(4, 2, 2))
    return vlm(text, flat_tower(num_patches=64), projector_hidden_size=64, **QWEN_IDS)


def minimax_config(layers: int) -> dict[str, Any]:
    experts = {"num_experts_per_tok": 2, "num_local_experts": 4, "dense_intermediate_size": 96}
    text = decoder(layers, shared_intermediate_size=32, rotary_dim=8, **experts)
    vision = tower(64, 8, temporal_patch_size=2, spatial_merge_size=2)
    return vlm(text, vision, image_token_index=IMAGE, video_token_index=VIDEO, projector_hidden_size=64)


def muse_config(layers: int, text: dict[str, Any] | None = None, **extra: Any) -> dict[str, Any]:
    vision = without(tower(64, 8, pos_emb_height=8, pos_emb_width=8), *NO_SIZE)
    widths = {"out_hidden_size": 128, "projector_hidden_size": 64}
    return vlm(decoder(layers, sliding_window=16, **(text or {})), vision, **MEDIA_IDS, **widths, **extra)


def muse_spark_config(layers: int) -> dict[str, Any]:
    experts = {
        "moe_intermediate_size": 32,
        "moe_hidden_size": 32,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
    }
    audio = {"out_hidden_size": HIDDEN, "hidden_sizes": [8] * 4, "depths": [1] * 4}
    return muse_config(layers, experts, audio_config=audio, audio_token_id=AUDIO)


def gemma4_config(layers: int, vision: dict[str, Any], **text: Any) -> dict[str, Any]:
    kinds = alternate(layers, "sliding_attention")
    language = decoder(layers, sliding_window=16, layer_types=kinds, global_head_dim=HEAD_DIM, **text)
    audio = {
        "audio_config": None,
        "audio_token_id": AUDIO,
        "boa_token_id": AUDIO_START,
        "eoa_token_index": AUDIO_END,
    }
    return vlm(language, vision, boi_token_id=BOI, eoi_token_id=EOI, **MEDIA_IDS, **audio)


def gemma4_tower_config(layers: int) -> dict[str, Any]:
    heads = {"num_key_value_heads": 2, "head_dim": HEAD_DIM}
    vision = without(tower(64, 8, pooling_kernel_size=2, position_embedding_size=16, **heads), *NO_SIZE)
    return gemma4_config(layers, vision, vocab_size_per_layer_input=VOCAB, hidden_size_per_layer_input=16)


def gemma4_unified_config(layers: int) -> dict[str, Any]:
    widths = {"mm_embed_dim": HIDDEN, "mm_posemb_size": 16, "output_proj_dims": HIDDEN}
    return gemma4_config(layers, {"patch_size": 8, "pooling_kernel_size": 2} | widths)


def omni(config: dict[str, Any], **ids: Any) -> dict[str, Any]:
    """Config with an audio tower of one layer beside it."""
    shape = {"num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
    audio = shape | {"d_model": 32, "output_dim": HIDDEN, "max_source_positions": 32, "n_window": 4}
    return config | {"audio_config": audio | {"downsample_hidden_size": 16}} | ids


def omni2_5_config(layers: int) -> dict[str, Any]:
    config = qwen_config(layers, 2, 3, 3, window_size=32, fullatt_block_indexes=[1])
    return omni(config, image_token_index=IMAGE, video_token_index=VIDEO, audio_token_index=AUDIO)


# --- other shapes of model -----------------------------------------------------------------------------


def codebook(levels: int, name: str, **extra: Any) -> dict[str, Any]:
    """Config of a tower that turns a picture into codebook entries."""
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
    return simple_config(layers, "llama", vision, vq_config=painter, image_token_id=IMAGE)


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
    small = {"base_channels": 32, "channel_multiplier": [1] * 4, "num_res_blocks": 1, "attn_resolutions": []}
    coder = small | {"codebook_size": CODES, "embed_dim": 16, "latent_channels": 16}
    audio = {"codebook_size": 8, "hidden_size": 16, "codebook_dim": 16, "num_filters": 2, "num_lstm_layers": 1}
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = decoder(layers, rope_parameters=rope) | {"vocab_size": VOCAB + CODES + 8, "output_vocab_size": VOCAB}
    ids = {"image_token_offset": VOCAB, "audio_token_offset": VOCAB + CODES, "image_token_id": IMAGE, "audio_token_id": AUDIO}
    return vlm(without(text, "head_dim"), coder, audio_config={"model_type": "wavtokenizer_encoder"} | audio, **ids)


def fuyu_config(layers: int) -> dict[str, Any]:
    return {
        "text_config": decoder(layers, "persimmon"),
        "image_size": 32,
        "patch_size": 8,
        "image_token_id": IMAGE,
    }


def mllama_config(layers: int) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = decoder(layers, cross_attention_layers=list(range(1, layers, 2)), rope_parameters=rope)
    shapes = {"max_num_tiles": 2, "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]]}
    depth = {"num_global_layers": 1, "intermediate_layers_indices": [0], "vision_output_dim": 64}
    vision = without(tower(32, 8, attention_heads=2, **depth, **shapes), "num_attention_heads")
    return vlm(text, vision, image_token_index=IMAGE)


def idefics_config(layers: int) -> dict[str, Any]:
    vision = without(tower(32, 8, embed_dim=32), "hidden_size")
    added = {"cross_layer_interval": min(2, layers), "alpha_initializer": "ones", "additional_vocab_size": 0}
    return decoder(layers, vision_config=vision, perceiver_config={"use_resampler": False}, **added)


def kosmos_config(layers: int) -> dict[str, Any]:
    text = {"embed_dim": HIDDEN, "layers": layers, "ffn_dim": 96, "attention_heads": 4}
    return vlm(text | OWN_IDS | {"max_position_embeddings": 512}, tower(32, 8), latent_query_num=9)


def blip2_config(layers: int, **ids: Any) -> dict[str, Any]:
    text = decoder(layers, "opt", word_embed_proj_dim=HIDDEN, ffn_dim=96)
    bridge = without(tower(0, 0, encoder_hidden_size=32, vocab_size=VOCAB), "image_size", "patch_size")
    return vlm(text, tower(32, 8), qformer_config=bridge, num_query_tokens=9, **ids)


def blip_config(layers: int) -> dict[str, Any]:
    text = decoder(layers, encoder_hidden_size=32, is_decoder=True) | {"sep_token_id": EOS}
    return vlm(text, tower(32, 8))


def git_config(layers: int) -> dict[str, Any]:
    return decoder(layers, vision_config=tower(32, 8))


def florence2_config(layers: int) -> dict[str, Any]:
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 512}
    depth = {"encoder_layers": 2, "decoder_layers": layers, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96}
    text = {"model_type": "bart", "d_model": HIDDEN, "decoder_start_token_id": EOS} | heads | depth | OWN_IDS
    cut = {
        "patch_size": [7, 3],
        "patch_stride": [4, 2],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
    }
    shape = {
        "depths": [1, 1],
        "embed_dim": [16, 32],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "window_size": 4,
    }
    return vlm(text, cut | shape | {"projection_dim": HIDDEN}, image_token_id=IMAGE)


def t5gemma2_config(layers: int) -> dict[str, Any]:
    return {
        "encoder": gemma3_config(2),
        "decoder": gemma3_config(layers)["text_config"],
        "image_token_index": IMAGE,
    }


# --- tensors of one picture, and of the batch ----------------------------------------------------------


def lfm2_picture(draw: Generator) -> Batch:
    mask = torch.ones(1, 48, dtype=torch.long)
    flat = torch.randn(1, 48, 3 * 8 * 8, generator=draw)
    return {"pixel_values": flat, "spatial_shapes": torch.tensor([[6, 8]]), "pixel_attention_mask": mask}


def placed(height: int, width: int, size: int) -> Picture:
    """A picture as patches in 0..1 of one size and the (x, y) place of each."""
    places = torch.tensor([[x, y] for y in range(height) for x in range(width)])

    def picture(draw: Generator) -> Batch:
        flat = torch.rand(1, height * width, size, generator=draw)
        return {"pixel_values": flat, "image_position_ids": places[None]}

    return picture


def strip(height: int, width: int) -> Picture:
    """A picture as patches of 8 x 8 in one row; the pictures of a batch follow each other in that row."""

    def picture(draw: Generator) -> Batch:
        row = torch.randn(1, 3, 8, 8 * height * width, generator=draw)
        return {"pixel_values": row, "target_sizes": torch.tensor([[height, width]])}

    return picture


def one_strip(batch: Batch) -> Batch:
    if "pixel_values" not in batch:
        return {}
    return {"pixel_values": torch.cat(batch["pixel_values"].unbind(), dim=-1)[None]}


def molmo2_picture(draw: Generator) -> Batch:
    pooled = torch.arange(36).view(3, 2, 3, 2).transpose(1, 2).reshape(9, 4)
    counts = {"image_grids": torch.tensor([[3, 3, 0, 0]]), "image_num_crops": torch.tensor([1])}
    return {"pixel_values": torch.randn(1, 36, 192, generator=draw), "image_token_pooling": pooled} | counts


def molmo2_finish(batch: Batch) -> Batch:
    kinds = mark("mm_token_type_ids", IMAGE, BOI, EOI)(batch)
    if "pixel_values" not in batch:
        return kinds
    first = 36 * torch.arange(len(batch["pixel_values"])).repeat_interleave(9)
    return kinds | {"image_token_pooling": batch["image_token_pooling"] + first[:, None]}


def docling_picture(draw: Generator) -> Batch:
    return pixels(64, 64)(draw) | {"pixel_attention_mask": torch.ones(1, dtype=torch.bool)}


def hybrid_picture(draw: Generator) -> Batch:
    return pixels(32, 32)(draw) | {"high_res_pixel_values": torch.randn(1, 3, 64, 64, generator=draw)}


def mllama_picture(draw: Generator) -> Batch:
    tile_pair = torch.randn(1, 2, 3, 32, 32, generator=draw)
    ratio = {"aspect_ratio_ids": torch.tensor([2]), "aspect_ratio_mask": torch.ones(1, 2, dtype=torch.long)}
    return {"pixel_values": tile_pair} | ratio


def seen(batch: Batch) -> Tensor:
    """(row, token, picture): True where the picture stands at or before the token."""
    count = (batch["input_ids"] == IMAGE).cumsum(-1)[..., None]
    return (count > torch.arange(batch["pixel_values"].shape[1])) & batch["attention_mask"].bool()[..., None]


def mllama_finish(batch: Batch) -> Batch:
    if "pixel_values" not in batch:
        return {}
    return {"cross_attention_mask": seen(batch).long()[..., None].expand(-1, -1, -1, 2)}


def idefics_finish(batch: Batch) -> Batch:
    return {"image_attention_mask": seen(batch).long()} if "pixel_values" in batch else {}


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


def decoder_start(batch: Batch) -> Batch:
    return {"decoder_input_ids": torch.full((len(batch["input_ids"]), 1), BOS)}


def ernie_finish(batch: Batch) -> Batch:
    return KINDS(batch) | mark("moe_mm_token_type_ids", IMAGE, BOI, EOI)(batch)


# --- the families --------------------------------------------------------------------------------------


def plain(config: Config, side: int, **extra: Any) -> Recipe:
    """A family whose picture is a square of pixels and 16 tokens between markers."""
    return Recipe(config, MARKED_16, pixels(side, side), **extra)


def no_kinds(batch: Batch) -> Batch:
    return {}


def siglip(layers: int) -> dict[str, Any]:
    return simple_config(layers, "llama", tower(32, 8, "siglip_vision_model"), image_token_id=IMAGE)


def clip(layers: int) -> dict[str, Any]:
    vision = tower(32, 8, "clip_vision_model", projection_dim=32)
    return simple_config(layers, "llama", vision, image_token_index=IMAGE, video_token_index=VIDEO)


FAMILIES |= {
    "aya_vision": plain(lambda n: cohere_config(n, image_token_index=IMAGE), 32),
    "cohere2_vision": plain(lambda n: cohere_config(n, image_token_id=IMAGE, alignment_intermediate_size=64), 32),
    "deepseek_vl": Recipe(siglip, span(16), pixels(32, 32)),
    "deepseek_vl_hybrid": Recipe(deepseek_hybrid_config, span(16), hybrid_picture),
    "got_ocr2": plain(got_config, 64),
    "pp_chart2table": plain(got_config, 64),
    "idefics2": Recipe(idefics2_config, span(9, [FAKE], [FAKE]), pixels(64, 64, mask="pixel_attention_mask"), per_row=True),
    "janus": plain(janus_config, 32),
    "lighton_ocr": Recipe(
        lambda n: simple_config(n, "qwen3", tower(64, 8, "pixtral"), image_token_id=IMAGE, spatial_merge_size=2),
        ROWS_SPAN,
        sized_pixels(64, 48),
    ),
    "mistral_large4": Recipe(mistral_large4_config, ROWS_SPAN, sized_pixels(64, 48)),
    "qianfan_ocr": plain(lambda n: simple_config(n, "qwen3", tower(32, 4), image_token_id=IMAGE, image_seq_length=16), 32),
    "lfm2_vl": Recipe(lfm2_config, span(12, [BOI], [EOI]), lfm2_picture),
    "llama4": plain(llama4_config, 32),
    "llava_next_video": tiled(lambda n: tiled_config(n, "llama", "clip_vision_model", video_token_index=VIDEO)),
    "video_llava": Recipe(clip, span(16), lambda draw: {"pixel_values_images": pixels(32, 32)(draw)["pixel_values"]}),
    "granite_docling": Recipe(granite_docling_config, MARKED_16, docling_picture, per_row=True),
    "granite4_vision": Recipe(granite4_config, span(4 + 4 * (2 + 1)), tiles(3, 32, (64, 32))),
    "molmo2": Recipe(molmo2_config, span(9, [BOI], [EOI]), molmo2_picture, molmo2_finish),
    "step3p7": plain(step_config, 64),
    "shieldgemma2": plain(gemma3_config, 64, finish=mark("token_type_ids", IMAGE)),
    "gemma4": Recipe(gemma4_tower_config, span(12, [BOI], [EOI]), placed(6, 8, 3 * 8 * 8), KINDS),
    "gemma4_unified": Recipe(gemma4_unified_config, span(12, [BOI], [EOI]), placed(3, 4, 3 * 16 * 16), KINDS),
    # patches with a grid
    "cohere_compass": grid(compass_config),
    "cosmos3_edge": grid(cosmos_edge_config, 3 * 8 * 8),
    "cosmos3_omni": grid(qwen3_vl_config),
    "ernie4_5_vl_moe": grid(ernie_config, 3 * 8 * 8, finish=ernie_finish),
    "exaone4_5": grid(lambda n: windowed(n, "exaone4", num_key_value_heads=1), finish=no_kinds),
    "glm46v": grid(glm4v_config),
    "glmga": grid(glm4v_config),
    "glm_ocr": grid(glm4v_config),
    "hy_v4_vl": Recipe(hy_v4_config, span(3 * (4 + 1), [BOI], [EOI]), patches(6, 8, 3 * 8 * 8), KINDS),
    "inkling2_loop": Recipe(inkling2_loop_config, span(12, [BOI]), patches(3, 4, 16, 16, 3)),
    "hunyuan_vl": Recipe(
        hunyuan_config,
        span(3 * (4 + 1) + 2, [BOI], [EOI]),
        grid(hunyuan_config, 3 * 8 * 8).picture,
        KINDS,
        caveat="positions count the pictures of the whole batch, so a row depends on the rows before it",
    ),
    "hyperclovax_vision_v2": grid(lambda n: windowed(n, "hyperclovax", "qwen2_5_vl_vision"), finish=no_kinds),
    "kimi_k25": grid(kimi_config, 3, 8, 8, finish=no_kinds),
    "lfm3_vl": grid(lfm3_config, finish=no_kinds),
    "minicpmv4_6": Recipe(minicpm_config, span(9, [BOI], [EOI]), strip(12, 12), one_strip),
    "minicpmv4_7": Recipe(minicpm4_7_config, span(9, [BOI], [EOI]), strip(12, 12), lambda batch: KINDS(batch) | one_strip(batch)),
    "minicpm_ocr": Recipe(minicpm_config, span(12, [BOI], [EOI]), strip(6, 8), one_strip),
    "minimax_m3_vl": grid(minimax_config, finish=no_kinds),
    "muse_glimmer": grid(muse_config, finish=no_kinds),
    "muse_spark": grid(muse_spark_config, finish=no_kinds),
    "paddleocr_vl": grid(paddle_config, 3, 8, 8),
    "qwen2_5_omni_thinker": grid(omni2_5_config, finish=no_kinds),
    "qwen3_omni_moe_thinker": grid(lambda n: omni(qwen3_vl_config(n, **EXPERTS), audio_token_id=AUDIO), finish=no_kinds),
    "qwen3_5": grid(qwen3_5_config),
    "qwen3_5_moe": grid(lambda n: qwen3_5_config(n, **EXPERTS, shared_expert_intermediate_size=32)),
    "video_llama_3": grid(
        lambda n: simple_config(n, "qwen2", without(tower(64, 8), *NO_SIZE), **MEDIA_IDS),
        3 * 8 * 8,
        finish=no_kinds,
        image_merge_sizes=torch.tensor([2]),
    ),
    # discrete towers, and patches without a tower
    "chameleon": plain(chameleon_config, 32),
    "apertus1p5": Recipe(apertus1p5_config, (BOI, *ROWS_SPAN), sized_pixels(32, 24)),
    "emu3": Recipe(emu3_config, span(4 * (4 + 1), [BOI], [EOI]), sized_pixels(32, 32)),
    "fuyu": Recipe(
        fuyu_config,
        (*((IMAGE,) * 4 + (BREAK,)) * 3, BOS),
        lambda draw: {"pixel_values": torch.randn(1, 12, 3 * 8 * 8, generator=draw)},
    ),
    # pictures reach the decoder by cross-attention: one placeholder a picture, or none
    "mllama": Recipe(
        mllama_config,
        span(1),
        mllama_picture,
        mllama_finish,
        per_row=True,
        caveat="a token before the first picture averages over all picture slots of the batch",
    ),
    "idefics": Recipe(
        idefics_config,
        span(1, [FAKE], [FAKE]),
        pixels(32, 32),
        idefics_finish,
        per_row=True,
        caveat=SOME_PICTURE,
    ),
    "blip": Recipe(blip_config, (), pixels(32, 32), caveat=f"{ONE_PICTURE}; no output embeddings"),
    "git": Recipe(git_config, (), pixels(32, 32), caveat=f"{ONE_PICTURE}; left padding changes the answer"),
    # query tokens between tower and decoder
    "kosmos-2": Recipe(
        kosmos_config,
        span(9, [BOI], [EOI]),
        pixels(32, 32),
        mark("image_embeds_position_mask", IMAGE),
        caveat=SOME_PICTURE,
    ),
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
        lambda draw: {"pixel_values": torch.randn(1, 4, 3, 32, 32, generator=draw)},
        qformer_text,
        caveat=f"a picture is a video of 4 frames; {ONE_PICTURE}",
    ),
    # encoder-decoders
    "florence2": Recipe(
        florence2_config,
        span(37),
        pixels(48, 48),
        caveat=f"{ENCODER_DECODER}; left padding changes the answer",
    ),
    "t5gemma2": plain(t5gemma2_config, 64, finish=decoder_start, caveat=ENCODER_DECODER),
}

# Types without a recipe, and why; `lightvlm_fx.support` lists them as not tried.
NO_RECIPE: dict[str, str] = {
    "deepseek_ocr2": "two stacked towers with local crops",
    "diffusion_gemma": "block diffusion, not autoregressive",
    "dots3_note": "mixture-of-experts tower, sparse indexer in the decoder",
    "evolla": "protein to text, no pictures",
    "fast_vlm": "its tower needs timm",
    "gemma3n": "its tower needs timm",
    "glm5_next": "sparse indexers and linear attention in the decoder",
    "inkling2": "decoder with relative bias, convolutions and experts",
    "inkling_mm_model": "decoder with relative bias, convolutions and experts",
    "kosmos-2.5": "pictures as flattened patches with row and column ids",
    "mistral4": "a text decoder only, no tower",
    "nemotron_h_omni": "Mamba hybrid with an audio tower",
    "perception_lm": "its tower needs timm",
    "pi0": "robot policy, no text answer",
    "pix2struct": "encoder-decoder on flattened patches",
    "pp_formulanet": "encoder-decoder on pixels alone",
    "qwen4_exp": "sparse indexers and hyper-connections in the decoder",
    "udop": "encoder-decoder with bounding boxes",
    "unlimited_ocr": "two stacked towers with local crops",
    "vision-encoder-decoder": "generic encoder-decoder wrapper, no text prompt",
}
