"""A decoder in parts: graphs read its weights where they are, so they have to be whole, and in one place."""

from __future__ import annotations

from torch import nn

from lightvlm_fx.model.locate import refused


def refuse_parts(model: nn.Module, path: str) -> None:
    """Raise RefusedModel where the decoder at `path` is split over processes (tp_plan) or places (device_map, offloading).

    Parts beside the decoder may be elsewhere: the vision tower, the head.
    """
    decoder = model.get_submodule(path)
    if any(hasattr(weight, "device_mesh") for weight in decoder.parameters()):
        raise refused(
            model, "its weights are shards of a tensor-parallel plan (tp_plan), and a cut ranks tokens by all heads of a layer, of which "
            "each process has some; where the model fits one device, in bfloat16 or with int8 weights, load it there without tp_plan, a "
            "model for each process (docs/scale.md); where it does not, run it uncompiled"
        )  # fmt: skip
    way = {model.get_submodule(path[:at]) for at, letter in enumerate(path) if letter == "."} | {model, *decoder.modules()}
    places = sorted({str(weight.device) for weight in decoder.parameters()})
    if any(hasattr(module, "_hf_hook") for module in way) or len(places) > 1:
        raise refused(
            model, f"accelerate (device_map, cpu_offload, disk_offload) or a call of .to() spread its weights (the decoder's: "
            f"{', '.join(places)}; meta: not loaded), and a graph reads them where they are; load it again into one place, "
            "device_map={'': 'cuda:0'} or 'cpu', in bfloat16 or with int8 weights if it is too large; the vision tower alone may be "
            "offloaded: accelerate.cpu_offload(tower)"
        )  # fmt: skip
