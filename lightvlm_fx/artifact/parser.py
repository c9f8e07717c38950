"""What TensorRT's own ONNX parser says of an artifact's graphs, where one is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightvlm_fx.artifact.files import inside

PACKAGES = ("tensorrt", "tensorrt_rtx")  # the second needs no GPU, neither to parse nor to build
INSTALL = "pip install 'lightvlm-fx[tensorrt]'"


class Parser:
    """TensorRT's parser of one of `PACKAGES`; `name` says which, and its version."""

    def __init__(self, package: Any) -> None:
        self.package = package
        self.logger = package.Logger(package.Logger.INTERNAL_ERROR)  # the parser's errors are asked for, not printed
        self.builder = package.Builder(self.logger)
        self.name = f"{package.__name__} {package.__version__}"

    def network(self, path: Path) -> tuple[Any, list[str]]:
        """The strongly typed network of an ONNX file, its weights beside it; and why not, a line a node, where it is refused."""
        flag = getattr(self.package.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = self.builder.create_network(0 if flag is None else 1 << int(flag))
        reader = self.package.OnnxParser(network, self.logger)
        if reader.parse_from_file(str(path)):
            return network, []
        errors = [reader.get_error(i) for i in range(reader.num_errors)]
        places = [f"{e.node_operator()} {e.node_name()}" if e.node_operator() else f"a node, in {e.func()}" for e in errors]
        return network, [f"{place}: {e.desc()}" for place, e in zip(places, errors, strict=True)] or ["the graph, without a reason"]

    def refused(self, folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
        """What it refuses of an artifact's stages, a line each."""
        for bucket in manifest["buckets"]:
            for stage in bucket["stages"].values():
                _, wrong = self.network(inside(folder, stage["file"]))
                yield from (f"{stage['file']}: {self.name} refuses {line}" for line in wrong)


def installed() -> tuple[Parser | None, str]:
    """The first parser that works here, or None and why."""
    said = []
    for name in PACKAGES:
        try:
            return Parser(importlib.import_module(name)), ""
        except ImportError as error:
            if importlib.util.find_spec(name):
                said.append(f"{name} does not load: {error}")
        except (RuntimeError, TypeError) as error:  # TensorRT makes no builder where there is no GPU; it says so by a null pointer
            said.append(f"{name} does not start: {error}")
    return None, "; ".join(said) or f"not installed ({INSTALL})"
