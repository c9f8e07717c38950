"""Tiny random vision-language models, one per family, each with the inputs its processor would make.

A family is one row of `FAMILIES`: a `Recipe` that says what its config is, which ids one picture takes in
`input_ids`, and which tensors go with one picture. Everything else (layout, padding, masks, weights) is
shared, so a new family is a new row. Nothing is downloaded and no processor is needed.

    tiny = build("qwen2_5_vl")
    tiny.model.generate(**tiny.inputs(text=(7, 5), images=(1, 1)), max_new_tokens=4)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

__all__ = ["FAMILIES", "Recipe", "TinyVLM", "UnknownFamily", "build", "image_text_to_text_types"]

VOCAB = 120
HIDDEN = 64
HEAD_DIM = 16

# Ids below FIRST_TEXT are special and never win the argmax of a tiny model; text is drawn from the rest.
PAD, BOS, EOS, IMAGE, BOI, EOI, VIDEO, FAKE, BREAK, GRID = range(10)
INDICATORS = (BOI, EOI, BREAK, FAKE, GRID)
FIRST_TEXT = 20

LEAD, TAIL = 2, 3  # text tokens before the first picture, and at least this many after the last one


class UnknownFamily(ValueError):
    """No recipe for this model type, or the installed transformers does not know it."""


# --- what a family says about itself -------------------------------------------------------------------

Config = Callable[[int], dict[str, Any]]
Batch = dict[str, Tensor]
Picture = Callable[[Generator], Batch]


@dataclass(frozen=True)
class Recipe:
    """One family, as data.

    config: number of decoder layers -> keyword arguments of the family's config.
    span: the ids one picture takes in `input_ids`, markers included.
    picture: random generator -> the tensors of one picture; dimension 0 is joined over all pictures.
    finish: the batch -> the tensors its processor adds or changes in it, such as the kind of each token.
    per_row: tensors are (row, picture of that row, ...), rows with fewer pictures filled with zeros.
    caveat: what eager transformers itself does not do for this family.
    """

    config: Config
    span: tuple[int, ...]
    picture: Picture
    finish: Callable[[Batch], Batch] = lambda batch: {}
    per_row: bool = False
    caveat: str = ""


@dataclass(frozen=True)
class TinyVLM:
    """A tiny random model in eval mode and float32, and the inputs that fit it."""

    model_type: str
    model: PreTrainedModel = field(repr=False)
    recipe: Recipe = field(repr=False)

    @property
    def visual_tokens(self) -> int:
        """Placeholder tokens one picture takes, markers not counted."""
        return self.recipe.span.count(IMAGE)

    def inputs(self, *, text: Sequence[int] = (7,), images: Sequence[int] = (1,), seed: int = 0) -> Batch:
        """A batch like the family's processor makes it, rows left-padded to the longest.

        text[b] counts the text tokens of row b, pictures and their markers not counted; images[b] counts its
        pictures. Row b of seed s is row 0 of seed s + b, so that any row can be asked for on its own.
        """
        if len(text) != len(images):
            raise ValueError(f"text has {len(text)} rows and images has {len(images)}")
        draws = [Generator().manual_seed(seed + b) for b in range(len(text))]
        # pictures first: they must not change with the length of the text
        picture = self.recipe.picture
        pictures = [[picture(draw) for _ in range(n)] for draw, n in zip(draws, images, strict=True)]
        rows = [
            _layout(_words(n, draw), count, self.recipe.span)
            for n, count, draw in zip(text, images, draws, strict=True)
        ]
        width = max(map(len, rows))
        input_ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        join = _stack_rows if self.recipe.per_row else _join_rows
        batch = {"input_ids": input_ids, "attention_mask": mask} | join(pictures)
        return batch | self.recipe.finish(batch)


# --- the shared parts: layout, tensors, weights --------------------------------------------------------


def _words(count: int, draw: Generator) -> list[int]:
    """Random text tokens."""
    return torch.randint(FIRST_TEXT, VOCAB, (count,), generator=draw).tolist()


def _layout(text: list[int], pictures: int, span: tuple[int, ...]) -> list[int]:
    """LEAD text tokens, the pictures with one text token between them, then the rest of the text."""
    if not pictures:
        return text
    if len(text) < (least := LEAD + pictures - 1 + TAIL):
        raise ValueError(f"{pictures} pictures need at least {least} text tokens, got {len(text)}")
    row, rest = text[:LEAD], text[LEAD:]
    for i in range(pictures):
        row += [*span, rest[i]]
    return row + rest[pictures:]


def _join(pictures: list[Batch]) -> Batch:
    """Pictures one after the other, as one tensor per key."""
    return {key: torch.cat([p[key] for p in pictures]) for key in (pictures[0] if pictures else ())}


def _join_rows(rows: list[list[Batch]]) -> Batch:
    """All pictures of the batch one after the other."""
    return _join([picture for row in rows for picture in row])


def _stack_rows(rows: list[list[Batch]]) -> Batch:
    """One (row, picture, ...) tensor per key; rows with fewer pictures end in zeros."""
    joined = [_join(row) for row in rows]
    whole = next((row for row in joined if row), {})
    most = max((row[key].shape[0] for row in joined for key in row), default=0)

    def filled(row: Batch, key: str) -> Tensor:
        out = whole[key].new_zeros(most, *whole[key].shape[1:])
        if row:
            out[: row[key].shape[0]] = row[key]
        return out

    return {key: torch.stack([filled(row, key) for row in joined]) for key in whole}


def redraw(model: Any, seed: int) -> None:
    """Weights so large that logits depend on every input; norms stay, special ids never win the argmax."""
    draw = Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() >= 2:
                weight.normal_(0.0, 0.15 if weight.dim() < 4 else weight[0].numel() ** -0.5, generator=draw)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.05, generator=draw)
            elif name.endswith(("gate", "alpha")):
                weight.fill_(0.5)  # gates of added cross-attention start closed
        if (head := model.get_output_embeddings()) is None:
            return
        if head.weight is model.get_input_embeddings().weight:
            head.weight.mul_(0.3)  # or a tied head just repeats the last token
        head.weight[:FIRST_TEXT].mul_(0.01)


def build(model_type: str, layers: int = 4) -> TinyVLM:
    """The tiny model of one family, with `layers` decoder layers; the same weights at every call."""
    if model_type not in FAMILIES:
        near = ", ".join(get_close_matches(model_type, FAMILIES)) or "none"
        raise UnknownFamily(f"no recipe for {model_type!r}; near it: {near}; all of them: zoo.FAMILIES")
    recipe = FAMILIES[model_type]
    try:
        config = AutoConfig.for_model(model_type, **recipe.config(layers))
    except ValueError as error:
        if "Unrecognized model" not in str(error):
            raise
        raise UnknownFamily(f"the installed transformers does not know {model_type!r}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    redraw(model, seed=0)
    model.generation_config = GenerationConfig(pad_token_id=PAD, bos_token_id=BOS, eos_token_id=None)
    return TinyVLM(model_type, model, recipe)


def image_text_to_text_types() -> list[str]:
    """Every model type that AutoModelForImageTextToText knows."""
    return list(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


# --- parts of configs ----------------------------------------------------------------------------------


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
    ids = {"vocab_size": VOCAB, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
    return named | shape | heads | ids | extra


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


def alternate(layers: int, first: str) -> list[str]:
    """Layer types: one kind and full attention by turns, full attention last."""
    return ["full_attention" if (layers - i) % 2 else first for i in range(layers)]


def vlm(text: dict[str, Any], vision: dict[str, Any], **extra: Any) -> dict[str, Any]:
    """Config of the whole model."""
    return {"text_config": text, "vision_config": vision} | extra


def mrope(*section: int, **extra: Any) -> dict[str, Any]:
    """Rope parameters with frequencies shared out over time, height and width."""
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section)} | extra


# --- tensors of one picture ----------------------------------------------------------------------------


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


def mark(name: str, *ids: int) -> Callable[[Batch], Batch]:
    """Tensor of the batch that is 1 where a token is one of ids and 0 elsewhere."""
    return lambda batch: {name: torch.isin(batch["input_ids"], torch.tensor(ids, dtype=torch.long)).long()}


def span(count: int, before: Sequence[int] = (), after: Sequence[int] = ()) -> tuple[int, ...]:
    """Placeholder ids of one picture between its markers."""
    return (*before, *(IMAGE,) * count, *after)


# --- the families --------------------------------------------------------------------------------------

KINDS = mark("mm_token_type_ids", IMAGE)
PINPOINTS = [[48, 24], [24, 48], [48, 48]]
QWEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": BOI,
    "vision_end_token_id": EOI,
}
GLM_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": BOI,
    "image_end_token_id": EOI,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
GLM_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}


def llava_config(layers: int, **extra: Any) -> dict[str, Any]:
    vision = tower(48, 8, "clip_vision_model", projection_dim=32)
    return vlm(decoder(layers, "llama"), vision, image_token_index=IMAGE, image_seq_length=36, **extra)


def tiled_config(layers: int, text: str, vision: str, **extra: Any) -> dict[str, Any]:
    ids = {"image_token_index": IMAGE, "image_grid_pinpoints": PINPOINTS}
    return vlm(decoder(layers, text), tower(24, 8, vision), **ids, **extra)


def qwen_config(
    layers: int, *section: int, text: dict[str, Any] | None = None, **vision: Any
) -> dict[str, Any]:
    language = decoder(layers, rope_parameters=mrope(*section), **(text or {}))
    return vlm(language, grid_tower(**vision), tie_word_embeddings=False, **QWEN_IDS)


def qwen2_vl_config(layers: int) -> dict[str, Any]:
    # in this tower embed_dim is the width and hidden_size is the width it hands to the decoder
    return qwen_config(layers, 2, 3, 3, embed_dim=32, hidden_size=HIDDEN, mlp_ratio=2)


def qwen2_5_vl_config(layers: int) -> dict[str, Any]:
    return qwen_config(layers, 2, 3, 3, window_size=32, fullatt_block_indexes=[1])


def qwen3_vl_config(layers: int, **text: Any) -> dict[str, Any]:
    return qwen_config(
        layers, 4, 2, 2, text=text, num_position_embeddings=64, deepstack_visual_indexes=[0, 1]
    )


def internvl_config(layers: int) -> dict[str, Any]:
    return vlm(decoder(layers, "qwen2"), tower(32, 4), image_token_id=IMAGE, image_seq_length=16)


def idefics3_config(layers: int) -> dict[str, Any]:
    return vlm(decoder(layers, "llama"), tower(64, 8), image_token_id=IMAGE, scale_factor=2)


def gemma3_config(layers: int) -> dict[str, Any]:
    kinds = alternate(layers, "sliding_attention")
    # attention is sharp (scale 1, not 1/4): after its norms a random decoder would forget what it read
    text = decoder(layers, sliding_window=16, layer_types=kinds, query_pre_attn_scalar=1)
    ids = {"image_token_index": IMAGE, "boi_token_index": BOI, "eoi_token_index": EOI}
    return vlm(text, tower(64, 8, "siglip_vision_model"), mm_tokens_per_image=16, **ids)


def paligemma_config(layers: int) -> dict[str, Any]:
    widths = {"projection_dim": HIDDEN, "hidden_size": HIDDEN, "vocab_size": VOCAB}
    vision = tower(32, 8, "siglip_vision_model")
    return vlm(decoder(layers, "gemma"), vision, image_token_index=IMAGE, **widths)


def mistral3_config(layers: int) -> dict[str, Any]:
    vision = tower(64, 8, "pixtral")
    return vlm(decoder(layers, "mistral"), vision, image_token_index=IMAGE, spatial_merge_size=2)


def glm4v_config(layers: int, **text: Any) -> dict[str, Any]:
    language = decoder(layers, rope_parameters=mrope(1, 1, 2, partial_rotary_factor=0.5), **text)
    return vlm(language, grid_tower(image_size=64), tie_word_embeddings=False, **GLM_IDS)


def ovis2_config(layers: int) -> dict[str, Any]:
    vision = tower(32, 4, hidden_stride=2, vocab_size=48, num_visual_indicator_tokens=len(INDICATORS))
    ids = {"image_token_id": IMAGE, "visual_indicator_token_ids": list(INDICATORS)}
    return vlm(decoder(layers, "qwen2"), vision, vocab_size=VOCAB, hidden_size=HIDDEN, **ids)


def aria_config(layers: int) -> dict[str, Any]:
    text = decoder(layers, "aria_text", moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1)
    queries = {"projector_patch_to_query_dict": {64: 16}}
    return vlm(text, tower(64, 8, "idefics3_vision"), image_token_index=IMAGE, **queries)


def grid(config: Config, *shape: int, finish: Callable[[Batch], Batch] = KINDS, **fixed: Tensor) -> Recipe:
    """A family whose picture is 6 x 8 patches (3 colours, 2 frames, 8 x 8 pixels) merged to 12 tokens."""
    picture = patches(6, 8, *(shape or (3 * 2 * 8 * 8,)), **fixed)
    return Recipe(config, span(12, [BOI], [EOI]), picture, finish)


def tiled(config: Config, **fixed: Tensor) -> Recipe:
    """A family whose picture is a small whole one of 9 tokens and 6 rows of 3 with a learned newline."""
    return Recipe(config, span(9 + 6 * (3 + 1)), tiles(3, 24, (48, 24), **fixed))


def masked(config: Config) -> Recipe:
    """A family whose pictures lie in (row, picture) order with a mask of their real pixels."""
    picture = pixels(64, 64, mask="pixel_attention_mask")
    return Recipe(config, span(16, [FAKE, GRID], [FAKE]), picture, per_row=True)


# 4 rows of 3, each row closed by a marker
ROWS_SPAN = (IMAGE, IMAGE, IMAGE, BREAK) * 3 + (IMAGE, IMAGE, IMAGE, EOI)

FAMILIES: dict[str, Recipe] = {
    "llava": Recipe(llava_config, span(36), pixels(48, 48)),
    "vipllava": Recipe(lambda n: llava_config(n, vision_feature_layers=[-2, -1]), span(36), pixels(48, 48)),
    "llava_next": tiled(lambda n: tiled_config(n, "llama", "clip_vision_model")),
    "llava_onevision": tiled(
        lambda n: tiled_config(n, "qwen2", "siglip_vision_model", video_token_index=VIDEO),
        batch_num_images=torch.ones(1, dtype=torch.long),
    ),
    "qwen2_vl": grid(qwen2_vl_config),
    "qwen2_5_vl": grid(qwen2_5_vl_config),
    "qwen3_vl": grid(qwen3_vl_config),
    "qwen3_vl_moe": grid(lambda n: qwen3_vl_config(n, **EXPERTS)),
    "glm4v": grid(glm4v_config),
    "glm4v_moe": grid(lambda n: glm4v_config(n, **GLM_EXPERTS)),
    "internvl": Recipe(internvl_config, span(16, [BOI], [EOI]), pixels(32, 32)),
    "idefics3": masked(idefics3_config),
    "smolvlm": masked(idefics3_config),
    "gemma3": Recipe(
        gemma3_config, span(16, [BOI], [EOI]), pixels(64, 64), finish=mark("token_type_ids", IMAGE)
    ),
    "paligemma": Recipe(paligemma_config, span(16), pixels(32, 32), finish=mark("token_type_ids")),
    "mistral3": Recipe(mistral3_config, ROWS_SPAN, sized_pixels(64, 48)),
    "ovis2": Recipe(ovis2_config, span(16, [BOI], [GRID, EOI]), pixels(32, 32)),
    "aria": Recipe(aria_config, span(16), pixels(64, 64, mask="pixel_mask")),
}
