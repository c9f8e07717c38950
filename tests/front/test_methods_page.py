"""The items of docs/methods.md: what they say of a preset is read off its schedule. That the page is current: tests/test_catalogue.py."""

import pytest

from lightvlm_fx import methods_page


@pytest.mark.parametrize(("name", "words"), [
    ("fastv", "`fastv`: before layer 2. Score: `last-query`. Combine: `prune`. Positions: keep. Cache: in each layer"),
    ("fastv", "as many keys and values as tokens arrive there. Source: arXiv 2403.06764. How sure: Read from the authors' code"),
    ("tome", "inside the vision tower, in blocks 0.25, 0.5, 0.75; before the decoder. Score: `fold-keys"),
    ("divprune", "`divprune`: before the decoder. Score: `far-apart`. Combine: `prune`. Positions: input. Cache: as many keys"),
    ("shortv", "in 19 layers that leave visual tokens as they are. Cache: keys and values of all tokens. Source"),
    ("h2o", "in the cache, at every step. Cache: bounded: 512 entries a layer, worth by attention. Source"),
    ("aircache", "bounded: 0.1 of the visual entries a layer, worth by elite, shared over the layers by strength."),
    ("sparsevila", "as many keys and values as tokens stay; all stay, of which each turn reads 0.25 of the visual entries"),
    ("dycoke", "Still pictures stay whole"),
    ("score", "Source: CVPR 2026, by a third-party note."),
    ("none", "`none`: nowhere. Cache: keys and values of all tokens. Source: ours. How sure: Ours: a baseline"),
])  # fmt: skip
def test_an_item_says_what_the_schedule_does(name, words):
    assert words in " ".join(methods_page.published(name, {}).split())


@pytest.mark.parametrize(("found", "words"), [
    ({}, "Families: none tried yet."),
    ({"llava": "works", "gemma3": "works"}, "Families: all 2 tried."),
    ({"llava": "works", "a": "no grid: 3 x 5", "b": "no grid, but 2 (rows)", "c": "too deep; cut"},
     "Families: llava; not a, b (no grid); nor c (too deep)."),
    ({"a": "too deep"}, "Families: none; not a (too deep)."),
])  # fmt: skip
def test_an_item_says_on_which_families(found, words):
    assert words in " ".join(methods_page.published("fastv", found).split())
