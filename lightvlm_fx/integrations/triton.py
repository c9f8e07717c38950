"""What Triton's python backend runs: an artifact that answers prompts with pictures, and streams. Needs no torch.

Imported by the `model.py` of a model repository that `lightvlm package --for triton` wrote; the module
`triton_python_backend_utils` is there in Triton's own processes alone. Names of inputs and outputs are those of Triton's vLLM backend.
"""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from PIL import Image

from lightvlm_fx.artifact.load import load
from lightvlm_fx.errors import InputError
from lightvlm_fx.integrations.deploy import FOLDER
from lightvlm_fx.pictures import picture_in
from lightvlm_fx.serving.artifact import ArtifactEngine
from lightvlm_fx.serving.jobs import Stopped, refusal_of
from lightvlm_fx.serving.limits import Limits
from lightvlm_fx.serving.problems import Refusal
from lightvlm_fx.serving.protocol import Request, read
from lightvlm_fx.serving.room import check_text, options_of
from lightvlm_fx.serving.text import AnswerText


class TritonPythonModel:
    """One instance: opens the artifact beside it once, and answers one request after the other."""

    def initialize(self, args: dict[str, str]) -> None:
        said = {name: value["string_value"] for name, value in json.loads(args["model_config"]).get("parameters", {}).items()}
        folder = Path(args["model_repository"]) / args["model_version"] / FOLDER
        self.engine = ArtifactEngine(load(folder, providers=said["providers"].split(",")), args["model_name"])
        self.limits = Limits(**{f.name: int(said[f.name]) for f in fields(Limits) if f.name in said})

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            _Answer(self.engine, self.limits, request).send()


class _Answer:
    """What one request gets: pieces of text where it has `stream`, one response with all of them where not."""

    def __init__(self, engine: ArtifactEngine, limits: Limits, request: Any) -> None:
        self.engine, self.limits, self.request, self.sender = engine, limits, request, request.get_response_sender()
        self.piece, self.tokens, self.last = "", list[int](), -1  # not sent yet; and the last token, sent or not

    def send(self) -> None:
        try:
            self._answer()
        except Stopped:  # by a client that left
            self.sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        except Exception as error:  # whatever it is, the client has to hear of it
            refusal = refusal_of(error)
            code = pb_utils.TritonError.INVALID_ARG if refusal.status < 500 else pb_utils.TritonError.INTERNAL
            response = pb_utils.InferenceResponse(error=pb_utils.TritonError(str(refusal), code))
            self.sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _answer(self) -> None:
        asked, pictures = self._asked(), self._pictures()
        chat = [{"role": "user", "content": [*({"type": "image"} for _ in pictures), *asked.chat()[0]["content"]]}]
        check_text(chat, self.limits)
        inputs = self.engine.prepare(chat, pictures)
        options = options_of(asked, inputs["input_ids"].shape[1], self.engine, self.limits)
        stream, text = bool(self._values("stream", [False])[0]), AnswerText(self.engine.decode, asked.stops)

        def take(token: int) -> None:
            if self.sender.is_cancelled():
                raise Stopped
            self.tokens.append(token)
            self.last = token
            self.piece += text.add(token)
            if stream and self.piece:
                self.sender.send(self._response(""))
            if text.stopped:
                raise Stopped

        try:
            self.engine.answer(inputs, options, take)
        except Stopped:
            if not text.stopped:
                raise
        self.piece += text.end()
        finish = "stop" if text.stopped or self.last in self.engine.ends else "length"
        self.sender.send(self._response(finish), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _response(self, finish: str) -> Any:
        """What was not sent yet; `finish` is empty where more will come."""
        outputs = [
            pb_utils.Tensor("text_output", np.array([self.piece.encode()], np.object_)),
            pb_utils.Tensor("tokens", np.array(self.tokens, np.int32)),
            pb_utils.Tensor("finish_reason", np.array([finish.encode()], np.object_)),
        ]
        self.piece, self.tokens = "", []
        return pb_utils.InferenceResponse(output_tensors=outputs)

    def _asked(self) -> Request:
        """The prompt and the sampling parameters, read as `lightvlm serve` reads them. Raises Refusal."""
        try:
            text = self._values("text_input", [])[0].decode()
            given = json.loads(self._values("sampling_parameters", [b"{}"])[0])
        except (ValueError, IndexError) as error:
            raise InputError(f"text_input must hold one text, and sampling_parameters a JSON object: {error}") from error
        if not isinstance(given, dict) or {"model", "messages", "stream"} & set(given):
            raise InputError(f"sampling_parameters must be a JSON object as in {{\"max_tokens\": 64}}, got {given!r:.80}")
        return read(json.dumps(given | {"model": self.engine.name, "messages": [{"role": "user", "content": text}]}).encode())

    def _pictures(self) -> list[Image.Image]:
        """The pictures, each the base64 of a file. Raises InputError, or Refusal above a limit."""
        given, limits, out = self._values("image", []), self.limits, []
        if len(given) > limits.pictures:
            raise Refusal(400, f"the request holds {len(given)} pictures, this server takes at most {limits.pictures}")
        for number, text in enumerate(given):
            if len(text) > 4 * (limits.picture_bytes // 3 + 1):
                raise Refusal(413, f"image[{number}] has more than {limits.picture_bytes} bytes, the limit here; scale it down")
            try:
                data = base64.b64decode(text, validate=True)
            except (binascii.Error, ValueError) as error:
                raise InputError(f"image[{number}] must be the base64 of a picture's file: {error}") from error
            out.append(picture_in(data, f"image[{number}]", limits.picture_pixels))
        return out

    def _values(self, name: str, default: list[Any]) -> list[Any]:
        tensor = pb_utils.get_input_tensor_by_name(self.request, name)
        return default if tensor is None else tensor.as_numpy().reshape(-1).tolist()
