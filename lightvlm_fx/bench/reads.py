"""What is asked of tensors on the host: each such question makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from lightvlm_fx.compat import TorchDispatchMode

READS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique_dim", "_unique2", "masked_select", "item"}
COPIES = ("tolist", "numpy", "cpu")  # copies to the host that are no operator


class Reads(TorchDispatchMode):
    """While active, notes in `found` every operator whose result the host must wait for, on any device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.patches = ExitStack()

    def __enter__(self) -> Reads:
        for method in COPIES:
            self.patches.enter_context(mock.patch.object(Tensor, method, self._noting(method, getattr(Tensor, method))))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.patches.close()
        super().__exit__(*error)

    def _noting(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.found.append(name)
            return method(tensor, *args, **kwargs)

        return noted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(device: str) -> Iterator[list[str]]:
    """What is read on the host meanwhile; a CUDA device itself raises RuntimeError where the host would wait for it."""
    if not device.startswith("cuda"):
        with Reads() as reads:
            yield reads.found
        return
    old = torch.cuda.get_sync_debug_mode()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield []
    finally:
        torch.cuda.set_sync_debug_mode(old)
