"""`Sampling` against transformers' own logits processors."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lightvlm_fx.artifact.sampling import Sampling
from lightvlm_fx.errors import InputError, NotSupported

DRAWS = 4000


class Draws:
    """Stands for a random generator and gives every row the same numbers, evenly spaced, one a call."""

    def __init__(self, count):
        self.numbers = iter((np.arange(count) + 0.5) / count)

    def random(self, shape):
        return np.full(shape, next(self.numbers))


def chances(sampling, logits, before, draws=DRAWS):
    """How often each token is chosen, over evenly spaced numbers: its probability, to one part in `draws`."""
    even, counts = Draws(draws), np.zeros(logits.shape)
    for _ in range(draws):
        np.add.at(counts, (np.arange(len(logits)), sampling.choose(logits, before, even)), 1)
    return counts / draws


def theirs(options, logits, before):
    """Probabilities that transformers gives every token."""
    made = {"repetition_penalty": RepetitionPenaltyLogitsProcessor, "temperature": TemperatureLogitsWarper,
            "top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper}  # fmt: skip
    chain = LogitsProcessorList([make(options[name]) for name, make in made.items() if options.get(name)])
    scores = chain(torch.from_numpy(before), torch.from_numpy(logits).float())
    return scores.softmax(-1).numpy()


@st.composite
def cases(draw):
    rows, vocabulary = draw(st.integers(1, 3)), draw(st.integers(2, 24))
    numbers = np.random.default_rng(draw(st.integers(0, 10**6)))
    logits = (numbers.standard_normal((rows, vocabulary)) * draw(st.sampled_from([0.5, 2, 8]))).astype(np.float32)
    before = numbers.integers(0, vocabulary, (rows, draw(st.integers(1, 12))))
    options = {
        "temperature": draw(st.sampled_from([0.3, 0.7, 1.0, 2.5])), "top_k": draw(st.integers(0, 30)),
        "top_p": draw(st.sampled_from([0.05, 0.3, 0.77, 0.9, 1.0])), "repetition_penalty": draw(st.sampled_from([0.8, 1.0, 1.3])),
    }  # fmt: skip
    return options, logits, before


@given(cases())
def test_gives_every_token_the_probability_that_transformers_gives_it(case):
    options, logits, before = case
    want = theirs(options, logits, before)
    assume(not _near(options, logits, before))
    draws = 800
    got = chances(Sampling(do_sample=True, **options), logits, before, draws)
    assert np.abs(got - want).max() <= 1.5 / draws
    assert not got[want == 0].any()


def _near(options, logits, before):
    """Whether a token lies so near the edge of top_p that rounding decides."""
    without = theirs(options | {"top_p": None}, logits, before)
    total = np.sort(without, 1).cumsum(1)
    return bool((np.abs(total - (1 - options["top_p"])) < 1e-5).any())


@given(cases())
def test_greedy_is_the_largest_after_the_penalty(case):
    options, logits, before = case
    want = theirs({"repetition_penalty": options["repetition_penalty"]}, logits, before).argmax(1)
    assert Sampling(**options).choose(logits, before, np.random.default_rng(0)).tolist() == want.tolist()


@pytest.mark.parametrize("edges", [{"top_k": 1}, {"top_k": 0, "top_p": 1e-9}, {"temperature": 1e-4}])
def test_narrow_sampling_is_greedy(edges):
    logits = np.random.default_rng(5).standard_normal((4, 50)).astype(np.float32)
    before = np.zeros((4, 1), np.int64)
    drawn = Sampling(do_sample=True, seed=3, **edges)
    random = drawn.start()
    for _ in range(20):
        assert drawn.choose(logits, before, random).tolist() == logits.argmax(1).tolist()


def test_rows_draw_on_their_own():
    logits = np.zeros((64, 50), np.float32)
    tokens = Sampling(do_sample=True, seed=0).choose(logits, np.zeros((64, 1), np.int64), np.random.default_rng(0))
    assert len(set(tokens.tolist())) > 20


def test_what_is_forbidden_is_never_drawn():
    """Not even by the number 0, which a generator may give."""

    class Zero:
        def random(self, shape):
            return np.zeros(shape)

    logits = np.array([[-np.inf, -np.inf, 1.0, 2.0]], np.float32)
    assert Sampling(do_sample=True).choose(logits, np.zeros((1, 1), np.int64), Zero()).tolist() == [2]


def test_a_seed_repeats_and_another_differs():
    logits, before = np.zeros((2, 100), np.float32), np.zeros((2, 1), np.int64)

    def tokens(seed):
        sampling = Sampling(do_sample=True, seed=seed)
        random = sampling.start()
        return [sampling.choose(logits, before, random).tolist() for _ in range(8)]

    assert tokens(1) == tokens(1) != tokens(2)
    assert tokens(None) != tokens(None)


def test_half_precision_logits_do_not_overflow():
    logits = np.array([[60000.0, 59968.0, 0.0]], np.float16)
    assert Sampling(repetition_penalty=0.5).choose(logits, np.array([[1]]), np.random.default_rng(0)).tolist() == [1]


@pytest.mark.parametrize(("options", "message"), [
    ({"temperature": 0.0}, "temperature must be above 0, got 0.0; greedy is do_sample=False"),
    ({"temperature": -1.0}, "temperature must be above 0"), ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
    ({"top_p": 1.01}, "top_p must be in"), ({"top_p": float("nan")}, "top_p must be a finite number"),
    ({"top_k": -1}, "top_k must be a whole number, 0 or more, got -1"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
])  # fmt: skip
def test_refuses_bad_values(options, message):
    with pytest.raises(InputError, match=message):
        Sampling.of({"do_sample": True} | options)


@pytest.mark.parametrize("options", [{"temperature": float("nan")}, {"top_k": 2.5}, {"seed": -1}, {"temperature": "hot"}])
def test_refuses_values_of_the_wrong_kind(options):
    with pytest.raises(InputError, match=next(iter(options))):
        Sampling.of({"do_sample": True} | options)


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 3}, {"temprature": 0.5}, {"no_repeat_ngram_size": 2}])
def test_refuses_what_it_does_not_do(options):
    with pytest.raises(NotSupported, match=next(iter(options))):
        Sampling.of(options)


def test_none_and_one_mean_the_default():
    assert Sampling.of({"num_beams": 1, "penalty_alpha": None, "temperature": None}) == Sampling()
