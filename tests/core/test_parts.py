"""Models larger than one device: in parts they are refused, with what to do, or only what is beside the decoder is elsewhere."""

import os
import socket
import warnings

import pytest
import torch

import lightvlm_fx as lightvlm
from lightvlm_fx import zoo
from lightvlm_fx.errors import RefusedModel

NEW = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture
def tiny():
    return zoo.build("llava", layers=4)


def refused(model, said):
    with pytest.raises(RefusedModel, match=said) as refusal:
        lightvlm.compile(model, "lightvlm", backend="eager")
    return str(refusal.value)


@pytest.mark.parametrize("place", ["disk", "cpu"])
def test_a_device_map_of_several_places_is_refused(tiny, tmp_path, place):
    accelerate = pytest.importorskip("accelerate")
    inputs = tiny.inputs()
    expected = tiny.model.generate(**inputs, **NEW)
    places = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "model.language_model": place, "lm_head": "cpu"}
    model = accelerate.dispatch_model(tiny.model, places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert model.generate(**inputs, **NEW).equal(expected)
    said = refused(model, "a graph reads them where they are; load it again into one place, device_map=")
    assert ("(the decoder's: meta;" in said) == (place == "disk")
    with pytest.raises(RefusedModel, match="a graph reads them where they are"):
        lightvlm.export(model, "lightvlm", tmp_path / "out", inputs=[inputs])
    assert not (tmp_path / "out").exists()


def test_a_decoder_layer_that_is_offloaded_is_refused(tiny):
    accelerate = pytest.importorskip("accelerate")
    accelerate.cpu_offload(tiny.model.get_decoder().layers[2], torch.device("cpu"))
    assert "(the decoder's: cpu, meta;" in refused(tiny.model, "accelerate")


def test_what_accelerates_hooks_leave_behind_is_refused(tiny, tmp_path):
    accelerate = pytest.importorskip("accelerate")
    accelerate.disk_offload(tiny.model, tmp_path, torch.device("cpu"))
    accelerate.hooks.remove_hook_from_module(tiny.model, recurse=True)
    refused(tiny.model, "forward was replaced on this object .* or load it again")


def test_a_tower_or_a_head_that_is_offloaded_answers_as_before(tiny):
    accelerate = pytest.importorskip("accelerate")
    inputs = tiny.inputs()
    expected = lightvlm.compile(tiny.model, "lightvlm", backend="eager").generate(**inputs, **NEW)
    for module in (tiny.model.get_encoder(modality="image"), tiny.model.lm_head):
        accelerate.cpu_offload(module, torch.device("cpu"))
    assert {str(weight.device) for weight in tiny.model.lm_head.parameters()} == {"meta"}
    assert lightvlm.compile(tiny.model, "lightvlm", backend="eager").generate(**inputs, **NEW).equal(expected)


def test_one_place_is_one_place(tiny, tmp_path):
    pytest.importorskip("accelerate")
    tiny.model.save_pretrained(tmp_path)
    model = type(tiny.model).from_pretrained(tmp_path, device_map={"": "cpu"}).eval()
    inputs = tiny.inputs()
    fast = lightvlm.compile(model, "none", backend="eager")
    assert fast.generate(**inputs, **NEW).equal(tiny.model.generate(**inputs, **NEW))


def of_one_process(rank, port, folder):
    """One of two processes: what transformers' tensor-parallel model answers, and what compiling it says."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    tiny = zoo.build("llava", layers=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tp_plan has another name from transformers 5.24 on
        model = type(tiny.model).from_pretrained(folder, tp_plan="auto").eval()
    inputs = tiny.inputs()
    assert model.generate(**inputs, **NEW).equal(tiny.model.generate(**inputs, **NEW))
    refused(model, "its weights are shards of a tensor-parallel plan .* load it there without tp_plan")
    assert lightvlm.explain(model, "lightvlm").flops_ratio < 1
    (folder / f"done.{rank}").touch()
    torch.distributed.destroy_process_group()


@pytest.mark.full
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without torch.distributed")
def test_a_tensor_parallel_model_is_refused(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    torch.multiprocessing.spawn(of_one_process, args=(port, tmp_path), nprocs=2)
    assert (tmp_path / "done.0").exists()
    assert (tmp_path / "done.1").exists()
