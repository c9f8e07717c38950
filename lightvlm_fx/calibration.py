"""Counts that a paper takes from every picture, measured once on some: a graph's counts are known before it runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightvlm_fx.errors import InputError
from lightvlm_fx.model.locate import decoder_path, vision_tower
from lightvlm_fx.model.salience import Noted, salience, watched
from lightvlm_fx.releases import releases_first


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
