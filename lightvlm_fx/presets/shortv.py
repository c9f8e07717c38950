"""ShortV (arXiv 2504.00502), as a schedule."""

from __future__ import annotations

from collections.abc import Sequence

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.schedule import Layer, Schedule

SURE = (
    "Read from the authors' code: keys and values of all tokens, queries, output and MLP of text alone, and the 19 layers of "
    "LLaVA-1.5-7B. Ours: the same shares of the depth for other models, which the paper measures one by one."
)

# LLaVA-1.5-7B's 19 of 32 layers (the paper's repository); of other models the same shares of the depth.
UNCHANGED = (0.001, *(layer / 32 for layer in (2, 3, 12, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31)))


def shortv(layers: Sequence[Layer] = UNCHANGED) -> Schedule:
    """ShortV (arXiv 2504.00502): in `layers` visual tokens keep their hidden state; queries, output and MLP run for text alone.

    Which layers change visual tokens least is a matter of each model: the default is LLaVA-1.5-7B's, by share of the depth. On Qwen
    models freezing can break answers (arXiv 2604.16462). `lightvlm.layer_contributions(model, inputs)` measures it layer by layer as the
    paper does: give the layers that it finds least, and compare answers before relying on them.
    """
    if not layers:
        raise ScheduleError("shortv: layers must name at least one layer, got none")
    return Schedule(name="shortv", freeze=tuple(sorted(layers)))
