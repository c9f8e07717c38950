"""Model types without a recipe, and why; `lightvlm_fx.support` lists them as not tried."""

from __future__ import annotations

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
