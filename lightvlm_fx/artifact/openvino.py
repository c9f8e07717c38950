"""Stages on OpenVINO: the ONNX graphs of an artifact, read by its frontend, with what that leaves out put right."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightvlm_fx.artifact.files import Files
from lightvlm_fx.artifact.openvino_graph import (
    LONGEST,
    add_rows,
    free_of_rope,
    hand_out_entries,
    keep_order,
    least_first,
    spell_out_attention,
    take_largest,
)
from lightvlm_fx.artifact.schema import WEIGHTS
from lightvlm_fx.artifact.stages import PAST, PRESENT, failing
from lightvlm_fx.errors import InputError

Array = NDArray[Any]
Feed = dict[str, Array]
INSTALL = "an artifact of target openvino needs OpenVINO: pip install openvino"
DEVICES = {"CPUExecutionProvider": "CPU"}  # what `providers` are called elsewhere
# The precision is the artifact's: OpenVINO's own defaults are bfloat16 on many CPUs, and integer activations where weights are integers.
# Threads are not pinned to cores: where others run too, steps take up to twice as long with it.
PROPERTIES = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0", "ENABLE_CPU_PINNING": "NO"}


class OpenVINO:
    """The engine of target `openvino`. `properties`: OpenVINO's own, of a compiled model, above ours. `prepack` says nothing new to it.

    A session holds the weights of its products rearranged, and what its last run computed with: OpenVINO's `release_memory` would give
    that back, but the next run of 2026.4 writes over other memory then.

    Raises ImportError where it is not installed, InputError for a device that it does not have.
    """

    title = "OpenVINO"

    def __init__(self, dtype: str, providers: Sequence[str], properties: Any, prepack: bool) -> None:
        try:
            import openvino
        except ImportError as error:
            raise ImportError(INSTALL) from error
        self.runtime, self.core = openvino, openvino.Core()
        self.device = self._device(providers)
        if properties is not None and not isinstance(properties, dict):
            raise InputError("session_options of an artifact of target openvino are OpenVINO's properties, a dict as in "
                             f"{{'INFERENCE_NUM_THREADS': 4}}, got a {type(properties).__name__}")  # fmt: skip
        self.properties = PROPERTIES | {"INFERENCE_PRECISION_HINT": self._precision(dtype)} | (properties or {})

    def _device(self, providers: Sequence[str]) -> str:
        if isinstance(providers, str) or len(providers) != 1:
            raise InputError(f"an artifact of target openvino runs on one device: write providers=['CPU'], got {providers!r}")
        device, have = DEVICES.get(providers[0], providers[0]), self.core.available_devices
        if device not in have:
            raise InputError(f"OpenVINO has no device {device} here, only {', '.join(have)}; name one of these as the provider")
        return device

    def _precision(self, dtype: str) -> str:
        """What products are computed in: half precision where the device has it; elsewhere it is imitated, slowly and with more error."""
        half = dtype == "float16" and "FP16" in self.core.get_property(self.device, "OPTIMIZATION_CAPABILITIES")
        return "f16" if half else "f32"

    def open(self, files: Files, name: str, stage: dict[str, Any]) -> OvSession:
        with failing(files, stage["file"], "open", self.title):
            model = self.read(files, stage["file"])
            if self.properties["INFERENCE_PRECISION_HINT"] != "f32":
                free_of_rope(self.runtime, model)  # first: it looks for sorts of every kind
            take_largest(self.runtime, model)
            sorts = keep_order(self.runtime, model)
            add_rows(self.runtime, model)
            if name == "prefill":
                model = least_first(self.runtime, model)
            entries = hand_out_entries(self.runtime, model) if name == "decode" else {}
            if name == "decode":
                spell_out_attention(self.runtime, model)
            compiled = self.core.compile_model(model, self.device, self.properties)
            return OvSession(self.runtime, compiled, stage, LONGEST if sorts else None, entries)

    def read(self, files: Files, file: str) -> Any:
        """The graph `file` over its weights, both as they were hashed.

        OpenVINO reads weights beside the path of a graph alone, and no links: from the folder, where the open files still stand
        there; else from a copy of them.
        """
        names = (file, WEIGHTS)
        files.data(file)  # hashed once more
        files.unchanged(WEIGHTS)
        if all(files.stands(name) for name in names):
            model = self.core.read_model(files.home.resolve() / file)
            if all(files.unchanged(name) and files.stands(name) for name in names):
                return model
        with tempfile.TemporaryDirectory() as spare:
            for name in names:
                files.copy(name, Path(spare) / Path(name).name)
            return self.core.read_model(Path(spare) / Path(file).name)


class OvSession:
    """A stage on OpenVINO; `longest`: the most tokens that its sorts take; `entries` of `hand_out_entries`.

    Requests are made for each run: a session may be asked by several threads at once.
    """

    def __init__(self, runtime: Any, compiled: Any, stage: dict[str, Any], longest: int | None, entries: dict[str, str]) -> None:
        self.runtime, self.compiled, self.longest, self.entries = runtime, compiled, longest, entries
        self.inputs = _named(compiled.inputs, stage["inputs"])
        outputs = _named(compiled.outputs, stage["outputs"])
        self.outputs = {name: port for name, port in outputs.items() if name not in entries.values()}
        given = self.outputs | {name: self.inputs[name.replace(PRESENT, PAST)] for name in entries}
        self.known = {"inputs": _shapes(self.inputs), "outputs": _shapes(given)}

    def shapes(self, side: str) -> dict[str, list[Any]]:
        return self.known[side]

    def run(self, feed: Feed) -> Feed:
        return {name: tensor.data.copy() for name, tensor in self._asked(feed).items()}

    def first(self, feed: Feed) -> tuple[Array, dict[str, Any]]:
        out = self._asked(feed)
        return out.pop("logits").data.copy(), out

    def _asked(self, feed: Feed) -> dict[str, Any]:
        """All outputs of a run, as tensors that are nobody else's."""
        for name, array in feed.items():
            if self.longest and max(array.shape, default=0) > self.longest:
                raise InputError(f"on OpenVINO an artifact whose schedule sorts takes at most {self.longest} tokens at once, got {name} of "
                                 f"{list(array.shape)}; export for onnxruntime")  # fmt: skip
        request = self.compiled.create_infer_request()
        for name, array in feed.items():
            request.set_tensor(self.inputs[name], self.runtime.Tensor(array, shared_memory=True))
        request.infer()
        return {name: request.get_tensor(port) for name, port in self.outputs.items()}

    def bound(self, cache: dict[str, Any], rows: int) -> OvBound:
        return OvBound(self, cache, rows)


def _named(ports: list[Any], said: list[dict[str, Any]]) -> dict[str, Any]:
    """Inputs or outputs by what the manifest calls them; OpenVINO gives those that it merged the names of all."""
    names = {v["name"] for v in said}
    return {min(port.get_names() & names, default=port.get_any_name()): port for port in ports}


def _shapes(ports: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [d.get_length() if d.is_static else None for d in port.partial_shape] for name, port in ports.items()}


class OvBound:
    """A stage on OpenVINO with a request whose cache inputs and outputs are the same memory, to which entries handed out are written."""

    def __init__(self, session: OvSession, cache: dict[str, Any], rows: int) -> None:
        self.session, self.request = session, session.compiled.create_infer_request()
        self.logits, self.writes = np.empty(0, np.float32), list[tuple[Array, Array, Any]]()
        for name, port in session.inputs.items():
            if name.startswith(PAST):
                self.request.set_tensor(port, cache[name])
        for name, port in session.outputs.items():
            if name in session.entries:
                slot = session.compiled.output(session.entries[name])
                held = cache[name.replace(PRESENT, PAST)].data
                self.writes.append((held, self._own(port, [*held.shape[:2], 1, held.shape[3]]), slot))
            elif name.startswith(PRESENT):
                self.request.set_tensor(port, cache[name.replace(PRESENT, PAST)])
            else:
                self.logits = self._own(port, [rows, *session.shapes("outputs")[name][1:]])

    def _own(self, port: Any, shape: list[int]) -> Array:
        """An array that the request writes this output to."""
        array = np.empty(shape, port.get_element_type().to_dtype())
        self.request.set_tensor(port, self.session.runtime.Tensor(array, shared_memory=True))
        return array

    def run(self, given: Feed) -> Array:
        for name, array in given.items():
            self.request.set_tensor(self.session.inputs[name], self.session.runtime.Tensor(array, shared_memory=True))
        self.request.infer()
        for held, entry, slot in self.writes:
            held[:, :, self.request.get_tensor(slot).data[0]] = entry[:, :, 0]
        return self.logits
