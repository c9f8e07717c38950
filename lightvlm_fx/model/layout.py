"""Where the pictures stand in a batch, how much of each stays, and how long every row becomes.

Runs on the host, once a prompt: the counts decide the shape bucket, and nothing in the graph depends on data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightvlm_fx.errors import InputError
from lightvlm_fx.methods.base import Picture
from lightvlm_fx.model.families.row_breaks import BREAKS_ROWS
from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.schedule import Schedule
from lightvlm_fx.spans import VisualMarks, images_of

GRIDS = ("image_grid_thw", "video_grid_thw")  # arguments that tell how many patches (time, height, width) each picture has
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Placeholders(VisualMarks):
    """How a model marks visual tokens, and what else of its pictures a schedule looks at."""

    planes: int = 0  # of M-RoPE positions, where the decoder has them
    deepstack: int = 0  # layers whose inputs visual features are added to
    videos: tuple[int, ...] = ()  # those of the ids that stand for videos alone
    merge: int = 1  # side of the squares of patches that become one visual token, where grids are told in patches

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
                            tuple(i for i in videos if isinstance(i, int)), getattr(vision, "spatial_merge_size", None) or 1)  # fmt: skip

    def grids(self, given: dict[str, Any]) -> tuple[Grid, ...]:
        """Frames, rows and columns in visual tokens of all pictures of a call, in order; none where it does not tell them."""
        told = [x for x in map(given.get, GRIDS) if isinstance(x, Tensor)]
        if len(told) != 1:
            return ()
        return tuple((t, h // self.merge, w // self.merge) for t, h, w in told[0].tolist())


@dataclass(frozen=True)
class Layout:
    """The pictures of one batch."""

    segment: Tensor  # [B, S] int64: PADDING, TEXT, or the image's number within its row
    images: tuple[tuple[int, ...], ...]  # tokens of every image, row by row
    grids: tuple[Grid, ...] = ()  # of all images, where they are told

    @property
    def has_images(self) -> bool:
        return any(self.images)

    @cached_property
    def pictures(self) -> tuple[tuple[Picture, ...], ...]:
        """What counts are asked about, row by row."""
        grids = iter(self.grids)
        told = [[(n, next(grids, (0, 0, 0)), len(row)) for n in row] for row in self.images]
        return tuple(tuple(Picture(n, grid if math.prod(grid) == n else None, beside) for n, grid, beside in row) for row in told)

    def with_grids(self, position_ids: Tensor) -> Layout:
        """With the grids that M-RoPE positions [planes, B, S] tell, row and column of every token being one; itself for plain ones."""
        if position_ids.ndim != 3 or not self.has_images:
            return self
        rows, columns = position_ids[-2:].cpu()
        segment, grids = self.segment.cpu(), []
        for row, images in enumerate(self.images):
            for number, n in enumerate(images):
                own = segment[row] == number
                high, wide = (int(x[row, own].max() - x[row, own].min()) + 1 for x in (rows, columns))
                grids.append((n // (high * wide), high, wide))
        return replace(self, grids=tuple(grids))

    def places(self) -> Tensor:
        """Frame, row and column of each visual token, and how many its picture has: [B, S, 6] int64, 0 for text.

        Raises ScheduleError where a picture's tokens form no known grid.
        """
        out = torch.zeros(*self.segment.shape, 6, dtype=torch.int64)
        segment = self.segment.cpu()
        for row, pictures in enumerate(self.pictures):
            for number, picture in enumerate(pictures):
                sides = torch.tensor(picture.sides)
                own = torch.cartesian_prod(*map(torch.arange, picture.sides)).view(-1, 3)
                out[row, segment[row] == number] = torch.cat([own, sides.expand_as(own)], 1)
        return out.to(self.segment.device)

    @staticmethod
    def of(input_ids: Tensor, mask: Tensor | None, placeholders: Placeholders, grids: tuple[Grid, ...] = ()) -> Layout:
        """Read the layout off input_ids [B, S] and a 2-D attention mask [B, S] (None: nothing is padding), and the pictures' `grids`.

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
        return Layout(torch.from_numpy(segment).to(input_ids.device), tuple(images), grids)

    def plan(self, schedule: Schedule) -> Plan:
        """Budgets and lengths under `schedule`; raises ScheduleError where a count is above what arrives."""
        rows, length = self.segment.shape
        real = (self.segment != PADDING).sum(1).tolist()
        width = max(4, 1 << (max(map(len, self.images), default=1) - 1).bit_length())
        left = [[schedule.budgets(picture) for picture in row] for row in self.pictures]
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
        return Plan(length, tuple(budgets), tuple(stay), text, masked=not even or any(cut.score.adapts for cut in schedule.cuts))


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
        left = (self.length, *self.stay)
        return tuple(left[number] for number in schedule.token_sets(depth))
