"""The generated page docs/support.md, and the findings it is made of."""

import pytest
import transformers

from lightvlm_fx import support, zoo
from lightvlm_fx.support import Finding

WRITTEN_ON = "5.24.0"  # the release of requirements-tested.txt, or a test below fails


def rows():
    """(type, status, checked, note) of every row of the committed page's first table."""
    lines = support.PAGE.read_text(encoding="utf-8").partition(support.METHODS)[0].splitlines()
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("| `")]


@pytest.mark.parametrize(("model_type", "status", "words"), [
    ("llava", support.WORKS, ""),
    ("chameleon", support.REFUSED, "get_decoder() takes the pictures itself"),
    ("instructblip", support.REFUSED, "its generate() hands the language model embeddings alone"),
    ("mistral_large4", support.REFUSED, "layers of a kind unknown to capture (indexed_attention)"),
    ("idefics", support.REFUSED, "its decoder reads the picture by cross-attention"),
    ("apertus1p5", support.WORKS, ""),
    ("hy_v4_vl", support.REFUSED, "layers of a kind unknown to capture (indexed_attention)"),
    ("inkling2_loop", support.REFUSED, "layers of a kind unknown to capture (hybrid, hybrid_sliding)"),
    ("granite4_vision", support.REFUSED, "depends on values, so a cut cannot give it a new length"),
    ("ernie4_5_vl_moe", support.REFUSED, "branches on values, which a graph cannot follow"),
    ("udop", support.NOT_TRIED, "encoder-decoder with bounding boxes"),
    ("no_such_type", support.NOT_TRIED, "no recipe for a tiny model yet"),
])  # fmt: skip
def test_examines_a_type(model_type, status, words):
    found = support.examine(model_type)
    assert found.status == status
    assert words in found.note


def test_says_what_is_wrong(monkeypatch):
    """A family whose answer differs is never listed as working."""
    monkeypatch.setattr(support, "BOUND", -1.0)
    monkeypatch.setattr(support, "CASES", {"one row": support.CASES["one row"]})
    found = support.examine("llava")
    assert found.status == support.WRONG
    assert "one row: logits differ by" in found.note


def test_the_page_sorts_by_status_then_type():
    page = support.page([Finding("z", support.WORKS, "one row"), Finding("b", support.NOT_TRIED, note="x | y"),
                         Finding("a", support.WORKS), Finding("c", support.REFUSED)])  # fmt: skip
    assert [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")] == ["a", "z", "c", "b"]
    assert "All 4 types that `AutoModelForImageTextToText` knows: 2 works, 1 refused, 1 not tried." in page
    assert "| `b` | not tried |  | x / y |" in page


def test_no_type_is_both_known_and_excused():
    assert not set(zoo.NO_RECIPE) & set(zoo.FAMILIES)


def test_the_committed_page_is_of_the_pinned_release():
    pins = (support.PAGE.parents[1] / "requirements-tested.txt").read_text(encoding="utf-8")
    assert f"transformers=={WRITTEN_ON}\n" in pins
    assert f"on transformers {WRITTEN_ON} and torch" in support.PAGE.read_text(encoding="utf-8")


@pytest.mark.skipif(transformers.__version__ != WRITTEN_ON, reason=f"the page was written on transformers {WRITTEN_ON}")
def test_the_committed_page_lists_every_type_and_nothing_wrong():
    found = rows()
    assert sorted(row[0].strip("`") for row in found) == sorted(zoo.image_text_to_text_types())
    assert set(zoo.image_text_to_text_types()) <= set(zoo.FAMILIES) | set(zoo.NO_RECIPE)
    assert {row[1] for row in found} == {support.WORKS, support.REFUSED, support.NOT_TRIED}
    for model_type, status, checked, note in found:
        assert checked if status == support.WORKS else note, model_type


def test_writing_the_first_table_leaves_the_second(monkeypatch, tmp_path, capsys):
    page = tmp_path / "support.md"
    page.write_text(f"old\n\n{support.METHODS}\n\nkept\n", encoding="utf-8")
    monkeypatch.setattr(support, "PAGE", page)
    monkeypatch.setattr(support, "image_text_to_text_types", lambda: ["llava"])
    monkeypatch.setattr(support, "examine", lambda model_type: Finding(model_type, support.WORKS))
    assert support.main([]) == 0
    text = page.read_text(encoding="utf-8")
    assert text == support.page([Finding("llava", support.WORKS)]) + f"\n{support.METHODS}\n\nkept\n"


def test_a_few_types_give_the_exit_status(capsys, monkeypatch):
    monkeypatch.setattr(support, "examine", lambda model_type: Finding(model_type, support.WRONG, note="broken"))
    assert support.main(["llava"]) == 1
    assert "llava" in capsys.readouterr().out
