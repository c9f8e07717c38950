"""Finding the parts of a Hugging Face vision-language model by what they do, not by what they are called."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import nn

from lightvlm_fx.compat import own_configs, shallow
from lightvlm_fx.errors import RefusedModel
from lightvlm_fx.model.families.embeds_only import EMBEDS_ONLY
from lightvlm_fx.releases import releases_first

PLACEHOLDER_IDS = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
PLAIN_LAYERS = {"attention", "full_attention", "sliding_attention"}  # layer types that read every key, or a window of them


def decoder_path(model: nn.Module) -> str:
    """Dotted name of the text decoder inside `model`. Raises RefusedModel where there is none."""
    decoder = model.get_decoder() if callable(getattr(model, "get_decoder", None)) else None
    for name, module in model.named_modules():
        if module is decoder and name:
            return name
    raise refused(model, "get_decoder() names no submodule, so there is no text decoder to capture")


@releases_first()
def vision_tower(model: nn.Module) -> nn.Module:
    """The module that encodes pictures. Raises RefusedModel where there is none."""
    tower = _encoder(model)
    if tower is None:
        raise refused(model, "get_encoder(modality='image') names no submodule, and this schedule reads or cuts inside a vision tower")
    return tower


def has_tower(model: nn.Module) -> bool:
    """Whether `vision_tower` finds one."""
    return _encoder(model) is not None


def _encoder(model: nn.Module) -> nn.Module | None:
    tower = model.get_encoder(modality="image") if callable(getattr(model, "get_encoder", None)) else None
    return next((module for name, module in model.named_modules() if name and module is tower), None)


def tower_blocks(tower: nn.Module) -> nn.ModuleList | None:
    """The tower's blocks: the longest list of modules of one kind; None where there is none."""
    lists = [m for m in tower.modules() if isinstance(m, nn.ModuleList) and len({type(block) for block in m}) == 1]
    return max(lists, key=len, default=None)


def used_blocks(model: Any) -> int:
    """How many blocks of the vision tower features come from: all, or up to one that the config names."""
    layer, depth = getattr(model.config, "vision_feature_layer", None), len(tower_blocks(vision_tower(model)) or ())
    if isinstance(layer, list | tuple):
        layer = max(x if x >= 0 else depth + 1 + x for x in layer)
    return int(depth if layer is None else layer if layer >= 0 else depth + 1 + layer)


def refused(model: nn.Module, reason: str) -> RefusedModel:
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    return RefusedModel(f"{type(model).__name__} ({kind}) cannot be compiled: {reason}")


def configs(config: Any) -> Iterator[Any]:
    """A model's config and its sub-configs, outermost first."""
    yield config
    for key in getattr(config, "sub_configs", None) or {}:
        inner = getattr(config, key, None)
        if inner is not None and inner is not config:
            yield from configs(inner)


def visual_ids(model: nn.Module) -> tuple[int, ...]:
    """Ids of the placeholder tokens that pictures and videos take. Raises RefusedModel where there are none."""
    config = model.config
    found = [getattr(config, key, None) for key in PLACEHOLDER_IDS]
    ids = tuple(sorted({i for i in found if isinstance(i, int)}))
    if not ids:
        raise refused(model, "its config names no image or video placeholder token, so it has no visual tokens to reduce")
    return ids


@releases_first()
def check_supported(model: nn.Module) -> None:
    """Raise RefusedModel, with the reason, for architectures that capture does not support."""
    if not callable(getattr(model, "generate", None)):
        raise refused(model, "it has no generate(); pass the ...ForConditionalGeneration model, not its base")
    if getattr(model.config, "is_encoder_decoder", False):
        raise refused(model, "it is an encoder-decoder; its decoder has no visual tokens in its own sequence")
    decoder = model.get_submodule(decoder_path(model))
    text = decoder.config
    types = set(getattr(text, "layer_types", None) or ())
    state = sorted(t for t in types if any(w in t for w in ("linear", "mamba", "conv", "recurrent")))
    if state:
        raise refused(model, f"its decoder has layers with recurrent state ({', '.join(state)}), which no cut may cross")
    if getattr(text, "cross_attention_layers", None) or getattr(text, "cross_layer_interval", None):
        raise refused(model, "its decoder reads the picture by cross-attention, not as tokens of its sequence")
    if "chunked_attention" in types or getattr(text, "attention_chunk_size", None):
        raise refused(model, "its decoder uses chunked attention, whose chunks would shift when tokens leave")
    if types - PLAIN_LAYERS:
        raise refused(model, f"its decoder has layers of a kind unknown to capture ({', '.join(sorted(types - PLAIN_LAYERS))})")
    visual_ids(model)
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise refused(model, "its decoder keeps no list `layers` of decoder layers")
    if "pixel_values" in inspect.signature(decoder.forward).parameters:
        raise refused(model, "its get_decoder() takes the pictures itself, so there is no text decoder to capture on its own")
    if model.config.model_type in EMBEDS_ONLY:
        raise refused(model, "its generate() hands the language model embeddings alone, so nothing tells where the pictures are")


def along(model: nn.Module, path: str) -> nn.Module:
    """A copy of `model` in which only the modules on the way to `path` are new objects."""
    top = shallow(model)
    at = top
    for name in path.split("."):
        twin = shallow(at.get_submodule(name))
        at.register_module(name, twin)
        at = twin
    return top


def with_own(model: nn.Module, tower: nn.Module) -> tuple[Any, nn.Module]:
    """A copy of `model` over the same weights, and its own copy of `tower`, with configs and hooks that others do not see."""
    path = next(name for name, module in model.named_modules() if module is tower)
    copied, private, (holder, _, name) = along(model, path), own_configs(tower), path.rpartition(".")
    copied.get_submodule(holder).register_module(name, private)
    return copied, private
