"""The table of presets and families: docs/methods-on-families.json, and the part of docs/support.md that is made of it."""

import json

import pytest

from lightvlm_fx import support
from lightvlm_fx import support_methods as methods
from lightvlm_fx.presets import PRESETS, make
from lightvlm_fx.presets.places import videos_only

FOUND = methods.read()
CELLS = [(preset, family) for preset in PRESETS for family in methods.FAMILIES]
QUICK = {("fastv", "llava"), ("pyramiddrop", "qwen2_vl"), ("h2o", "llava")}
FULL = ("llava_next", "qwen2_5_vl")  # tiles and newlines; windows and M-RoPE. The rest is tried by `make support`, and by `make heavy`


def mark(cell):
    return [] if cell in QUICK else pytest.mark.full if cell[1] in FULL else pytest.mark.heavy


def test_every_preset_was_tried_on_every_family_and_none_is_wrong():
    """Else: make support."""
    assert set(FOUND) == set(PRESETS)
    assert {tuple(row) for row in FOUND.values()} == {methods.FAMILIES}
    assert not [cell for cell in CELLS if FOUND[cell[0]][cell[1]].startswith(support.WRONG)]


def test_the_page_is_of_the_data():
    """Else: make support."""
    part = "".join(support.PAGE.read_text(encoding="utf-8").partition(support.METHODS)[1:])
    assert part == methods.section(FOUND)


@pytest.mark.parametrize(("preset", "family"), [
    pytest.param(*cell, marks=mark(cell), id="-".join(cell).replace("+", "-plus")) for cell in CELLS
])  # fmt: skip
def test_a_cell_is_what_is_found_today(preset, family):
    assert methods.try_out(preset, *methods.start(family)) == FOUND[preset][family]


@pytest.mark.parametrize("preset", ["fastv", "h2o", "sparsevila"])
def test_layers_that_hold_another_number_are_wrong(preset, monkeypatch):
    monkeypatch.setattr(methods, "scheduled", lambda *of: [1, 2, 3, 4])
    assert methods.try_out(preset, *methods.start("llava")).startswith(f"{support.WRONG}: [")


def test_a_new_preset_leaves_the_others_as_they_were_found(monkeypatch, tmp_path):
    data, page = tmp_path / "found.json", tmp_path / "support.md"
    data.write_text(json.dumps({"none": {"llava": "works"}, "gone": {"llava": "works"}}), encoding="utf-8")
    page.write_text(f"first\n\n{support.METHODS}\n\nstale row\n", encoding="utf-8")
    for name, value in {"DATA": data, "PAGE": page, "FAMILIES": ("llava",), "start": lambda family: (None, None)}.items():
        monkeypatch.setattr(methods, name, value)
    monkeypatch.setattr(methods, "try_out", lambda preset, whole, inputs: "no grid")
    assert methods.main(["fastv"]) == 0
    assert json.loads(data.read_text()) == {"fastv": {"llava": "no grid"}, "none": {"llava": "works"}}
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"first\n\n{support.METHODS}\n\nWritten by")
    assert "| fastv | (1) |\n| none | works |\n\n- (1) no grid\n" in text
    assert "stale" not in text
    monkeypatch.setattr(methods, "try_out", lambda preset, whole, inputs: f"{support.WRONG}: KeyError")
    assert methods.main(["fastv"]) == 1


def test_presets_that_shorten_videos_alone():
    assert {name for name in PRESETS if videos_only(make(name))} == {"dycoke", "fastvid", "framefusion"}


def test_tiny_options_are_of_presets_whose_defaults_do_not_fit():
    assert set(methods.TINY) <= set(PRESETS)
    assert all(make(preset, **options) != make(preset) for preset, options in methods.TINY.items())
