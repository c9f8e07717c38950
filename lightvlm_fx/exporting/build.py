"""From a model, a schedule and an example batch to the stages of one bucket, each with example inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightvlm_fx.errors import CaptureError
from lightvlm_fx.exporters.prompt import MaskRule, Positions, Prompt
from lightvlm_fx.exporters.vision import vision_stage
from lightvlm_fx.exporting.bucket import Bucket, capture_bucket
from lightvlm_fx.exporting.causal import leave_out_later_keys
from lightvlm_fx.exporting.stages import Compact, Decode, Embed, Head, Prefill, cache_arrays
from lightvlm_fx.kv_plan import KvPlan
from lightvlm_fx.layout import Layout, Placeholders
from lightvlm_fx.ops.segments import TEXT
from lightvlm_fx.passes import pipelines
from lightvlm_fx.pipeline import Step
from lightvlm_fx.runtime import new_state
from lightvlm_fx.schedule import Schedule

GRID = "image_grid_thw"
SAMPLE_TOKENS = 16  # of the greedy answer that goes with an artifact
TOLERANCE = 1e-4  # on inputs_embeds, of the largest
ROUNDING = {torch.float32: TOLERANCE, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # on what the layers compute, of the largest


@dataclass
class StageExport:
    """One stage: what is exported, and a call of it."""

    module: nn.Module
    inputs: dict[str, Any]
    outputs: dict[str, Any]


@dataclass
class Built:
    """One bucket's stages, and what a runtime needs to know of them."""

    bucket: Bucket
    stages: dict[str, StageExport]
    tokens: tuple[int, ...]  # of a whole prompt, in each decoder layer
    capacity: tuple[int, ...]  # slots of each layer's buffers
    new_tokens: int  # that an answer may have; 0: any number
    period: int  # steps between two runs of `compact`; 0: none
    steps: dict[str, list[Step]]  # what the passes did


def single_turn(schedule: Schedule) -> Schedule:
    """`schedule` for prompts that no second question follows: what a turn would choose to read is all that stays."""
    if schedule.kv and schedule.kv.when == "turn":
        return schedule.model_copy(update={"kv": schedule.kv.model_copy(update={"when": "prefill"})})
    return schedule


def build(model: Any, schedule: Schedule, inputs: dict[str, Tensor], length: int, new_tokens: int,
          blocks: bool = False) -> Built:  # fmt: skip
    """The stages of a bucket of `length` tokens a row; with `blocks`, causal attention goes by blocks of rows.

    Raises NotSupported, CaptureError or RefusedModel, with the reason.
    """
    bucket = capture_bucket(model, schedule, inputs, length, max(3, min(SAMPLE_TOKENS, new_tokens)))
    schedule = single_turn(schedule)
    segment_example = bucket.given["visual_segment"]
    depth = bucket.prefill.facts.layers
    whole = torch.where(segment_example < 0, TEXT, segment_example)  # a prompt that fills the bucket
    layout = Layout(whole, (bucket.images,) * bucket.rows)
    plan = layout.plan(schedule)
    kv = KvPlan.of(layout, plan, schedule, depth) if schedule.kv else None
    prompt = Prompt(length, Placeholders.of(model).ids, bucket.images)
    positions = _positions(model, bucket)
    rules = {
        name: MaskRule.of(name, mask, segment_example, getattr(model.config.get_text_config(), "sliding_window", None))
        for name, mask in bucket.given.items() if name.startswith("attention_mask") and mask.ndim == 4
    }  # fmt: skip
    prefill, prefill_steps = pipelines.prefill(schedule, depth, plan.removed, kv).run(bucket.prefill)
    leave_out_later_keys(prefill, bucket.given, segment_example, blocks)
    decode, decode_steps = pipelines.decode(schedule, depth, kv).run(bucket.decode)

    head, embedding = Head(model), model.get_input_embeddings()
    vision = vision_stage(model, bucket.pictures, any(cut.score == "salience" for cut in schedule.cuts))
    embed = Embed(embedding, prompt)
    period = schedule.kv.every if schedule.kv and schedule.kv.when == "periodic" else 0
    stages: dict[str, StageExport] = {}

    def add(name: str, module: nn.Module, given: dict[str, Any]) -> dict[str, Any]:
        with torch.no_grad():
            stages[name] = StageExport(module, given, module(**given))
        return stages[name].outputs

    seen = add("vision", vision, {"pixel_values": bucket.inputs["pixel_values"]})
    ids = bucket.inputs["input_ids"]
    embedded = add("embed", embed, {"input_ids": ids} | seen)
    asked = {"input_ids": ids, "attention_mask": bucket.inputs["attention_mask"]} | embedded
    stage = Prefill(prefill, prompt, positions, rules, head, schedule, plan, kv, depth, new_tokens)
    out = add("prefill", stage, asked)
    state = new_state(_example_outputs(prefill, stage, asked), whole, schedule, kv, depth, None, new_tokens)
    cache = out["present"]
    step = torch.zeros(1, dtype=torch.int64)
    token = bucket.sequences[:, bucket.length : bucket.length + 1]
    stepping = Decode(decode, embedding, head, state, positions, period)
    answer = add("decode", stepping, {"input_ids": token, "step": step, "past_key_values": cache})
    if period:
        own = {k: v for k, v in cache.items() if k in cache_arrays(state)}
        add("compact", Compact(state, period), {"step": step + period, "past_key_values": own})
    _check(bucket, embedded, out, answer)
    removed = [sum(n for at, n in zip(schedule.layers(depth), plan.removed, strict=True) if at <= layer) for layer in range(depth)]
    capacity = tuple(layer.keys.shape[2] for layer in state.layers)
    endless = schedule.kv is not None and schedule.kv.when in ("step", "periodic")
    return Built(bucket, stages, tuple(length - n for n in removed), capacity, 0 if endless else new_tokens, period,
                 {"prefill": prefill_steps, "decode": decode_steps})  # fmt: skip


def _positions(model: Any, bucket: Bucket) -> Positions:
    """The rule of RoPE positions that the model's own values follow. Raises CaptureError where none does."""
    given, segment = bucket.given["position_ids"], bucket.given["visual_segment"]
    real = segment >= TEXT
    if given.ndim == 2:
        found = Positions(None, 1, int(given[real].min()))
    else:
        grid = bucket.inputs.get(GRID)
        if grid is None or bool((grid[:, 0] != 1).any()):
            raise CaptureError("the model numbers positions in several planes, but the example has no grid of still pictures")
        vision = model.config.vision_config
        side = getattr(vision, "spatial_merge_size", 1)
        grids = [(h // side, w // side) for _, h, w in grid[: len(bucket.images)].tolist()]
        found = Positions(tuple(grids), given.shape[0], 0)
    computed, following = found(segment)
    step = found.step(following, real.sum(1), torch.zeros(1, dtype=torch.int64))
    rows = real.expand(given.shape)
    if not (computed[rows] == given[rows]).all() or not (step == bucket.following).all():
        raise CaptureError(f"the model's RoPE positions follow no rule that an artifact can compute: {given[..., :40].tolist()}")
    return found


def _example_outputs(program: Any, stage: Prefill, asked: dict[str, Tensor]) -> dict[str, Tensor]:
    """The prefill graph's own outputs on the example."""
    caught: list[Any] = []
    handle = stage.body.register_forward_hook(lambda module, args, out: caught.append(out))
    try:
        with torch.no_grad():
            stage(**asked)
    finally:
        handle.remove()
    return dict(zip(program.facts.outputs, caught[0], strict=True))


def _check(bucket: Bucket, embedded: dict[str, Tensor], prefill: dict[str, Tensor], decode: dict[str, Tensor]) -> None:
    """Compare the stages with what the compiled model did; raises CaptureError where they differ."""
    real = bucket.inputs["attention_mask"].bool()
    bound = ROUNDING[bucket.given["inputs_embeds"].dtype]
    compared = {
        "the vision and embed stages": (embedded["inputs_embeds"][real], bucket.given["inputs_embeds"][real], TOLERANCE),
        "the prefill stage": (prefill["logits"], bucket.logits[0], bound),
        "the decode stage": (decode["logits"], bucket.logits[1], bound),
    }
    if "visual_salience" in embedded:
        compared["the vision stage's salience"] = (embedded["visual_salience"], bucket.given["visual_salience"], bound)
    for stage, (ours, theirs, most) in compared.items():
        apart = float((ours.float() - theirs.float()).abs().max() / theirs.abs().max())
        if not apart <= most:
            raise CaptureError(f"{stage}: apart from the compiled model by {apart:.1e} of the largest value, above {most:.0e}")
    tokens = torch.stack([prefill["logits"].argmax(-1), decode["logits"].argmax(-1)], 1)
    expected = bucket.sequences[:, bucket.length : bucket.length + 2]
    if not torch.equal(tokens, expected):
        raise CaptureError(f"the stages answer {tokens.tolist()}, the compiled model {expected.tolist()}: a defect of lightvlm_fx")
