"""OpenAI's own client, over HTTP, asks the bundled model and its artifact; answers equal those of one thread without a server."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from served import Letters, ask, metric, picture, served, until

import lightvlm_fx as lightvlm
from lightvlm_fx import bundled
from lightvlm_fx.exporting.example import example
from lightvlm_fx.pictures import inputs_of, open_picture
from lightvlm_fx.serving.limits import Limits

openai = pytest.importorskip("openai")
for package in ("starlette", "uvicorn", "prometheus_client"):
    pytest.importorskip(package)

ITEMS = [
    (path, question) for path in sorted(bundled.PICTURES.glob("*.png")) for question in path.with_suffix(".txt").read_text().splitlines()
]  # fmt: skip
SCHEDULE = lightvlm.Schedule.preset("lightvlm", keep=0.35)


@pytest.fixture(scope="module")
def source():
    return bundled.load()


@pytest.fixture(scope="module")
def compiled(source):
    return lightvlm.compile(source[0], SCHEDULE, backend="eager")


@pytest.fixture(scope="module")
def artifact(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served") / "bundled"
    model, processor = source
    lightvlm.export(model, SCHEDULE, folder, inputs=[example(processor, [], rows=1, images=2)], processor=processor, new_tokens=256)
    return folder


@pytest.fixture(params=["model", "artifact"])
def kind(request):
    return request.param


@pytest.fixture
def engine(kind, request, source):
    """Either engine, as the command makes it."""
    if kind == "model":
        from lightvlm_fx.serving.model import ModelEngine

        engine = ModelEngine(request.getfixturevalue("compiled"), source[1], "bundled")
        engine.warm_up()
        return engine
    from lightvlm_fx.serving.artifact import ArtifactEngine

    return ArtifactEngine(lightvlm.load(request.getfixturevalue("artifact")), "bundled")


def answering(engine):
    return getattr(engine, "model", None) or engine.vlm


@pytest.fixture
def alone(engine, kind, source):
    """What generate() answers in one thread without a server, by item."""
    processor = source[1]
    out = {}
    for path, question in ITEMS:
        inputs = inputs_of(processor, question, [open_picture(path)], "pt" if kind == "model" else "np")
        tokens = answering(engine).generate(**inputs, max_new_tokens=128, do_sample=False)
        out[path, question] = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
    return out


def client(url, **options):
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0, **options)


def data_url(path):
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def said(user, item, **more):
    """The answer to one item."""
    path, question = item
    body = picture(data_url(path), question, "bundled", max_tokens=128, temperature=0, **more)
    if not more.get("stream"):
        return user.chat.completions.create(**body).choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in user.chat.completions.create(**body))


@pytest.mark.parametrize("parallel", [1, 4])
def test_eight_clients_at_once_are_answered_as_one(engine, alone, parallel):
    assert len(set(alone.values())) > 5
    with served(engine, Limits(parallel=parallel)) as url, ThreadPoolExecutor(8) as eight:
        users = [client(url) for _ in range(8)]
        asked = [(item, users[at % 8], stream) for at, (item, stream) in enumerate((i, s) for i in ITEMS for s in (False, True))]
        found = list(eight.map(lambda one: said(one[1], one[0], stream=one[2]), asked))
        assert found == [alone[item] for item, _, _ in asked]
        assert until(lambda: metric(url, 'lightvlm_requests_total{status="200"}') == len(asked))  # counted when all of it is sent
        for user in users:
            user.close()


def test_the_client_reads_models_usage_and_errors(engine):
    with served(engine, Limits(tokens=64, picture_bytes=10**6)) as url, client(url) as user:
        assert [model.id for model in user.models.list()] == ["bundled"]
        messages = [{"role": "user", "content": "how many objects are there ?"}]
        whole = user.chat.completions.create(model="bundled", messages=messages, stream=False)
        assert whole.system_fingerprint == SCHEDULE.fingerprint
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens > 0
        options = {"stream": True, "stream_options": {"include_usage": True}}
        with user.chat.completions.create(model="bundled", messages=messages, **options) as stream:
            assert list(stream)[-1].usage == whole.usage
        with pytest.raises(openai.BadRequestError, match="an answer of 65 tokens is asked for, at most 64"):
            user.chat.completions.create(model="bundled", messages=messages, max_tokens=65)
        with pytest.raises(openai.NotFoundError):
            user.chat.completions.create(model="other", messages=messages)
        with pytest.raises(openai.BadRequestError, match="picture"):
            user.chat.completions.create(model="bundled", messages=[{"role": "user", "content": "<image> what ?"}])
        large = "data:image/png;base64," + base64.b64encode(bytes(50_000_000)).decode()
        with pytest.raises(openai.APIStatusError) as caught:
            user.chat.completions.create(**picture(large, model="bundled"))
        assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")


def test_a_dialogue_and_two_pictures(engine, kind, source):
    """A chat of several turns is asked as the processor's template writes it."""
    path = ITEMS[0][0]
    url = data_url(path)
    messages = [*picture(url, "how many objects are there ?")["messages"], {"role": "assistant", "content": "eight"},
                *picture(url, "describe the picture .")["messages"]]  # fmt: skip
    processor = source[1]
    chat = [m | {"content": [{"type": "image"} if p["type"] == "image_url" else p for p in m["content"]]
                 if isinstance(m["content"], list) else [{"type": "text", "text": m["content"]}]} for m in messages]  # fmt: skip
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=[open_picture(path)] * 2, text=[text], return_tensors="pt" if kind == "model" else "np")
    tokens = answering(engine).generate(**inputs, max_new_tokens=32, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    with served(engine) as url, client(url) as user:
        found = user.chat.completions.create(model="bundled", messages=messages, max_tokens=32, temperature=0)
    assert found.choices[0].message.content == processor.decode(tokens, skip_special_tokens=True).strip()
    assert found.usage.prompt_tokens == inputs["input_ids"].shape[1]


def test_sampling_repeats_with_a_seed_and_differs_without(engine):
    with served(engine) as url, client(url) as user:
        def once(**more):
            body = picture(data_url(ITEMS[0][0]), "describe the picture .", "bundled")
            return user.chat.completions.create(**body, temperature=1.9, max_tokens=40, **more).choices[0].message.content

        assert once(seed=1) == once(seed=1)
        first = once(seed=2)
        assert any(once() != first for _ in range(20))  # the model is sure of most words


def test_a_client_that_leaves_ends_its_answer(engine):
    limits = Limits(tokens=200)
    with served(engine, limits) as url, client(url) as user:
        path, question = ITEMS[0]
        body = picture(data_url(path), question, "bundled")
        with user.chat.completions.create(**body, stream=True, max_tokens=200, extra_body={"min_tokens": 200}) as stream:
            for _ in range(3):
                next(stream)
        assert until(lambda: ask(url, None, "/health")[2]["running"] == 0)
        assert metric(url, 'lightvlm_requests_total{status="left"}') == 1
        assert metric(url, "lightvlm_answer_tokens_total") < 150
        assert said(user, ITEMS[0])


@pytest.fixture
def command():
    """Start `lightvlm serve` without torch, or with; gives its address and ends it by SIGTERM."""
    started = []

    def start(*words, torch):
        absent = "" if torch else "sys.modules['torch'] = None; "
        code = f"import sys; {absent}from lightvlm_fx.cli.main import main; main()"
        process = subprocess.Popen([sys.executable, "-c", code, "serve", *words, "--port", "0"], stdout=subprocess.PIPE, text=True,
                                   env=os.environ | {"COLUMNS": "200"})  # fmt: skip
        started.append(process)
        return process, process.stdout.readline()

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.parametrize("torch", [False, True])
def test_the_command(command, artifact, torch):
    """An artifact where there is no torch, and the bundled model; both end when they are told to, with 0."""
    words = ("--backend", "eager", "-p", "lightvlm", "--keep", "0.35") if torch else (str(artifact),)
    process, line = command(*words, torch=torch)
    assert line.startswith("serving bundled at http://127.0.0.1:")
    url = line.split(" at ")[1].strip().removesuffix("/v1")
    with client(url) as user:
        assert said(user, ITEMS[0]) == said(user, ITEMS[0], stream=True) != ""
    assert ask(url, None, "/v1/models")[2]["data"][0]["fingerprint"] == SCHEDULE.fingerprint
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)
    assert time.monotonic() - begun < 10


def test_the_command_says_what_is_wrong(run, monkeypatch, tmp_path):
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    (artifact / "lightvlm.json").write_text("{}")
    code, _, err = run("serve", str(artifact), "--keep", "0.3")
    assert (code, "is an artifact, whose schedule is fixed; leave out --preset, --keep and --schedule" in err) == (2, True)
    code, _, err = run("serve", "--allow-files", str(tmp_path / "none"))
    assert (code, "there is no folder" in err) == (2, True)
    code, _, err = run("serve", str(tmp_path / "none"))
    assert (code, "there is no folder" in err) == (2, True)
    code, _, err = run("serve", "--timeout", "0")
    assert (code, "the limit seconds must be above 0" in err) == (2, True)
    monkeypatch.setattr("lightvlm_fx.serving.opening._artifact", lambda *given: Letters())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, err = run("serve", str(artifact), "--port", str(taken.getsockname()[1]))
    assert (code, "in use" in err) == (2, True)
    monkeypatch.setattr("lightvlm_fx.cli.serve.NEEDED", ("starlette", "none_such"))
    code, _, err = run("serve")
    assert (code, "this command needs none_such: pip install 'lightvlm-fx[serve]'" in err) == (2, True)


def test_help_needs_neither_torch_nor_a_server():
    code = "import sys; sys.argv=['lightvlm','serve','--help']\nfrom lightvlm_fx.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "import json; print(json.dumps(sorted({'torch', 'transformers', 'starlette', 'uvicorn', 'numpy'} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert "--allow-private" in done.stdout
