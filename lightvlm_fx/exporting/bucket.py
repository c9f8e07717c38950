"""One bucket of an artifact: an example batch padded to its size, and the graphs captured from it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightvlm_fx import compiler
from lightvlm_fx.errors import CaptureError, InputError, NotSupported
from lightvlm_fx.graph.program import Program
from lightvlm_fx.model.layout import Layout, Placeholders
from lightvlm_fx.releases import UntestedRelease
from lightvlm_fx.schedule import Schedule

PER_TOKEN = ("attention_mask", "mm_token_type_ids", "token_type_ids")  # arguments [B, S] that are padded with zeros


@dataclass(frozen=True)
class Bucket:
    """The example `inputs`, padded on the left to S tokens, with all that its capture told."""

    inputs: dict[str, Tensor]
    images: tuple[tuple[int, ...], ...]  # visual tokens of each picture, row by row
    prefill: Program  # with explicit masks, as captured
    decode: Program
    given: dict[str, Tensor]  # what the model's own code handed to the prefill graph
    following: Tensor  # position_ids of the first new token
    sequences: Tensor  # greedy answer of the compiled model to the example, [B, S + n]
    logits: tuple[Tensor, ...]  # of each of its n tokens, [B, V] float32

    @property
    def rows(self) -> int:
        return self.inputs["input_ids"].shape[0]

    @property
    def length(self) -> int:
        return self.inputs["input_ids"].shape[1]

    @property
    def visual(self) -> int:
        """Visual tokens of the row that has most."""
        return max(map(sum, self.images))

    @property
    def pictures(self) -> dict[str, Tensor]:
        """The arguments that are pictures, or say how they lie."""
        return {k: v for k, v in self.inputs.items() if k not in ("input_ids", *PER_TOKEN)}

    def picture_tokens(self, pictures: int) -> Tensor:
        """[B, I] int64: visual tokens of each picture of each row, then zeros."""
        return torch.tensor([[*row, *[0] * (pictures - len(row))] for row in self.images], device=self.inputs["input_ids"].device)


def padded(inputs: dict[str, Tensor], length: int, pad: int) -> dict[str, Tensor]:
    """`inputs` with `length` tokens a row, padded on the left. Raises InputError where a row is longer already."""
    have = inputs["input_ids"].shape[1]
    if have > length:
        raise InputError(f"the example has {have} tokens a row, above the bucket's {length}; raise prompt_tokens")
    out = dict(inputs)
    out.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    for name in PER_TOKEN:
        if name in out:
            out[name] = F.pad(out[name], [length - have, 0])
    out["input_ids"] = F.pad(inputs["input_ids"], [length - have, 0], value=pad)
    return out


def capture_bucket(model: Any, schedule: Schedule, inputs: dict[str, Tensor], length: int, new_tokens: int) -> Bucket:
    """Answer the example with `new_tokens` once, and keep the graphs. `length` must be above the example's.

    Raises InputError for an example without pictures.
    """
    layout = Layout.of(inputs["input_ids"], inputs.get("attention_mask"), Placeholders.of(model))
    if not layout.has_images:
        raise InputError("the example of an artifact's bucket needs a picture in its prompt: the largest that the bucket is to take")
    batch = padded(dict(inputs), length, _pad_id(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntestedRelease)  # export said so
        fast = compiler.compile(model, schedule, backend="eager")
    seen: dict[str, dict[str, Any]] = {}
    with fast.lightvlm.recording(lambda what, given: seen.setdefault(what, dict(given))):  # the first of each
        answer = fast.generate(**batch, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
                               output_logits=True, return_dict_in_generate=True)  # fmt: skip
    programs = fast.lightvlm.captured
    if not programs["prefill"].facts.masked:
        raise CaptureError("the example was captured without masks, which an artifact needs; make prompt_tokens larger than the example")
    return Bucket(batch, layout.images, programs["prefill"], programs["decode"], seen["prefill"], seen["step"]["position_ids"],
                  answer.sequences, answer.logits)  # fmt: skip


def _pad_id(model: Any) -> int:
    config = model.generation_config
    for found in (config.pad_token_id, getattr(model.config.get_text_config(), "pad_token_id", None), config.eos_token_id, 0):
        if isinstance(found, int):
            return found
        if isinstance(found, list) and found:
            return int(found[0])
    raise NotSupported("the model names no padding token")
