"""Cuts inside a vision tower, which it is traced with: tokens leave a block between its attention and its MLP.

The decoder's scores and combines choose; the rest of the tower runs on what is left. What comes after the blocks (projector, merger, a
model's own order of tokens) finds every token in its place, those that left holding nothing, and is told apart by `alive`: no family
needs code of its own, and a projector that mixes tokens is found out by what it makes of those that left.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lightvlm_fx import ops  # noqa: F401  (registers select_tokens)
from lightvlm_fx.compat import pytree
from lightvlm_fx.methods.base import Method
from lightvlm_fx.methods.operators import arguments, operator, options
from lightvlm_fx.model.families.patch_order import whole_picture_layers
from lightvlm_fx.model.locate import tower_blocks
from lightvlm_fx.ops.column_sums import column_sums
from lightvlm_fx.ops.segments import TEXT
from lightvlm_fx.schedule import Schedule, TowerCut
from lightvlm_fx.shares import share_of

TILED = "lightvlm_tower_cut"  # attention of towers that take tiles, each a row
SUMS = {"add", "__add__", "__radd__", "add_", "__iadd__"}
SUMMARY = 1  # tokens before a tile's patches, in towers that have one


class NotCut(Exception):
    """Why tokens cannot leave inside a tower."""


@dataclass
class TowerCall:
    """What one call of a tower is told: the picture of each unit [B, U], and of each cut what stays of each picture and of each row.

    A unit is the patches that become one visual token. `blocks`: of packed patches, which attend to each other after each cut.
    """

    segment: Tensor
    budgets: list[Tensor]  # [B, I] int64
    stay: list[Any]
    blocks: list[Any]


class Cutting(TorchFunctionMode):
    """Cuts installed in `tower`, which must be nobody else's. `with self.over(call, ...)`: they act on the calls of the tower inside."""

    def __init__(self, tower: nn.Module, used: int, schedule: Schedule, together: int = 1) -> None:
        """`used`: blocks whose output is used; `together`: packed patches that become one token, 0 where each tile is a row.

        Raises NotCut where the tower is of another kind, ScheduleError where it has too few blocks.
        """
        super().__init__()
        blocks = tower_blocks(tower)
        if blocks is None:
            raise NotCut("its tower has no list of equal blocks")
        self.cuts, self.together = schedule.in_tower(used), together
        whole = whole_picture_layers(tower)
        windowed = [i for i in range(min(self.cuts), used) if whole is not None and i not in whole]
        if windowed:
            raise NotCut(f"blocks {windowed} of its tower attend within windows, which lose patches by a cut in block {min(self.cuts)}")
        self.call: TowerCall | None = None
        self.index: Tensor | None = None  # [B, K]: the units that are left
        self.left = self.size = torch.empty(0)  # [B, K]: their pictures, and the patches that each stands for; empty: one each
        self.noted: tuple[Tensor, Tensor, float] | None = None
        self.fill = 0.0  # what stands where tokens left
        for number, block in enumerate(blocks):
            block.register_forward_pre_hook(self._entering(number), with_kwargs=True)
        if together:
            mergers = [m for name, m in tower.named_modules() if name == "merger" or (name.startswith("deepstack_merger_list.") and
                       name.count(".") == 1)]  # fmt: skip
            if not mergers:
                raise NotCut("its tower has no merger of patches after its blocks")
            for merger in mergers:
                merger.register_forward_pre_hook(self._restoring, with_kwargs=False)
        else:
            tower.register_forward_hook(self._restoring_all)
            tower.set_attn_implementation(TILED)

    @contextmanager
    def over(self, call: TowerCall) -> Iterator[None]:
        self.call, self.index, self.left, self.size = call, None, call.segment, torch.empty(0)
        self.block, self.number, self.noted, self.summary = -1, 0, None, 0
        self.lengths: list[tuple[Any, Tensor]] = []
        token = _current.set(self)
        try:
            with self:
                yield
        finally:
            _current.reset(token)
            self.call = None

    def alive(self) -> Tensor:
        """[B, U] float32: 1 for the units that are left, without summaries. Raises NotCut where a cut found no place."""
        assert self.call is not None
        if self.index is None or self.number < len(self.cuts):
            raise NotCut(f"{self.number} of {len(self.cuts)} cuts found a place: its blocks add no attention to what they got")
        segment = self.call.segment
        found = torch.zeros(segment.shape[0], segment.shape[1] + self.summary, device=segment.device)
        return found.scatter(1, self.index, 1.0)[:, self.summary :]

    # --- hooks ------------------------------------------------------------------------------------------

    def _entering(self, number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self.call is None:
                return None
            self.block, self.noted = number, None
            if not self.together and number == 0:  # only now it is seen how many tokens a tile has
                self.summary = args[0].shape[1] - self.call.segment.shape[1]
                if self.summary not in (0, SUMMARY):
                    raise NotCut(f"its tower makes {args[0].shape[1]} tokens of a tile that becomes {self.call.segment.shape[1]}")
                self.left = nn.functional.pad(self.call.segment, (self.summary, 0), value=TEXT)
            if self.index is None or not self.together:
                return None
            places = {"position_embeddings", "rotary_pos_emb"} & kwargs.keys()
            return args, kwargs | {name: pytree.tree_map(self._of_left, kwargs[name]) for name in places}

        return hook

    def _of_left(self, x: Any) -> Any:
        """Rows [N, ...] of packed patches, of the units that are left."""
        if not isinstance(x, Tensor):
            return x
        assert self.index is not None
        return x.unflatten(0, (-1, self.together))[self.index[0]].flatten(0, 1)

    def _restoring(self, module: nn.Module, args: tuple[Any, ...]) -> Any:
        if self.call is None or self.index is None:
            return None
        hidden = args[0]
        units = hidden.reshape(-1, self.together * hidden.shape[-1])
        full = units.new_full((self.call.segment.shape[1], units.shape[1]), self.fill)
        full = full.scatter(0, self.index[0].unsqueeze(-1).expand_as(units), units)
        return full.reshape(-1, hidden.shape[-1]), *args[1:]

    def _restoring_all(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        if self.call is None or self.index is None:
            return None
        whole = self.call.segment.shape[1] + self.summary
        found = dict(self.lengths)

        def full(x: Any) -> Any:
            if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[1] == whole or x.shape[1] not in found:
                return x
            index = found[x.shape[1]].unsqueeze(-1).expand_as(x)
            return x.new_full((x.shape[0], whole, x.shape[2]), self.fill).scatter(1, index, x)

        for name, value in list(out.items()):
            out[name] = tuple(map(full, value)) if isinstance(value, tuple | list) else full(value)
        return out

    # --- attention, and what is added to it ------------------------------------------------------------

    def attended(self, q: Tensor, k: Tensor, scale: float) -> None:
        """Queries and keys [B, H, N, d] of the block that runs."""
        self.noted = (q, k, scale)

    def bias(self, like: Tensor) -> Tensor | None:
        """[B, N] of keys: the log of the patches that each stands for, where a cut before this block counts them."""
        past = [cut for at, cut in self.cuts.items() if at < self.block]
        if not self.number or not any(cut.proportional for cut in past):
            return None
        return self.size.log().to(like.dtype).repeat_interleave(max(1, self.together), 1)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.noted is None or self.block not in self.cuts or getattr(func, "__name__", "") not in SUMS:
            return out
        if not isinstance(out, Tensor) or out.ndim != (2 if self.together else 3):
            return out
        noted, self.noted = self.noted, None
        return self._cut(out, self.cuts[self.block], *noted)

    def _cut(self, hidden: Tensor, cut: TowerCut, q: Tensor, k: Tensor, scale: float) -> Tensor:
        assert self.call is not None
        segment, number, shape = self.left, self.number, hidden.shape
        if self.together:
            hidden = hidden.reshape(1, -1, self.together * shape[-1])
            mask = segment[:, None, :, None] == segment[:, None, None, :]
        else:
            mask = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=segment.device).expand(segment.shape[0], 1, *segment.shape[1:] * 2)
        q, k = (x.unflatten(2, (-1, self.together)).mean(3) if self.together > 1 else x for x in (q, k))
        size = self.size if number else torch.ones_like(segment, dtype=torch.float32)
        budget = self.call.budgets[number].gather(1, segment.clamp_min(0))
        # all of IN_TOWER (methods/base.py), with what follows
        given = {"hidden": hidden, "segment": segment, "size": size, "budget": budget, "stay": self.call.stay[number] + self.summary,
                 "q": q, "k": k, "scale": scale, "mask": mask, "layer": self.block}  # fmt: skip
        if "tower" in (*cut.score.reads, *cut.combine.reads):
            given["tower"] = self._received(q, k, segment, mask, scale)
        score = given["tower"] if cut.score.reads == ("tower",) else _run(cut.score, "score", given)
        index, left, rank = torch.ops.lightvlm.select_tokens(score, segment, budget, given["stay"])
        if cut.combine.counts:
            more = {"score": score, "rank": rank, "index": index, "left": left}
            hidden, size, _ = _run(cut.combine, "combine", given | more)
        else:
            hidden, size = (x.gather(1, index.unsqueeze(-1).expand(*index.shape, x.shape[2])) for x in (hidden, size.unsqueeze(-1)))
            size = size.squeeze(-1)
        self.index = index if self.index is None else self.index.gather(1, index)
        self.left, self.size, self.number = left, size, number + 1
        if not self.together:
            self.lengths.append((index.shape[1], self.index))
        return hidden.reshape(-1, shape[-1]) if self.together else hidden

    def _received(self, q: Tensor, k: Tensor, segment: Tensor, mask: Tensor, scale: float) -> Tensor:
        """Attention [B, U] that each unit receives: from the summary, or from all of its picture on average."""
        rows = (segment == TEXT).float() if self.summary else torch.ones_like(segment, dtype=torch.float32)
        total, seen_by = column_sums(q, k, segment, mask, scale, rows)
        return total.mean(1) / seen_by.clamp_min(1)

    def groups(self, given: Any) -> Any:
        """What says which packed patches belong together, `given` before the first cut."""
        return given if self.call is None or not self.number else self.call.blocks[self.number - 1]


_current: ContextVar[Cutting | None] = ContextVar("cutting", default=None)


def current() -> Cutting | None:
    """The cuts that act on the tower that runs in this thread."""
    return _current.get()


def _attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Any:
    """Attention of tiles [n, H, N, d], which cuts see and count sizes in."""
    cutting, scale = current(), options.get("scaling")
    if cutting and (bias := cutting.bias(q)) is not None:
        attention_mask = bias[:, None, None]  # towers that take a mask are refused
    out = sdpa_attention_forward(module, q, k, v, attention_mask, **options)
    if cutting:
        cutting.attended(q, k, q.shape[-1] ** -0.5 if scale is None else float(scale))
    return out


AttentionInterface.register(TILED, _attend)
AttentionMaskInterface.register(TILED, sdpa_mask)


def tiled(pictures: Tensor, tokens: int, cuts: tuple[TowerCut, ...]) -> TowerCall:
    """Of tiles [n, C, H, W], each of which becomes so many tokens."""
    n, stay = pictures.shape[0], [share_of(cut.keep, tokens) for cut in cuts]
    segment = torch.zeros(n, tokens, dtype=torch.int64, device=pictures.device)
    return TowerCall(segment, [torch.full((n, 1), k, dtype=torch.int64, device=pictures.device) for k in stay], stay, [])


def _run(method: Method, role: str, given: dict[str, Any]) -> Any:
    """A method's operator, of tensors."""
    kind = type(method)
    return operator(kind, role)(*(given[name] for name in arguments(kind, role)), *(getattr(method, name) for name in options(kind)))
