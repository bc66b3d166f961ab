"""The OpenAI-compatible engine against a real HTTP server that answers from a script."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from caravan.data.records import Message
from caravan.inference import TOO_LONG, EngineError, load_engine
from caravan.inference.openai_engine import OpenAIEngine
from caravan.recipe import OpenAIEngineConfig, Sampling

SAMPLING = Sampling(temperature=0.7, top_p=0.9, max_completion_length=33)


def prompt(text):
    return (Message(role="user", content=text),)


def reply(text, finish="stop"):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return 200, json.dumps({"choices": [choice | {"finish_reason": finish}]})


def echo(body):
    return reply(f"you said: {body['messages'][-1]['content']}")


class Endpoint(ThreadingHTTPServer):
    """Answers the first requests from a script and the others with `otherwise`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = []
        self.otherwise = echo
        self.requests = []
        self.headers = []
        self.lock = threading.Lock()
        self.running = self.most_running = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        endpoint = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with endpoint.lock:
            endpoint.requests.append((self.path, body))
            endpoint.headers.append({k.title(): v for k, v in self.headers.items()})
            action = endpoint.script.pop(0) if endpoint.script else endpoint.otherwise
            endpoint.running += 1
            endpoint.most_running = max(endpoint.most_running, endpoint.running)
        try:
            answer = action(body) if callable(action) else action
            if answer is None:  # hang up without a word
                self.close_connection = True
                return
            status, text, *headers = answer
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up, as it should
        finally:
            with endpoint.lock:
                endpoint.running -= 1


@pytest.fixture
def endpoint():
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def engine(endpoint, **changes):
    config = OpenAIEngineConfig(
        base_url=endpoint.url, model="m", **({"max_retries": 3, "timeout_seconds": 60} | changes)
    )
    return OpenAIEngine(config, backoff_seconds=0.01)


def test_replies_come_in_the_order_of_the_prompts(endpoint):
    prompts = [prompt(f"hello {i}") for i in range(20)]
    told = []
    groups = engine(endpoint).generate(
        prompts, SAMPLING, n=2, seed=1, progress=lambda *numbers: told.append(numbers)
    )
    assert [[g.text for g in group] for group in groups] == [
        [f"you said: hello {i}"] * 2 for i in range(20)
    ]
    assert told[-1] == (40, 40)
    path, body = endpoint.requests[0]
    assert path == "/v1/chat/completions"
    assert body["messages"][0]["role"] == "user"
    assert {k: body[k] for k in ("model", "temperature", "top_p", "max_tokens")} == {
        "model": "m", "temperature": 0.7, "top_p": 0.9, "max_tokens": 33,
    }  # fmt: skip


def test_every_reply_has_a_seed_that_depends_on_seed_prompt_and_index(endpoint):
    def seeds(seed):
        endpoint.requests.clear()
        engine(endpoint).generate([prompt("a"), prompt("b")], SAMPLING, n=2, seed=seed)
        return sorted(body["seed"] for _, body in endpoint.requests)

    assert seeds(1) == seeds(1)
    assert len(set(seeds(1))) == 4
    assert not set(seeds(1)) & set(seeds(2))


def test_no_more_requests_at_once_than_asked_for(endpoint):
    three = threading.Barrier(3, timeout=60)

    def answered_together(body):
        three.wait()
        return echo(body)

    endpoint.otherwise = answered_together
    engine(endpoint, concurrency=3).generate([prompt(str(i)) for i in range(12)], SAMPLING, seed=0)
    assert endpoint.most_running == 3


@pytest.mark.parametrize(
    "failure",
    [
        (429, '{"error": {"message": "slow down"}}'),
        (500, "oops"),
        (503, "<html>no healthy upstream</html>"),
        (200, '{"choices": [{"mess'),  # cut off
        (200, "<html>please log in</html>"),
        (200, "[]"),
        (200, '{"choices": []}'),
        None,  # the connection breaks
    ],
)
def test_a_passing_failure_is_repeated(endpoint, failure):
    endpoint.script = [failure, failure]
    ((generation,),) = engine(endpoint).generate([prompt("hi")], SAMPLING, seed=0)
    assert generation.text == "you said: hi"
    assert len(endpoint.requests) == 3


def test_a_request_that_takes_too_long_is_repeated(endpoint):
    over = threading.Event()

    def hang(body):
        over.wait(60)
        return echo(body)

    endpoint.script = [hang]
    ((generation,),) = engine(endpoint, timeout_seconds=2).generate(
        [prompt("hi")], SAMPLING, seed=0
    )
    over.set()
    assert generation.text == "you said: hi"
    assert len(endpoint.requests) == 2


def test_the_endpoint_says_how_long_to_wait(endpoint):
    endpoint.script = [(429, "", ("retry-after", "0.4"))]
    started = time.monotonic()
    engine(endpoint).generate([prompt("hi")], SAMPLING, seed=0)
    assert time.monotonic() - started >= 0.4


@pytest.mark.parametrize(
    ("failure", "words"),
    [((500, "the disk is full"), "HTTP 500: 'the disk is full'"), ((200, "nonsense"), "nonsense")],
)
def test_a_failure_that_stays_is_an_error_and_not_an_empty_reply(endpoint, failure, words):
    endpoint.otherwise = failure
    with pytest.raises(EngineError, match="failed 4 times") as error:
        engine(endpoint).generate([prompt("hi")], SAMPLING, seed=0)
    assert words in str(error.value)
    assert len(endpoint.requests) == 4


@pytest.mark.parametrize(
    ("status", "hint"),
    [(401, "Set the environment variable TEST_KEY"), (404, "base_url"), (400, "bad model")],
)
def test_a_refusal_is_not_repeated_and_says_what_to_do(endpoint, monkeypatch, status, hint):
    monkeypatch.delenv("TEST_KEY", raising=False)
    endpoint.otherwise = (status, '{"error": {"message": "bad model"}}')
    with pytest.raises(EngineError, match=f"HTTP {status}") as error:
        engine(endpoint, api_key_env="TEST_KEY").generate([prompt("hi")], SAMPLING, seed=0)
    assert hint in str(error.value)
    assert len(endpoint.requests) == 1


@pytest.mark.parametrize(
    "refusal",
    [
        (400, '{"error": {"code": "context_length_exceeded", "message": "too many tokens"}}'),
        (400, "This model's maximum context length is 64 tokens. However, you requested 65."),
        (400, "The decoder prompt (length 80) is longer than the maximum model length of 64."),
        (400, '{"error": {"type": "exceed_context_size_error"}}'),
        (413, "prompt is too long: 210000 tokens > 200000 maximum"),
    ],
)
def test_a_prompt_that_is_too_long_has_no_reply_and_stops_nothing(endpoint, refusal):
    endpoint.otherwise = lambda body: (
        refusal if body["messages"][0]["content"] == "long" else echo(body)
    )
    groups = engine(endpoint).generate(
        [prompt("a"), prompt("long"), prompt("b")], SAMPLING, n=2, seed=1
    )
    assert groups[1] == [TOO_LONG] * 2
    assert [g[0].text for g in groups[::2]] == ["you said: a", "you said: b"]


def test_the_first_error_stops_the_rest(endpoint):
    def refuse(body):
        time.sleep(0.05)
        return 400, "no"

    endpoint.otherwise = refuse
    with pytest.raises(EngineError):
        engine(endpoint, concurrency=2).generate(
            [prompt(str(i)) for i in range(200)], SAMPLING, seed=0
        )
    assert len(endpoint.requests) < 100  # it has seconds to notice


@pytest.mark.parametrize(
    "answer",
    [reply(None), reply("", "content_filter"), reply("half", None), reply(None, "tool_calls")],
)
def test_no_content_is_an_error(endpoint, answer):
    endpoint.otherwise = answer
    with pytest.raises(EngineError, match="gave no reply"):
        engine(endpoint).generate([prompt("hi")], SAMPLING, seed=0)


def test_an_empty_reply_that_the_model_gave_is_a_reply(endpoint):
    endpoint.script = [reply(""), reply("cut", "length")]
    ((empty, cut),) = engine(endpoint, concurrency=1).generate(
        [prompt("hi")], SAMPLING, n=2, seed=0
    )
    assert (empty.text, empty.finish_reason) == ("", "stop")
    assert (cut.text, cut.finish_reason) == ("cut", "length")


def test_the_key_comes_from_the_environment(endpoint, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    engine(endpoint, api_key_env="TEST_KEY").generate([prompt("hi")], SAMPLING, seed=0)
    assert endpoint.headers[0]["Authorization"] == "Bearer sk-secret"
    endpoint.otherwise = (401, "no")
    with pytest.raises(EngineError, match="Check the key in") as error:
        engine(endpoint, api_key_env="TEST_KEY").generate([prompt("hi")], SAMPLING, seed=0)
    assert "sk-secret" not in str(error.value)


def test_an_endpoint_that_is_not_there(endpoint):
    config = OpenAIEngineConfig(base_url="http://127.0.0.1:9/v1", model="m", max_retries=1)
    with pytest.raises(EngineError, match="ConnectError"):
        OpenAIEngine(config, backoff_seconds=0.01).generate([prompt("hi")], SAMPLING, seed=0)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:8000/v1", "not an http"),
        ("ftp://host/v1", "not an http"),
        ("https://", "not an http"),
        ("https://user:secret@host/v1", "api_key_env"),
        ("https://host/v1?key=1", "query"),
        ("https://host/v1/chat/completions", "names a method"),
    ],
)
def test_a_wrong_base_url_is_refused_at_once(url, words):
    with pytest.raises(EngineError, match=words) as error:
        load_engine(OpenAIEngineConfig(base_url=url, model="m"))
    assert "secret" not in str(error.value)
