"""Ray: a data set of pictures and questions answered by many workers, and replicas of a server. docs/scale.md says when."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightvlm_fx.errors import InputError
from lightvlm_fx.serving.limits import Limits
from lightvlm_fx.serving.opening import open_engine
from lightvlm_fx.serving.rows import Answer, Rows
from lightvlm_fx.serving.sources import Sources

if TYPE_CHECKING:
    import pyarrow
    from ray.data import Dataset
    from ray.serve import Application

ANSWERS, DONE = "answers", "done"  # folders of an output: rows with their answers, and the ids of those that are written
COLUMNS = {"text": "answer", "tokens": "tokens", "finish": "finish", "error": "error"}  # fields of an Answer as columns


class Worker:
    """What an actor of Ray Data runs: opens `source` once, then answers tables of rows."""

    def __init__(self, source: str | None, picture: str, prompt: str, limits: Limits, generate: Mapping[str, Any],
                 opening: Mapping[str, Any]) -> None:  # fmt: skip
        self.picture, self.prompt = picture, prompt
        self.rows = Rows(open_engine(source, **opening), limits=limits, **generate)

    def __call__(self, table: pyarrow.Table) -> pyarrow.Table:
        """`table` without its pictures, and with the columns `answer`, `tokens`, `finish` and `error`.

        Raises InputError where it has no column of pictures or prompts.
        """
        import pyarrow

        for option, name in {"picture": self.picture, "prompt": self.prompt}.items():
            if name not in table.column_names:
                raise InputError(f"the rows have no column {name!r}, they have {', '.join(table.column_names)}; name the right one "
                                 f"by {option}=")  # fmt: skip
        asked = zip(table[self.prompt].to_pylist(), table[self.picture].to_pylist(), strict=True)
        answers = self.rows.answer(list(asked))
        table = table.drop_columns([self.picture])
        for field in dataclasses.fields(Answer):
            kind = pyarrow.int64() if field.name == "tokens" else pyarrow.string()
            said = pyarrow.array([getattr(answer, field.name) for answer in answers], kind)
            table = table.append_column(COLUMNS[field.name], said)
        return table


def answer(
    dataset: Dataset, source: str | None = None, *, picture: str = "picture", prompt: str = "prompt", workers: int | tuple[int, int] = 1,
    batch: int = 8, resources: Mapping[str, Any] | None = None, limits: Limits | None = None, generate: Mapping[str, Any] | None = None,
    **opening: Any,
) -> Dataset:  # fmt: skip
    """`dataset` with answers, as a stage of Ray Data: its column of pictures leaves, `answer`, `tokens`, `finish` and `error` come.

    `picture` names a column of paths (that every node can read), bytes of files, lists of either, or nulls; `prompt` one of questions.
    A row that cannot be asked (a broken picture, a prompt that is too long) says why in `error`, and has no answer.

    Each of `workers` actors (a number, or the fewest and the most) opens `source` once: an artifact's folder, a model's, a hub name, or
    the bundled model; `opening` is what `open_engine` takes (schedule, backend, device, providers). `resources` are Ray's of one
    actor, as in {"num_cpus": 8} or {"num_gpus": 1}. `batch` rows are answered at once, or as many as an artifact takes;
    `generate` holds options of generate(), greedy without. Nothing runs before the data set is read.
    """
    from ray.data import ActorPoolStrategy

    pool = ActorPoolStrategy(size=workers) if isinstance(workers, int) else ActorPoolStrategy(min_size=workers[0], max_size=workers[1])
    return dataset.map_batches(
        Worker, fn_constructor_args=(source, picture, prompt, limits or Limits(), dict(generate or {}), dict(opening)),
        batch_size=batch, batch_format="pyarrow", compute=pool, **(resources or {}),
    )  # fmt: skip


def answer_into(
    output: str | Path, dataset: Dataset, source: str | None = None, *, row: str = "id", rows_a_file: int = 64, **options: Any
) -> str:
    """Write the answers of `dataset` as Parquet files below `output`, but those that are there; returns the folder they are in.

    `row` names a column whose values tell rows apart, and stay the same from run to run. A run that was ended, however it was,
    goes on where it was: rows of files that are complete are not asked again, files that are not are made anew. Lost are at most the
    `rows_a_file` rows that each worker was at. `output` is a folder that all nodes share, or a URI of a store (s3://, gs://, ...);
    `options` are those of `answer`. Rows with an error count as answered.

    Raises InputError where `dataset` was not read from files (ray.data.read_parquet, read_json, ...), which Ray can go back to.
    """
    from ray.data.checkpoint import CheckpointConfig

    if not dataset.has_serializable_lineage():
        raise InputError("a data set that was not read from files is gone when its run ends; write it (dataset.write_parquet(folder)), "
                         "and give ray.data.read_parquet(folder)")  # fmt: skip
    home = str(output) if "://" in str(output) else str(Path(output).resolve())
    answered = answer(dataset.repartition(target_num_rows_per_block=rows_a_file), **{"source": source} | options)
    answered.context.checkpoint_config = CheckpointConfig(row, f"{home}/{DONE}", delete_checkpoint_on_success=False)
    try:
        answered.write_parquet(f"{home}/{ANSWERS}")
    finally:
        answered.context.checkpoint_config = None  # data sets share it with those that they were made of
    return f"{home}/{ANSWERS}"


def deployment(
    source: str | None = None, *, name: str = "lightvlm", replicas: int = 1, batch: int = 8, wait: float = 0.02,
    resources: Mapping[str, Any] | None = None, limits: Limits | None = None, sources: Sources | None = None,
    generate: Mapping[str, Any] | None = None, **opening: Any,
) -> Application:  # fmt: skip
    """An application for `ray.serve.run`: `replicas` of the server of `lightvlm serve`, whose `limits` and `sources` each has for itself.

    Over HTTP it speaks the same protocol (docs/serve.md), a request a row. Other deployments call its handle, whose method
    `answer({"prompt": ..., "picture": ...})` returns a dictionary of `answer`, `tokens`, `finish` and `error`: calls that come
    within `wait` seconds are answered as one batch of at most `batch` rows, under `generate`. `source`, `resources` and `opening` as
    in the stage `answer`; the model's name in requests is `name`, unless `opening` says another.
    """
    from ray import serve

    most = limits or Limits()

    @serve.deployment(name=name, num_replicas=replicas, ray_actor_options=dict(resources or {}) or None,
                      max_ongoing_requests=most.parallel + most.queue + 2 * batch)  # fmt: skip
    @serve.ingress()
    class Replica:
        def __init__(self) -> None:
            self.engine = open_engine(source, **{"name": name} | opening)
            apart = copy.copy(self.engine)
            apart.processor = copy.deepcopy(self.engine.processor)  # tokenizers are for one thread at a time
            self.rows = Rows(apart, limits=most, **(generate or {}))

        def __serve_build_asgi_app__(self) -> Any:
            from lightvlm_fx.serving.app import build

            return build(self.engine, most, sources)

        @serve.batch(max_batch_size=batch, batch_wait_timeout_s=wait)
        async def answer(self, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
            questions = [(one.get("prompt"), one.get("picture")) for one in asked]
            answers = await asyncio.to_thread(self.rows.answer, questions)
            return [{COLUMNS[key]: value for key, value in dataclasses.asdict(answer).items()} for answer in answers]

    return Replica.bind()
