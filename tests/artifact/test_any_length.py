"""Tier 5: one artifact for ONNX Runtime answers prompts of every length up to its bound as the compiled model does."""

import re

import numpy as np
import onnx
import pytest
from artifacts import check_same, copied, manifest, once, reseal, rewrite

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.artifact.lengths import Lengths
from lightvlm_fx.errors import ArtifactError
from lightvlm_fx.exporters.prompt import Prompt
from lightvlm_fx.exporting.bounds import Bounds, Tables
from lightvlm_fx.kv import Kv
from lightvlm_fx.model.layout import Layout
from lightvlm_fx.ops.segments import PADDING, TEXT
from lightvlm_fx.ops.tiles import parts
from lightvlm_fx.runtime.kv_plan import KvPlan
from lightvlm_fx.schedule import Cut, Schedule

NEW = 6
LONGEST = 200
BOUNDED = {"sinks": 2, "recent": 4}
SCHEDULES = {
    "none": Schedule(),
    "cuts": Schedule.preset("lightvlm", keep=0.35, layers=(1, 2)),
    "capacity": Schedule.preset("lightvlm", keep=0.35, layers=(1, 2), capacity=24, sinks=2, recent=4),
    "fastv": Schedule.preset("fastv", layer=1),
    "h2o": Schedule.preset("h2o", capacity=24, sinks=2, recent=4),
    "streaming": Schedule.preset("streaming-llm", capacity=300),  # above the bound: what a short prompt leaves fits any buffer
    "aircache": Schedule.preset("aircache", capacity=0.25),
    "sparsevila": Schedule.preset("sparsevila", capacity=0.4),
    "periodic": Schedule(kv=Kv(capacity=20, when="periodic", every=4, **BOUNDED)),
    "received": Schedule(cuts=(Cut(layer=1, keep=0.5, score="received", combine="recover"),)),
}
TILED = {"none": 8, "capacity": 8, "aircache": 8, "received": 8, "cuts": 2}  # 8: as many as a bucket of 2500 tokens has
BATCHES = (  # text tokens and pictures of each row, from a few tokens to the bound
    {"text": (3,), "images": (0,)}, {"text": (6,), "images": (1,)}, {"text": (9, 6), "images": (1, 2)}, {"text": (9, 14), "images": (2, 0)},
    {"text": (40, 9), "images": (0, 3)}, {"text": (70, 12), "images": (1, 1)}, {"text": (80, 80), "images": (3, 2)},
)  # fmt: skip


@pytest.fixture(scope="module")
def compiled():
    tiny = zoo.build("llava", layers=3)
    return tiny, lightvlm.compile(tiny.model, "none", backend="eager")


def export(folder, tiny, schedule, **options):
    inputs = tiny.inputs(text=(9, 9), images=(3, 3))
    lightvlm.export(tiny.model, schedule, folder, inputs=inputs, prompt_tokens=LONGEST, new_tokens=NEW, **options)


@pytest.fixture(scope="module")
def artifact(shelf, compiled):
    """The folder of a schedule's artifact, whose graphs cut sequences into as many tiles as TILED says."""

    def get(name):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lightvlm_fx.ops.tiles.LARGEST_PART", 256 // TILED.get(name, 1))
            return once(shelf, f"length-{name}", lambda folder: export(folder, compiled[0], SCHEDULES[name]))

    return get


@pytest.mark.parametrize("name", SCHEDULES)
def test_prompts_of_every_length(name, artifact, compiled):
    tiny, plain = compiled
    vlm = lightvlm.load(artifact(name))
    [bucket] = vlm.manifest["buckets"]
    assert bucket["lengths"]["parts"][0] == TILED.get(name, 1)
    fast, lengths = plain.lightvlm.with_schedule(SCHEDULES[name]), []
    for seed, batch in enumerate(BATCHES):
        inputs = tiny.inputs(**batch, seed=seed)
        check_same(fast, vlm, inputs, NEW)
        ids, mask = inputs["input_ids"].numpy(), inputs["attention_mask"].numpy()
        pictures = {} if "pixel_values" not in inputs else {"pixel_values": inputs["pixel_values"].numpy()}
        lengths.append((mask.sum(1).max(), vlm.stages().embed(ids, mask, pictures, 0)["input_ids"].shape[1]))
    for real, padded in lengths:
        assert real <= padded < max(real, 16) + bucket["lengths"]["parts"][0]


def test_sizes_are_symbolic(artifact):
    """In the manifest and in the graphs themselves; those of a static target are numbers."""
    folder = artifact("cuts")
    [bucket] = manifest(folder)["buckets"]
    for stage, name, dim, said in (("embed", "input_ids", 1, r"2\*tokens"), ("embed", "image_features", 0, "features"),
                                   ("prefill", "inputs_embeds", 1, r"2\*tokens"), ("prefill", "stay_1", 0, r"(\d\*)?stay_1"),
                                   ("decode", "past_key_values.0.key", 2, "slots_0"), ("decode", "past_key_values.2.value", 2, "slots_2")):
        graph = onnx.load(str(folder / f"{stage}.onnx"), load_external_data=False).graph
        [value] = [v for v in graph.input if v.name == name]
        assert re.fullmatch(said, value.type.tensor_type.shape.dim[dim].dim_param)
        [entry] = [v for v in bucket["stages"][stage]["inputs"] if v["name"] == name]
        assert re.fullmatch(said, entry["shape"][dim])


def test_a_short_prompt_has_short_caches(artifact):
    vlm = lightvlm.load(artifact("cuts"))
    for length in (20, 60):
        run = vlm.stages().start(np.full((1, length), 10), np.ones((1, length), np.int64), {}, 0)
        assert {value.shape()[2] for name, value in run.cache.items() if name.endswith((".key", ".value"))} == {length + NEW}


@pytest.mark.parametrize("schedule", [s for name, s in SCHEDULES.items() if name != "none"], ids=[n for n in SCHEDULES if n != "none"])
def test_lengths_are_those_of_the_plan(schedule):
    """What the runner works out from tables is what the compiled model does with a batch, rounded up, and no more than came."""
    import torch

    text, visual, depth = 90, 108, 3
    tables = Tables.of(Bounds(2, text, visual, 3, 36), schedule, depth)
    lengths = tables.lengths(schedule, text + visual)
    for rows in (((3, 0), (5, 1)), ((9, 2), (4, 0)), ((90, 3), (60, 1)), ((20, 1),)):
        images = tuple((36,) * n for _, n in rows)
        longest = max(t + 36 * n for t, n in rows)
        segment = torch.full((len(rows), longest), PADDING)
        for row, (t, n) in enumerate(rows):
            segment[row, longest - t - 36 * n :] = TEXT
            for i in range(n):
                segment[row, longest - 36 * (n - i) : longest - 36 * (n - i - 1)] = i
        layout = Layout(segment, images)
        plan = layout.plan(schedule)
        real = np.array([t + 36 * n for t, n in rows])
        tokens, sizes = lengths.of(real, [list(row) for row in images])
        kept = [tokens]
        assert tokens >= longest
        for i, stay in enumerate(plan.stay):
            kept.append(sizes[f"stay_{i}"])
            assert max(stay, 8) <= kept[-1] <= kept[-2]
        if schedule.kv:
            exact = KvPlan.of(layout, plan, schedule, depth)
            for number, cut in enumerate(lengths.cut_of):
                layer = tables.cut_of.index(cut)
                assert exact.lengths[layer] == sizes[f"kv_stay_{number}"] <= kept[cut]


@pytest.mark.parametrize("spare", [0, 1, 4])
def test_tiles_of_a_length_and_a_little_more_are_as_many(spare):
    for length in (*range(1, 3000), 4096, 32768):
        n = parts(length, spare)
        tile = -(-length // n)
        assert n & (n - 1) == 0
        assert tile + spare <= 384
        assert parts(n * (tile + spare)) == n
        assert n == 1 or 2 * tile + spare > 384  # no more than are needed


FORGED = {"more stays than came": lambda table: table + 1, "negative": lambda table: table - 1,
          "of other pictures": lambda table: table[:, 1:], "no whole numbers": lambda table: table.astype(np.float32)}  # fmt: skip


@pytest.mark.parametrize("change", FORGED)
def test_forged_tables_are_refused(change, artifact, compiled, tmp_path):
    folder = copied(artifact("cuts"), tmp_path / "forged")
    path = folder / "tables" / "0.kept.npy"
    np.save(path, FORGED[change](np.load(path)))
    reseal(folder)
    with pytest.raises(ArtifactError, match=r"tables/0\.kept\.npy is no table of what stays of 108 tokens; export again"):
        lightvlm.load(folder).generate(**compiled[0].inputs(text=(9,), images=(1,)), max_new_tokens=1)


def test_a_schedule_that_looks_at_more_tokens_than_the_bucket_has(tmp_path, compiled):
    tiny, plain = compiled
    schedule = Schedule.preset("snapkv", capacity=80, window=64)
    lightvlm.export(tiny.model, schedule, tmp_path / "out", inputs=tiny.inputs(text=(9,), images=(1,)), prompt_tokens=60, new_tokens=NEW)
    [bucket] = manifest(tmp_path / "out")["buckets"]
    assert bucket["lengths"] is None
    assert "the fewest tokens that the schedule's methods look at" in bucket["lengths_why"]
    check_same(plain.lightvlm.with_schedule(schedule), lightvlm.load(tmp_path / "out"), tiny.inputs(text=(7,), images=(1,)), NEW)


def test_code_that_fixes_the_length_is_exported_for_one(tmp_path, compiled, monkeypatch):
    """And the manifest says why."""
    tiny, plain = compiled

    segment = Prompt.segment

    def fixed(self, input_ids, *more):
        return segment(self, input_ids.view(len(input_ids), 60), *more)  # a number where the graph has a symbol

    monkeypatch.setattr(Prompt, "segment", fixed)
    told = []
    lightvlm.export(tiny.model, "none", tmp_path / "out", inputs=tiny.inputs(text=(9,), images=(1,)), prompt_tokens=60, new_tokens=NEW,
                    tell=told.append)  # fmt: skip
    [bucket] = manifest(tmp_path / "out")["buckets"]
    assert bucket["lengths"] is None
    assert bucket["lengths_why"].startswith("stage 'prefill' could not be exported to ONNX")
    assert any(line.startswith("again, every prompt padded to 60 tokens") for line in told)
    check_same(plain, lightvlm.load(tmp_path / "out"), tiny.inputs(text=(7,), images=(1,)), NEW)


def as_schema_2(found):
    found["schema_version"] = 2
    for bucket in found["buckets"]:
        bucket.pop("lengths")


def test_artifacts_of_schema_2_still_answer(compiled, tmp_path, monkeypatch):
    """Of fixed lengths, as releases before this one wrote them."""
    tiny, plain = compiled
    monkeypatch.setattr(Tables, "lengths", lambda *args: None)
    export(tmp_path / "old", tiny, SCHEDULES["capacity"])
    rewrite(tmp_path / "old", as_schema_2)
    vlm = lightvlm.load(tmp_path / "old")
    assert vlm.stages().lengths is None
    for batch in BATCHES[1:5:2]:
        check_same(plain.lightvlm.with_schedule(SCHEDULES["capacity"]), vlm, tiny.inputs(**batch), NEW)
    assert lightvlm.verify(tmp_path / "old").exit_code == 0


def test_lengths_are_at_least_what_graphs_were_traced_for():
    table = np.zeros((1, 1), np.int64)
    assert Lengths((4, 2), 30, table, None, (), False).of(np.array([3]), [[]]) == (32, {"stay_0": 30})


def test_what_a_score_looks_at_is_cut_into_as_many_tiles_as_are_traced():
    """A cut leaves fewer tokens than the score after it looks at: the sequence is as long as that, and tiles are counted by that."""
    schedule = Schedule(cuts=(Cut(layer=1, keep=1),), kv=Schedule.preset("snapkv", capacity=450, window=400).kv)
    lengths = Tables.of(Bounds(1, 9, 1008, 1), schedule, 3).lengths(schedule, 1017)
    assert lengths.parts == (4, 2)
    assert lengths.of(np.array([1000]), [[991]]) == (1000, {"stay_0": 400, "kv_stay_0": 450, "kv_stay_1": 10})
