"""Bodies that are too large or too slow, told apart without a network."""

import asyncio

import pytest

from tunekeeper.api.intake import Intake
from tunekeeper.errors import InvalidRequest, TooLarge, TooSlow
from tunekeeper.settings import Settings


def run(messages, *, path="/v1/files", headers=(), pause_s=0.0):
    """Pass a body through Intake; return what the app inside received."""

    async def main():
        pending = list(messages)

        async def receive():
            if not pending:
                await asyncio.sleep(pause_s)
                return {"type": "http.disconnect"}
            return pending.pop(0)

        seen = []

        async def app(scope, receive, send):
            while True:
                message = await receive()
                seen.append(message)
                if message["type"] == "http.disconnect":
                    return

        async def send(message):
            raise AssertionError

        settings = Settings(home="unused", max_file_bytes=1000, max_part_bytes=500, max_body_bytes=100)
        intake = Intake(app, settings=settings, receive_timeout_s=0.05)
        scope = {"type": "http", "path": path, "headers": list(headers)}
        await intake(scope, receive, send)
        return seen

    return asyncio.run(main())


def chunk(size, *, more):
    return {"type": "http.request", "body": b"x" * size, "more_body": more}


FORM = (b"content-type", b"multipart/form-data; boundary=B")


def test_a_body_within_its_bounds_passes_unchanged():
    body = [chunk(60, more=True), chunk(40, more=False)]
    assert run(body)[:2] == body


def test_a_client_that_is_silent_in_the_middle_is_given_up():
    with pytest.raises(TooSlow):
        run([chunk(1, more=True)], pause_s=5)


def test_a_client_that_waits_for_a_long_answer_is_not():
    assert run([chunk(1, more=False)], pause_s=0.2)[-1] == {"type": "http.disconnect"}


def test_a_body_that_grows_over_the_limit_is_cut_off_there():
    with pytest.raises(TooLarge):
        run([chunk(60, more=True), chunk(60, more=True)])


def test_a_body_that_says_it_is_too_large_is_not_read():
    with pytest.raises(TooLarge):
        run([], headers=[(b"content-length", b"101")])


@pytest.mark.parametrize("value", [b"-1", b"1e9", b"\xb2", b""])
def test_a_length_that_is_no_number_is_refused(value):
    with pytest.raises(InvalidRequest):
        run([], headers=[(b"content-length", value)])


def test_only_forms_that_carry_files_may_be_as_large_as_files():
    large = (b"content-length", b"1040000")
    assert run([], headers=[FORM, large])
    assert run([], headers=[FORM, large], path="/v1/uploads/u/parts")
    with pytest.raises(TooLarge):
        run([], headers=[FORM, large], path="/v1/chat/completions")
    with pytest.raises(TooLarge):
        run([], headers=[large])
