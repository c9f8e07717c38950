"""A compiled model follows its source: what its graphs rely on, as a fingerprint."""

from __future__ import annotations

from typing import Any

from torch import nn

from lightvlm_fx.compat import hooks
from lightvlm_fx.errors import RefusedModel


def fingerprint(source: nn.Module) -> tuple[Any, ...]:
    """What graphs of `source` rely on, but for the values of its weights, which they read in place.

    Its modules; its parameters and buffers, their types and places; hooks; and switches, such as which adapters are on or merged.
    Everything is compared by identity, so whoever keeps a fingerprint keeps alive what it was taken of: graphs hold the weights.
    """
    return tuple(_of(module) for module in source.modules())


def _of(module: nn.Module) -> tuple[Any, ...]:
    own, tensors = vars(module), (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return (
        type(module),
        tuple((id(x), x.dtype, x.device, x.shape) for x in tensors),
        tuple(map(id, hooks(module))),
        id(own.get("forward")),
        tuple((name, switch) for name, value in list(own.items()) if (switch := _switch(value)) is not None),
    )


def _switch(value: Any) -> Any:
    """A value that turns code on or off: a word, a yes or no, or several; None of anything else. Numbers are often counts of calls."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, list | tuple | set) and all(isinstance(x, bool | str) for x in value):
        return tuple(value)
    if isinstance(value, dict) and value and all(isinstance(x, bool | str | float) for x in value.values()):
        return tuple(value.items())
    return None


def refuse_own_forward(model: nn.Module, path: str) -> None:
    """Raise RefusedModel where a module on the way to the decoder runs a `forward` of its own object.

    Such a function is bound to that object, and would go around the compiled decoder: `model.forward = torch.compile(model.forward)`,
    a wrapper, what accelerate's hooks leave behind.
    """
    names = path.split(".")
    for depth in range(len(names) + 1):
        name = ".".join(names[:depth])
        module = model.get_submodule(name)
        if "forward" in vars(module):
            raise RefusedModel(
                f"{type(module).__name__}.forward was replaced on this object ({name or 'the model'}), by a wrapper, torch.compile or "
                "accelerate, so a compiled decoder would not be called; compile the model as its class has it: "
                "`del module.forward`, or load it again"
            )


def follow(source: nn.Module, twin: nn.Module, path: str) -> None:
    """Give the copies on the way to `path` in `twin` the children, parameters and buffers that the source's modules have now."""
    names = path.split(".")
    for depth in range(len(names) + 1):
        theirs, ours = (root.get_submodule(".".join(names[:depth])) for root in (source, twin))
        kept = names[depth] if depth < len(names) else None
        children = {name: child for name, child in theirs.named_children() if name != kept}
        for name, thing in (children | dict(theirs.named_parameters(recurse=False)) | dict(theirs.named_buffers(recurse=False))).items():
            if getattr(ours, name, None) is not thing:
                setattr(ours, name, thing)
