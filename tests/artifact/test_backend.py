"""The backend "lightvlm" of transformers' exporters: found by AutoHfExporter, its components are the stages."""

import json
import warnings

import numpy as np
import onnxruntime
import pytest
from transformers.exporters.auto import AutoExportConfig, AutoHfExporter

from lightvlm_fx import zoo
from lightvlm_fx.errors import NotSupported

pytest.importorskip("transformers.exporters.metadata", reason="transformers takes backends from 5.23 on")

from lightvlm_fx.exporting.backend import LightVLMConfig, LightVLMExporter


def exporter():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoHfExporter.from_config({"export_format": "lightvlm"})


def test_transformers_finds_it():
    assert isinstance(exporter(), LightVLMExporter)
    config = AutoExportConfig.from_dict({"export_format": "lightvlm", "schedule": "fastv", "new_tokens": 8})
    assert config == LightVLMConfig(schedule="fastv", new_tokens=8)


def test_its_components_are_the_stages(tmp_path):
    tiny = zoo.build("llava", layers=1)
    inputs = tiny.inputs(text=(9,), images=(1,))
    config = LightVLMConfig(schedule="none", prompt_tokens=48, new_tokens=8)
    exported = exporter().export_for_generation(tiny.model, inputs, config)
    assert list(exported.components) == ["vision", "embed", "prefill", "decode"]
    exported.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "export.json").read_text())["export_format"] == "lightvlm"
    session = onnxruntime.InferenceSession(str(tmp_path / "vision.onnx"), providers=["CPUExecutionProvider"])
    [features] = session.run(None, {"pixel_values": inputs["pixel_values"].numpy()})
    expected = tiny.model.get_image_features(inputs["pixel_values"]).pooler_output
    assert np.allclose(features, np.concatenate([x.detach().numpy().reshape(-1, features.shape[1]) for x in expected]), atol=1e-5)


def test_refuses_one_forward_pass_and_other_configs():
    with pytest.raises(NotSupported, match="call export_for_generation"):
        exporter().export(None, {}, LightVLMConfig())
    with pytest.raises(TypeError, match="expected a LightVLMConfig, got str"):
        exporter().export_for_generation(None, {}, "fastv")
