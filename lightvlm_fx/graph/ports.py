"""The inputs that passes add to graphs, each said once: its name, its shape, what it holds and who fills it.

A pass adds one by its port. What runs a graph gives it by the same port: the compiled model (runtime/decoder.py for prompts,
runtime/cache.py for steps), an artifact's stages while they are traced (exporting/stages.py), and tests (testing.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Port:
    """An input of a graph, or, with `each`, one for each cut, layer or group of layers, numbered from 0.

    `shape` has the letters of the glossary, `|` between shapes of different schedules; `size` is the letter of the symbolic size that it
    brings along. A ruler holds nothing: its size is all that is read of it.
    """

    name: str
    shape: str
    holds: str
    each: str = ""
    dtype: str = "int64"  # "": the model's own
    size: str = ""

    def at(self, number: int | str) -> str:
        """The name of the input for cut, layer or group `number`."""
        assert self.each, f"{self.name} is a single input"
        return f"{self.name}_{number}"

    @property
    def ranks(self) -> set[int]:
        """How many dimensions it may have."""
        return {shape.count(",") + 1 for shape in self.shape.split("|")}

    @property
    def is_ruler(self) -> bool:
        return self.shape == f"[{self.size}]"


# of a prompt
SEGMENT = Port("visual_segment", "[B, S]", "the picture that each token is of; -1 text, -2 padding")
BUDGET = Port("visual_budget", "[B, I]", "visual tokens that the cut leaves of each picture", "cut", size="I")
STAY = Port("stay", "[K]", "tokens of a row after the cut, as a size", "cut", size="K")
STAY_TEXT = Port("stay_text", "[T]", "text tokens of a row, as a size, where layers freeze visual tokens", size="T")
SALIENCE = Port("visual_salience", "[B, S]", "what the vision tower attends to", dtype="float32")
GRID = Port("visual_grid", "[B, S, 6]", "frame, row and column of each visual token, and how many there are of each in its picture")
KV_COUNT = Port("kv_count", "[B, L]", "entries that each layer keeps of a row")
KV_MOST = Port("kv_most", "[B, L]", "entries that a layer may keep at most, where the budgets adapt")
KV_STAY = Port("kv_stay", "[E]", "entries that layers of one capacity keep, as a size", "group of layers", size="E")
# of a step; buffers are written in place
QUERY = Port("query_index", "[Q]", "sequence index of each new token")
START = Port("start", "[B]", "sequence index of each row's first real token")
KEYS = Port("keys", "[B, G, C, d]", "the layer's buffer of keys", "layer", dtype="", size="C")
VALUES = Port("values", "[B, G, C, d]", "the layer's buffer of values", "layer", dtype="", size="C")
POSITION = Port("position", "[B, C] | [B, G, C]", "sequence index of what each slot holds; -1 nothing", "slot table", size="C")
SIZE = Port("size", "[B, C] | [B, G, C]", "original tokens that each slot stands for", "slot table", dtype="float32")
SCORE = Port("score", "[B, G, C]", "the score that the steps carry on", "slot table", dtype="float32")
SLOT = Port("slot", "[Q]", "the slot that each new token is written to", "slot table")
LIMIT = Port("limit", "[B, L]", "entries that each layer may hold of a row")
SHIFT = Port("shift", "[B]", "how far positions move where a cut numbers the survivors anew", "cut")
ASKED = Port("segment", "[B, C]", "what each stored entry is of, where a question chooses among them", "layer")

PORTS = {
    port.name: port for port in (
        SEGMENT, BUDGET, STAY, STAY_TEXT, SALIENCE, GRID, KV_COUNT, KV_MOST, KV_STAY,
        QUERY, START, KEYS, VALUES, POSITION, SIZE, SCORE, SLOT, LIMIT, SHIFT, ASKED,
    )
}  # fmt: skip


def port_of(name: str) -> tuple[Port | None, str]:
    """The port of the input `name`, None for one of the model's own, and its number, "" where there is one only."""
    if name in PORTS and not PORTS[name].each:
        return PORTS[name], ""
    base, _, number = name.rpartition("_")
    port = PORTS.get(base)
    return (port, number) if port and port.each and number.isdigit() else (None, "")
