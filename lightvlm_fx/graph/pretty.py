"""The only code that formats a graph: one line a node, types on it, module path, and the pass that made it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from lightvlm_fx.compat import OpOverload, schema
from lightvlm_fx.graph.ports import BUDGET, port_of
from lightvlm_fx.graph.program import Program

SHORT = {
    torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.float64: "f64",
    torch.int64: "i64", torch.int32: "i32", torch.bool: "b8", torch.uint8: "u8",
}  # fmt: skip
NOISE = ("_assert_tensor_metadata",)  # checks that torch.export leaves behind; hidden unless asked for


def typed(val: Any) -> str:
    """`f32[1, S, 64]` for a tensor, the number for a number (`S` for any symbolic size)."""
    return _with_letters(exact(val), {})


def exact(val: Any) -> str:
    """`typed`, with symbolic sizes under their own names: two sizes that differ read differently."""
    if isinstance(val, Tensor):
        return f"{SHORT.get(val.dtype, str(val.dtype))}[{', '.join(map(exact, val.shape))}]"
    if isinstance(val, tuple | list):
        return "(" + ", ".join(map(exact, val)) + ")"
    return str(val)


def _argument(arg: Any) -> str:
    if isinstance(arg, fx.Node):
        return f"%{arg.name}"
    if isinstance(arg, list | tuple):
        return "[" + ", ".join(map(_argument, arg)) + "]"
    return repr(arg) if isinstance(arg, str) else str(arg)


def target_name(target: Any) -> str:
    """`aten.linear`, `lightvlm.select_tokens`, or a function's name."""
    if isinstance(target, OpOverload):
        return f"{target.namespace}.{schema(target).name.split('::')[1]}"
    return getattr(target, "__name__", str(target))


def line(node: fx.Node) -> str:
    """One node on one line."""
    if node.op == "output":
        return f"return ({', '.join(_argument(a) for a in node.args[0])})"
    stack = node.meta.get("nn_module_stack")
    path = next(reversed(stack.values()))[0] if stack and "lightvlm_pass" not in node.meta else ""
    path = path.removeprefix("decoder").removeprefix(".") if "_hook" not in path else ""
    notes = [f"@{path}"] if path else []
    if "lightvlm_pass" in node.meta:
        notes.append(f"<- {node.meta['lightvlm_pass']}")
    arguments = [*map(_argument, node.args), *(f"{k}={_argument(v)}" for k, v in node.kwargs.items())]
    text = f"%{node.name}: {exact(node.meta.get('val'))} = {target_name(node.target)}({', '.join(arguments)})"
    return text + ("   # " + " ".join(notes) if notes else "")


def _shown(nodes: Iterable[fx.Node], noise: bool = False) -> list[fx.Node]:
    hidden = () if noise else NOISE
    return [n for n in nodes if n.op not in ("get_attr", "placeholder") and not any(x in n.name for x in hidden)]


def text(program: Program, only_pass: str | None = None, *, noise: bool = False) -> str:
    """The whole program, or only the lines that one pass (or any, "*") made; with `noise`, checks of torch.export too."""
    weights = sum(n.op == "get_attr" for n in program.graph.nodes)
    inputs = ", ".join(f"%{n.name}: {exact(n.meta.get('val'))}" for n in program.placeholders())
    nodes = _shown(program.graph.nodes, noise)
    if only_pass is not None:
        nodes = [n for n in nodes if only_pass in ("*", n.meta.get("lightvlm_pass")) and "lightvlm_pass" in n.meta]
    body = "\n".join("  " + line(n) for n in nodes)
    return _with_letters(f"{program.stage}({inputs})   # {weights} weights hidden\n{body}\n", letters(program))


def letters(program: Program) -> dict[str, str]:
    """What each symbolic size is called: rows B, tokens S (of text T), images I, tokens that stay at a cut K0, entries E0, slots C0."""
    out: dict[str, str] = {}
    for node in program.placeholders():
        port, number = port_of(node.name)
        for d, size in enumerate(node.meta["val"].shape):
            symbol = str(size)
            if not re.fullmatch(r"s\d+", symbol) or symbol in out:
                continue
            if node.name == "inputs_embeds":
                out[symbol] = "BS"[d]
            elif port and port.size:
                out[symbol] = port.size + (number if port is not BUDGET else "")
    return out


def _with_letters(text: str, known: dict[str, str]) -> str:
    """With letters for the symbols that torch.export made of sizes; a size that nothing is known of is called S."""
    return re.sub(r"\bs\d+\b", lambda found: known.get(found[0], "S"), text)


def excerpt(program: Program, node: fx.Node, around: int = 2) -> str:
    """A few lines of the graph with `node` marked."""
    nodes = _shown(program.graph.nodes)
    if node not in nodes:
        nodes = _shown(program.graph.nodes, noise=True)
    at = nodes.index(node) if node in nodes else 0
    part = nodes[max(0, at - around) : at + around + 1]
    return _with_letters("\n".join(("  > " if n is node else "    ") + line(n) for n in part), letters(program))


def diff(before: str, after: str) -> str:
    """Unified diff of two printed programs."""
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), "before", "after", lineterm="", n=1))
