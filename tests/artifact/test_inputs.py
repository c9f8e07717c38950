"""What a loaded artifact is asked with: every value is taken, or an InputError names it. And masks with holes."""

import contextlib

import numpy as np
import pytest
import torch
from artifacts import BOUNDED, LENGTH, arrays, check_same
from hypothesis import given
from hypothesis import strategies as st

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.artifact.pictures import prepare
from lightvlm_fx.errors import InputError, LightVLMError

NEW = 3


@pytest.fixture(scope="module")
def vlm(bounded):
    return lightvlm.load(bounded)


@pytest.fixture(scope="module")
def inputs(tiny):
    return arrays(tiny.inputs(text=(9,), images=(1,)))


NUMBERS = [float("nan"), float("inf"), -float("inf"), 1.5, 3.0, "3", b"3", True, [3], {}, np.float32(2), np.array([1, 2]),
           torch.tensor(2.5)]  # fmt: skip


@pytest.mark.parametrize("value", NUMBERS, ids=repr)
@pytest.mark.parametrize("name", ["max_new_tokens", "min_new_tokens"])
def test_lengths_are_whole_numbers(vlm, inputs, name, value):
    with pytest.raises(InputError, match=f"{name} must be a whole number, got"):
        vlm.generate(**inputs | {"max_new_tokens": NEW} | {name: value})


def test_lengths_of_numpy_and_torch_are_taken(vlm, inputs):
    want = vlm.generate(**inputs, max_new_tokens=NEW).tolist()
    for three in (np.int64(3), np.array(3), torch.tensor(3)):
        assert vlm.generate(**inputs, max_new_tokens=three, min_new_tokens=None).tolist() == want


@pytest.mark.parametrize("ends", [-1, 120, 10**9, 10**30, "2", 1.5, [2, 120], [2, -1], [2, "x"], [None], True, float("nan"), {}], ids=repr)
@pytest.mark.parametrize("least", [0, 2])
def test_end_tokens_are_tokens(vlm, inputs, ends, least):
    with pytest.raises(InputError, match="eos_token_id"):
        vlm.generate(**inputs, max_new_tokens=NEW, min_new_tokens=least, eos_token_id=ends)


@pytest.mark.parametrize("ends", [2, [2, 5], (2, 5), np.int64(2), torch.tensor([2, 5]), []], ids=repr)
def test_end_tokens_of_any_kind(vlm, inputs, ends):
    assert vlm.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=ends).shape[1] == inputs["input_ids"].shape[1] + NEW


@pytest.mark.parametrize("token", [-1, -120, 120, 2**40, -(2**40)])
@pytest.mark.parametrize("at", [0, -1])
def test_ids_are_tokens(vlm, inputs, token, at):
    """-1 read the last row of the embedding, 120 ended in an error of ONNX Runtime's."""
    ids = inputs["input_ids"].copy()
    ids[0, at] = token
    with pytest.raises(InputError, match=rf"input_ids must be tokens from 0 to 119, got \[{token}\]"):
        vlm.generate(**inputs | {"input_ids": ids}, max_new_tokens=NEW)


@pytest.mark.parametrize(("name", "value"), [
    ("input_ids", [["a", "b"]]), ("input_ids", [[1, 2], [3]]), ("input_ids", [[1.0, 2.0]]), ("input_ids", "text"), ("input_ids", None),
    ("input_ids", [[True, False]]), ("attention_mask", [["1"]]), ("attention_mask", [[np.nan] * 45]), ("pixel_values", "picture.png"),
    ("pixel_values", [[None]]), ("pixel_values", np.array([object()])),
])  # fmt: skip
def test_arrays_are_numbers(vlm, inputs, name, value):
    with pytest.raises(InputError, match=name):
        vlm.generate(**inputs | {name: value}, max_new_tokens=NEW)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_pixels_are_finite(vlm, inputs, kind, value):
    """They were answered with tokens 0 0 0."""
    pixels = inputs["pixel_values"].copy()
    pixels[0, 1, 20, 20] = value
    pixels = torch.from_numpy(pixels).to(kind) if isinstance(kind, torch.dtype) else pixels.astype(kind)
    with pytest.raises(InputError, match="pixel_values holds NaN or infinite numbers"):
        vlm.generate(**inputs | {"pixel_values": pixels}, max_new_tokens=NEW)


ANY = st.one_of(st.none(), st.booleans(), st.integers(-3, 200), st.floats(), st.text(max_size=3), st.just([]), st.just({}), st.just(10**30))
OPTIONS = ("max_new_tokens", "min_new_tokens", "eos_token_id", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty", "seed")


@given(st.dictionaries(st.sampled_from(OPTIONS), ANY, max_size=4))
def test_every_option_is_taken_or_refused(bounded, options):
    vlm = lightvlm.load(bounded, verify=False)
    ids = np.arange(20, 29)[None]
    length = options.get("max_new_tokens")
    if type(length) is int and length > NEW:
        options["max_new_tokens"] = NEW
    elif "max_new_tokens" not in options or length is None:
        options |= {"max_new_tokens": NEW}
    try:
        said = vlm.generate(ids, **options).shape[1]
    except LightVLMError as error:
        said = str(error)
    assert any(name in said for name in options) if isinstance(said, str) else said <= 9 + NEW


TILES = {"kind": "tiles", "tokens": 4, "shape": [3, 4, 4], "drops_empty": False, "most": 0, "mask": "real", "patch": 2}
PATCHES = {"kind": "patches", "grid": "thw", "merge": 2, "window": 0, "table": 0, "width": 8, "most": 0}
ANYRES = {"kind": "anyres", "shape": [3, 4, 4], "side": 2, "sizes": [[4, 8], [8, 4]], "most": 0, "most_tokens": 0}
SIDES = st.sampled_from([-4, -1, 0, 1, 2, 3, 4, 2**33, 2**62])


@given(st.lists(st.tuples(st.just(1), SIDES, SIDES), max_size=2), st.integers(0, 16))
def test_grids_are_taken_or_refused(grids, patches):
    pictures = {"pixel_values": np.ones((patches, 8), np.float32), "thw": np.array(grids, np.int64).reshape(-1, 3)}
    with contextlib.suppress(InputError):
        assert prepare(PATCHES, pictures)[1] == patches // 4


@given(st.lists(SIDES, max_size=4), st.integers(0, 2))
def test_sizes_of_pictures_are_taken_or_refused(sizes, pictures):
    shaped = np.array(sizes, np.int64).reshape((-1, 2) if len(sizes) % 2 == 0 else -1)
    with contextlib.suppress(InputError):
        assert prepare(ANYRES, {"pixel_values": np.ones((pictures, 3, 3, 4, 4), np.float32), "image_sizes": shaped})[1] > 0


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 4, 3), (0,), ()])
def test_masks_of_pixels_are_of_their_shape(shape):
    with pytest.raises(InputError, match="does not say of each of 1 tiles"):
        prepare(TILES, {"pixel_values": np.ones((1, 3, 4, 4), np.float32), "real": np.ones(shape)})


# --- masks with holes -------------------------------------------------------------------------------------


def with_holes(inputs, places):
    """The same prompt with padding tokens in it, each before the token that stands at a place."""
    out = dict(inputs)
    out["input_ids"] = np.insert(inputs["input_ids"], places, 7, axis=1)
    out["attention_mask"] = np.insert(inputs["attention_mask"], places, 0, axis=1)
    return out


@given(st.lists(st.integers(0, 44), max_size=60).map(sorted))
def test_holes_in_the_mask_change_nothing(bounded, tiny, places):
    """Also where the row is longer than the bucket with them: real tokens were cut off."""
    vlm = lightvlm.load(bounded, verify=False)
    inputs = arrays(tiny.inputs(text=(9,), images=(1,)))
    want = vlm.generate(**inputs, max_new_tokens=NEW)[:, -NEW:].tolist()
    got = vlm.generate(**with_holes(inputs, places), max_new_tokens=NEW)
    assert got[:, -NEW:].tolist() == want


def test_holes_answer_as_the_compiled_model(vlm, tiny, inputs):
    """A row of 85, of which 45 are real, in a bucket of 60."""
    fast = lightvlm.compile(tiny.model, BOUNDED, backend="eager")
    holed = {k: torch.from_numpy(v) for k, v in with_holes(inputs, [2] * 20 + [44] * 20).items()}
    assert holed["input_ids"].shape[1] > LENGTH
    check_same(fast, vlm, holed, NEW)
    assert zoo.PAD != 7
