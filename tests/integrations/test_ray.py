"""Ray Data and Ray Serve on a local cluster of two workers: nothing lost, nothing twice, whoever is killed."""

import base64
import socket
import threading
import time
from types import SimpleNamespace

import pytest

import lightvlm_fx as lightvlm
from lightvlm_fx import bundled
from lightvlm_fx.errors import InputError
from lightvlm_fx.serving.limits import Limits

ray = pytest.importorskip("ray")
pyarrow = pytest.importorskip("pyarrow")

from pyarrow import parquet  # noqa: E402  (after the skip)

from lightvlm_fx.integrations.ray import ANSWERS, DONE, Worker, answer_into, deployment  # noqa: E402

pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]  # ray's own

PICTURES = sorted(bundled.PICTURES.glob("*.png"))
QUESTION = "how many objects are there ?"
OPENING = {"backend": "eager", "schedule": lightvlm.Schedule.preset("lightvlm", keep=0.35)}
GENERATE = {"max_new_tokens": 100}
STORE = 100 * 2**20  # bytes of shared memory a node
CPUS = 4  # that a node says it has
BROKEN, LONG = 5, 11


def rows(count, first=0):
    """Rows with the bytes of a picture; two of the first twelve cannot be asked."""
    out = [{"id": f"r{at:03}", "prompt": QUESTION if at % 2 else "describe the picture", "picture": PICTURES[at % 4].read_bytes(), "at": at}
           for at in range(first, first + count)]  # fmt: skip
    for row in out:
        row.update({BROKEN: {"picture": b"no picture"}, LONG: {"prompt": "word " * 400}}.get(row["at"], {}))
    return out


def plain(found):
    """Rows in their order, without what Pillow says of a picture, which names an object of its process."""
    return sorted((row | {"error": row["error"].partition(" (")[0]} for row in found), key=lambda row: row["id"])


def written(folder):
    return plain(parquet.read_table(folder).to_pylist())


@pytest.fixture(scope="module")
def alone():
    """What one worker without a cluster answers."""
    worker = Worker(None, "picture", "prompt", Limits(prompt_tokens=300), GENERATE, OPENING)
    return lambda asked: plain(worker(pyarrow.Table.from_pylist(asked)).to_pylist())


def test_a_worker_answers_a_table(alone):
    """The only test without a cluster."""
    found = alone(rows(4, first=4))
    assert [sorted(row) for row in found] == [["answer", "at", "error", "finish", "id", "prompt", "tokens"]] * 4
    assert [row["id"] for row in found] == ["r004", "r005", "r006", "r007"]
    assert [bool(row["error"]) for row in found] == [False, True, False, False]
    assert [bool(row["answer"]) for row in found] == [True, False, True, True]
    with pytest.raises(InputError, match="the rows have no column 'picture', they have id, prompt; name the right one by picture="):
        alone([{"id": "r0", "prompt": QUESTION}])


@pytest.fixture(scope="module")
def cluster():
    """A head that runs nothing, and two workers with room for both answering actors and what reads and writes for them."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False})
    made.spare = [made.add_node(num_cpus=CPUS, object_store_memory=STORE) for _ in range(2)]
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    yield made
    ray.shutdown()
    made.shutdown()


def asked(folder, *, workers=2, **more):
    """Answer the data set of `folder`/rows into `folder`/out."""
    dataset = ray.data.read_parquet(f"{folder}/rows")
    options = {"workers": workers, "batch": 2, "rows_a_file": 2, "limits": Limits(prompt_tokens=300), "generate": GENERATE}
    return answer_into(folder / "out", dataset, **options | OPENING | more)


def write(folder, name, table):
    (folder / "rows").mkdir(exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(table), folder / "rows" / name)


@pytest.fixture(scope="module")
def begun(cluster, alone, tmp_path_factory):
    """A data set of 40 rows, answered by two workers, one of which is killed with its whole node when six rows are written."""
    folder, all_rows = tmp_path_factory.mktemp("ray"), rows(40)
    write(folder, "0.parquet", all_rows)
    state = SimpleNamespace(folder=folder, rows=all_rows, at=0)

    def kill():
        while len(list((folder / "out" / DONE).glob("*.parquet"))) < 3:
            time.sleep(0.02)
        state.at = len(written(folder / "out" / ANSWERS))
        cluster.remove_node(cluster.spare.pop(), allow_graceful=False)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    state.place = asked(folder)
    state.found = written(state.place)  # before a test adds to it: they run in any order
    killer.join(timeout=120)
    assert not killer.is_alive()
    cluster.spare.append(cluster.add_node(num_cpus=CPUS, object_store_memory=STORE))
    return state


@pytest.mark.full
def test_a_worker_killed_half_way_loses_nothing_and_answers_nothing_twice(begun, alone):
    assert 0 < begun.at < 30
    assert [row["id"] for row in begun.found] == [row["id"] for row in begun.rows]
    assert begun.found == alone(begun.rows)
    errors = {row["at"]: row["error"] for row in begun.found if row["error"]}
    assert sorted(errors) == [BROKEN, LONG]
    assert (errors[BROKEN], errors[LONG][:14]) == ("the picture: not a picture that Pillow can read", "the prompt has")


@pytest.mark.full
def test_a_second_run_asks_only_what_is_new_or_was_not_complete(begun, alone):
    folder = begun.folder
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "out" / ANSWERS).iterdir()}
    # a run that ended between a file and the note that it is complete; and one that ended within a file
    first, second = sorted((folder / "out" / DONE).iterdir())[:2]
    first.rename(first.with_suffix(".pending.parquet"))
    second.rename(second.with_suffix(".pending.parquet"))
    [cut] = (folder / "out" / ANSWERS).glob(f"{second.stem}*")
    cut.write_bytes(cut.read_bytes()[:100])
    more = rows(3, first=40)
    write(folder, "1.parquet", more)
    asked(folder, workers=1)
    found = written(begun.place)
    assert [row["id"] for row in found] == [row["id"] for row in begun.rows + more]
    assert found == alone(begun.rows + more)
    after = {path.name: path.stat().st_mtime_ns for path in (folder / "out" / ANSWERS).iterdir()}
    assert sum(after.get(name) == at for name, at in before.items()) == len(before) - 2


@pytest.mark.full
def test_a_data_set_that_is_in_no_file_is_refused(cluster, tmp_path):
    with pytest.raises(InputError, match="a data set that was not read from files"):
        answer_into(tmp_path, ray.data.from_items(rows(2)), **OPENING)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def served(cluster):
    """The address and the handle of a server of two replicas."""
    from ray import serve

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port, "location": "HeadOnly"})
    made = deployment(replicas=2, batch=4, wait=0.2, limits=Limits(prompt_tokens=300), generate=GENERATE, name="bundled", **OPENING)
    yield f"http://127.0.0.1:{port}", serve.run(made, name="lightvlm", route_prefix="/")
    serve.shutdown()


@pytest.mark.full
def test_replicas_speak_the_servers_protocol_and_answer_calls_in_batches(served, alone):
    openai = pytest.importorskip("openai")
    url, handle = served
    items = rows(8)
    expected = {row["id"]: row["answer"] for row in alone(items)}
    calls = {row["id"]: handle.answer.remote({"prompt": row["prompt"], "picture": row["picture"]}) for row in items}
    found = {name: call.result(timeout_s=120) for name, call in calls.items()}
    assert {name: said["answer"] for name, said in found.items()} == expected
    assert [name for name, said in found.items() if said["error"]] == [f"r{BROKEN:03}"]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as user:
        for row in items[:4]:
            data = f"data:image/png;base64,{base64.b64encode(row['picture']).decode()}"
            content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": row["prompt"]}]
            body = {"model": "bundled", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 100}
            assert user.chat.completions.create(**body).choices[0].message.content == expected[row["id"]]
        pieces = [chunk.choices[0].delta.content or "" for chunk in user.chat.completions.create(**body, stream=True)]
        assert "".join(pieces) == expected[row["id"]]
        with pytest.raises(openai.BadRequestError, match="this server takes 300 tokens"):
            user.chat.completions.create(model="bundled", messages=[{"role": "user", "content": "word " * 400}])
