"""A compiled model follows its source, copies as models do, and needs no new graph for how it is called."""

import copy
import pickle

import pytest
import torch
from torch import nn

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.compat import attention_name
from lightvlm_fx.errors import InputError, NotSupported, RefusedModel
from lightvlm_fx.exporters.torch_compile import compiled_graphs
from lightvlm_fx.releases import release
from lightvlm_fx.runtime.follow import fingerprint
from lightvlm_fx.schedule import Schedule

SCHEDULE = Schedule.preset("lightvlm", keep=0.4, layers=(1,))


@pytest.fixture
def tiny():
    return zoo.build("llava", layers=2)


@pytest.fixture
def inputs(tiny):
    return tiny.inputs(text=(9,), images=(1,))


def compiled(model, **options):
    return lightvlm.compile(model, SCHEDULE, **{"backend": "eager"} | options)


def logits(model, inputs):
    return model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False, output_logits=True,
                          return_dict_in_generate=True).logits  # fmt: skip


def same(got, expected):
    for x, y in zip(got, expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)


class Adapted(nn.Module):
    """A linear layer with an adapter that can be switched off, or merged into the weight, as PEFT does it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.disabled, self.merged_adapters = base, False, []
        self.up = nn.Parameter(torch.full((base.out_features, 2), 0.05))
        self.down = nn.Parameter(torch.full((2, base.in_features), 0.05))

    def forward(self, x):
        out = self.base(x)
        return out if self.disabled or self.merged_adapters else out + x @ self.down.T @ self.up.T

    def merge(self):
        with torch.no_grad():
            self.base.weight += self.up @ self.down
        self.merged_adapters.append("default")


def layer(model):
    return model.model.language_model.layers[1]


def adapt(model):
    layer(model).mlp.up_proj = Adapted(layer(model).mlp.up_proj)


def replace_weights(model):
    state = {name: x + 0.05 for name, x in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def hook(model):
    layer(model).mlp.register_forward_hook(lambda module, args, out: out * 1.5)


CHANGES = {
    "values in place": lambda model: [x.data.add_(0.05) for x in model.parameters()],
    "weights assigned": replace_weights,
    "a parameter": lambda model: setattr(layer(model).mlp.up_proj, "weight", nn.Parameter(layer(model).mlp.up_proj.weight * 2)),
    "a linear layer": lambda model: setattr(layer(model).mlp, "up_proj", nn.Linear(64, 96, bias=False)),
    "the head": lambda model: setattr(model, "lm_head", nn.Linear(64, model.lm_head.out_features, bias=False)),
    "the embeddings": lambda model: model.set_input_embeddings(nn.Embedding.from_pretrained(model.get_input_embeddings().weight * 2)),
    "an adapter": adapt,
    "a hook": hook,
    "another type": lambda model: model.to(torch.float64),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_the_source_are_followed(tiny, inputs, change):
    fast = compiled(tiny.model)
    before = logits(fast, inputs)
    CHANGES[change](tiny.model)
    if change == "another type":
        inputs["pixel_values"] = inputs["pixel_values"].double()
    got = logits(fast, inputs)
    assert not all(torch.equal(x, y) for x, y in zip(before, got, strict=True))
    same(got, logits(compiled(tiny.model), inputs))


@pytest.mark.parametrize("change", [lambda a: setattr(a, "disabled", True), Adapted.merge], ids=["switched off", "merged"])
def test_adapters_are_followed(tiny, inputs, change):
    adapt(tiny.model)
    fast = compiled(tiny.model)
    logits(fast, inputs)
    change(layer(tiny.model).mlp.up_proj)
    same(logits(fast, inputs), logits(compiled(tiny.model), inputs))


def test_a_sibling_whose_first_prompt_comes_after_the_change_follows(tiny, inputs):
    """It shares graphs that were captured of the source as it was."""
    fast = compiled(tiny.model)
    other = fast.lightvlm.with_schedule("none")
    before = logits(fast, inputs)
    replace_weights(tiny.model)
    same(logits(other, inputs), logits(tiny.model, inputs))
    assert not torch.allclose(before[0], logits(fast, inputs)[0])


def test_siblings_follow_too(tiny, inputs):
    fast = compiled(tiny.model)
    other = fast.lightvlm.with_schedule("none")
    for model in (fast, other):
        logits(model, inputs)
    replace_weights(tiny.model)
    same(logits(fast, inputs), logits(compiled(tiny.model), inputs))
    same(logits(other, inputs), logits(tiny.model, inputs))


def test_an_unchanged_source_is_captured_once(tiny, inputs):
    fast = compiled(tiny.model)
    logits(fast, inputs)
    logits(tiny.model, inputs)  # answers itself, beside it
    tiny.model.train()
    tiny.model.eval()
    logits(fast, inputs)
    assert len(fast.lightvlm.report.buckets) == 2


def test_the_source_runs_as_ever_while_it_is_captured(tiny, inputs, monkeypatch):
    real, names = torch.export.export, []
    decoder = tiny.model.get_decoder()
    before = attention_name(decoder)

    def spy(*args, **kwargs):
        names.append({attention_name(decoder), *(attention_name(layer.self_attn) for layer in decoder.layers)})
        return real(*args, **kwargs)

    monkeypatch.setattr(torch.export, "export", spy)
    logits(compiled(tiny.model), inputs)
    assert names == [{before}] * 2


def test_a_frozen_model_says_that_its_source_changed(tiny, inputs):
    fast = compiled(tiny.model)
    fast.lightvlm.warm_up(inputs, freeze=True)
    hook(tiny.model)
    with pytest.raises(InputError, match="the source model changed after the graphs were frozen"):
        logits(fast, inputs)
    fast.lightvlm.warm_up(inputs, freeze=True)
    same(logits(fast, inputs), logits(compiled(tiny.model), inputs))


def test_a_fingerprint_is_of_every_module(tiny):
    assert fingerprint(tiny.model) == fingerprint(tiny.model)
    assert len(fingerprint(tiny.model)) == len(list(tiny.model.modules()))


@pytest.mark.parametrize("path", ["", "model", "model.language_model"])
def test_a_forward_of_one_object_is_refused(tiny, path):
    module = tiny.model.get_submodule(path)
    forward = module.forward
    module.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    with pytest.raises(RefusedModel, match=r"\.forward was replaced on this object .*`del module.forward`"):
        compiled(tiny.model)


def test_what_says_how_to_answer_reaches_no_graph(tiny, inputs):
    """transformers' own server passes its tokenizer."""
    fast = compiled(tiny.model)
    expected = fast.generate(**inputs, max_new_tokens=2, do_sample=False)
    again = fast.generate(**inputs, max_new_tokens=2, do_sample=False, tokenizer=object())
    assert again.equal(expected)
    assert len(fast.lightvlm.report.buckets) == 2


@pytest.mark.parametrize("schedule", [SCHEDULE, Schedule.preset("h2o")], ids=["cuts", "bounded"])
def test_a_cache_is_copied(tiny, inputs, schedule):
    """transformers' documented way to use one prefix several times."""
    fast = lightvlm.compile(tiny.model, schedule, backend="eager")
    token = torch.tensor([[7]])
    with torch.no_grad():
        cache = fast(**inputs, use_cache=True).past_key_values
        first, second = copy.deepcopy(cache), copy.deepcopy(cache)
        expected = fast(input_ids=token, cache=first, use_cache=True).logits
        assert fast(input_ids=token, cache=second, use_cache=True).logits.equal(expected)
        assert fast(input_ids=token, cache=cache, use_cache=True).logits.equal(expected)


def test_a_model_is_copied_with_its_weights(tiny, inputs):
    fast = compiled(tiny.model)
    expected = logits(fast, inputs)
    twin = copy.deepcopy(fast)
    CHANGES["values in place"](tiny.model)
    same(logits(twin, inputs), expected)
    assert twin.lightvlm.schedule == fast.lightvlm.schedule


def test_pickling_says_what_to_do(tiny):
    with pytest.raises(NotSupported, match=r"cannot be pickled.*save_pretrained"):
        pickle.dumps(compiled(tiny.model))


def test_a_turn_may_run_in_another_mode_than_the_one_before(tiny, inputs):
    fast = compiled(tiny.model)
    token = torch.tensor([[7]])
    with torch.inference_mode():
        cache = fast(**inputs, use_cache=True).past_key_values
    with torch.no_grad():
        got = fast(input_ids=token, cache=cache, use_cache=True).logits
        expected = fast(input_ids=token, cache=fast(**inputs, use_cache=True).past_key_values, use_cache=True).logits
    assert got.equal(expected)


def test_a_frozen_model_compiles_nothing(tiny, inputs):
    """Not for inference mode, gradients or another number of threads; autocast has graphs of its own, and says so."""
    fast = compiled(tiny.model, backend="inductor")
    fast.lightvlm.warm_up(inputs, freeze=True)
    expected, graphs, threads = logits(fast, inputs), compiled_graphs(), torch.get_num_threads()
    try:
        for number, mode in ((1, torch.inference_mode), (threads, torch.enable_grad), (threads + 1, torch.no_grad)):
            torch.set_num_threads(number)
            with mode():
                same(logits(fast, inputs), expected)
    finally:
        torch.set_num_threads(threads)
    old = release("torch") < (2, 12)  # whose captures cannot hold autocast
    error, said = (NotSupported, "call it outside of torch.autocast") if old else (InputError, "exceeds the buckets that were warmed up")
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(error, match=said):
        logits(fast, inputs)
    assert compiled_graphs() == graphs


def test_a_frozen_model_compiles_nothing_for_sizes_either(tiny):
    """Its bucket is there, but nothing compiled that holds for these sizes."""
    fast = compiled(tiny.model, backend="inductor")
    fast.lightvlm.warm_up(tiny.inputs(text=(1,), images=(0,)), freeze=True)
    graphs, longer = compiled_graphs(), tiny.inputs(text=(7,), images=(0,))
    same(logits(fast, longer), logits(compiled(tiny.model), longer))  # what was compiled for one token serves seven
    assert compiled_graphs() == graphs
    for entry in fast.lightvlm._decoder.graphs.entries.values():
        entry.compiled.made.clear()
    with pytest.raises(InputError, match=r"compiling is frozen; call fast\.lightvlm\.warm_up"):
        logits(fast, longer)
    assert compiled_graphs() == graphs
    fast.lightvlm.thaw()
    same(logits(fast, longer), logits(compiled(tiny.model), longer))
