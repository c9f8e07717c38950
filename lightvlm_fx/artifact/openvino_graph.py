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


def least_first(runtime: Any, model: Any) -> Any:
    """The model with what it hands out in the order of how many nodes each hangs on, which is that in which OpenVINO computes it.

    As a prefill stage is traced, the choice of a layer's cache entries may come after all layers, with all that it reads kept until
    then: the attention of every layer that chooses (exporters/order.py does the same for ONNX Runtime).
    """
    above: dict[str, int] = {}  # bits of the nodes that a node hangs on, itself among them
    for number, op in enumerate(model.get_ordered_ops()):
        above[op.get_name()] = 1 << number
        for source in _sources(op):
            above[op.get_name()] |= above[source.get_name()]
    results = sorted(model.get_results(), key=lambda result: above[result.get_name()].bit_count())
    return runtime.Model(results, model.get_parameters(), model.get_friendly_name())


def take_largest(runtime: Any, model: Any) -> int:
    """Write every search for one largest or smallest value as that value and the first place that holds it. Returns how many there were.

    OpenVINO sorts for it, ten times as long where the first of equals is asked for, as ONNX's ArgMax does.
    """
    ops, found = runtime.opset13, [op for op in model.get_ordered_ops() if op.get_type_name() == "TopK" and _is_one(op)]
    for op in found:
        said, data, rank = op.get_attributes(), op.input_value(0), len(op.input_value(0).get_partial_shape())
        axis = said["axis"] % rank
        along, start, one = ops.constant([axis]), ops.constant(0), ops.constant(1)
        value = (ops.reduce_max if said["mode"] == "max" else ops.reduce_min)(data, along, True)
        length = ops.gather(ops.shape_of(data), ops.constant(axis), start)
        shape = ops.constant([-1 if n == axis else 1 for n in range(rank)])
        places = ops.reshape(ops.range(start, length, one, "i64"), shape, False)
        last = ops.subtract(length, one)  # a place that there is, where no value equals itself
        first = ops.reduce_min(ops.select(ops.equal(data, value), places, last), along, True)
        for old, new in zip(op.outputs(), (value, ops.convert(first, said["index_element_type"])), strict=True):
            old.replace(new.output(0))
    return len(found)


def _is_one(op: Any) -> bool:
    count = op.input_value(1).get_node()
    return count.get_type_name() == "Constant" and count.data.item() == 1


def add_rows(runtime: Any, model: Any) -> int:
    """Write sums of rows by where they go as what adds whole rows. Returns how many there were.

    The graph has an index for each number of a row, which OpenVINO writes out and follows one by one: an eighth of the time without.
    """
    ops, found = runtime.opset15, [op for op in model.get_ordered_ops() if _adds_rows(op)]
    for op in found:
        data, index, rows, _ = op.input_values()
        one_each, shape = index.get_node().input_values()
        number = ops.gather(shape, ops.constant([0]), ops.constant(0))
        places = ops.broadcast(one_each, ops.concat([number, ops.convert_like(ops.constant([1]), number)], 0), "bidirectional")
        op.output(0).replace(ops.scatter_nd_update(data, places, rows, "sum").output(0))
    return len(found)


def _adds_rows(op: Any) -> bool:
    """Whether an op adds rows [N, D] to rows [K, D], all numbers of one at one index, broadcast from [N, 1]."""
    if op.get_type_name() != "ScatterElementsUpdate" or op.get_attributes()["reduction"] != "sum":
        return False
    data, index, _, axis = op.input_values()
    if [value.get_node().get_type_name() for value in (index, axis)] != ["Broadcast", "Constant"]:
        return False
    shapes = [value.get_partial_shape() for value in (data, index, index.get_node().input_value(0))]
    if any(len(shape) != 2 or shape[1].is_dynamic for shape in shapes) or shapes[0][1] != shapes[1][1] or shapes[2][1] != 1:
        return False
    return int(axis.get_node().data) == 0 and bool(op.get_attributes()["use_init_val"])


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


def hand_out_entries(runtime: Any, model: Any) -> dict[str, str]:
    """Let a step hand out its new keys and values, for its caller to write, where it writes them into a buffer that attention alone reads.

    OpenVINO copies every buffer that a graph writes into twice, on its way in and out. A query meets the entries that are there, without
    the one in its slot, and the new one beside them. Returns, by the name of an output that is now an entry [B, G, 1, d], the name of
    the one that holds its slot [1].
    """
    ops, out = runtime.opset13, dict[str, str]()
    slots, masks = dict[str, Any](), dict[tuple[str, str], tuple[Any, Any]]()
    results = {result.input_value(0).get_node().get_name(): result for result in model.get_results()}
    for op in [op for op in model.get_ordered_ops() if op.get_type_name() == "ScaledDotProductAttention"]:
        writes = _sources(op)[1:3]
        if not _is_masked(op) or not all(_is_write(write, results) for write in writes):
            continue
        (past_k, at, new_k), (past_v, also_at, new_v) = (write.input_values()[:3] for write in writes)
        if _key(at) != _key(also_at):
            continue
        q, mask = ops.multiply(op.input_value(0), op.input_value(4)), op.input_value(3)
        slot = slots.setdefault(_key(at), ops.slice(ops.reshape(at, ops.constant([-1]), False), *(ops.constant([n]) for n in (0, 1, 1))))
        if (_key(mask), _key(at)) not in masks:
            length = ops.gather(ops.shape_of(past_k), ops.constant(2), ops.constant(0))
            there = ops.equal(ops.range(ops.constant(0), length, ops.constant(1), "i64"), ops.convert(slot, "i64"))
            kind = mask.get_element_type().to_dtype()
            lowest = ops.constant(np.finfo(kind).min, kind)
            masks[_key(mask), _key(at)] = ops.select(there, lowest, mask), ops.gather(mask, slot, ops.constant(-1))
        before, own = masks[_key(mask), _key(at)]
        seen = ops.concat([ops.add(ops.matmul(q, past_k, False, True), before), ops.add(ops.matmul(q, new_k, False, True), own)], -1)
        parts = ops.variadic_split(ops.softmax(seen, -1), ops.constant(-1), ops.constant([-1, 1]))
        read = ops.add(ops.matmul(parts.output(0), past_v, False, False), ops.matmul(parts.output(1), new_v, False, False))
        op.output(0).replace(read.output(0))
        for write, past, new in zip(writes, (past_k, past_v), (new_k, new_v), strict=True):
            for reader in write.output(0).get_target_inputs():
                if reader.get_node().get_type_name() == "ShapeOf":
                    reader.replace_source_output(past)
            name = write.output(0).get_any_name()
            model.remove_result(results[write.get_name()])
            model.add_results([_named(ops, new, name)])
            out[name] = f"slot.{_key(at)}"
    for key, slot in slots.items():
        model.add_results([_named(ops, slot.output(0), f"slot.{key}")])
    return out


def _is_write(op: Any, results: dict[str, Any]) -> bool:
    """Whether an attention's side is a buffer of the caller's of which a step writes one slot, all rows and heads the same.

    And nothing reads it but that attention.
    """
    if op.get_type_name() != "ScatterElementsUpdate" or op.get_name() not in results:
        return False
    past, slots, new, axis = op.input_values()
    kinds = [value.get_node().get_type_name() for value in (past, slots, axis)]
    if kinds != ["Parameter", "Broadcast", "Constant"] or int(axis.get_node().data) != 2:
        return False
    number, entries = slots.get_node().input_value(0).get_partial_shape(), new.get_partial_shape()[2]
    one = number.is_static and np.prod(number.to_shape()) == 1 and entries.is_static and entries.get_length() == 1
    readers = [[r.get_node().get_type_name() for r in value.get_target_inputs()] for value in (past, op.output(0))]
    others = [sorted(name for name in names if name != "ShapeOf") for names in readers]
    return bool(one) and others == [["ScatterElementsUpdate"], ["Result", "ScaledDotProductAttention"]]


def _key(value: Any) -> str:
    return f"{value.get_node().get_name()}.{value.get_index()}"


def _named(ops: Any, value: Any, name: str) -> Any:
    value.get_tensor().set_names({name})
    return ops.result(value)


def spell_out_attention(runtime: Any, model: Any) -> int:
    """Write every ScaledDotProductAttention with a mask as the products it stands for. Returns how many there were.

    OpenVINO does so itself where no cache of its own feeds one, but scales and transposes all keys, which takes half of a step.
    """
    ops = runtime.opset13
    found = [op for op in model.get_ordered_ops() if op.get_type_name() == "ScaledDotProductAttention" and _is_masked(op)]
    for op in found:
        q, k, v, mask, scale = op.input_values()
        logits = ops.add(ops.matmul(ops.multiply(q, scale), k, False, True), mask)
        op.output(0).replace(ops.matmul(ops.softmax(logits, -1), v, False, False).output(0))
    return len(found)


def _is_masked(op: Any) -> bool:
    """Whether an attention has an additive mask, as those have that are exported here."""
    inputs = op.input_values()
    return len(inputs) == 5 and not op.get_attributes()["causal"] and inputs[3].get_element_type().is_real()


def _sources(op: Any) -> list[Any]:
    return [value.get_node() for value in op.input_values()]
