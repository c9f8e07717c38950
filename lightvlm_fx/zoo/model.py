"""A tiny random model of a family, and the inputs its processor would make.

Layout, padding, masks and weights are the same for all families; the rest is a family's `Recipe`. Nothing is downloaded and
no processor is needed.

    tiny = build("qwen2_5_vl")
    tiny.model.generate(**tiny.inputs(text=(7, 5), images=(1, 1)), max_new_tokens=4)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Generator, Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from lightvlm_fx.zoo.families import FAMILIES
from lightvlm_fx.zoo.parts import BOS, FIRST_TEXT, IMAGE, PAD, VOCAB
from lightvlm_fx.zoo.recipe import Batch, Recipe

LEAD, TAIL = 2, 3  # text tokens before the first picture, and at least this many after the last one


class UnknownFamily(ValueError):
    """No recipe for this model type, or the installed transformers does not know it."""


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
        rows = [_layout(_words(n, draw), count, self.recipe.span) for n, count, draw in zip(text, images, draws, strict=True)]
        width = max(map(len, rows))
        input_ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        join = _stack_rows if self.recipe.per_row else _join_rows
        batch = {"input_ids": input_ids, "attention_mask": mask} | join(pictures)
        return batch | self.recipe.finish(batch)


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
