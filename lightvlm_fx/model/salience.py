"""What a vision tower itself attends to: the score of a cut that knows no question (SparseVILA, arXiv 2510.17777, stage 1).

The tower runs with an attention implementation that notes queries and keys; of the last layer that attends to whole pictures, the
attention that every patch received becomes one number for each visual token. No model file is patched.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightvlm_fx.compat import attention_name
from lightvlm_fx.errors import NotSupported
from lightvlm_fx.model.families.patch_order import GRID, merge_side, patch_order, whole_picture_layers
from lightvlm_fx.model.locate import with_own
from lightvlm_fx.ops.column_sums import column_sums

NAME = "lightvlm_salience"
GRIDS = {"image": GRID, "video": "video_grid_thw"}  # of each kind, the argument that says how many patches each has


class Noted:
    """Queries and keys of the attention module that ran last, a pair for each of its calls.

    Only of the modules in `layers`, counted as they run; None: of all. `merged` patches become one visual token; `order` [P] is that
    of families/patch_order.py.
    """

    def __init__(self, layers: frozenset[int] | None = None, merged: int = 1, order: Tensor | None = None) -> None:
        self.layers, self.merged, self.order = layers, merged, order
        self.running: nn.Module | None = None
        self.number = -1
        self.module: nn.Module | None = None
        self.calls: list[tuple[Tensor, Tensor, float]] = []

    def note(self, module: nn.Module, q: Tensor, k: Tensor, scale: float) -> None:
        if module is not self.running:
            self.running, self.number = module, self.number + 1
        if self.layers is not None and self.number not in self.layers:
            return
        if module is not self.module:
            self.module, self.calls = module, []
        self.calls.append((q, k, scale))

    @property
    def patches(self) -> int:
        return sum(q.shape[0] * q.shape[2] for q, _, _ in self.calls)

    @property
    def summarised(self) -> int:
        """Patches, if every sequence begins with a summary token."""
        return self.patches - sum(q.shape[0] for q, _, _ in self.calls)

    def fits(self, tokens: int) -> bool:
        """Whether `tokens` visual tokens can be told to come from these patches."""
        return tokens in (self.summarised, self.patches) or self.merged * tokens == self.patches


class Given:
    """Scores [N] float32 that a vision stage gave with its features. Raises NotSupported for pictures that are not tiles of `tile` tokens
    each, where it says so: shares of tiles are then none of a picture.
    """

    def __init__(self, scores: Tensor, tile: int | None) -> None:
        self.scores, self.tile = scores, tile

    def fits(self, tokens: int) -> bool:
        return len(self.scores) == tokens


_noted: ContextVar[Noted] = ContextVar("noted")


def _noting(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
    scale = options.get("scaling")
    _noted.get().note(module, q, k, q.shape[-1] ** -0.5 if scale is None else float(scale))
    return sdpa_attention_forward(module, q, k, v, attention_mask, **options)


AttentionInterface.register(NAME, _noting)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def noting(tower: nn.Module, grid: Tensor | None = None) -> Iterator[Noted]:
    """Note what `tower` attends to while it runs in this thread, on pictures of `grid` [pictures, 3] patches where it is told that.

    No other thread may run it meanwhile. Its own attention implementation comes back, whatever happens.
    Raises NotSupported for a tower that attends within windows only, or that needs a grid and gets none.
    """
    noted, own = Noted(whole_picture_layers(tower), merge_side(tower) ** 2, patch_order(tower, grid)), attention_name(tower)
    token = _noted.set(noted)
    tower.set_attn_implementation(NAME)
    try:
        yield noted
    finally:
        tower.set_attn_implementation(own)
        _noted.reset(token)


def watched(tower: nn.Module, model: Any, tell: Callable[[Noted], None], of: str = "image") -> Callable[..., Any]:
    """`model.get_image_features` (or get_video_features, `of` "video"), which hands what its `tower` attended to on to `tell`.

    It runs on a copy over the same weights, whose tower has configs of its own: other threads may run the tower itself meanwhile.
    Raises NotSupported where there is none, or the tower attends within windows only.
    """
    forward = getattr(type(model), f"get_{of}_features", None)
    if forward is None:
        why = f"a score by tower attention watches get_{of}_features(), which {type(model).__name__} has not"
        raise NotSupported(f"{why}; use score 'density'")
    whole_picture_layers(tower)
    arguments = inspect.signature(forward)
    @functools.wraps(forward.__get__(model))
    def run(*args: Any, **kwargs: Any) -> Any:
        copied, private = with_own(model, tower)
        vars(copied).pop("get_image_features", None)  # of a video some families ask for pictures' features, which are watched, too
        grid = arguments.bind(copied, *args, **kwargs).arguments.get(GRIDS[of])
        with noting(private, grid) as noted:
            out = forward(copied, *args, **kwargs)
        tell(noted)
        return out

    return run


def salience(noted: Noted | Given, tokens: int) -> Tensor:
    """One number for each of `tokens` visual tokens, in their order, float32 [tokens].

    A tower with as many patches as tokens, and one summary token before them: the attention that the summary pays.
    Without a summary: the mean attention that a patch receives. Patches that become one token (Qwen-VL) are averaged.
    Raises NotSupported where patches and tokens do not correspond one to one or so.
    """
    if isinstance(noted, Given):
        assert noted.fits(tokens), f"the vision stage scored {len(noted.scores)} tokens, the prompt holds {tokens}: a defect of lightvlm_fx"
        return noted.scores
    if not noted.calls:
        raise NotSupported(
            "a score by tower attention was asked for, but this vision tower does not attend through transformers' "
            "AttentionInterface, so nothing of it can be seen; use a cut with score 'density', which needs no tower"
        )
    if not noted.fits(tokens):
        raise NotSupported(
            f"a score by tower attention needs to know which patches of the vision tower a visual token comes from, but "
            f"{noted.patches} patches became {tokens} tokens (tiles, pooling or row breaks lie between, or a video stands beside them); "
            "use a cut with score 'density', which needs no tower"
        )
    if noted.summarised == tokens:
        parts = [_received(q, k, scale, 1)[:, 1:] for q, k, scale in noted.calls]
    else:
        parts = [_received(q, k, scale, q.shape[2]) for q, k, scale in noted.calls]
    received = torch.cat([part.flatten() for part in parts])
    if noted.order is not None:
        received = received[noted.order.to(received.device)]
    return received.view(tokens, -1).mean(1)


def _received(q: Tensor, k: Tensor, scale: float, rows: int) -> Tensor:
    """Attention [n, P] that each patch receives from the first `rows` patches, mean over them and over heads."""
    patches = q.shape[2]
    here = torch.arange(patches, device=q.device)
    weight = (here < rows).float().expand(q.shape[0], -1) / rows
    everything = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=q.device).expand(q.shape[0], 1, patches, patches)
    return column_sums(q, k, torch.zeros(q.shape[0], patches, dtype=torch.int64, device=q.device), everything, scale, weight)[0].mean(1)
