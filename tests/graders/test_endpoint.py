"""The endpoint grader against a real HTTP server: what it sends, what it reads, how it takes failure."""

import json
import socket
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import pytest

from scripted_server import scripted
from tunekeeper.errors import PermissionDenied
from tunekeeper.graders.build import build
from tunekeeper.graders.endpoint import EndpointClient
from tunekeeper.graders.post import MAX_ANSWER_BYTES
from tunekeeper.graders.spec import parse
from tunekeeper.graders.template import Ungradable, sample_of


def ask(server, *, pause_s=0.001, timeout_s=5.0, **fields):
    spec = parse({"type": "endpoint", "name": "far", "url": f"{server.url}/grade", **fields})
    client = EndpointClient(spec, pause_s=pause_s, timeout_s=timeout_s)
    try:
        return client.score(sample_of("hi"), {"answer": "hi"})
    finally:
        client.close()


def test_sample_and_item_are_posted_with_the_headers_and_the_score_is_read():
    with scripted({("POST", "/grade"): {"score": -2.5, "more": 1}}) as server:
        assert ask(server, headers={"x-functions-key": "k"}).score == -2.5
        [(_, _, body, headers)] = server.requests
    sent = json.loads(body)
    assert sent["item"] == {"answer": "hi"}
    assert sent["sample"]["output_text"] == "hi"
    assert sent["trace_id"].startswith("trace_")
    assert {name.lower(): value for name, value in headers.items()}["x-functions-key"] == "k"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"score": "high"}, "'high'"),
        ({"score": True}, "True"),
        ({"score": None}, "not with"),
        ({}, "not with"),
        (b'{"score": NaN}', "nan"),
        (b'{"score": 1' + b"0" * 400 + b"}", "not with"),
        (b"fine", "fine"),
        (b"", "not with"),
        ({"error": {"message": "bad item"}}, "bad item"),
        ((400, {"error": {"message": "bad item"}}), "status 400: bad item"),
        ((302, b""), "status 302"),
        (b" " * (MAX_ANSWER_BYTES + 1), "more than"),
    ],
)
def test_an_answer_without_a_score_is_a_fault(answer, words):
    with scripted({("POST", "/grade"): answer}) as server, pytest.raises(Ungradable) as caught:
        ask(server)
    assert caught.value.kind == "other_error"
    assert words in caught.value.message


def test_a_server_that_fails_is_asked_again_and_in_the_end_given_up():
    answers = {("POST", "/grade"): [(503, b""), (429, b""), {"score": 1}]}
    with scripted(answers) as server:
        assert ask(server).score == 1
    with scripted({("POST", "/grade"): (500, b"")}) as server:
        with pytest.raises(Ungradable, match="status 500"):
            ask(server)
        assert len(server.requests) == 3


def test_a_server_that_is_silent_or_not_there_is_unresponsive():
    with scripted({}) as server:
        pass
    with pytest.raises(Ungradable) as caught:
        ask(server)
    assert caught.value.kind == "unresponsive_reward_error"


def test_an_answer_that_trickles_in_for_ever_is_unresponsive():
    stopped = threading.Event()

    def trickle(port):
        while not stopped.is_set():
            with suppress(OSError):
                connection, _ = port.accept()
                with connection:
                    connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                    while not stopped.wait(0.02):
                        connection.sendall(b" ")

    with socket.create_server(("127.0.0.1", 0)) as port:
        port.settimeout(0.1)
        thread = threading.Thread(target=trickle, args=(port,))
        thread.start()
        try:
            with pytest.raises(Ungradable) as caught:
                ask(SimpleNamespace(url=f"http://127.0.0.1:{port.getsockname()[1]}"), timeout_s=0.2)
        finally:
            stopped.set()
            thread.join()
    assert caught.value.kind == "unresponsive_reward_error"


def test_the_rate_limit_spaces_the_requests():
    with scripted({("POST", "/grade"): {"score": 1}}) as server:
        grader = build({"type": "endpoint", "url": f"{server.url}/grade", "rate_limit": 50})
        began = time.monotonic()
        for _ in range(6):
            grader.grade(sample_of(""), {})
        grader.close()
    assert time.monotonic() - began >= 5 / 50


def test_only_the_hosts_that_the_operator_names_are_asked():
    spec = {"type": "endpoint", "url": "http://169.254.169.254/latest"}
    with pytest.raises(PermissionDenied, match="grader_hosts") as caught:
        build(spec, endpoint_hosts={"graders.example.org"})
    assert caught.value.param == "grader.url"
    build({**spec, "url": "https://Graders.example.org/x"}, endpoint_hosts={"graders.example.org"}).close()
