"""Hypothesis strategies for methods with options of their own, whatever methods there are."""

import annotated_types
from hypothesis import strategies as st

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.methods.moments import MOMENTS
from lightvlm_fx.methods.registry import BUDGETS, COMBINES, ENTRY_MERGES, ENTRY_SCORES, TOKEN_SCORES

SCORES = tuple(name for name in TOKEN_SCORES.names if name != "survived")  # which goes with cuts in the tower
KV_SCORES, WHEN = ENTRY_SCORES.names, tuple(kind.name for kind in MOMENTS)
WITHOUT_ATTENTION = tuple(name for name in SCORES if TOKEN_SCORES.get(name)().before_layers)
RUNNING = tuple(kind.name for kind in ENTRY_SCORES.all() if kind.steps)
ADAPTIVE = tuple(kind.name for kind in BUDGETS.all() if kind.adaptive)
SHARING = tuple(name for name in BUDGETS.names if name != "weights")  # ways to share a budget that need no list
MERGES = ENTRY_MERGES.names


def option(field, most):
    """A strategy for the values of one option: of its type, within its bounds, whole numbers up to `most`."""
    if field.annotation is bool:
        return st.booleans()
    low, high, open_low = 0, most if field.annotation is int else 1.0, False
    for bound in field.metadata:
        if isinstance(bound, annotated_types.Ge | annotated_types.Gt):
            low = bound.ge if isinstance(bound, annotated_types.Ge) else bound.gt
            open_low = isinstance(bound, annotated_types.Gt)
        if isinstance(bound, annotated_types.Le | annotated_types.Lt):
            high = min(high, bound.le if isinstance(bound, annotated_types.Le) else bound.lt - 1)
    return st.integers(low, high) if field.annotation is int else st.floats(low, high, exclude_min=open_low)


@st.composite
def methods(draw, registry, names=None, most=12):
    """A method of `registry`, of some `names`, with any of its options."""
    kind = registry.get(draw(st.sampled_from([name for name in names or registry.names if name != "weights"])))
    given = {name: draw(option(field, most)) for name, field in kind.model_fields.items() if draw(st.booleans())}
    try:
        return kind(**given)
    except ScheduleError:  # what no bound says, such as that it must be odd
        return kind()


scores, combines = methods(TOKEN_SCORES, SCORES), methods(COMBINES)
