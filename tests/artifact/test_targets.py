"""Tier 5: what docs/add-a-pass.md says of adding a target, followed."""

from dataclasses import replace

import onnx
import pytest
from artifacts import BOUNDED, check_same, write_bounded

import lightvlm_fx as lightvlm
from lightvlm_fx.artifact.targets import TARGETS
from lightvlm_fx.errors import CaptureError
from lightvlm_fx.exporters.onnx import ToOnnx


class ToMine(ToOnnx):
    """Says of every graph who wrote it."""

    def lower(self, graph):
        graph.producer_name = "mine"

    def finish(self, buckets):
        super().finish(buckets)
        (self.folder / "mine.txt").write_text("mine")
        return {"mine": len(buckets)}


MINE = replace(TARGETS["onnxruntime"], title="mine", exporter=f"{__name__}:ToMine")


def test_an_entry_and_an_exporter_are_a_target(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS, "mine", MINE)
    folder = tmp_path / "out"
    write_bounded(folder, target="mine")
    assert {onnx.load(f, load_external_data=False).producer_name for f in folder.glob("*.onnx")} == {"mine"}
    loaded = lightvlm.load(folder)
    assert loaded.manifest["mine"] == 1
    assert "mine.txt" in loaded.manifest["files"]
    check_same(lightvlm.compile(tiny.model, BOUNDED, backend="eager"), loaded, tiny.inputs(text=(9, 6), images=(1, 1), seed=3), 24)
    assert lightvlm.verify(folder).exit_code == 0


def test_export_asks_what_verify_asks(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS, "mine", replace(MINE, newest_opset=20))
    with pytest.raises(CaptureError, match="is stamped opset 24, the target takes up to 20"):
        write_bounded(tmp_path / "out", target="mine")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_names_what_writes_and_opens_it(name):
    assert TARGETS[name].writes_with()
    assert not TARGETS[name].runtime or TARGETS[name].opens_with()
