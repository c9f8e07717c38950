"""What a request may say, and that nothing of it is left out silently."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.serving.problems import Refusal
from lightvlm_fx.serving.protocol import read

PARTS = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "data:x", "detail": "high"}}]
HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def said(**more):
    return read(json.dumps(HELLO | more).encode())


def test_a_chat_as_templates_take_it():
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": PARTS * 2, "name": "ann"},
                {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": []}, {"role": "user", "content": PARTS}]  # fmt: skip
    request = said(messages=messages)
    text, image = {"type": "text", "text": "a"}, {"type": "image"}
    assert request.chat() == [
        {"role": "system", "content": [{"type": "text", "text": "be brief"}]}, {"role": "user", "content": [text, image, text, image]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}, {"role": "user", "content": [text, image]},
    ]  # fmt: skip
    assert [where for where, _ in request.pictures()] == [f"messages[{m}].content[{p}].image_url.url" for m, p in ((1, 1), (1, 3), (3, 1))]


@pytest.mark.parametrize(("given", "found"), [
    ({}, {}), ({"temperature": 0}, {"do_sample": False}), ({"temperature": 1e-300}, {"do_sample": False}),
    ({"temperature": 0, "top_p": 0.5, "seed": 3}, {"do_sample": False}),
    ({"temperature": 1}, {"do_sample": True, "temperature": 1}), ({"top_p": 1.0}, {}), ({"top_p": 0.5}, {"do_sample": True, "top_p": 0.5}),
    ({"temperature": 0.5, "top_p": 0.9, "seed": 3, "top_k": 7, "repetition_penalty": 1.1},
     {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "seed": 3, "top_k": 7, "repetition_penalty": 1.1}),
])  # fmt: skip
def test_sampling(given, found):
    assert said(**given).sampling() == found


def test_max_tokens_goes_by_both_of_its_names():
    assert (said().wanted, said(max_tokens=3).wanted, said(max_completion_tokens=4, max_tokens=3).wanted) == (None, 3, 4)


def test_what_changes_no_answer_is_taken():
    said(user="ann", metadata={"a": "b"}, n=1, logprobs=False, presence_penalty=0, tools=[], tool_choice="none", logit_bias={},
         response_format={"type": "text"}, modalities=["text"], stop=None, store=True)  # fmt: skip


@pytest.mark.parametrize(("more", "param", "message"), [
    ({"n": 2}, "n", "n is not supported, got 2; leave it out"),
    ({"tools": [{"type": "function"}]}, "tools", "tools is not supported"),
    ({"logprobs": True}, "logprobs", "logprobs is not supported, got True"),
    ({"response_format": {"type": "json_object"}}, "response_format", "response_format is not supported"),
    ({"frequency_penalty": 0.5}, "frequency_penalty", "frequency_penalty is not supported"),
    ({"temprature": 1}, "temprature", "temprature: this server knows no such field"),
    ({"temperature": float("nan")}, "temperature", "temperature: Input should be"),
    ({"max_tokens": 2**31}, "max_tokens", "less than 2147483648"),
    ({"temperature": 3}, "temperature", "temperature: Input should be less than or equal to 2, got 3"),
    ({"temperature": "hot"}, "temperature", "temperature: Input should be a valid number, got 'hot'"),
    ({"max_tokens": 0}, "max_tokens", "max_tokens: Input should be greater than or equal to 1, got 0"),
    ({"messages": []}, "messages", "messages: List should have at least 1 item"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "Input should be 'system', 'developer'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content: Field required"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]", "input_audio"),
    ({"messages": [{"role": "user", "content": [PARTS[1] | {"image_url": "x"}]}]}, "messages[0].content[0].image_url", "'x'"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]}, "messages[0].tool_calls", "is not supported"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "stream_options is for requests with stream: true"),
    ({"stop": ["x"] * 17}, "stop", "at most 16 items"),
])  # fmt: skip
def test_refuses_what_is_not_done_and_names_it(more, param, message):
    with pytest.raises(Refusal) as caught:
        said(**more)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert message in str(caught.value)


@pytest.mark.parametrize(("body", "message"), [(b"{", "not JSON"), (b"[]", "must be a JSON object, got list"), (b"\xff\xfe", "not JSON"),
                                               (b"[" * 100_000, "not JSON"), (b"{}", "model: Field required")])  # fmt: skip
def test_refuses_what_is_no_request(body, message):
    with pytest.raises(Refusal, match=message) as caught:
        read(body)
    assert caught.value.status == 400


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
names = st.sampled_from(["model", "messages", "stop", "n", "tools", "temperature", "stream", "seed", "user", "logit_bias", "x"])


@given(st.dictionaries(names, values))
def test_any_json_is_taken_or_refused_with_400(more):
    try:
        said(**more)
    except Refusal as refusal:
        found = refusal
    else:
        return
    assert found.status == 400
    json.dumps(found.body())


@pytest.mark.parametrize("more", [
    {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 10_001}]}, {"messages": HELLO["messages"] * 10_000},
    {str(n): n for n in range(20_001)}, {"metadata": [[[]] * 20_001]},
], ids=["parts", "messages", "fields", "without effect"])  # fmt: skip
def test_refuses_more_values_than_can_be_checked_beside_others(more):
    with pytest.raises(Refusal, match="the body holds more than 20000 values"):
        said(**more)


def test_an_error_does_not_repeat_a_picture():
    with pytest.raises(Refusal) as caught:
        said(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": "A" * 10**6}]}])
    assert len(str(caught.value)) < 500
