"""What papers take from every picture or model, measured once on some pictures: a graph's counts and layers are known before it runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightvlm_fx import compiler
from lightvlm_fx.errors import InputError
from lightvlm_fx.model.locate import decoder_path, vision_tower, visual_ids
from lightvlm_fx.model.salience import Noted, salience, watched
from lightvlm_fx.releases import releases_first
from lightvlm_fx.schedule import Schedule


@releases_first()
def outlier_share(model: Any, *batches: Mapping[str, Any]) -> float:
    """How many of a picture's visual tokens are outliers of what the vision tower attends to, as a share: the mean over pictures.

    That is PruMerge's own count (arXiv 2403.15388): scores above the third quartile by more than 1.5 times the distance between the
    quartiles. `Schedule.preset("prumerge", keep=outlier_share(model, inputs))` has on average what the paper has for each picture. Its
    "+" adds about three evenly spaced tokens for each: `Schedule.preset("prumerge+", keep=4 * share, even=0.75)`. At most a quarter of
    a picture can be outliers.

    Each of `batches` is what the processor returned for some pictures (pixel_values [n, ...], and what else tells their sizes). Only the
    vision tower runs. Raises InputError where there are no pictures, or no outliers among them; NotSupported for a tower whose patches
    cannot be told to be visual tokens; RefusedModel for a model without a tower.
    """
    noted: list[Noted] = []
    features = watched(vision_tower(model), model.get_submodule(decoder_path(model).rpartition(".")[0]), noted.append)
    names = inspect.signature(features).parameters
    shares: list[float] = []
    for batch in batches:
        given = {name: x for name, x in batch.items() if name in names and isinstance(x, Tensor)}
        if "pixel_values" not in given:
            raise InputError(f"a batch holds no pixel_values: {', '.join(batch)}; give what the processor returns for pictures")
        with torch.no_grad():
            lengths = [len(picture) for picture in features(**given, return_dict=True).pooler_output]
        shares += [_outliers(scores) for scores in salience(noted.pop(), sum(lengths)).split(lengths)]
    if not any(shares):
        raise InputError(f"no outliers in {len(shares)} pictures, and a count of none leaves nothing; give more, or choose keep yourself")
    return sum(shares) / len(shares)


def _outliers(scores: Tensor) -> float:
    low, high = scores.quantile(scores.new_tensor([0.25, 0.75])).unbind()
    return float((scores > high + 1.5 * (high - low)).float().mean())


@releases_first()
def layer_contributions(model: Any, *batches: Mapping[str, Any]) -> list[float]:
    """How much each decoder layer changes the next token by what it does to visual tokens, in nats: what `shortv` leaves out least of.

    Layer by layer, the visual tokens are frozen in that layer alone, and the next-token prediction of every prompt compared with the
    unreduced model's: KL(frozen || unreduced), the mean over prompts. That is ShortV's layer contribution (arXiv 2504.00502), with the
    direction of its code. `sorted(range(len(found)), key=found.__getitem__)[:n]` are the `layers` of `shortv` that change least.

    Each of `batches` is what the processor returned for some prompts with pictures, padded on the left. They run once for each layer and
    once more, uncompiled; a compiled model goes by its own backend, which may compile a graph for each layer. Raises InputError where
    there are no prompts, or where one has no picture; and what `compile` raises.
    """
    placeholders = torch.tensor(visual_ids(model))
    for batch in batches:
        ids = batch["input_ids"]
        if not torch.isin(ids, placeholders.to(ids.device)).any(1).all():
            raise InputError("a prompt has no picture, so freezing visual tokens changes nothing of it; give prompts with pictures alone")
    rows = sum(len(batch["input_ids"]) for batch in batches)
    if not rows:
        raise InputError("no prompts to measure with; give what the processor returns for some prompts with pictures")
    fast = model if hasattr(model, "lightvlm") else compiler.compile(model, "none", backend="eager")
    depth = len(model.get_submodule(decoder_path(model)).layers)
    unreduced = [_next(fast.lightvlm.with_schedule("none"), batch) for batch in batches]
    found = []
    for layer in range(depth):
        frozen = fast.lightvlm.with_schedule(Schedule(freeze=(layer,)))
        nats = [_divergence(_next(frozen, batch), full) for batch, full in zip(batches, unreduced, strict=True)]
        found.append(sum(nats) / rows)
    return found


def _next(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Log-probabilities [B, V] of the token that follows each prompt."""
    with torch.no_grad():
        logits: Tensor = model(**batch, use_cache=True, logits_to_keep=1).logits
    return logits[:, -1].double().log_softmax(-1)


def _divergence(found: Tensor, full: Tensor) -> float:
    """Sum over rows of KL(found || full); log-probabilities [B, V]."""
    return float((found.exp() * (found - full)).sum())
