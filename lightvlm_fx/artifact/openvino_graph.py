"""What OpenVINO's frontend and plugins leave out of a graph, or do slowly, put right before it is compiled."""

from __future__ import annotations

from typing import Any

import numpy as np

DISTINCT = "distinct keys"  # names of sorts that need no order of equal values
LONGEST = 46_340  # sorted values whose places, squared, fit int32, the only integers that its sorts take


def keep_order(runtime: Any, model: Any) -> int:
    """Make every TopK stable, as ONNX says it is: of equal values the one of the lower index comes first. Returns how many were not.

    OpenVINO's frontend leaves that out, and cuts choose other tokens then, since positions and masks are full of equal values. Its own
    stable TopK compares neighbours one by one, 2.4 ms for 1088 values; two sorts by different keys take a twentieth.
    """
    wrong = [op for op in model.get_ordered_ops() if op.get_type_name() == "TopK" and not _settled(op)]
    for op in wrong:
        length = op.input_value(0).get_partial_shape()[op.get_attributes()["axis"]]
        made = _stable(runtime, op) if length.is_dynamic or length.get_length() <= LONGEST else _slowly_stable(runtime, op)
        for old, new in zip(op.outputs(), made, strict=True):
            old.replace(new)
    return len(wrong)


def _settled(op: Any) -> bool:
    return bool(op.get_attributes()["stable"]) or op.get_friendly_name().startswith(DISTINCT)


def _stable(runtime: Any, op: Any) -> list[Any]:
    """Values and indices of a TopK whose equal values keep their order: sorted, then sorted anew by (which value, index)."""
    ops, said, (data, count) = runtime.opset13, op.get_attributes(), op.input_values()
    axis = said["axis"] % len(data.get_partial_shape())
    length = ops.gather(ops.shape_of(data, "i32"), ops.constant(axis, np.int32), ops.constant(0, np.int32))
    first = ops.topk(data, length, axis, said["mode"], "value", "i32", False)
    first.set_friendly_name(f"{DISTINCT} {op.get_friendly_name()} values")
    value, index = first.outputs()
    last, one, all_ = (ops.constant([n], np.int32) for n in (-1, 1, np.iinfo(np.int32).max))
    along = ops.constant([axis], np.int32)
    start = ops.constant([0], np.int32)
    differs = ops.not_equal(ops.slice(value, one, all_, one, along), ops.slice(value, start, last, one, along))
    none = ops.slice(ops.multiply(index, ops.constant(0, np.int32)), start, one, one, along)
    run = ops.concat([none, ops.cum_sum(ops.convert(differs, "i32"), ops.constant(axis, np.int32))], axis)
    keys = ops.add(ops.multiply(run, length), index)
    second = ops.topk(keys, count, axis, "min", "value", "i32", False)
    second.set_friendly_name(f"{DISTINCT} {op.get_friendly_name()}")
    chosen = ops.floor_mod(second.output(0), length)
    values = ops.gather_elements(data, chosen, axis)
    return [values.output(0), ops.convert(chosen, said["index_element_type"]).output(0)]


def _slowly_stable(runtime: Any, op: Any) -> list[Any]:
    said, (data, count) = op.get_attributes(), op.input_values()
    kind = "value" if said["sort"] == "none" else said["sort"]  # it is stable only where it sorts
    made = runtime.opset11.topk(data, count, said["axis"], said["mode"], kind, said["index_element_type"], True)
    made.set_friendly_name(op.get_friendly_name())
    return list(made.outputs())


def free_of_rope(runtime: Any, model: Any) -> int:
    """Write rotations by angles that a cut chose so that OpenVINO does not fuse them. Returns how many there were.

    Where it computes in half precision it keeps all that leads to the angles of its fused rotation in float32. After a cut that is every
    layer before it, since their hidden states said which angles stay.
    """
    ops, order, negated = runtime.opset13, model.get_ordered_ops(), dict[tuple[str, int], Any]()
    chosen: dict[str, bool] = {}
    for op in order:
        chosen[op.get_name()] = op.get_type_name() == "TopK" or any(chosen[source.get_name()] for source in _sources(op))
    done = 0
    for op in order:
        sides = _sources(op)
        if op.get_type_name() != "Add" or [side.get_type_name() for side in sides] != ["Multiply", "Multiply"]:
            continue
        for turned, straight in (sides, sides[::-1]):
            at = [n for n, source in enumerate(_sources(turned)) if source.get_type_name() == "Concat"]
            if len(at) != 1:
                continue
            half, sine = turned.input_value(at[0]), turned.input_value(1 - at[0])
            if chosen[sine.get_node().get_name()]:
                key = sine.get_node().get_name(), sine.get_index()
                negated[key] = negated.get(key) or ops.negative(sine)
                op.output(0).replace(ops.subtract(straight, ops.multiply(half, negated[key])).output(0))
                done += 1
                break
    return done


def spell_out_attention(runtime: Any, model: Any) -> int:
    """Write every ScaledDotProductAttention with a mask as the products it stands for. Returns how many there were.

    OpenVINO does so itself where no cache of its own feeds one, but scales and transposes all keys, which takes half of a step.
    """
    ops, done = runtime.opset13, 0
    for op in [op for op in model.get_ordered_ops() if op.get_type_name() == "ScaledDotProductAttention"]:
        inputs = op.input_values()
        if len(inputs) != 5 or op.get_attributes()["causal"]:
            continue
        q, k, v, mask, scale = inputs
        logits = ops.matmul(ops.multiply(q, scale), k, False, True)
        if mask.get_element_type() == runtime.Type.boolean:
            logits = ops.select(mask, logits, ops.convert_like(ops.constant(-np.inf, np.float32), logits))
        else:
            logits = ops.add(logits, mask)
        op.output(0).replace(ops.matmul(ops.softmax(logits, -1), v, False, False).output(0))
        done += 1
    return done


def _sources(op: Any) -> list[Any]:
    return [value.get_node() for value in op.input_values()]
