"""Every private API of torch and transformers does what the package takes it for, and stands in compat alone."""

import ast
import operator
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import create_autospec

import pytest
import sympy
import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._sympy.functions import Max
from transformers import AttentionInterface
from transformers.cache_utils import CacheLayerMixin, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

import lightvlm_fx
from lightvlm_fx import compat, releases, zoo
from lightvlm_fx.compat import (
    ASSERT_METADATA,
    ASSERT_SCALAR,
    DEEPSTACK,
    GuardOnDataDependentSymNode,
    OpOverload,
    OpOverloadPacket,
    at_least_one,
    attention_name,
    body,
    cache_argument,
    compiled_graphs,
    equal_sizes,
    expression,
    fake_mode,
    for_real,
    free_unbacked_symbols,
    fresh_mode,
    given_cache,
    hint,
    hooks,
    inductor,
    maybe_dynamic,
    onnx_program,
    operators,
    own_configs,
    packed_attention,
    pytree,
    schema,
    settled,
    shallow,
    shapes_in_python,
    size_checks,
    sort,
    symbolic_size,
    tracing,
    with_cache,
    without_stack_traces,
)
from lightvlm_fx.compat.threads import patches_here
from lightvlm_fx.runtime.cache import BufferLayer

pytestmark = pytest.mark.compat
PACKAGE = Path(lightvlm_fx.__file__).parent


class Compute(nn.Module):
    """A module of one function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def exported(function, *args, **dims):
    shapes = tuple({0: torch.export.Dim(name, min=2, max=1 << 20)} for name in dims) or None
    return torch.export.export(Compute(function), args, dynamic_shapes=shapes and (shapes,), strict=False)


def targets(program):
    return [node.target for node in program.graph.nodes]


# --- transformers ---------------------------------------------------------------------------------------


def test_cache_argument_is_what_decoders_take(llava):
    decoder = llava.model.get_decoder()
    name = cache_argument(decoder.forward)
    cache, embeds = DynamicCache(), torch.zeros(1, 3, decoder.config.hidden_size)
    with torch.no_grad():
        out = decoder(inputs_embeds=embeds, use_cache=True, **{name: cache})
    assert cache.get_seq_length() == 3
    assert given_cache(dict(out.items())) is cache


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_given_cache_knows_both_names(name):
    cache = DynamicCache()
    assert given_cache({name: cache, "use_cache": True}) is cache
    assert given_cache({"cache": None, "past_key_values": None}) is given_cache({}) is None


def test_with_cache_is_what_the_model_gives():
    cache, hidden = DynamicCache(), torch.zeros(1, 1, 1)
    out = with_cache(BaseModelOutputWithPast, cache, last_hidden_state=hidden)
    assert given_cache(dict(out.items())) is cache
    assert out.past_key_values is cache
    assert out.last_hidden_state is hidden


def test_a_tower_hands_packed_attention_all_patches_at_once():
    """Qwen2.5-VL: two pictures of 16 and 24 patches, one call a layer, with the ends of the pictures or windows."""
    calls = []

    def attend(module, q, k, v, attention_mask, cu_seq_lens_q, **options):
        calls.append((q.shape[2], int(cu_seq_lens_q[-1])))
        return q.transpose(1, 2), None

    AttentionInterface.register("lightvlm_flash_probe", attend)
    tower = zoo.build("qwen2_5_vl", layers=2).model.model.visual
    config, before = tower.config, attention_name(tower)
    patches = torch.ones(40, config.in_channels * config.temporal_patch_size * config.patch_size**2)
    with packed_attention(tower, "lightvlm_flash_probe"):
        tower(patches, grid_thw=torch.tensor([[1, 4, 4], [1, 4, 6]]))
    assert calls == [(40, 40)] * config.depth
    with pytest.raises(KeyError), packed_attention(tower, "lightvlm_flash_probe"):
        raise KeyError
    assert attention_name(tower) == before


def test_a_cache_layer_of_ours_lacks_nothing():
    assert "get_max_length" in CacheLayerMixin.__abstractmethods__
    assert not BufferLayer.__abstractmethods__
    assert BufferLayer.get_max_length is compat.NoLargestLength.get_max_length


def test_deepstack_is_a_method_of_qwen3_vl(llava):
    assert callable(getattr(zoo.build("qwen3_vl", layers=2).model.get_decoder(), DEEPSTACK))
    assert not hasattr(llava.model.get_decoder(), DEEPSTACK)


def test_onnx_program_keeps_names_and_shapes():
    ir = pytest.importorskip("onnx_ir")

    class Named(nn.Module):
        def forward(self, x, given):
            return {"larger": x + given["y"], "index": sort(x, descending=True).indices}

    inputs = {"x": torch.ones(2, 3), "given": {"y": torch.ones(3)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter talks about itself
        model, _ = onnx_program(Named(), inputs, 24)
    assert isinstance(model, ir.Model)
    assert model.opset_imports[""] == 24
    assert [v.name for v in model.graph.inputs] == ["x", "given.y"]
    assert [(v.name, list(v.shape)) for v in model.graph.outputs] == [("larger", [2, 3]), ("index", [2, 3])]
    [top] = [node for node in model.graph if node.op_type == "TopK"]
    downwards = "largest" not in top.attributes or top.attributes["largest"].as_int() == 1
    assert downwards == (releases.release("transformers") >= (5, 18))


@pytest.mark.parametrize("version", ["5.17.0", "5.24.0"])
def test_sort_is_a_stable_one(monkeypatch, version):
    monkeypatch.setattr(releases, "version", lambda name: version)
    x = torch.tensor([[2, 5, 2, -1, 5], [0, 0, 0, 0, 0]])
    for kwargs in ({}, {"descending": True}, {"descending": True, "dim": 0}):
        for given in (x, x.float()):
            want, got = torch.sort(given, stable=True, **kwargs), sort(given, stable=True, **kwargs)
            assert torch.equal(want.values, got.values)
            assert torch.equal(want.indices, got.indices)


# --- torch: modules and ops -----------------------------------------------------------------------------


def test_checks_that_torch_export_writes():
    def checked(x):
        n = x.sum().item()
        torch._check(n > 2)
        return x.to(torch.float64), torch.ones(3) * n

    found = targets(exported(checked, torch.arange(4)))
    assert ASSERT_SCALAR in found
    assert ASSERT_METADATA in found


def test_shallow_shares_weights_but_no_table():
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    twin = shallow(module)
    assert type(twin) is nn.Sequential
    assert twin[0] is module[0]
    twin.register_module("1", nn.Tanh())
    twin.register_forward_pre_hook(lambda *args: None)
    twin.register_forward_pre_hook(lambda *args: None, with_kwargs=True)
    twin.register_buffer("more", torch.ones(1))
    twin.weight = nn.Parameter(torch.ones(1))
    assert isinstance(module[1], nn.ReLU)
    assert list(module.state_dict()) == ["0.weight", "0.bias"]
    assert torch.equal(module(torch.ones(1, 2)), module[0](torch.ones(1, 2)).relu())


def test_hooks_are_those_of_the_module():
    module = nn.Linear(1, 1)
    assert hooks(module) == []
    module.register_forward_hook(print)
    module.register_forward_pre_hook(repr)
    assert hooks(module) == [repr, print]


def test_own_configs_leave_the_source_alone(llava):
    decoder = llava.model.get_decoder()
    before = attention_name(decoder)
    private = own_configs(decoder)
    assert all(x is y for x, y in zip(private.parameters(), decoder.parameters(), strict=True))
    assert [name for name, _ in private.named_modules()] == [name for name, _ in decoder.named_modules()]
    private.set_attn_implementation("eager" if before != "eager" else "sdpa")
    assert attention_name(decoder) == attention_name(decoder.layers[0].self_attn) == before
    assert attention_name(private) == attention_name(private.layers[0].self_attn) != before
    assert before in ("sdpa", "eager")
    hook = private.norm.register_forward_hook(lambda *args: None, with_kwargs=True, always_call=True)
    assert not hooks(decoder.norm)
    assert hooks(private.norm)
    hook.remove()


def test_body_is_the_function_behind_an_operator():
    @torch.library.custom_op("lightvlm_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    op, function = body(double)
    assert op is torch.ops.lightvlm_test.double.default
    assert isinstance(op, OpOverload)
    assert isinstance(torch.ops.lightvlm_test.double, OpOverloadPacket)
    assert torch.equal(function(torch.ones(1)), torch.full((1,), 2.0))


def test_schema_tells_name_and_mutation():
    assert schema(torch.ops.aten.add_.Tensor).name == "aten::add_"
    assert schema(torch.ops.aten.add_.Tensor).is_mutable
    assert not schema(torch.ops.aten.add.Tensor).is_mutable
    assert schema(operator.getitem) is schema("name") is None


def test_for_real_computes_inside_a_trace():
    numbers = []

    def traced(x):
        with for_real():
            numbers.append(torch.arange(4).sum().item())
        return x + numbers[-1]

    assert exported(traced, torch.ones(2)).module()(torch.ones(2)).tolist() == [7, 7]
    assert numbers[0] == 6
    with FakeTensorMode():
        assert isinstance(torch.ones(1), FakeTensor)
        with for_real():
            assert not isinstance(torch.ones(1), FakeTensor)


def test_pytree_names_the_way_to_a_leaf():
    tree = {"a": torch.ones(1), "b": [torch.ones(2), 3]}
    flat, spec = pytree.tree_flatten_with_path(tree)
    assert [[getattr(p, "key", getattr(p, "idx", None)) for p in path] for path, _ in flat] == [["a"], ["b", 0], ["b", 1]]
    assert pytree.tree_unflatten([leaf for _, leaf in flat], spec).keys() == tree.keys()
    assert pytree.tree_map_only(torch.Tensor, len, tree) == {"a": 1, "b": [2, 3]}
    assert pytree.tree_leaves(tree)[2] == 3


# --- torch: symbolic sizes ------------------------------------------------------------------------------


def test_symbolic_sizes_have_expressions():
    program = exported(lambda x: torch.cat([x, x[:1]]), torch.ones(5), S=True)
    x, _, *_, cat = (node.meta["val"] for node in program.graph.nodes if "val" in node.meta)
    size, longer = x.shape[0], cat.shape[0]
    assert expression(longer) == expression(size) + 1
    assert fake_mode(x) is not None
    assert fake_mode(torch.ones(1)) is fake_mode(3) is None
    with fake_mode(x):
        assert isinstance(torch.ones(1), FakeTensor)
    new = symbolic_size(fake_mode(x), "images", 7)
    assert isinstance(new, torch.SymInt)
    assert expression(new) != expression(size)
    assert not free_unbacked_symbols(x.new_empty(new))


def test_a_symbolic_size_knows_where_it_is_traced():
    size = symbolic_size(fresh_mode(), "tokens", 7)
    assert hint(size) == 7
    assert hint(3 * size + 1) == 22
    assert hint(5) == 5


def test_what_is_a_number_whatever_the_sizes_is_one():
    size = symbolic_size(fresh_mode(), "tokens", 7)
    assert type(settled(size + 256 - size)) is int
    assert settled(size + 256 - size) == 256
    assert isinstance(settled(2 * size), torch.SymInt)
    assert settled(9) == 9


def test_sizes_of_strides_are_one_or_more():
    """Strides of an empty tensor of symbolic sizes read Max(1, n); other maxima stay."""
    n, m = sympy.symbols("n m", integer=True)
    assert at_least_one(4 * Max(1, n) + m) == 4 * n + m
    assert at_least_one(Max(2, n)) == Max(2, n)


def test_sizes_taken_for_equal_are_told():
    x = exported(lambda x: x + 1, torch.ones(5), S=True).graph_module.graph.find_nodes(op="placeholder")[0].meta["val"]
    assert not equal_sizes(x)
    sizes = [symbolic_size(fake_mode(x), name, hint) for name, hint in (("kept", 3), ("images", 3), ("rows", 2))]
    x.new_empty(sizes[0]) + x.new_empty(sizes[0])
    assert not equal_sizes(x)
    x.new_empty(sizes[0]) + x.new_empty(sizes[1])
    met = equal_sizes(x)
    assert met
    x.new_empty(sizes[2]).view(2)
    assert equal_sizes(x) > met
    assert equal_sizes(torch.ones(1)) == set()


def test_checks_of_sizes_hold_for_what_was_assumed():
    mode = fresh_mode()
    first, second = (symbolic_size(mode, name, hint) for name, hint in (("first", 5), ("second", 7)))
    assert size_checks(mode, [first, second])([2, 1000])
    assert size_checks(mode, [first, second])([1, 1])  # though 1 would have been a constant
    with mode:
        x, y = torch.empty(first), torch.empty(second)
    assert fake_mode(x) is mode
    assert first < 6
    y.view(7)
    holds = size_checks(mode, [first, second])
    assert [holds(sizes) for sizes in ([5, 7], [3, 7], [6, 7], [5, 8])] == [True, True, False, False]


def test_shapes_of_fakes_assume_nothing():
    """torch 2.11 multiplies such matrices by a view whose sizes it takes for numbers, where it may use C++."""
    mode = fresh_mode()
    size = symbolic_size(mode, "tokens", 5)
    with mode, shapes_in_python():
        assert (torch.empty(1, 8, 1) @ torch.empty(1, 1, size)).shape[2] == size
    assert not mode.shape_env.guards


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_attention_on_an_accelerator_assumes_nothing_of_sizes():
    """On CUDA, scaled_dot_product_attention pads a mask to a multiple of its own, or fails where that is symbolic."""
    mode = fresh_mode()
    size = symbolic_size(mode, "slots", 65)
    with mode, shapes_in_python():
        q, k, mask = (torch.empty(shape, device="cuda") for shape in ((1, 4, 1, 16), (1, 4, size, 16), (1, 1, 1, size)))
        assert torch.nn.functional.scaled_dot_product_attention(q, k, k, attn_mask=mask).shape == q.shape
    assert not mode.shape_env.guards


@pytest.mark.skipif(releases.release("torch") < (2, 13), reason="nothing to switch off before torch 2.13")
def test_a_trace_notes_no_python_lines():
    def lines():
        exported = torch.export.export(Compute(lambda x: x + 1), (torch.ones(3),))
        return ["stack_trace" in node.meta for node in exported.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)]

    with without_stack_traces():
        assert lines() == [False]
    assert lines() == [True]


def test_operators_of_a_function_have_values():
    mode = fresh_mode()
    rows = symbolic_size(mode, "rows", 5)
    with mode:
        x = torch.empty(rows, 4)
    graph = operators(lambda a, b: torch.nn.functional.scaled_dot_product_attention(a, b, b), [x[None], x[None]])
    calls = [node for node in graph.nodes if node.op == "call_function"]
    assert [node.target for node in calls] == [torch.ops.aten.scaled_dot_product_attention.default]
    assert calls[0].meta["val"].shape[1] == x.shape[0]


def test_inductor_compiles_for_every_size():
    mode = fresh_mode()
    size = symbolic_size(mode, "rows", 5)
    with mode:
        x = torch.empty(size)
    graph = torch.fx.symbolic_trace(lambda a: (a * 2 + 1,))
    run = inductor(graph, [x], mode)
    for rows in (5, 9):
        assert run(torch.ones(rows))[0].tolist() == [3.0] * rows


def elsewhere(function):
    """What a function returns in another thread."""
    found = []
    other = threading.Thread(target=lambda: found.append(function()))
    other.start()
    other.join()
    return found[0]


class Foreign(nn.Module):
    """A module that no trace knows of."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("alone", [True, False], ids=["tracing", "torch-itself"])
def test_other_threads_are_told_nothing_of_a_trace(alone):
    """As seen on torch 2.11, 2.13 and 2.14. Should torch itself come to say the same, `tracing` can go."""
    seen = {}

    class Traced(nn.Module):
        def forward(self, x):
            seen.update(here=told_flags(), elsewhere=elsewhere(told_flags), calls=elsewhere(calls))
            return x + 1

    def told_flags():
        return torch.compiler.is_compiling(), torch.compiler.is_exporting()

    def calls():
        """Calls of a module that the tracer hears of."""
        heard = []
        tracer = torch.fx.experimental.proxy_tensor._ModuleStackTracer
        old = tracer.call_module
        tracer.call_module = lambda self, module, forward, *args: heard.append(module) or forward(*args[0], **args[1])
        try:
            out = Foreign()(torch.ones(1))
        finally:
            tracer.call_module = old
        return len(heard), type(Foreign().inner), out.item(), torch.backends.mkldnn.enabled

    before = told_flags(), nn.Module.__call__, nn.Module.__getattr__
    with tracing() if alone else nullcontext():
        torch.export.export(Traced(), (torch.ones(2),), strict=False)
    assert seen["here"] == (True, True)
    assert seen["elsewhere"] == ((False, False) if alone else (True, True))
    assert seen["calls"] == ((0, nn.Identity, 1.0, True) if alone else (2, nn.Identity, 1.0, False))
    assert (told_flags(), nn.Module.__call__, nn.Module.__getattr__) == before


def test_what_torch_compile_compiled_runs_in_other_threads_while_one_traces():
    double, seen = torch.compile(lambda x: 2 * x, backend="eager"), []
    double(torch.ones(2))

    class Traced(nn.Module):
        def forward(self, x):
            seen.append(elsewhere(lambda: double(torch.ones(2)).tolist()))
            return x + 1

    with tracing():
        torch.export.export(Traced(), (torch.ones(2),), strict=False)
    assert seen == [[2.0, 2.0]]


def test_one_thread_traces_at_a_time():
    order, entered = [], threading.Event()

    def other():
        entered.set()
        with tracing():
            order.append("other")

    with tracing(), tracing():  # re-entrant
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(10)
        thread.join(0.05)
        order.append("this")
    thread.join(10)
    assert order == ["this", "other"]


def test_one_collector_of_outputs_for_each_thread_while_one_traces():
    """transformers collects hidden states in a global variable while anything is traced."""
    from transformers.utils.output_capturing import _active_collector

    class Traced(nn.Module):
        def forward(self, x):
            token = _active_collector.set({"mine": []})
            seen.append(elsewhere(_active_collector.get))
            _active_collector.reset(token)
            return x + 1

    seen = []
    with tracing():
        torch.export.export(Traced(), (torch.ones(2),), strict=False)
    assert seen == [None]


def test_patches_of_transformers_exporters_are_for_one_thread():
    from transformers.exporters.utils import patch_attributes

    class Owner:
        number = 1

        def word(self):
            return "own"

    with patches_here(), patch_attributes(
        [(Owner, "word", lambda old: lambda self: f"not {old(self)}"), (Owner, "number", lambda old: old + 1)]
    ):  # fmt: skip
        assert (Owner().word(), elsewhere(Owner().word), Owner.number) == ("not own", "own", 2)
    assert (Owner().word(), Owner.number) == ("own", 1)


def test_shapes_that_depend_on_values_are_told():
    program = exported(torch.nonzero, torch.ones(3))
    [found] = (node.meta["val"] for node in program.graph.nodes if node.target is torch.ops.aten.nonzero.default)
    assert free_unbacked_symbols(found)


def test_branches_on_values_are_told():
    with pytest.raises(GuardOnDataDependentSymNode):
        exported(lambda x: x + 1 if x.sum() > 0 else x, torch.ones(3))


# --- torch.compile --------------------------------------------------------------------------------------


def test_a_dimension_that_may_be_dynamic_is_compiled_once():
    torch.compiler.reset()
    function = torch.compile(lambda x: x + 1, backend="eager", fullgraph=True)
    before = compiled_graphs()
    for length in (5, 6, 9):
        x = torch.ones(length)
        maybe_dynamic(x, 0)
        function(x)
    assert compiled_graphs() == before + 1


def test_skipped_cuda_graphs_counts_what_inductor_notes():
    from torch._inductor.cudagraph_utils import log_cudagraph_skip_and_bump_counter

    before = compat.skipped_cuda_graphs()
    log_cudagraph_skip_and_bump_counter("skipping cudagraphs, for this test")
    assert compat.skipped_cuda_graphs() == before + 1


def test_a_dispatch_mode_sees_every_operator():
    class Seen(compat.TorchDispatchMode):
        names = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.names += (str(func),)
            return func(*args, **(kwargs or {}))

    with Seen() as seen:
        torch.ones(2).nonzero()
    assert seen.names == ("aten.ones.default", "aten.nonzero.default")


def test_aoti_compile_takes_a_path(monkeypatch, tmp_path):
    import torch._inductor

    entry = create_autospec(torch._inductor.aoti_compile_and_package)
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", entry)
    program = exported(torch.neg, torch.ones(1))
    compat.aoti_compile(program, tmp_path / "x.pt2")
    entry.assert_called_once_with(program, package_path=str(tmp_path / "x.pt2"))


# --- nowhere else ---------------------------------------------------------------------------------------


def private(name):
    return name.startswith("_") and not name.endswith("__")


INTERNAL = {"fake_mode", "experimental"}  # no underscore, but nobody's public API; so are the insides of symbolic sizes
WORDS = {word for thing in (nn.Module(), transformers.PreTrainedModel, transformers.PretrainedConfig) for word in dir(thing)}
WORDS = {word for word in WORDS if private(word)} | {DEEPSTACK, "_schema"}


def own_names(trees):
    """What the package itself defines: functions, classes, variables and attributes."""
    names = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute | ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.attr if isinstance(node, ast.Attribute) else node.id)
    return names


def private_uses(tree, own):
    """Lines that use what is private to torch or transformers: imports, attributes, and their names as text."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = getattr(node, "module", None)
            for alias in node.names:
                path = (f"{module}.{alias.name}" if module else alias.name).split(".")
                if path[0] in releases.TESTED and any(private(part) or part in INTERNAL for part in path):
                    yield node.lineno, ".".join(path)
        elif isinstance(node, ast.Attribute):
            of_size = node.attr in ("expr", "hint") and ast.unparse(node.value).endswith(".node")
            if of_size or node.attr in INTERNAL or (private(node.attr) and node.attr not in own):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in WORDS - own:
            yield node.lineno, repr(node.value)


def test_private_names_stand_in_compat_alone():
    roots = (PACKAGE, PACKAGE / "passes", PACKAGE / "exporters")  # the last two are links, which rglob does not follow
    paths = [path for root in roots for path in sorted(root.rglob("*.py"))]
    files = {str(path.relative_to(PACKAGE)): ast.parse(path.read_text()) for path in paths}
    assert {"compat/sizes.py", "exporters/vision.py", "passes/reduce_tokens.py", "ops/bodies.py"} < files.keys()
    own = own_names(files.values())
    others = {file: tree for file, tree in files.items() if not file.startswith("compat/")}
    assert [f"{file}:{line}: {use}" for file, tree in others.items() for line, use in private_uses(tree, own)] == []


@pytest.mark.parametrize("line", [
    "from torch._dynamo.utils import counters", "from torch.fx.experimental.symbolic_shapes import guard_int", "import torch._inductor",
    "from transformers.masking_utils import _vmap_expansion_sdpa", "torch._C._len_torch_dispatch_stack()", "model._modules['x'] = y",
    "getattr(config, '_attn_implementation')", "size.node.expr", "x.fake_mode", "torch.utils._pytree.tree_map(f, x)",
])  # fmt: skip
def test_a_private_name_is_found(line):
    assert list(private_uses(ast.parse(line), own_names([ast.parse("def _mine(): self._step = 1")])))


@pytest.mark.parametrize("line", ["self._step()", "from torch.utils import data", "torch.__version__", "from lightvlm_fx.a.b import _x"])
def test_other_names_are_not(line):
    assert not list(private_uses(ast.parse(line), own_names([ast.parse("self._step = 1")])))
