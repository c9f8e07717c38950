"""Forged and damaged artifacts, 200 of them by number: our error, or the answer of the untouched one (more: `tests.fuzz.forgeries`)."""

import json
import os
import random
import signal

import numpy as np
import pytest
from artifacts import copied, manifest, reseal, rewrite
from forging import Forger, judge

import lightvlm_fx as lightvlm
from lightvlm_fx.errors import ArtifactError

NEW = 2
FIRST, COUNT, EACH = 10_000, 200, 20  # numbers of their own: the fuzzer counts from 0


@pytest.fixture(scope="module")
def asked(bounded):
    inputs = {name: np.load(bounded / "samples" / f"0.inputs.{name}.npy") for name in ("input_ids", "attention_mask", "pixel_values")}
    return inputs, lightvlm.load(bounded).generate(**inputs, max_new_tokens=NEW, do_sample=False).tolist()


@pytest.fixture
def soon():
    """Ends what hangs."""
    signal.alarm(60)
    yield
    signal.alarm(0)


@pytest.mark.parametrize("first", range(FIRST, FIRST + COUNT, EACH))
def test_is_refused_or_answers_as_the_untouched(bounded, tmp_path, asked, soon, first):
    for number in range(first, first + EACH):
        what = Forger(bounded, random.Random(number))(tmp_path / str(number))
        assert judge(tmp_path / str(number), *asked, NEW) == "clear", f"{number} {what}"


def claims(path, shape):
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})


def linked_out(path, to):
    path.rename(to)
    path.symlink_to(to)


def piped(path):
    path.unlink()
    os.mkfifo(path)


FORGED = {
    "manifest is a link out": (lambda f: linked_out(f / "lightvlm.json", f.with_name("out")), "'lightvlm.json', which leads out"),
    "generation config is a link out": (lambda f: linked_out(f / "generation_config.json", f.with_name("out")),
                                        "'generation_config.json', which leads out"),
    "manifest is a pipe": (lambda f: piped(f / "lightvlm.json"), "lightvlm.json is missing: what stands"),
    "weights are a pipe": (lambda f: piped(f / "model.onnx.data"), "model.onnx.data is missing"),
    "config is no JSON": (lambda f: ((f / "generation_config.json").write_text("{"), reseal(f)), "generation_config.json is not what"),
    "graph is no graph": (lambda f: ((f / "embed.onnx").write_bytes(b"no graph"), reseal(f)), "does not open embed.onnx"),
    "graph of another stage": (lambda f: ((f / "embed.onnx").write_bytes((f / "decode.onnx").read_bytes()), reseal(f)),
                               "embed.onnx has other inputs than the manifest says"),
    "a count is a text": (lambda f: rewrite(f, lambda m: m["buckets"][0].update(rows="2")), r"buckets\[0\].rows: expected a whole number"),
    "a count is true": (lambda f: rewrite(f, lambda m: m["buckets"][0].update(pictures=True)), r"pictures: expected a whole number"),
    "sums do not add up": (lambda f: rewrite(f, lambda m: m["buckets"][0].update(text_tokens=25)), "text_tokens, visual_tokens and prompt"),
    "an end token outside": (lambda f: rewrite(f, lambda m: m.update(eos_token_id=[120])), "eos_token_id and pad_token_id"),
    "an end token of its own": (lambda f: rewrite(f, lambda m: m.update(eos_token_id=[5])), "generation_config.json .* the manifest says"),
    "no hash": (lambda f: rewrite(f, lambda m: m["files"]["embed.onnx"].update(sha256="x")), "files.embed.onnx.sha256: expected a text"),
}  # fmt: skip


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("how", FORGED)
def test_the_error_names_the_file_and_the_place(broken, asked, soon, how, verify):
    forge, message = FORGED[how]
    forge(broken)
    with pytest.raises(ArtifactError, match=message):
        lightvlm.load(broken, verify=verify).generate(**asked[0], max_new_tokens=1)


@pytest.mark.parametrize(("shape", "said"), [((2**40,), "claims"), ((2, 120), "claims"), ((-2, 60), "no array|claims")])
def test_a_sample_that_claims_more_than_is_there(broken, soon, shape, said):
    claims(broken / "samples" / "0.logits.npy", shape)
    reseal(broken)
    verdict = lightvlm.verify(broken)
    assert verdict.exit_code == 4
    assert "samples/0.logits.npy is no array" in verdict.parity_wrong[0]


def test_a_weight_beyond_the_end_is_lint(broken, soon):
    import onnx

    graph = onnx.load(str(broken / "decode.onnx"), load_external_data=False)
    weight = next(w for w in graph.graph.initializer if w.external_data)
    for entry in weight.external_data:
        entry.value = "999999999" if entry.key == "offset" else entry.value
    onnx.save(graph, str(broken / "decode.onnx"))
    reseal(broken)
    size = (broken / "model.onnx.data").stat().st_size
    assert f"which is not in the {size} bytes of model.onnx.data" in lightvlm.verify(broken).lint[0]
    with pytest.raises(ArtifactError, match=r"does not open decode\.onnx"):
        lightvlm.load(broken).stages(0)


def test_a_graph_that_is_none_is_lint(broken):
    (broken / "decode.onnx").write_bytes(b"\xff" * 100)
    reseal(broken)
    verdict = lightvlm.verify(broken)
    assert verdict.exit_code == 3
    assert "decode.onnx: is no ONNX graph" in verdict.lint[0]


def test_every_number_of_a_good_manifest_is_taken(bounded, sizes, tmp_path):
    for home in (bounded, sizes):
        to = copied(home, tmp_path / home.name)
        (to / "lightvlm.json").write_text(json.dumps(manifest(home) | {"of_a_later_release": 1}))
        assert lightvlm.verify(to).exit_code == 0
