"""A model's text decoder, and the arguments of one real call, to a `Program`, by torch.export.

Capture is semantic: the decoder runs with an attention implementation that emits one marker op a layer, a
mask implementation that emits the mask only where the batch needs one, and a cache that records the keys
and values written. No model file is patched.
"""

from __future__ import annotations

import traceback
import warnings
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import SymBool, Tensor, fx, nn
from torch.export import Dim
from torch.export.graph_signature import InputKind
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import sdpa_mask

from lightvlm_fx import ops  # noqa: F401  (registers the marker op)
from lightvlm_fx.compat import (
    ASSERT_SCALAR,
    GuardOnDataDependentSymNode,
    attention_name,
    cache_argument,
    expression,
    free_unbacked_symbols,
    own_configs,
    pytree,
    tracing,
    without_stack_traces,
)
from lightvlm_fx.errors import CaptureError, NotSupported, RefusedModel
from lightvlm_fx.graph.attention import Marker
from lightvlm_fx.graph.edit import module_path, token_dims
from lightvlm_fx.graph.pretty import typed
from lightvlm_fx.graph.program import Facts, Program, Stage, value
from lightvlm_fx.model.families.side_inputs import accept_dense
from lightvlm_fx.quiet import muted

CAUSAL, MASKED, STEP = "lightvlm_causal", "lightvlm_masked", "lightvlm_step"  # registered attention implementations
# Arguments of a decoder whose dimensions are known by name; of others: the first of size B, every later one of length S.
NAMED = ("inputs_embeds", "visual_pos_masks", "deepstack_visual_embeds", "per_layer_inputs")
# Sizes that captures are traced at, whatever the batch was: nothing may hold because two of them happen to be equal.
EXAMPLE = {"B": 3, "S": 29}
# Options of an attention call that the marker carries, or that change nothing in inference.
EXPRESSED = {"scaling", "sliding_window", "softcap", "is_causal", "dropout", "position_ids", "use_cache", "cache_position"}
LENGTHS = (2, 3, 17, 256, 4099)  # sizes at which a check that torch.export put off must hold


def _marker(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None = None, **options: Any
) -> tuple[Tensor, None]:
    """The attention implementation of a capture: one `lightvlm::attention` node."""
    name, mask = type(module).__name__, attention_mask
    for option, given in options.items():
        if option not in EXPRESSED and (isinstance(given, Tensor) or given):
            raise RefusedModel(f"{name}: attention uses {option!r}, which the lowered attention cannot express")
    stepping = attention_name(module) == STEP
    not_causal = options.get("is_causal") is False or getattr(module, "is_causal", True) is False
    if not_causal and mask is None and not stepping:
        raise RefusedModel(f"{name}: a decoder layer attends bidirectionally without a mask")
    if stepping and mask is not None:
        raise RefusedModel(f"{name}: a decoder layer makes an attention mask of its own while decoding")
    scale = options.get("scaling")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    window = int(options.get("sliding_window") or 0)
    out = torch.ops.lightvlm.attention(q, k, v, mask, scale, module.layer_idx, window, float(options.get("softcap") or 0.0))
    return out, None


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """Mask implementation of the plain causal bucket: the marker itself is causal."""
    return


def _full_mask(*args: Any, **kwargs: Any) -> Tensor:
    """Mask implementation of the padded bucket: always the whole boolean mask [B, 1, S, S]."""
    return sdpa_mask(*args, **{**kwargs, "allow_is_causal_skip": False})


for _name, _mask in ((CAUSAL, _no_mask), (MASKED, _full_mask), (STEP, _no_mask)):
    AttentionInterface.register(_name, _marker)
    AttentionMaskInterface.register(_name, _mask)


class RecordingCache(DynamicCache):
    """An empty cache that hands back just what is written, and keeps it by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if layer_idx in self.written:
            raise RefusedModel(f"decoder layer {layer_idx} writes its cache twice in one pass")
        self.written[layer_idx] = (key_states, value_states)
        return key_states, value_states


class _Flat(nn.Module):
    """The decoder as a function of the tensors among its keyword arguments."""

    def __init__(self, decoder: nn.Module, spec: pytree.TreeSpec, leaves: list[Any]) -> None:
        super().__init__()
        self.decoder = decoder
        self.cache_argument = cache_argument(decoder.forward)
        self.spec = spec
        self.constants = [None if isinstance(x, Tensor) else x for x in leaves]
        self.at = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
        self.noted = SimpleNamespace()  # torch.export undoes what a trace assigns to the module or its lists

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        leaves = list(self.constants)
        for i, tensor in zip(self.at, tensors, strict=True):
            leaves[i] = tensor
        cache = RecordingCache()
        kwargs = pytree.tree_unflatten(leaves, self.spec)
        out = self.decoder(**kwargs, **{self.cache_argument: cache}, use_cache=True)
        self.noted.output_class = type(out)
        written = [cache.written[i] for i in sorted(cache.written)]
        return (out.last_hidden_state, *(k for k, _ in written), *(v for _, v in written))


@dataclass(frozen=True)
class Call:
    """The keyword arguments of a decoder call, split into named tensors and constants."""

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    leaves: list[Any]
    spec: pytree.TreeSpec

    @staticmethod
    def of(kwargs: dict[str, Any]) -> Call:
        flat, spec = pytree.tree_flatten_with_path(dict(sorted(kwargs.items())))  # in whatever order they come
        names, tensors, leaves = [], [], []
        for path, leaf in flat:
            leaves.append(leaf)
            if isinstance(leaf, Tensor):
                names.append("_".join(str(getattr(p, "key", getattr(p, "idx", p))) for p in path))
                tensors.append(leaf)
        return Call(tuple(names), tuple(tensors), leaves, spec)

    @property
    def size(self) -> tuple[int, int]:
        """Rows B and tokens S."""
        rows, tokens = self.tensors[self.names.index("inputs_embeds")].shape[:2]
        return rows, tokens

    def axes(self) -> list[dict[int, str]]:
        """Which dimensions of each tensor are the rows B and the tokens S."""
        rows, tokens = self.size
        out = []
        for name, tensor in zip(self.names, self.tensors, strict=True):
            if name.startswith(NAMED):
                found = {0: "B", 1: "S"}
            elif name == "position_ids":
                found = {tensor.ndim - 2: "B", tensor.ndim - 1: "S"}
            elif name.startswith("attention_mask"):
                found = {0: "B"} | dict.fromkeys(range(1 if tensor.ndim == 2 else 2, tensor.ndim), "S")
            else:
                found = {d: "S" for d in range(1, tensor.ndim) if tensor.shape[d] == tokens} | {0: "B"}
            out.append({d: axis for d, axis in found.items() if tensor.shape[d] == (rows if axis == "B" else tokens)})
        return out

    def one_row(self, masked: bool) -> bool:
        """Whether this is a kind of its own: one row without padding. A padded one goes with batches of several."""
        return self.size[0] == 1 and not masked

    def signature(self, free: str = "BS", masked: bool = False) -> tuple[Any, ...]:
        """What must agree for two calls to share a capture whose axes `free` are symbolic."""
        shapes = []
        for name, tensor, axes in zip(self.names, self.tensors, self.axes(), strict=True):
            sizes = [axes[d] if axes.get(d, "-") in free else size for d, size in enumerate(tensor.shape)]
            shapes.append((name, tensor.dtype, tuple(sizes)))
        constants = tuple(repr(x) for x in self.leaves if not isinstance(x, Tensor))
        device = self.tensors[0].device.type
        casts = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None  # a capture holds what they insert
        return (self.one_row(masked), tuple(shapes), constants, str(self.spec), casts)

    def example(self, free: str) -> tuple[tuple[Tensor, ...], tuple[dict[int, Any], ...]]:
        """Tensors to trace with, of sizes of our own along the axes `free`, and what torch.export is told of those."""
        dims = {axis: Dim(axis, min=2, max=1 << 20) for axis in free}
        tensors, dynamic = [], []
        for tensor, axes in zip(self.tensors, self.axes(), strict=True):
            shape = [EXAMPLE[axes[d]] if axes.get(d, "-") in free else size for d, size in enumerate(tensor.shape)]
            tensors.append(tensor if shape == list(tensor.shape) else tensor.new_ones(shape))
            dynamic.append({d: dims[axis] for d, axis in axes.items() if axis in free})
        return tuple(tensors), tuple(dynamic)


@tracing()
def capture(decoder: nn.Module, kwargs: dict[str, Any], stage: Stage, *, masked: bool = False) -> Program:
    """Trace `decoder(**kwargs)` with rows and sequence length symbolic (but for one row without padding, and one new token).

    `kwargs` holds inputs_embeds [B, S, D], position_ids, and whatever else the family passes. With
    `masked`, attention masks become values of the graph; else every layer is plainly causal.
    Raises CaptureError (with torch's own message as its cause) or RefusedModel.
    """
    private = own_configs(decoder)  # what the source runs with meanwhile, and afterwards, is left alone
    accept_dense(private)
    call = Call.of(kwargs)
    stepping = stage == "decode" and call.size[1] == 1
    flat = _Flat(private, call.spec, call.leaves).eval()
    wanted = ("" if call.one_row(masked) else "B") + ("" if stepping else "S")
    implementation = STEP if stage == "decode" else MASKED if masked else CAUSAL
    private.set_attn_implementation(implementation)
    with torch.no_grad(), without_stack_traces(), warnings.catch_warnings():
        # torch.export warns of attributes assigned while tracing (a cache keeps its tensors): intended here
        warnings.simplefilter("ignore")
        with muted("stderr"):  # where torch.export prints the whole half-traced graph of a failure
            exported, free = _export(flat, call, wanted, f"{type(decoder).__name__} ({stage}, step 1 of 3: capture)")
    gm = unlifted(exported, call.names)
    facts = Facts(
        layers=0,
        hidden=kwargs["inputs_embeds"].shape[2],
        masked=masked,
        positions_rank=kwargs["position_ids"].ndim,
        free=free,
        static_length="S" in wanted and "S" not in free,
        output_class=flat.noted.output_class,
    )
    program = Program(gm, stage, facts, call.names)
    _check_layers(program, decoder)
    layers, markers = len(decoder.layers), program.markers()
    # what a layer attends with, not what it hands its cache: the same, or (latent attention) made from that token by token
    attentions = [Marker.of(markers[i]) for i in range(layers)]
    kept = (*(x.k for x in attentions), *(x.v for x in attentions))
    program.output_node().args = ((program.output_node().args[0][0], *kept),)
    names = ("hidden", *(f"keys.{i}" for i in range(layers)), *(f"values.{i}" for i in range(layers)))
    program.with_facts(layers=layers, outputs=names)
    return program


def _export(flat: _Flat, call: Call, wanted: str, what: str) -> tuple[Any, str]:
    """The exported program, and which of its axes `wanted` are symbolic: as many as the decoder allows."""
    failed: Exception | None = None
    for free in dict.fromkeys((wanted, wanted.replace("B", ""), "")):
        tensors, dynamic = call.example(free)
        try:
            exported = torch.export.export(
                flat,
                tensors,
                dynamic_shapes=(dynamic,) if free else None,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=bool(free),  # guards that hold for every size but are not proven
            )
            if _holds_for_every_size(exported, what) or not free:
                return exported, free
        except RefusedModel:
            raise
        except GuardOnDataDependentSymNode as error:
            if not free:
                raise RefusedModel(f"{what}: {_model_line(error)} branches on values, which a graph cannot follow") from error
            failed = failed or error
        except Exception as error:
            if not free:
                raise CaptureError(f"torch.export could not trace {what}: {_reason(flat.decoder, error)}") from (failed or error)
            failed = failed or error
    raise AssertionError("the last attempt returns or raises")


def _holds_for_every_size(exported: Any, what: str) -> bool:
    """Whether the checks put off to run time, which drop-export-checks removes, hold whatever the sizes.

    Raises RefusedModel where a shape or a check depends on values: a cut cannot give such a value a new length.
    """
    proven = True
    for node in exported.graph.nodes:
        val = node.meta.get("val")
        if isinstance(val, Tensor) and free_unbacked_symbols(val):
            raise RefusedModel(
                f"{what}: the shape of {node.name} in {module_path(node) or 'the decoder'} depends on values, "
                "so a cut cannot give it a new length"
            )
        if node.target is ASSERT_SCALAR:
            check = value(node.args[0])
            held = expression(check) if isinstance(check, SymBool) else check
            symbols = getattr(held, "free_symbols", ())
            tries = [dict(zip(sorted(symbols, key=str), sizes, strict=False)) for sizes in product(LENGTHS, repeat=min(2, len(symbols)))]
            proven &= all((held.subs(sizes) if symbols else held) == True for sizes in tries)  # noqa: E712
    return proven


def _reason(decoder: nn.Module, error: Exception) -> str:
    """What a failed trace says, by its type where it says nothing; and what to do about linear layers of a quantiser."""
    said = f"{type(error).__name__}: {error}" if str(error) else f"{type(error).__name__} in {_model_line(error)}"
    linear = {type(m) for m in decoder.modules() if isinstance(m, nn.Linear)}
    kinds = [kind for kind in linear if not kind.__module__.startswith(("torch.", "transformers."))]
    if not kinds:
        return said
    names = ", ".join(sorted(f"{kind.__module__.split('.')[0]}'s {kind.__name__}" for kind in kinds))
    return (
        f"its linear layers are {names} ({said}); torchao's int8 and int4 and quanto's weights can be traced, bitsandbytes' not: "
        "call model.dequantize() first, or load the model without quantization"
    )


def _model_line(error: BaseException) -> str:
    """The innermost line of a model file in a traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((f for f in reversed(frames) if Path(f.filename).name.startswith("modeling_")), frames[-1])
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _check_layers(program: Program, decoder: nn.Module) -> None:
    """Raise RefusedModel where layers do not each attend once, over the new tokens, with keys and values of their own."""
    name, layers, markers = type(decoder).__name__, len(decoder.layers), program.markers()
    if sorted(markers) != list(range(layers)):
        missing = [i for i in range(layers) if i not in markers]
        raise RefusedModel(
            f"{name}: expected one attention through transformers' AttentionInterface in each of "
            f"{layers} layers, found none in layers {missing}"
        )
    marked = [n for n in program.graph.nodes if n.target is next(iter(markers.values())).target]
    if len(marked) != layers:
        raise RefusedModel(f"{name}: {len(marked)} attentions in {layers} layers; capture expects one in each")
    n_cached = (len(program.output_node().args[0]) - 1) // 2
    if n_cached != layers:
        raise RefusedModel(f"{name}: {n_cached} of {layers} layers write a key-value cache of their own")
    kinds = getattr(decoder.config, "layer_types", None) or [""] * layers
    named = getattr(decoder.config, "sliding_window", None)
    length = value(program.sequence()).shape[1]
    for layer, marker in markers.items():
        window, keys = Marker.of(marker).window, Marker.of(marker).k
        if 2 not in token_dims(keys, length):
            raise RefusedModel(f"{name}: layer {layer} attends to keys {typed(value(keys))}, not one for each new token")
        kind_differs = kinds[layer] and (kinds[layer] == "sliding_attention") != bool(window)
        if kind_differs or window not in (0, named):
            raise RefusedModel(
                f"{name}: layer {layer} ({kinds[layer]}) attends over a window of {window} tokens, but its config says {named}"
            )


def unlifted(exported: Any, names: tuple[str, ...]) -> fx.GraphModule:
    """The exported graph with weights as attributes that share the model's storage, and inputs named."""
    root = nn.Module()
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    specs = {spec.arg.name: spec for spec in exported.graph_signature.input_specs}
    user = iter(names)
    for node in exported.graph.nodes:
        if node.op == "get_attr" and isinstance(getattr(exported.graph_module, node.target, None), fx.GraphModule):
            # torch before 2.12 puts what runs under autocast into a graph of its own
            raise NotSupported(
                f"torch {torch.__version__} cannot capture a decoder under autocast; call it outside of torch.autocast, with the model in "
                "the dtype that you want (model.to(torch.bfloat16)), or install torch 2.12"
            )
        if node.op != "placeholder":
            new = graph.node_copy(node, lambda n: values[n])
        elif specs[node.name].kind == InputKind.USER_INPUT:
            new = graph.placeholder(next(user))
        else:
            target = specs[node.name].target
            attribute = target.removeprefix("decoder.").replace(".", "_")
            tensor = exported.state_dict[target] if target in exported.state_dict else exported.constants[target]
            if isinstance(tensor, nn.Parameter):
                root.register_parameter(attribute, tensor)
            else:
                root.register_buffer(attribute, tensor, persistent=False)
            new = graph.get_attr(attribute)
        new.meta = dict(node.meta)
        values[node] = new
    gm = fx.GraphModule(root, graph)
    gm.graph.eliminate_dead_code()
    gm.graph.lint()
    return gm
