"""Where the pictures stand in a batch, how much of each stays, and how long every row becomes.

Runs on the host, once a prompt: the counts decide the shape bucket, and nothing in the graph depends on data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightvlm_fx.errors import InputError
from lightvlm_fx.model.families.row_breaks import BREAKS_ROWS
from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.spans import images_of


@dataclass(frozen=True)
class Placeholders:
    """How a model marks visual tokens: their ids, the fixed count of one image if there is one, row breaks."""

    ids: tuple[int, ...]
    per_image: int | None = None
    ends_last_row: bool | None = None  # where pictures come as rows: is there a token that ends the last one?
    planes: int = 0  # of M-RoPE positions, where the decoder has them
    deepstack: int = 0  # layers whose inputs visual features are added to
    videos: tuple[int, ...] = ()  # those of the ids that stand for videos alone

    @staticmethod
    def of(model: Any) -> Placeholders:
        from lightvlm_fx.model.locate import visual_ids

        config = model.config
        fixed = getattr(config, "image_seq_length", None)
        vision = getattr(config, "vision_config", None) or config
        rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
        videos = {getattr(config, f"video_token_{kind}", None) for kind in ("id", "index")}
        videos -= {getattr(config, f"image_token_{kind}", None) for kind in ("id", "index")}
        return Placeholders(visual_ids(model), fixed if isinstance(fixed, int) else None,
                            BREAKS_ROWS.get(getattr(vision, "model_type", None)),
                            3 if "mrope_section" in rope else 0, len(getattr(vision, "deepstack_visual_indexes", None) or ()),
                            tuple(i for i in videos if isinstance(i, int)))  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The pictures of one batch."""

    segment: Tensor  # [B, S] int64: PADDING, TEXT, or the image's number within its row
    images: tuple[tuple[int, ...], ...]  # tokens of every image, row by row

    @property
    def has_images(self) -> bool:
        return any(self.images)

    @staticmethod
    def of(input_ids: Tensor, mask: Tensor | None, placeholders: Placeholders) -> Layout:
        """Read the layout off input_ids [B, S] and a 2-D attention mask [B, S] (None: nothing is padding).

        Raises InputError for padding on the right: the score reads the last token of every row.
        """
        ids = input_ids.detach().cpu().numpy()
        real = np.ones_like(ids, bool) if mask is None else mask.detach().cpu().numpy().astype(bool)
        if not real[:, -1].all():
            rows = np.flatnonzero(~real[:, -1]).tolist()
            raise InputError(
                f"rows {rows} of the batch are padded on the right; pad on the left "
                "(processor.tokenizer.padding_side = 'left'), as generate() needs it"
            )
        segment = np.where(real, TEXT, PADDING).astype(np.int64)
        images = []
        for row in range(len(ids)):
            spans = images_of(ids[row], placeholders)
            for number, places in enumerate(spans):
                segment[row, places] = number
            images.append(tuple(len(places) for places in spans))
        return Layout(torch.from_numpy(segment).to(input_ids.device), tuple(images))

    def plan(self, schedule: Schedule) -> Plan:
        """Budgets and lengths under `schedule`; raises ScheduleError where a count is above what arrives."""
        rows, length = self.segment.shape
        real = (self.segment != PADDING).sum(1).tolist()
        width = max(4, 1 << (max(map(len, self.images), default=1) - 1).bit_length())
        left = [[schedule.budgets(n) for n in row] for row in self.images]
        budgets, stay, even = [], [], all(n == length for n in real)
        for cut in range(len(schedule.cuts)):
            budget = torch.zeros(rows, width, dtype=torch.int64)
            lengths = []
            for row, images in enumerate(self.images):
                for number in range(len(images)):
                    budget[row, number] = left[row][number][cut]
                lengths.append(real[row] - sum(images) + int(budget[row].sum()))
            even &= len(set(lengths)) == 1
            stay.append(max(lengths))
            budgets.append(budget.to(self.segment.device))
        text = max(n - sum(images) for n, images in zip(real, self.images, strict=True))
        return Plan(length, tuple(budgets), tuple(stay), text, masked=not even)


@dataclass(frozen=True)
class Plan:
    """What a schedule means for one batch."""

    length: int  # tokens that arrive in a row, padding too
    budgets: tuple[Tensor, ...]  # one [B, I] int64 a cut: tokens that stay of each image
    stay: tuple[int, ...]  # tokens that stay in a row after each cut, the longest row's
    text: int  # tokens of text in a row, the longest row's
    masked: bool  # some row holds padding, or fills up with dropped tokens

    def tokens(self, schedule: Schedule, depth: int) -> tuple[int, ...]:
        """Tokens of a row in each of `depth` layers, the longest row's."""
        firsts, left = schedule.layers(depth), (self.length, *self.stay)
        return tuple(left[sum(first <= layer for first in firsts)] for layer in range(depth))
