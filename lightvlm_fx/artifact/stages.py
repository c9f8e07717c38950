"""The sessions of one bucket, and one answer over them: caches stay where the runtime put them.

A target's runtime is an *engine* that opens stages as *sessions*: ONNX Runtime's stand here, OpenVINO's in `openvino.py`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightvlm_fx.artifact.files import Files
from lightvlm_fx.artifact.lengths import Lengths
from lightvlm_fx.artifact.pictures import filled, grids, prepare
from lightvlm_fx.artifact.schema import WEIGHTS
from lightvlm_fx.errors import ArtifactError, InputError
from lightvlm_fx.spans import VisualMarks, images_of

Array = NDArray[Any]
Feed = dict[str, Array]
PAST, PRESENT = "past_key_values.", "present."
BESIDE = "session.model_external_initializers_file_folder_path"  # where a graph that is read from memory finds its weights


def quiet_options(runtime: Any) -> Any:
    """Options of a session that tells errors only: ONNX Runtime warns of initializers that it folds itself."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return options


def default_options(runtime: Any, prepack: bool, often: bool) -> Any:
    """Options of a session. Without `prepack`, it reads its weights from the mapped file, not a rearranged copy (docs/decisions/0008).

    Threads of one that does not run `often` stop waiting busily once it has run: the next stage needs the cores. Its activations are
    freed with their last reader: kept for later ones of the same size, they hold three times the memory, which has to be mapped anew
    for every prompt.
    """
    options = quiet_options(runtime)
    if not prepack:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not often:
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.enable_mem_reuse = False
    return options


def once_a_prompt(runtime: Any) -> Any:
    """Options of a run whose activations are large and not needed again soon: ONNX Runtime gives their memory back."""
    options = runtime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def check_providers(providers: Sequence[str]) -> None:
    """Raise InputError where this ONNX Runtime lacks one of the execution providers: it would take the CPU instead, with a warning."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("an artifact needs ONNX Runtime: pip install onnxruntime-gpu, or onnxruntime without a GPU") from error
    if isinstance(providers, str):
        raise InputError(f"providers is a list of names: write providers=[{providers!r}]")
    have = onnxruntime.get_available_providers()
    missing = [p for p in providers if p not in have]
    if missing:
        raise InputError(f"this onnxruntime has no {', '.join(missing)}, only {', '.join(have)}; install the build that has it "
                         "(onnxruntime-gpu), or name another provider")  # fmt: skip


def tokens_of_pictures(ids: Array, mask: Array, marks: VisualMarks) -> list[list[int]]:
    """Of each row of ids [B, S] the visual tokens of each of its pictures; mask [B, S] is 0 for padding."""
    return [[len(places) for places in images_of(np.where(real != 0, row, -1), marks)] for row, real in zip(ids, mask, strict=True)]


def packed(ids: Array, mask: Array) -> tuple[Array, Array]:
    """Rows of ids and mask [B, S] with the tokens whose mask is 0 moved to the front, all others in their order after them."""
    order = np.argsort(mask != 0, axis=1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(mask, order, 1)


class Bound(Protocol):
    """A stage over the buffers of one cache: it writes into what it reads."""

    def run(self, given: Feed) -> Array:
        """One run over the cache and what else is given; the logits [B, V], where the stage has any."""


class Session(Protocol):
    """One stage, open."""

    def shapes(self, side: str) -> dict[str, list[Any]]:
        """Of the `inputs` or `outputs`, by name; a size that is not fixed is a string or None."""

    def run(self, feed: Feed) -> Feed:
        """All outputs."""

    def first(self, feed: Feed) -> tuple[Array, dict[str, Any]]:
        """The logits, and the other outputs as the runtime holds them, by name."""

    def bound(self, cache: dict[str, Any], rows: int) -> Bound:
        """The stage over a cache that `first` gave out, and `run`s of it wrote, called as the stage's inputs."""


class Engine(Protocol):
    """What opens the stages of a target."""

    title: str

    def open(self, files: Files, name: str, stage: dict[str, Any]) -> Session:
        """The stage `name`, as the manifest says it, over the weights that were hashed with it."""


@contextlib.contextmanager
def failing(files: Files, name: str, what: str, title: str) -> Iterator[None]:
    """Whatever a runtime raises (their errors have no class of their own in common) as an ArtifactError that names the graph."""
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:500]
        raise ArtifactError(f"{files.home}: {title} does not {what} {name}: {said}; export again, or run `lightvlm verify`") from error


def open_session(runtime: Any, files: Files, name: str, options: Any, providers: list[str]) -> Any:
    """A session over the graph `name`, as it was hashed, and over the weights that were hashed with it.

    They are mapped from the folder, where the file that is open still stands there; else copied from the open file.
    """
    graph = files.data(name)
    files.unchanged(WEIGHTS)
    with failing(files, name, "open", OnnxRuntime.title):
        if files.stands(WEIGHTS):
            options.add_session_config_entry(BESIDE, str(files.home.resolve()))
            session = runtime.InferenceSession(graph, options, providers=providers)
            if files.stands(WEIGHTS):
                return session
        with files.mapped(WEIGHTS) as weights:
            options.add_external_initializers_from_files_in_memory([WEIGHTS], [weights], [len(weights)])
            return runtime.InferenceSession(graph, options, providers=providers)


class OnnxRuntime:
    """The engine of artifacts whose target says so. Raises InputError for a provider that it does not have."""

    title = "ONNX Runtime"

    def __init__(self, dtype: str, providers: Sequence[str], session_options: Any, prepack: bool) -> None:
        check_providers(providers)
        import onnxruntime

        self.runtime, self.providers, self.options = onnxruntime, list(providers), session_options
        self.prepack, self.quantised = prepack, dtype in ("int8", "int4")

    def open(self, files: Files, name: str, stage: dict[str, Any]) -> OrtSession:
        often = name == "decode"
        options = self.options or default_options(self.runtime, self.quantised or (self.prepack and often), often)
        once = None if self.options else once_a_prompt(self.runtime)  # a session of other options may have no arena
        device = "cuda" if any("CUDA" in p or "Tensorrt" in p for p in self.providers) else "cpu"
        return OrtSession(self.runtime, open_session(self.runtime, files, stage["file"], options, self.providers), once, device)


class OrtSession:
    """A stage on ONNX Runtime. `once`: options of a run whose activations are not needed again soon."""

    def __init__(self, runtime: Any, session: Any, once: Any, device: str) -> None:
        self.runtime, self.session, self.once, self.device = runtime, session, once, device
        self.outputs = [o.name for o in session.get_outputs()]

    def shapes(self, side: str) -> dict[str, list[Any]]:
        values = self.session.get_inputs() if side == "inputs" else self.session.get_outputs()
        return {v.name: list(v.shape) for v in values}

    def run(self, feed: Feed) -> Feed:
        return dict(zip(self.outputs, self.session.run(self.outputs, feed, self.once), strict=True))

    def first(self, feed: Feed) -> tuple[Array, dict[str, Any]]:
        binding = self.session.io_binding()
        for name, array in feed.items():
            binding.bind_cpu_input(name, array)
        for name in self.outputs:
            binding.bind_output(name, "cpu" if name == "logits" else self.device)
        self.session.run_with_iobinding(binding, self.once)
        out = dict(zip(self.outputs, binding.get_outputs(), strict=True))
        return out.pop("logits").numpy(), out

    def bound(self, cache: dict[str, Any], rows: int) -> OrtBound:
        return OrtBound(self, cache, rows)


class OrtBound:
    """A stage on ONNX Runtime with a binding that is made once."""

    def __init__(self, stage: OrtSession, cache: dict[str, Any], rows: int) -> None:
        self.session, self.binding = stage.session, stage.session.io_binding()
        self.logits: Any = None
        for name in stage.shapes("inputs"):
            if name.startswith(PAST):
                self.binding.bind_ortvalue_input(name, cache[name])
        for name, shape in stage.shapes("outputs").items():
            if name.startswith(PRESENT):
                self.binding.bind_ortvalue_output(name, cache[name.replace(PRESENT, PAST)])
            else:
                self.logits = stage.runtime.OrtValue.ortvalue_from_shape_and_type([rows, *shape[1:]], np.float32, "cpu")
                self.binding.bind_ortvalue_output(name, self.logits)

    def run(self, given: Feed) -> Array:
        for name, array in given.items():
            self.binding.bind_cpu_input(name, array)
        self.session.run_with_iobinding(self.binding)
        return np.empty(0, np.float32) if self.logits is None else self.logits.numpy()


def check_signature(files: Files, stage: dict[str, Any], session: Session) -> None:
    """Raises ArtifactError where a graph takes or gives other values than the manifest says."""
    for side in ("inputs", "outputs"):
        said = {v["name"]: v["shape"] for v in stage[side]}
        found = session.shapes(side)
        apart = [name for name in sorted({*said, *found}) if not _alike(said.get(name), found.get(name))]
        if apart:
            raise ArtifactError(f"{files.home}: {stage['file']} has other {side} than the manifest says ({', '.join(apart)}); export again")


def _alike(said: list[Any] | None, found: list[Any] | None) -> bool:
    """Whether two shapes are the same, where both are numbers."""
    if said is None or found is None or len(said) != len(found):
        return False
    return all(a == b for a, b in zip(said, found, strict=True) if type(a) is int or type(b) is int)


class Stages:
    """Sessions over one bucket's graphs."""

    def __init__(self, files: Files, bucket: dict[str, Any], marks: VisualMarks, engine: Engine) -> None:
        self.files, self.bucket, self.marks, self.engine = files, bucket, marks, engine
        self.sessions: dict[str, Session] = {}
        for name, stage in bucket["stages"].items():
            self.sessions[name] = engine.open(files, name, stage)
            check_signature(files, stage, self.sessions[name])
        self.dtypes = {name: {i["name"]: i["dtype"] for i in stage["inputs"]} for name, stage in bucket["stages"].items()}
        self.rows, said = bucket["rows"], bucket.get("lengths")
        self.lengths = said and Lengths.read(said, bucket["visual_tokens"], bucket["prompt_tokens"], files)

    def start(self, ids: Array, mask: Array, pictures: Feed, pad: int) -> Generation:
        """Encode, embed and prefill the batch (ids, mask [B, S]); B at most the bucket's rows.

        `pictures`: pixel_values and what says how they lie; empty for prompts of text alone.
        """
        return Generation(self, self.embed(ids, mask, pictures, pad), len(ids))

    def embed(self, ids: Array, mask: Array, pictures: Feed, pad: int) -> Feed:
        """What the prefill stage is fed with. Rows that lack are copies of the last."""
        spare, longest = self.rows - len(ids), self.bucket["prompt_tokens"]
        ids, mask = (x[:, -longest:] for x in packed(ids, mask))
        images = tokens_of_pictures(ids, mask, self.marks)
        length, sizes = self.lengths.of((mask != 0).sum(1), images) if self.lengths else (longest, {})
        ids, mask = ids[:, -length:], mask[:, -length:]
        images += images[-1:] * spare
        room = ((0, spare), (0, 0)), ((0, 0), (length - ids.shape[1], 0))
        ids = np.pad(np.pad(ids, room[0], mode="edge"), room[1], constant_values=pad).astype(np.int64)
        mask = np.pad(np.pad(mask, room[0], mode="edge"), room[1]).astype(np.int64)
        width = self.bucket["pictures"]
        given = {"input_ids": ids, "attention_mask": mask, "picture_tokens": _rows(images, width)}
        given |= {name: np.zeros(n, np.int64) for name, n in sizes.items()}
        if self.bucket["grid"]:
            given["picture_grids"] = self._grids(pictures, images, spare, width)
        seen = self._see(pictures, images, spare)
        return given | self._run("embed", {"input_ids": ids} | seen)

    def _grids(self, pictures: Feed, images: list[list[int]], spare: int, width: int) -> Array:
        """Height and width of every picture in visual tokens [B, I, 2]."""
        out = np.zeros((len(images), width, 2), np.int64)
        every = iter(grids(self.bucket["grid"], pictures)) if pictures else iter(())
        for row, count in enumerate(map(len, images[: len(images) - spare])):
            out[row, :count] = [next(every) for _ in range(count)] or np.zeros((0, 2), np.int64)
        out[len(images) - spare :] = out[len(images) - spare - 1]
        return out

    def _see(self, pictures: Feed, images: list[list[int]], spare: int) -> Feed:
        """Features of the pictures of all rows, filled up with zeros where their number is fixed; zeros for prompts without."""
        wanted = [i for i in self.bucket["stages"]["embed"]["inputs"] if i["name"] != "input_ids"]
        if not pictures:
            return {i["name"]: np.zeros([n if type(n) is int else 1 for n in i["shape"]], i["dtype"]) for i in wanted}
        if self.bucket["vision"]["kind"] == "fixed":
            pixels = pictures["pixel_values"]
            one = len(pixels) // (len(images) - spare)
            return self._run("vision", {"pixel_values": np.concatenate([pixels, *[pixels[-one:]] * spare])})
        feed, tokens = prepare(self.bucket["vision"], pictures)
        out, last = self._run("vision", feed), sum(images[-1])
        seen = {}
        for i in wanted:
            x = out[i["name"]][:tokens]
            x = np.concatenate([x, *[x[tokens - last :]] * spare]) if spare and last else x
            slots = i["shape"][0]
            seen[i["name"]] = filled(x, slots) if type(slots) is int else x
        return seen

    def _run(self, name: str, given: dict[str, Array]) -> dict[str, Array]:
        with self.running(name):
            return self.sessions[name].run(self.feed(name, given))

    def feed(self, name: str, given: dict[str, Array]) -> Feed:
        """What the stage `name` takes of what is given, as it takes it."""
        return {i: np.ascontiguousarray(given[i], dtype=dtype) for i, dtype in self.dtypes[name].items()}

    @contextlib.contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Around a run of a stage. Raises ArtifactError where its weights were written to, which would end the process, or it fails."""
        self.files.unchanged(WEIGHTS)
        with failing(self.files, self.bucket["stages"][name]["file"], "run", self.engine.title):
            yield


def _rows(images: list[list[int]], width: int) -> Array:
    """[B, width] int64 of rows of numbers, each filled up with zeros."""
    return np.array([[*row, *[0] * (width - len(row))] for row in images], np.int64).reshape(len(images), width)


class Generation:
    """One answer under way: `logits` [B, V] of the latest token, and the cache.

    The cache's buffers are those that the prefill session wrote; every step is bound to write into what it reads,
    so nothing is copied.
    """

    def __init__(self, stages: Stages, given: dict[str, Array], rows: int) -> None:
        self.stages, self.rows, self.steps = stages, rows, 0
        with stages.running("prefill"):
            self._logits, out = stages.sessions["prefill"].first(stages.feed("prefill", given))
        self.cache = {name.replace(PRESENT, PAST): value for name, value in out.items()}
        self._token = np.zeros((stages.rows, 1), np.int64)
        self._step = np.zeros(1, np.int64)
        steps = [name for name in ("decode", "compact") if name in stages.sessions]
        self._bound = {name: stages.sessions[name].bound(self.cache, stages.rows) for name in steps}

    @property
    def logits(self) -> Array:
        return self._logits[: self.rows]

    def step(self, token: Array) -> None:
        """Append `token` [B] to the answer; brings `logits` up to date."""
        every, room = self.stages.bucket["compact_every"], self.stages.bucket["new_tokens"]
        if 0 < room <= self.steps:  # not every runtime looks whether an index lies in a buffer
            raise InputError(f"the caches have room for {room} new tokens; export with a larger new_tokens")
        self._step[0] = self.steps
        if "compact" in self._bound and self.steps and self.steps % every == 0:
            self._run("compact", {"step": self._step})
        self._token[: self.rows, 0] = token
        self._logits = self._run("decode", {"input_ids": self._token, "step": self._step})
        self.steps += 1

    def _run(self, name: str, given: Feed) -> Array:
        with self.stages.running(name):
            return self._bound[name].run(given)
