"""How long a prompt's sequences are under the schedule of a bucket with symbolic lengths: how many tokens come, and how many stay.

The stages read these off the sizes of inputs that hold nothing; the tables (`exporting/bounds.py`) are arrays beside the graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightvlm_fx.artifact.files import Files
from lightvlm_fx.errors import ArtifactError, InputError

Array = NDArray[Any]
LEAST_OF_PART = 2  # torch.export takes a symbolic size for more than one


@dataclass(frozen=True)
class Lengths:
    """The rules of one bucket.

    `kept` [C, V + 1]: of a picture of n tokens, how many stay after each cut. `reach` [N + 1, E]: of a row of n tokens (`of_visual`:
    n visual tokens), the most entries that each group of layers whose caches are bounded may hold; `cut_of` [E]: after how many cuts.
    With a `visual_share`, that share of them (rounded, halves up) are visual entries at most.
    Sequences are graphs' equal tiles: their lengths are multiples of `parts`, the prompt's and after each cut, and `least` at least.
    """

    parts: tuple[int, ...]
    least: int
    kept: Array
    reach: Array | None
    cut_of: tuple[int, ...]
    of_visual: bool
    table: str = ""  # the file that `kept` is of
    freezes: bool = False  # some layers run for text alone, whose count the graph is given as well
    visual_share: float = 0.0

    @staticmethod
    def read(entry: dict[str, Any], visual: int, length: int, files: Files) -> Lengths:
        """Those of a bucket of `length` tokens a row, `visual` of them visual, as its manifest says them.

        Raises ArtifactError where a table is none: more would stay than came.
        """
        kept, reach = files.array(entry["kept"]), files.array(entry["reach"]) if entry.get("reach") else None
        rows = {"kept": (kept.T, visual + 1, len(entry["parts"]) - 1)}
        if reach is not None:
            rows["reach"] = (reach, (visual if entry["of_visual"] else length) + 1, len(entry["cut_of"]))
        for name, (table, count, width) in rows.items():
            fits = table.shape == (count, width) and table.dtype == np.int64 and (table >= 0).all()
            if not fits or (name == "kept" and (table > np.arange(count)[:, None]).any()):
                raise ArtifactError(f"{files.home}: {entry[name]} is no table of what stays of {count - 1} tokens; export again")
        return Lengths(tuple(entry["parts"]), entry["least"], kept, reach, tuple(entry["cut_of"]), entry["of_visual"],
                       f"{files.home}: {entry['kept']}", entry.get("freezes", False), entry.get("visual_share", 0.0))  # fmt: skip

    def entry(self) -> dict[str, Any]:
        """What the manifest says, but for the names of the tables' files."""
        said = {"parts": list(self.parts), "least": self.least, "cut_of": list(self.cut_of), "of_visual": self.of_visual}
        said |= {"freezes": True} if self.freezes else {}
        return said | {"visual_share": self.visual_share} if self.visual_share else said

    def of(self, real: Array, images: list[list[int]]) -> tuple[int, dict[str, int]]:
        """The length of the padded rows, and the sizes of what only carries a size, by name.

        real [B]: tokens of each row; images: visual tokens of each of its pictures. Raises InputError for a picture that the tables
        say nothing of.
        """
        for n in sorted({n for row in images for n in row}):
            if n and not self.kept[:, n].all():
                raise InputError(
                    f"{self.table} says nothing of a picture of {n} visual tokens, as of one that is no square where a schedule keeps rows "
                    "and columns; bring the picture to a square, or export a schedule that keeps a share of the tokens"
                )
        text = real - np.array([sum(row) for row in images])
        after = [real, *(text + np.array([kept[row].sum() for row in images], np.int64) for kept in self.kept)]
        lengths = [self._rounded(int(tokens.max()), parts) for tokens, parts in zip(after, self.parts, strict=True)]
        sizes = {f"stay_{i}": n for i, n in enumerate(lengths[1:])}
        if self.freezes:
            sizes["stay_text"] = max(LEAST_OF_PART, int(text.max()))
        if self.reach is not None:
            most = self.reach[real - text if self.of_visual else real]  # [B, E]
            for number, cut in enumerate(self.cut_of):
                sizes[f"kv_stay_{number}"] = min(int(self._held(most[:, number], after[cut] - text, text).max()), lengths[cut])
        return lengths[0], sizes

    def _held(self, most: Array, visual: Array, text: Array) -> Array:
        """Entries [B] that stay of rows of visual and text tokens [B] in layers that may hold `most` [B]."""
        if self.of_visual:
            return np.minimum(most, visual) + text
        if self.visual_share:
            visual = np.minimum(visual, np.floor(self.visual_share * most + 0.5).astype(np.int64))
        return np.minimum(most, visual + text)

    def _rounded(self, tokens: int, parts: int) -> int:
        return parts * self.of_part(parts, tokens)

    def of_part(self, parts: int, tokens: int = 0) -> int:
        """Rows of each of so many equal tiles of `tokens`: LEAST_OF_PART at least, and with the others `least`."""
        return max(LEAST_OF_PART, -(-max(tokens, self.least) // parts))
