"""Stands in for the module of Triton's python backend: the calls that its README documents, which keep what they are given."""

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonError:
    INTERNAL, INVALID_ARG = 1, 3

    def __init__(self, message, code=INTERNAL):
        assert isinstance(message, str)
        self.said, self.kind = message, code

    def message(self):
        return self.said

    def code(self):
        return self.kind


class Tensor:
    def __init__(self, name, array):
        assert isinstance(array, np.ndarray)
        self.called, self.array = name, array

    def name(self):
        return self.called

    def as_numpy(self):
        return self.array


class InferenceResponse:
    def __init__(self, output_tensors=(), error=None):
        self.outputs, self.wrong = list(output_tensors), error

    def output_tensors(self):
        return self.outputs

    def has_error(self):
        return self.wrong is not None

    def error(self):
        return self.wrong


class Sender:
    """`leaves`: after so many responses the client is gone."""

    def __init__(self, leaves):
        self.leaves, self.responses, self.complete = leaves, [], False

    def send(self, response=None, flags=0):
        assert not self.complete, "a response after the last one"
        assert response is not None or flags
        self.complete = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if response is not None:
            self.responses.append(response)

    def is_cancelled(self):
        return self.leaves is not None and len(self.responses) >= self.leaves


class Request:
    def __init__(self, leaves=None, **arrays):
        self.tensors, self.sender = [Tensor(name, array) for name, array in arrays.items()], Sender(leaves)

    def get_response_sender(self):
        return self.sender


def get_input_tensor_by_name(request, name):
    return next((tensor for tensor in request.tensors if tensor.name() == name), None)
