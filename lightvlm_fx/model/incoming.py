"""What a call of a compiled model brings, looked at before anything runs."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from lightvlm_fx.compat import pytree
from lightvlm_fx.errors import InputError


def by_name(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `model` by name; those given by position too."""
    names = list(inspect.signature(type(model).forward).parameters)[1:]
    return dict(zip(names, args, strict=False)) | kwargs


def expect_finite(given: dict[str, Any]) -> None:
    """Raise InputError where pixels or features hold NaN or infinity, which would be answered with token 0; masks may."""
    for name, value in given.items():
        for x in pytree.tree_leaves(value):
            if isinstance(x, Tensor) and x.is_floating_point() and "mask" not in name and not bool(x.isfinite().all()):
                count = int(x.isfinite().logical_not().sum())
                raise InputError(
                    f"{name} holds {count} numbers that are not finite (NaN or infinite) of {x.numel()}; "
                    "look at the picture, at what was done to it (a division by zero) and at the tower's dtype (float16 overflows)"
                )


def misfit(error: Exception, goes_on: bool) -> InputError:
    """Transformers' error for a wrong count of pictures in words that say what to do; `goes_on`: after a filled cache."""
    if goes_on:
        what = (
            "the pictures do not fit the placeholders of the tokens that are new: past_key_values holds the earlier turns with their "
            "pictures, so pass the pictures of the new turn alone, or none where it brings none"
        )
    else:
        what = (
            "the pictures do not fit the placeholders of the prompt: one placeholder a picture in the text, and text and "
            "pictures of the same samples, both from one call of the processor"
        )
    return InputError(f"{what} (transformers says: {error}; it may count numbers, not tokens, in the features)")
