"""Hypothesis strategies for whole schedules, and for batches of a tiny model: what rows, padding and bounds are checked with."""

from drawn import KV_SCORES, MERGES, RUNNING, SCORES, SHARING, WHEN, WITHOUT_ATTENTION, methods
from hypothesis import assume
from hypothesis import strategies as st

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.kv import Kv
from lightvlm_fx.methods.registry import COMBINES, ENTRY_SCORES, TOKEN_SCORES
from lightvlm_fx.schedule import POSITIONS, Cut, Schedule

shares = st.sampled_from([0.05, 0.2, 0.35, 0.5, 0.9, 1.0])


@st.composite
def cuts(draw, depth, visual):
    """None to two cuts of a decoder of `depth` layers, for pictures of `visual` tokens."""
    layers = sorted(draw(st.sets(st.integers(0, depth - 1), max_size=2)))
    keeps = sorted(draw(st.lists(shares, min_size=len(layers), max_size=len(layers))), reverse=True)
    made = []
    for layer, keep in zip(layers, keeps, strict=True):
        names = WITHOUT_ATTENTION if layer == 0 else SCORES
        scores = [s for s in names if "tower" not in TOKEN_SCORES.get(s).reads or not made]
        combine = draw(methods(COMBINES, [name for name in COMBINES.names if "tower" not in COMBINES.get(name).reads or not made]))
        count = draw(st.booleans())
        score = draw(methods(TOKEN_SCORES, scores).filter(lambda score, layer=layer: layer > 0 or score.before_layers))
        made.append(Cut(
            layer=layer, keep=max(1, int(keep * visual)) if count else keep, score=score, combine=combine,
            positions=draw(st.sampled_from(POSITIONS)), proportional=combine.counts and draw(st.booleans()),
        ))  # fmt: skip
    return tuple(made)


@st.composite
def bounds(draw, depth):
    """A bound that a short prompt feels: a count of up to 60 entries, or a share."""
    when = draw(st.sampled_from(WHEN))
    of = "visual" if when == "turn" else draw(st.sampled_from(["all", "visual"])) if when == "prefill" else "all"
    scores, budgets = RUNNING, ["uniform", "pyramid"]
    if when in ("prefill", "turn"):
        scores = ("question",) if when == "turn" else [s for s in KV_SCORES if s != "question" and (s != "elite" or of == "visual")]
        budgets = [b for b in SHARING if b != "strength"]
    score = draw(methods(ENTRY_SCORES, scores))
    sinks, recent = draw(st.integers(0, 4)), draw(st.integers(0, 6))
    capacity = draw(st.integers(1 if of == "visual" else sinks + recent + 1, 60))
    if when not in ("mask", "periodic") and draw(st.booleans()):
        capacity = draw(shares)
    more = {}
    if when not in ("prefill", "turn"):
        more["prompt"] = draw(st.none() | methods(ENTRY_SCORES, [s for s in KV_SCORES if s not in ("elite", "question")]))
        if score.carried:
            more["visual_share"] = draw(st.sampled_from([0, 0, 0.2, 0.5]))
    weights = st.lists(st.sampled_from([0.5, 1.0, 1.5]), min_size=depth, max_size=depth)
    try:
        if when == "periodic":
            when = {"name": when, "every": draw(st.integers(1, 8))}
        return Kv(
            capacity=capacity, of=of, when=when, score=score, sinks=sinks, recent=recent, heads=draw(st.sampled_from(["each", "shared"])),
            budgets=draw(st.sampled_from(["strength", *budgets] if score.name == "elite" else budgets) | weights),
            text_first=not more.get("visual_share") and draw(st.booleans()),
            merge=draw(st.sampled_from(["none", "counted"] if when == "turn" else MERGES)),
            layers=draw(st.sampled_from([1, 1, 2, 9])), **more,
        )  # fmt: skip
    except ScheduleError:
        assume(False)


@st.composite
def schedules(draw, depth, visual):
    """Any schedule that a decoder of `depth` layers takes; most have a bound."""
    return Schedule(cuts=draw(cuts(depth, visual)), kv=draw(bounds(depth) | bounds(depth) | st.none()))


@st.composite
def prompts(draw):
    """Text tokens and pictures of one to three rows, as `TinyVLM.inputs` takes them."""
    images = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    text = [draw(st.integers(5 + n if n else 1, 40)) for n in images]
    return {"text": tuple(text), "images": tuple(images)}
