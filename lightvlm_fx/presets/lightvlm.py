"""LightVLM (arXiv 2509.00419), whose exact recipe is not public: a reconstruction whose every unknown is an option."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.frozen import STRICT, Count, Positive
from lightvlm_fx.kv import Capacity, Heads, Kv, VisualShare
from lightvlm_fx.methods.combines.merge import Merge
from lightvlm_fx.methods.combines.recover import Centres
from lightvlm_fx.methods.entry_merges.counted import Counted
from lightvlm_fx.methods.entry_scores.attention import Attention
from lightvlm_fx.methods.entry_scores.density import Density as EntryDensity
from lightvlm_fx.methods.moments import Prefill, Step
from lightvlm_fx.methods.options import Power
from lightvlm_fx.methods.registry import AnyCombine, AnyEntryMerge, AnyEntryScore, AnyMoment, AnyTokenScore
from lightvlm_fx.methods.token_scores.density import Density
from lightvlm_fx.presets.shared import PYRAMID, pyramid
from lightvlm_fx.schedule import Keep, Layer, Policy, Schedule

SURE = (
    "Confirmed by the abstract alone: tokens merge step by step over layers of the decoder, and the cache loses entries while it "
    "answers; no code is public. Ours, each an option: layers, shares, score, merge, positions, and all that bounds the cache."
)
METHOD = dict.fromkeys(("rope", "power", "centres", "group"))
CACHE = {
    "when": None, "kv_score": Attention(), "kv_merge": Counted(), "heads": "shared", "kv_layers": 5,
    "sinks": None, "recent": None, "visual_share": 0.3,
}  # fmt: skip
MORE = METHOD | CACHE  # options that the signature does not name, and their defaults


class Options(TypedDict, total=False):
    """Of the score and the combine of `lightvlm`, and of its cache; what they are without is in MORE."""

    __pydantic_config__ = STRICT  # type: ignore[misc]

    rope: bool | None
    power: Power | None
    centres: Centres | None
    group: Positive | None
    when: AnyMoment | None
    kv_score: AnyEntryScore
    kv_merge: AnyEntryMerge
    heads: Heads
    kv_layers: Positive
    sinks: Count | None
    recent: Count | None
    visual_share: VisualShare


def lightvlm(
    keep: Keep = 0.35,
    layers: Sequence[Layer] = PYRAMID,
    score: AnyTokenScore = Density(power=0.5),
    combine: AnyCombine = Merge(),
    positions: Policy = "keep",
    proportional: bool | None = None,
    capacity: Capacity | None = None,
    **options: Unpack[Options],
) -> Schedule:
    """LightVLM (arXiv 2509.00419), reconstructed: pyramid token merging over the decoder's layers, and a bounded cache.

    With `capacity` as a ratio, the prompt's visual entries are merged into that share of the prompt, once (`when="prefill"`);
    as a count, every layer's cache holds that many entries for the whole answer (`when="step"`): the picture, merged into
    `visual_share` (0.3) of them, and of the text 4 sinks, the newest half, and what was attended to most.
    Options of the cache: `when`, `kv_score`, `kv_merge`, `heads`, `kv_layers`, `sinks`, `recent` and `visual_share`.
    Options of `score` and `combine`: `rope`, `power`, `centres` and `group`; `power` is 0.5 where neither says otherwise.
    """
    method = {name: value for name, value in options.items() if name in METHOD and value is not None}
    if "power" not in method and "power" in set(type(score).model_fields) - score.model_fields_set:
        method["power"] = 0.5
    made = pyramid("lightvlm", keep, layers, score=score, combine=combine, positions=positions,
                   proportional=combine.counts if proportional is None else proportional, **method)  # fmt: skip
    cache = {name: options.get(name, usual) for name, usual in CACHE.items()}
    if capacity is None:
        idle = [name for name, usual in CACHE.items() if cache[name] != usual]
        if idle:
            raise ScheduleError(f"lightvlm: {', '.join(idle)} without capacity has no cache to bound; give capacity= a count or a share")
        return made
    return Schedule(name="lightvlm", cuts=made.cuts, kv=_bounded(capacity, **cache))


def _bounded(
    capacity: Capacity, when: Any, kv_score: Any, kv_merge: Any, heads: Any, kv_layers: Any, sinks: int | None, recent: int | None,
    visual_share: float,
) -> Kv:
    """The cache: chosen once, or step by step."""
    if when is None:
        when = Prefill() if isinstance(capacity, float) else Step()
    if not when.stepping:
        stepping = {"kv_score": kv_score, "visual_share": visual_share}
        idle = [name for name, value in stepping.items() if value != CACHE[name]]
        if idle:
            raise ScheduleError(f"lightvlm: {', '.join(idle)} says how a cache goes on step by step, but when='prefill' chooses once; "
                                "leave it out, or give capacity as a count, or when='step'")  # fmt: skip
        return Kv(capacity=capacity, when=when, score=EntryDensity(), merge=kv_merge, heads=heads, layers=kv_layers, text_first=True,
                  sinks=1 if sinks is None else sinks, recent=1 if recent is None else recent)  # fmt: skip
    if recent is None:
        recent = int(capacity * (1 - visual_share) / 2) if isinstance(capacity, int) else 16
    return Kv(capacity=capacity, when=when, score=kv_score, prompt=EntryDensity(), merge=kv_merge, heads=heads, layers=kv_layers,
              sinks=4 if sinks is None else sinks, recent=recent, visual_share=visual_share)  # fmt: skip
