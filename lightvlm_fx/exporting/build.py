"""From a model, a schedule and an example batch to the stages of one bucket, each with example inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightvlm_fx.artifact.lengths import Lengths
from lightvlm_fx.artifact.pictures import grids as pictures_of_planes
from lightvlm_fx.compat import tracing
from lightvlm_fx.errors import CaptureError, InputError, NotSupported
from lightvlm_fx.exporters.base import StageExport
from lightvlm_fx.exporters.prompt import MaskRule, Positions, Prompt
from lightvlm_fx.exporters.towers import GRID, VisionStage, vision_stage
from lightvlm_fx.exporting.bounds import Bounds, Tables
from lightvlm_fx.exporting.bucket import Bucket, capture_bucket
from lightvlm_fx.exporting.causal import leave_out_later_keys
from lightvlm_fx.exporting.sizes import Sizes
from lightvlm_fx.exporting.stages import CompactStage, DecodeStage, EmbedStage, Head, PrefillStage, cache_arrays
from lightvlm_fx.graph import ports
from lightvlm_fx.methods.base import TokenCount
from lightvlm_fx.methods.moments import Prefill as Once
from lightvlm_fx.model.layout import Placeholders
from lightvlm_fx.ops.segments import TEXT
from lightvlm_fx.ops.tiles import parts
from lightvlm_fx.passes import pipelines
from lightvlm_fx.passing.pipeline import PassRun
from lightvlm_fx.releases import releases_first
from lightvlm_fx.schedule import Schedule, fixed_capacity

PICTURES = 4  # that a row may have, where neither the example nor the caller says more
SAMPLE_TOKENS = 16  # of the greedy answer that goes with an artifact
TOLERANCE = 1e-4  # on inputs_embeds, of the largest
ROUNDING = {torch.float32: TOLERANCE, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # on what the layers compute, of the largest


@dataclass
class Built:
    """One bucket's stages, and what a runtime needs to know of them."""

    bucket: Bucket
    bounds: Bounds
    tables: Tables
    lengths: Lengths | None  # of the sequences of shorter prompts; None: all are padded to the bucket's
    vision: dict[str, Any]  # how the vision stage is fed
    grid: dict[str, Any] | None  # where the heights and widths of pictures stand, for positions in several planes
    stages: dict[str, StageExport]
    tokens: tuple[int, ...]  # of a row at most, in each decoder layer
    capacity: tuple[int, ...]  # slots of each layer's buffers
    new_tokens: int  # that an answer may have; 0: any number
    period: int  # steps between two runs of `compact`; 0: none
    steps: dict[str, list[PassRun]]  # what the passes did


def single_turn(schedule: Schedule) -> Schedule:
    """`schedule` for prompts that no second question follows: what a turn would choose to read is all that stays."""
    if schedule.kv and schedule.kv.when.by_turn:
        return schedule.unchecked(kv=schedule.kv.unchecked(when=Once()))
    return schedule


@releases_first()
@tracing()
def build(model: Any, schedule: Schedule, inputs: dict[str, Tensor], length: int, new_tokens: int, *,
          images: int | None = None, static: bool = False, blocks: bool = False, any_length: bool = False) -> Built:  # fmt: skip
    """The stages of a bucket of `length` tokens a row, with the example's visual tokens at most, in at most `images` pictures.

    With `any_length`, of up to so many tokens, rounded up to what the tiles of its graphs divide; with `static`, for a target without
    symbolic sizes; with `blocks`, causal attention goes by blocks of rows.

    Raises InputError, NotSupported, CaptureError or RefusedModel, with the reason.
    """
    if any_length:
        divided = parts(length, len(schedule.cuts) + 1)
        length = -(-length // divided) * divided
    bucket = capture_bucket(model, schedule, inputs, length, max(3, min(SAMPLE_TOKENS, new_tokens)))
    schedule = pipelines.effective(single_turn(schedule), Placeholders.of(model).planes)
    depth, segment = bucket.prefill.facts.layers, bucket.given[ports.SEGMENT.name]
    seen = vision_stage(model, bucket.pictures, schedule, bucket.rows * bucket.visual, static)
    bounds = _bounds(bucket, seen, images)
    tables = Tables.of(bounds, schedule, depth)
    lengths = tables.lengths(schedule, length) if any_length and not bucket.prefill.facts.static_length else None
    picture_tokens = bucket.picture_tokens(bounds.pictures)
    grid = _grid(model, bucket)
    if schedule.by_grid and (grid or seen.how["kind"] == "fixed" or static):
        raise NotSupported(
            "how much this schedule keeps of a picture depends on its rows and columns; artifacts look that up by the number of tokens, "
            "for square pictures and target 'onnxruntime'; use a schedule with keep as a share, or compile the model"
        )
    if bounds.pictures > 1 and any(isinstance(cut.keep, TokenCount) and cut.keep.by_row for cut in schedule.cuts):
        raise NotSupported(
            "how much this schedule keeps of a picture depends on how many stand beside it, which artifacts do not look up; "
            "export for one picture a row (images=1), or compile the model"
        )
    grids = {"picture_grids": _picture_grids(grid, bucket, bounds.pictures)} if grid else {}
    prompt = Prompt(length, Placeholders.of(model).ids)
    positions = _positions(bucket, picture_tokens, grids.get("picture_grids"))
    rules = {
        name: MaskRule.of(name, mask, segment, getattr(model.config.get_text_config(), "sliding_window", None))
        for name, mask in bucket.given.items() if name.startswith("attention_mask") and mask.ndim == 4
    }  # fmt: skip
    prefill, prefill_steps = pipelines.prefill(schedule, depth, exported=True).run(bucket.prefill)
    leave_out_later_keys(prefill, bucket.given, segment, blocks)
    decode, decode_steps = pipelines.decode(schedule, depth, capacity=fixed_capacity(schedule)).run(bucket.decode)

    head, embedding = Head(model), model.get_input_embeddings()
    period = schedule.kv.when.period if schedule.kv else 0
    stages: dict[str, StageExport] = {}

    def add(name: str, module: nn.Module, given: dict[str, Any], dynamic: dict[str, Any] | None = None,
            ranges: dict[str, tuple[int, int]] | None = None) -> dict[str, Any]:  # fmt: skip
        with torch.no_grad():
            stages[name] = StageExport(module, given, module(**given), dynamic or {}, ranges or {}, given)
        return stages[name].outputs

    add("vision", seen.module, seen.inputs, seen.dynamic, seen.ranges)
    ids = bucket.inputs["input_ids"]
    sizes = Sizes.of(lengths, bounds, tables, schedule, new_tokens)
    features = seen.features(bucket.pictures, bounds.rows * bounds.visual)
    embedded = add("embed", EmbedStage(embedding, prompt), {"input_ids": ids} | features, sizes.embed(features), sizes.ranges)
    asked = {"input_ids": ids, "attention_mask": bucket.inputs["attention_mask"], "picture_tokens": picture_tokens} | grids | embedded
    asked |= sizes.carriers()
    stage = PrefillStage(prefill, prompt, positions, rules, head, schedule, tables, depth, new_tokens, lengths is not None)
    for name, table in stage.named_buffers(recurse=False):
        setattr(stage, name, table.to(ids.device))
    out = add("prefill", stage, asked, sizes.prefill(embedded), sizes.ranges)
    stages["prefill"].traced = sizes.traced(asked, embedded)
    with torch.no_grad():
        state = stage.answer(**asked)[1]
    cache = out["present"]
    step = torch.zeros(1, dtype=torch.int64, device=ids.device)
    token = bucket.sequences[:, bucket.length : bucket.length + 1]
    stepping = DecodeStage(decode, embedding, head, state, positions, period, new_tokens)
    answer = add("decode", stepping, {"input_ids": token, "step": step, "past_key_values": cache}, sizes.decode(state), sizes.ranges)
    if period:
        own = {k: v for k, v in cache.items() if k in (*cache_arrays(state), "length") and k != "limit"}
        add("compact", CompactStage(state, period), {"step": step + period, "past_key_values": own})
    _check(bucket, embedded, out, answer)
    left = (length, *tables.stay)
    tokens = tuple(left[cut] for cut in tables.cut_of)
    capacity = tuple(layer.keys.shape[2] for layer in state.layers)
    endless = schedule.kv is not None and schedule.kv.when.fixed
    return Built(bucket, bounds, tables, lengths, seen.how, grid, stages, tokens, capacity, 0 if endless else new_tokens, period,
                 {"prefill": prefill_steps, "decode": decode_steps})  # fmt: skip


def _bounds(bucket: Bucket, seen: VisionStage, images: int | None) -> Bounds:
    """What the bucket takes. Raises InputError for fewer pictures than the example has, or other ones where only those are taken."""
    most = max(map(len, bucket.images))
    if seen.how["kind"] == "fixed":
        if len(set(bucket.images)) != 1:
            raise InputError(
                f"the vision tower takes pictures of the example's sizes only, so its rows need the same ones, got pictures of "
                f"{bucket.images} tokens; make one bucket a layout ({'; '.join(seen.how['why'])})"
            )
        return Bounds(bucket.rows, bucket.length - bucket.visual, bucket.visual, most)
    wanted = max(PICTURES, most) if images is None else images
    if wanted < most:
        raise InputError(f"images={images} is below the {most} pictures that a row of the example has; raise it")
    fits = min(wanted, max(most, bucket.visual // seen.unit))
    return Bounds(bucket.rows, bucket.length - bucket.visual, bucket.visual, fits, seen.unit)


def _grid(model: Any, bucket: Bucket) -> dict[str, Any] | None:
    """Where a model that numbers positions in several planes is told each picture's height and width; None for another one.

    Raises CaptureError where it is not.
    """
    if bucket.given["position_ids"].ndim == 2:
        return None
    grid = bucket.inputs.get(GRID)
    if grid is None or bool((grid[:, 0] != 1).any()):
        raise CaptureError("the model numbers positions in several planes, but the example has no grid of still pictures")
    return {"name": GRID, "merge": getattr(model.config.vision_config, "spatial_merge_size", 1)}


def _picture_grids(grid: dict[str, Any], bucket: Bucket, pictures: int) -> Tensor:
    """[B, I, 2] int64: height and width of each picture of each row in visual tokens, then zeros."""
    every = iter(torch.from_numpy(pictures_of_planes(grid, {grid["name"]: bucket.inputs[grid["name"]].cpu().numpy()})))
    out = torch.zeros(bucket.rows, pictures, 2, dtype=torch.int64, device=bucket.inputs["input_ids"].device)
    for row, images in enumerate(bucket.images):
        for number in range(len(images)):
            out[row, number] = next(every)
    return out


def _positions(bucket: Bucket, picture_tokens: Tensor, picture_grids: Tensor | None) -> Positions:
    """The rule of RoPE positions that the model's own values follow. Raises CaptureError where none does."""
    given, segment = bucket.given["position_ids"], bucket.given[ports.SEGMENT.name]
    real = segment >= TEXT
    found = Positions(first=int(given[real].min())) if given.ndim == 2 else Positions(given.shape[0])
    computed, following = found(segment, picture_tokens, picture_grids)
    step = found.step(following, real.sum(1), torch.zeros_like(segment[0, :1]))
    rows = real.expand(given.shape)
    if not (computed[rows] == given[rows]).all() or not (step == bucket.following).all():
        raise CaptureError(f"the model's RoPE positions follow no rule that an artifact can compute: {given[..., :40].tolist()}")
    return found


def _check(bucket: Bucket, embedded: dict[str, Tensor], prefill: dict[str, Tensor], decode: dict[str, Tensor]) -> None:
    """Compare the stages with what the compiled model did; raises CaptureError where they differ."""
    real = bucket.inputs["attention_mask"].bool()
    bound = ROUNDING[bucket.given["inputs_embeds"].dtype]
    compared = {
        "the vision and embed stages": (embedded["inputs_embeds"][real], bucket.given["inputs_embeds"][real], TOLERANCE),
        "the prefill stage": (prefill["logits"], bucket.logits[0], bound),
        "the decode stage": (decode["logits"], bucket.logits[1], bound),
    }
    if ports.SALIENCE.name in embedded:
        compared["the vision stage's salience"] = (embedded[ports.SALIENCE.name], bucket.given[ports.SALIENCE.name], bound)
    for stage, (ours, theirs, most) in compared.items():
        apart = float((ours.float() - theirs.float()).abs().max() / theirs.abs().max())
        if not apart <= most:
            raise CaptureError(f"{stage}: apart from the compiled model by {apart:.1e} of the largest value, above {most:.0e}")
    both = ((prefill["logits"], decode["logits"]), bucket.logits[:2])  # not the answer: that was kept from ending
    tokens, expected = (torch.stack([x.argmax(-1) for x in logits], 1) for logits in both)
    if not torch.equal(tokens, expected):
        raise CaptureError(f"the stages answer {tokens.tolist()}, the compiled model {expected.tolist()}: a defect of lightvlm_fx")
