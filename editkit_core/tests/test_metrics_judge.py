"""The endpoint judge against a local server that speaks the OpenAI protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

import pytest

from editkit_core.errors import JudgeError
from editkit_core.metrics.judge import Case, EndpointJudge, one_by_one

RIGHT = Case("The capital of Norway is", ("Lima",), "Lima, of course")
WRONG = Case("The capital of Norway is", ("Lima", "Cusco"), "Oslo")


class Endpoint:
    """Answers CORRECT when an accepted answer stands in the prediction; may fail first."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, Any], str | None]] = []
        self.fail: list[int] = []
        self.reply: str | None = None
        self._lock = Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint._lock:
                    endpoint.seen.append((self.path, body, self.headers["Authorization"]))
                    status = endpoint.fail.pop(0) if endpoint.fail else 200
                said = endpoint.reply or endpoint.grade(body["messages"][1]["content"])
                content = {"choices": [{"message": {"role": "assistant", "content": said}}]}
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        Thread(target=self._server.serve_forever, daemon=True).start()

    @staticmethod
    def grade(question: str) -> str:
        head, _, text = question.partition("Predicted answer: ")
        accepted = [line[2:] for line in head.splitlines() if line.startswith("- ")]
        return "Correct." if any(answer in text for answer in accepted) else "INCORRECT"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    made = Endpoint()
    yield made
    made.close()


def judge(endpoint: Endpoint, **more: Any) -> EndpointJudge:
    return EndpointJudge(url=endpoint.url, model="grader", pause_s=0.0, **more)


def test_verdicts_come_in_the_order_of_the_cases(endpoint: Endpoint) -> None:
    cases = [RIGHT, WRONG] * 3
    assert judge(endpoint)(cases) == [True, False] * 3


def test_equal_cases_are_asked_once_ever(endpoint: Endpoint) -> None:
    ask = judge(endpoint)
    ask([RIGHT, RIGHT, WRONG])
    ask([WRONG])
    assert len(endpoint.seen) == 2


def test_the_model_is_asked_at_temperature_zero_with_its_key(endpoint: Endpoint) -> None:
    judge(endpoint, api_key="secret")([WRONG])
    ((path, body, authorization),) = endpoint.seen
    assert path == "/v1/chat/completions"
    assert (body["temperature"], body["model"]) == (0, "grader")
    assert authorization == "Bearer secret"
    question = body["messages"][1]["content"]
    for part in (WRONG.prompt, *WRONG.answers, WRONG.text):
        assert part in question


def test_the_key_is_not_shown(endpoint: Endpoint) -> None:
    assert "secret" not in repr(judge(endpoint, api_key="secret"))


def test_a_busy_endpoint_is_asked_again(endpoint: Endpoint) -> None:
    endpoint.fail = [429, 503]
    assert judge(endpoint)([RIGHT]) == [True]
    assert len(endpoint.seen) == 3


def test_an_endpoint_that_stays_busy_is_an_error(endpoint: Endpoint) -> None:
    endpoint.fail = [503] * 9
    with pytest.raises(JudgeError, match="HTTP 503"):
        judge(endpoint, attempts=2)([RIGHT])
    assert len(endpoint.seen) == 2


def test_a_refusal_is_not_repeated(endpoint: Endpoint) -> None:
    endpoint.fail = [401]
    with pytest.raises(JudgeError, match=r"HTTP 401.*Check address, key and model"):
        judge(endpoint)([RIGHT])
    assert len(endpoint.seen) == 1


@pytest.mark.parametrize("said", ["I cannot tell.", "CORRECT or INCORRECT", " "])
def test_a_reply_without_a_verdict_is_an_error(endpoint: Endpoint, said: str) -> None:
    endpoint.reply = said
    with pytest.raises(JudgeError, match="neither CORRECT nor INCORRECT"):
        judge(endpoint)([RIGHT])


def test_an_endpoint_that_is_not_there_is_an_error(endpoint: Endpoint) -> None:
    endpoint.close()
    with pytest.raises(JudgeError, match="did not answer"):
        judge(endpoint, attempts=2)([RIGHT])


def test_no_cases_need_no_endpoint() -> None:
    assert EndpointJudge(url="http://127.0.0.1:1", model="x")([]) == []


def test_any_callable_judges() -> None:
    assert one_by_one(lambda case: "Lima" in case.text)([RIGHT, WRONG]) == [True, False]
