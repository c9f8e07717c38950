"""KV score: attention from the prompt's last queries, smoothed over neighbours (SnapKV, arXiv 2404.14469)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator

from lightvlm_fx.errors import ScheduleError
from lightvlm_fx.frozen import Positive
from lightvlm_fx.methods.base import ATTENTION, EntryScore, View

if TYPE_CHECKING:
    from torch import Tensor


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise ScheduleError(f"kernel must be odd, got {kernel}")
    return kernel


Kernel = Annotated[Positive, AfterValidator(_odd)]


class Window(EntryScore):
    """Column sums over the last `window` rows, averaged over `kernel` neighbouring keys."""

    name = "window"
    source = "arXiv 2404.14469"
    reads = (*ATTENTION, "mask")
    window: Positive = 32
    kernel: Kernel = 5

    @property
    def fewest(self) -> int:
        return self.window

    def prompt(self, view: View) -> Tensor:
        from torch.nn.functional import avg_pool1d

        from lightvlm_fx.ops.column_sums import column_sums
        from lightvlm_fx.ops.segments import PADDING

        valid = view.segment != PADDING
        first = max(0, view.segment.shape[1] - self.window)
        score, _ = column_sums(view.q, view.k, view.segment, view.mask, view.scale, valid.float(), first)
        if self.kernel > 1:
            score = avg_pool1d(score.masked_fill(~valid[:, None], 0.0), self.kernel, stride=1, padding=self.kernel // 2)
        return score
