"""What a manifest must look like: types, ranges, and the sums that its numbers make with each other. Plain checks, no package needed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from lightvlm_fx.artifact.targets import TARGETS

Check = Callable[[Any, str], None]  # a value and where it stands; raises Wrong
MOST = 2**31  # of any count
# parity on logits, of the largest, that an export may record
LOOSEST = {"float32": 1e-4, "float16": 0.1, "bfloat16": 0.25, "int8": 0.25, "int4": 1.0}
WEIGHTS = "model.onnx.data"


class Wrong(Exception):
    """What was expected, what was found, and where in the manifest."""


def _expected(what: str, value: Any, where: str) -> Wrong:
    return Wrong(f"{where}: expected {what}, found {repr(value)[:80]}")


def whole(least: int = 0, most: int = MOST) -> Check:
    def check(value: Any, where: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise _expected(f"a whole number from {least} to {most}", value, where)

    return check


def text(pattern: str = "(?s).+") -> Check:
    def check(value: Any, where: str) -> None:
        if type(value) is not str or not re.fullmatch(pattern, value):
            raise _expected("a text" if pattern == "(?s).+" else f"a text that matches {pattern}", value, where)

    return check


def one_of(*known: Any) -> Check:
    def check(value: Any, where: str) -> None:
        if not any(type(value) is type(k) and value == k for k in known):
            raise _expected(f"one of {list(known)}", value, where)

    return check


def known_target(value: Any, where: str) -> None:
    one_of(*TARGETS)(value, where)


def each(check_one: Check, least: int = 0) -> Check:
    def check(value: Any, where: str) -> None:
        if type(value) is not list or len(value) < least:
            raise _expected(f"a list of at least {least}", value, where)
        for i, entry in enumerate(value):
            check_one(entry, f"{where}[{i}]")

    return check


def named(check_one: Check) -> Check:
    def check(value: Any, where: str) -> None:
        if type(value) is not dict:
            raise _expected("an object", value, where)
        for name, entry in value.items():
            check_one(entry, f"{where}.{name}")

    return check


def record(known: dict[str, Check], optional: dict[str, Check] | None = None) -> Check:
    def check(value: Any, where: str) -> None:
        if type(value) is not dict:
            raise _expected("an object", value, where)
        for name, check_one in known.items():
            if name not in value:
                raise Wrong(f"{where}: {name} is missing")
            check_one(value[name], f"{where}.{name}" if where else name)
        for name, check_one in (optional or {}).items():
            if value.get(name) is not None:
                check_one(value[name], f"{where}.{name}" if where else name)

    return check


def share(value: Any, where: str) -> None:
    if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
        raise _expected("a finite number, 0 or more", value, where)


def size(value: Any, where: str) -> None:
    (text("[^\0]{1,200}") if type(value) is str else whole())(value, where)


anything: Check = lambda value, where: None  # noqa: E731
sides = each(whole(1), 2)
KINDS: dict[str, Check] = {
    "tiles": record({"tokens": whole(1), "shape": each(whole(1), 3), "drops_empty": one_of(True, False), "most": whole()},
                    {"mask": text(), "patch": whole(1)}),
    "patches": record({"grid": text(), "merge": whole(1), "window": whole(), "table": whole(), "width": whole(1), "most": whole()},
                      {"left": each(share, 1), "least": whole(1)}),
    "anyres": record({"shape": each(whole(1), 3), "side": whole(1), "sizes": each(sides, 1), "most": whole(), "most_tokens": whole()}),
    "fixed": record({"why": each(text("(?s).*"))}),
}  # fmt: skip


def vision(value: Any, where: str) -> None:
    record({"kind": one_of(*KINDS)})(value, where)
    KINDS[value["kind"]](value, where)
    if value.get("mask") and "patch" not in value:
        raise Wrong(f"{where}: patch is missing, the side of what mask {value['mask']} is cut into")


value_of_graph = record({"name": text(), "dtype": text("bool|b?float(16|32|64)|u?int(8|16|32|64)"), "shape": each(size)})
stage = record({"file": text(), "inputs": each(value_of_graph, 1), "outputs": each(value_of_graph, 1), "operators": named(whole(1))})
lengths = record({"parts": each(whole(1), 1), "least": whole(), "cut_of": each(whole()), "of_visual": one_of(True, False), "kept": text()},
                 {"reach": text(), "freezes": one_of(True, False), "visual_share": share})  # fmt: skip
bucket = record({
    "rows": whole(1), "prompt_tokens": whole(1), "text_tokens": whole(), "visual_tokens": whole(1), "pictures": whole(1),
    "least_picture": whole(), "least_tokens": whole(), "new_tokens": whole(), "compact_every": whole(), "vision": vision,
    "arguments": each(text(), 1), "example": each(each(whole(1)), 1), "tokens_per_layer": each(whole(1), 1),
    "cache_slots": each(whole(1), 1), "stages": named(stage), "samples": named(text()), "grid": anything,
}, {"grid": record({"name": text(), "merge": whole(1)}), "lengths": lengths})  # fmt: skip
MANIFEST = record({
    "target": known_target, "dtype": one_of(*LOOSEST), "architecture": text(), "schedule": record({"name": anything}),
    "fingerprint": text("[0-9a-f]{16}"),
    "placeholders": record({"ids": each(whole(), 1), "per_image": anything, "ends_last_row": anything},
                           {"per_image": whole(1), "ends_last_row": one_of(True, False)}),
    "eos_token_id": each(whole()), "pad_token_id": whole(), "buckets": each(bucket, 1),
    "files": named(record({"sha256": text("[0-9a-f]{64}"), "bytes": whole(0, 2**50)})),
}, {"provider": text(), "parity": record({"logits": share, "tokens_equal": one_of(True, False)})})  # fmt: skip
SAMPLES = ("inputs.input_ids", "inputs.attention_mask", "logits", "sequences")
STAGES = ("vision", "embed", "prefill", "decode")


def check(manifest: dict[str, Any]) -> None:
    """Raises Wrong for the first thing in a manifest that cannot be."""
    MANIFEST(manifest, "")
    recorded = (manifest.get("parity") or {"logits": 0.0})["logits"]
    if recorded > LOOSEST[manifest["dtype"]]:
        raise Wrong(f"parity.logits: expected at most {LOOSEST[manifest['dtype']]} of {manifest['dtype']}, found {recorded}")
    for number, entry in enumerate(manifest["buckets"]):
        where = f"buckets[{number}]"
        _stages(entry, where)
        for what, said, fits in _sums(entry):
            if not fits:
                raise Wrong(f"{where}: {what} do not fit together, found {said}")
        vocabulary = shapes(entry, "prefill", "outputs")["logits"][1]
        for token in (*manifest["eos_token_id"], manifest["pad_token_id"]):
            whole(0, vocabulary - 1)(token, "eos_token_id and pad_token_id")


def shapes(entry: dict[str, Any], name: str, side: str) -> dict[str, list[Any]]:
    """Shapes of a stage's inputs or outputs, by name."""
    return {v["name"]: v["shape"] for v in entry["stages"][name][side]}


def _stages(entry: dict[str, Any], where: str) -> None:
    """The stages, samples, inputs and outputs that a runner asks for are there."""
    wanted = {*STAGES, *(("compact",) if entry["compact_every"] else ())}
    if set(entry["stages"]) != wanted:
        raise Wrong(f"{where}.stages: expected {sorted(wanted)}, found {sorted(entry['stages'])}")
    missing = {*SAMPLES, *(f"inputs.{name}" for name in entry["arguments"])} - set(entry["samples"])
    if missing:
        raise Wrong(f"{where}.samples: {', '.join(sorted(missing))} missing")
    ids = ["input_ids", "attention_mask", "picture_tokens", *(["picture_grids"] if entry.get("grid") else [])]
    needed = (("embed", "inputs", ["input_ids"]), ("prefill", "inputs", ids), ("prefill", "outputs", ["logits"]),
              ("decode", "inputs", ["input_ids", "step"]), ("decode", "outputs", ["logits"]))  # fmt: skip
    for name, side, values in needed:
        absent = set(values) - set(shapes(entry, name, side))
        if absent:
            raise Wrong(f"{where}.stages.{name}.{side}: {', '.join(sorted(absent))} missing")
    if len(shapes(entry, "prefill", "outputs")["logits"]) != 2:
        raise Wrong(f"{where}.stages.prefill.outputs: logits are not [B, V]")


def _sums(entry: dict[str, Any]) -> list[tuple[str, Any, bool]]:
    """What must hold between a bucket's numbers: which they are, what they are, and whether it does."""
    rows, length, visual = entry["rows"], entry["prompt_tokens"], entry["visual_tokens"]
    example, layers, slots = entry["example"], entry["tokens_per_layer"], entry["cache_slots"]
    logits = shapes(entry, "prefill", "outputs")["logits"]
    prefill, decode = shapes(entry, "prefill", "inputs"), shapes(entry, "decode", "inputs")
    tokens = [rows, length if entry.get("lengths") is None else tile_of("tokens", entry["lengths"]["parts"][0])]
    fixed = {
        "embed.input_ids": (shapes(entry, "embed", "inputs")["input_ids"], tokens),
        "prefill.input_ids": (prefill["input_ids"], tokens), "prefill.attention_mask": (prefill["attention_mask"], tokens),
        "prefill.picture_tokens": (prefill["picture_tokens"], [rows, entry["pictures"]]),
        "decode.input_ids": (decode["input_ids"], [rows, 1]), "decode.step": (decode["step"], [1]),
        "decode.logits": (shapes(entry, "decode", "outputs")["logits"], logits), "prefill.logits": (logits[:1], [rows]),
    }  # fmt: skip
    told = [x for x in ("pixel_values", entry["vision"].get("grid"), (entry["grid"] or {}).get("name")) if x]
    made = _values(entry, "prefill", "outputs", "present.")
    read = _values(entry, "decode", "inputs", "past_key_values.")
    written = _values(entry, "decode", "outputs", "present.")
    out = [
        ("text_tokens, visual_tokens and prompt_tokens", [entry["text_tokens"], visual, length], entry["text_tokens"] + visual == length),
        ("example and rows", [example, rows], len(example) == rows),
        ("example and visual_tokens", [example, visual], max(map(sum, example)) == visual),
        ("example and pictures", [example, entry["pictures"]], max(map(len, example)) <= entry["pictures"]),
        ("example and least_picture", [example, entry["least_picture"]], min(map(min, filter(None, example))) >= entry["least_picture"]),
        ("least_tokens and prompt_tokens", [entry["least_tokens"], length], entry["least_tokens"] <= length),
        ("tokens_per_layer, cache_slots and prompt_tokens", [layers, slots, length], len(layers) == len(slots) and max(layers) <= length),
        ("vision, grid and arguments", told, set(told) <= set(entry["arguments"])),
        ("logits and the vocabulary", logits, type(logits[1]) is int and logits[1] > 0),
        ("what prefill writes and decode reads", sorted(set(read) - set(made)), all(_alike(made.get(k), v) for k, v in read.items())),
        ("what decode reads and writes", sorted(set(written) - set(read)), all(_alike(read.get(k), v) for k, v in written.items())),
        *_sums_of_lengths(entry),
    ]
    return out + [(f"the shape of {name} and the bucket", [have, wanted], have == wanted) for name, (have, wanted) in fixed.items()]


def tile_of(name: str, parts: int) -> str:
    """What a symbolic length is called that is `parts` equal tiles long."""
    return f"{parts}*{name}" if parts > 1 else name


def _sums_of_lengths(entry: dict[str, Any]) -> list[tuple[str, Any, bool]]:
    """What must hold between the numbers of symbolic lengths: sequences that a cut shortens are no longer than before."""
    found = entry.get("lengths")
    if found is None:
        return []
    prefill, length, parts = shapes(entry, "prefill", "inputs"), entry["prompt_tokens"], found["parts"]
    wanted = {f"stay_{i}": [tile_of(f"stay_{i}", n)] for i, n in enumerate(parts[1:])}
    wanted |= {f"kv_stay_{i}": [f"kv_stay_{i}"] for i in range(len(found["cut_of"]))}
    wanted |= {"stay_text": ["stay_text"]} if found.get("freezes") else {}
    carried = {name: shape for name, shape in prefill.items() if name.startswith(("stay_", "kv_stay_"))}
    halving = all(n & (n - 1) == 0 for n in parts) and max(parts) == parts[0] and length % parts[0] == 0
    return [
        ("lengths.parts and prompt_tokens", [parts, length], halving and 2 * parts[0] <= length),
        ("lengths.least and prompt_tokens", [found["least"], length], found["least"] <= length),
        ("lengths.cut_of and parts", [found["cut_of"], parts], all(cut < len(parts) for cut in found["cut_of"])),
        ("lengths.reach and cut_of", [found.get("reach"), found["cut_of"]], bool(found.get("reach")) == bool(found["cut_of"])),
        ("lengths and what prefill takes", [carried, wanted], carried == wanted),
    ]


def _alike(made: tuple[str, list[Any]] | None, read: tuple[str, list[Any]]) -> bool:
    """Whether a value can be of the dtype and shape of another, where symbolic sizes may be called other names."""
    if made is None or made[0] != read[0] or len(made[1]) != len(read[1]):
        return False
    return all(a == b or (type(a) is str and type(b) is str) for a, b in zip(made[1], read[1], strict=True))


def _values(entry: dict[str, Any], name: str, side: str, prefix: str) -> dict[str, Any]:
    """Dtype and shape of a stage's values of a prefix, by the rest of their names."""
    return {v["name"].removeprefix(prefix): (v["dtype"], v["shape"]) for v in entry["stages"][name][side] if v["name"].startswith(prefix)}
