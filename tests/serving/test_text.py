"""An answer's text comes in pieces that together are the whole, and ends where it should."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightvlm_fx.serving.text import AnswerText


def letters(tokens):
    """Bytes as UTF-8, as tokenizers of bytes decode: half a character is not readable."""
    return bytes(tokens).decode("utf-8", errors="replace")


def pieces(data, stop=(), decode=letters):
    text = AnswerText(decode, stop)
    out = []
    for token in data:
        out.append(text.add(token))
        if text.stopped:
            break
    return [*out, text.end()], text.stopped


@given(st.text())
def test_all_pieces_are_the_text_without_space_around_it(said):
    found, _ = pieces(said.encode("utf-8", "replace"))
    assert "".join(found) == said.encode("utf-8", "replace").decode().strip()


@given(st.text(alphabet="ab \n", max_size=30), st.lists(st.text(alphabet="ab \n", min_size=1, max_size=4), min_size=1, max_size=3))
def test_it_ends_before_the_first_stop_string_and_gives_none_of_it(said, stop):
    found, stopped = pieces(said.encode(), stop)
    text = said.lstrip()
    cut = min((text.find(s) for s in stop if s in text), default=None)
    assert stopped == (cut is not None)
    assert "".join(found) == text[:cut].rstrip()


def test_a_character_of_several_tokens_comes_whole():
    assert pieces("é€".encode())[0] == ["", "é", "", "", "€", ""]


def test_what_may_begin_a_stop_string_waits():
    assert pieces(b"one.Es .END", ["END", ".."]) == (["o", "n", "e", "", ".", "Es", "", "", " .", "", "", ""], True)


@pytest.mark.parametrize(("tokens", "said"), [((1, 2), ["one", " two", ""]), ((2,), ["two", ""]), ((), [""])])
def test_words_that_are_written_otherwise_after_others(tokens, said):
    words = {1: "one", 2: "two"}
    assert pieces(tokens, decode=lambda ids: " ".join(words[i] for i in ids))[0] == said
