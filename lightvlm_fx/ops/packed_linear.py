"""A linear layer on a processor whose weight was rearranged once, as oneDNN wants it, and not again at every call."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor
from torch.nn import functional as F

from lightvlm_fx.compat import packed_product, packed_weight, packs_bfloat16

FEW = 32  # rows below which float32 products read the weight as it lies: there MKL is as fast, and it needs no copy
ROWS = 64  # of the product that the layout is chosen for


@torch.library.custom_op("lightvlm::packed_linear", mutates_args=())
def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Rows x [B, S, n] times weight [m, n] transposed, plus bias [m]: what F.linear gives, from a copy of the weight that lasts.

    The copy follows a weight that is written to in place, and goes when the weight goes.
    """
    few = x.numel() // x.shape[-1] < FEW
    if few and weight.dtype == torch.float32:
        return F.linear(x, weight, bias)
    return packed_product(x, _copy(weight), bias)


@packed_linear.register_fake
def _(x, weight, bias=None):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _copy(weight: Tensor) -> Tensor:
    version = 0 if weight.is_inference() else weight._version
    found = _packed.get(id(weight))
    if found is None or not found.holds(weight, version):
        packed = packed_weight(weight.detach(), ROWS)
        found = _packed[id(weight)] = _Copy(weight, version, packed)
    return found.packed


class _Copy:
    """A packed weight. It holds what it is a copy of, so that no other numbers come to stand at that address."""

    def __init__(self, weight: Tensor, version: int, packed: Tensor) -> None:
        key = id(weight)
        self.weight, self.version, self.packed = weakref.ref(weight, lambda _: _packed.pop(key, None)), version, packed
        self.of = weight.detach()

    def holds(self, weight: Tensor, version: int) -> bool:
        same = self.weight() is weight and self.version == version and self.of.dtype == weight.dtype
        return same and self.of.data_ptr() == weight.data_ptr()


_packed: dict[int, _Copy] = {}  # by the id of the weight


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this processor has products of packed weights of `dtype`."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and packs_bfloat16())


def packed_bytes() -> int:
    """What the copies of all weights take in this process."""
    return sum(copy.of.numel() * copy.of.element_size() for copy in list(_packed.values()))
