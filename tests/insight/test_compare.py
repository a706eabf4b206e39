import json
from pathlib import Path

import httpx
import pytest

from tunekeeper.errors import (
    InvalidData,
    InvalidRequest,
    NotFound,
    Overloaded,
    PermissionDenied,
    Unauthenticated,
    UpstreamFailed,
)
from tunekeeper.insight.compare import fetch_compare, parse_compare, read_compare

URL = "https://github.com/owner/docs/compare/v1...v2"
PATCH = "@@ -1 +1,2 @@\n-a\n+b\n+c"


def entry(name: str = "a.md", **more: object) -> dict[str, object]:
    return {
        "filename": name,
        "status": "modified",
        "additions": 2,
        "deletions": 1,
        "changes": 3,
        "patch": PATCH,
        **more,
    }


def answer(*files: dict[str, object], **more: object) -> dict[str, object]:
    commits = [{"sha": "c" * 40, "commit": {"committer": {"date": "2026-01-05T23:00:00Z"}}}]
    return {"html_url": URL, "base_commit": {"sha": "b" * 40}, "commits": commits, "files": list(files), **more}


def test_the_shape_of_github_is_read():
    changes = parse_compare([answer(entry(status="renamed", previous_filename="old.md"))], where="x")
    assert (changes.date, changes.url, changes.source) == ("2026-01-05", URL, "owner/docs")
    assert (changes.base, changes.head) == ("b" * 40, "c" * 40)
    [change] = changes.files
    assert (change.filename, change.previous_filename, change.status) == ("a.md", "old.md", "renamed")
    assert (change.additions, change.deletions, change.is_cut) == (2, 1, False)
    assert changes.lacks == ()


def test_a_file_with_a_day_and_a_category_is_read_in_any_encoding_of_json(tmp_path):
    path = tmp_path / "c.json"
    data = {"date": "2025-06-12", "category": "openai", "html_url": URL, "files": [entry()]}
    for encoding in ("utf-8", "utf-16", "utf-8-sig"):
        path.write_text(json.dumps(data), encoding)
        changes = read_compare(path)
        assert (changes.date, changes.category) == ("2025-06-12", "openai")
    path.write_text(json.dumps([data, {**data, "files": [entry("b.md")]}]))
    assert [change.filename for change in read_compare(path).files] == ["a.md", "b.md"]


def test_caps_are_said():
    many = parse_compare([answer(*(entry(f"{n}.md") for n in range(300)))], where="x")
    assert "300 files at most" in many.lacks[0]
    cut = parse_compare([answer(entry(additions=900), entry("left.md", patch=None), entry("ok.md"))], where="x")
    assert [change.is_cut for change in cut.files] == [True, True, False]
    assert any("left out" in lack and "left.md" in lack for lack in cut.lacks)
    assert any("not whole" in lack and "a.md" in lack for lack in cut.lacks)


def test_a_picture_without_a_patch_is_no_cut():
    changes = parse_compare([answer(entry("p.png", patch=None, additions=0, deletions=0, status="added"))], where="x")
    assert changes.files[0].is_binary
    assert changes.lacks == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ("[]" * 50_000, "not JSON"),
        ("3", "no list of `files`"),
        ("{}", "no list of `files`"),
        ('{"message": "Not Found"}', "no list of `files`"),
        ('{"files": 3}', "no list of `files`"),
        ('{"files": [{}]}', "has no `filename`"),
        ('{"files": [{"filename": "a", "patch": 3}]}', "must be texts"),
        ('{"files": [{"filename": "a", "additions": "many"}]}', "whole numbers"),
        ('{"date": "yesterday", "files": []}', "not one like"),
    ],
)
def test_what_is_no_answer_is_refused_with_what_is_wrong(text, said, tmp_path):
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(InvalidData, match=said):
        read_compare(path)


def test_a_missing_file_is_said():
    with pytest.raises(NotFound, match="cannot be read"):
        read_compare(Path("no-such.json"))


def transport(*responses: httpx.Response) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    waiting, requests = list(responses), []

    def handle(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return waiting.pop(0)

    return httpx.MockTransport(handle), requests


def test_all_pages_are_asked_for_with_the_token():
    later = {"commits": [{"sha": "d" * 40, "commit": {"committer": {"date": "2026-01-07T01:00:00Z"}}}], "files": []}
    link = {"link": '<https://api.github.com/next?page=2>; rel="next", <https://api.github.com/x>; rel="last"'}
    fake, requests = transport(httpx.Response(200, json=answer(entry()), headers=link), httpx.Response(200, json=later))
    changes = fetch_compare(URL, token="secret", transport=fake)
    assert (changes.date, changes.head, len(changes.files)) == ("2026-01-07", "d" * 40, 1)
    assert str(requests[0].url).startswith("https://api.github.com/repos/owner/docs/compare/v1...v2")
    assert str(requests[1].url) == "https://api.github.com/next?page=2"
    assert {request.headers["authorization"] for request in requests} == {"Bearer secret"}


def test_an_address_with_owners_and_one_of_an_enterprise_are_understood():
    fake, requests = transport(*[httpx.Response(200, json=answer()) for _ in range(2)])
    fetch_compare("https://github.com/o/d/compare/MicrosoftDocs:776cc95...MicrosoftDocs:da65020", transport=fake)
    fetch_compare("https://git.example.org/o/d/compare/a...b", transport=fake)
    assert requests[0].url.path == "/repos/o/d/compare/776cc95...da65020"
    assert str(requests[1].url).startswith("https://git.example.org/api/v3/repos/o/d/compare/a...b")
    assert "authorization" not in requests[0].headers


@pytest.mark.parametrize(
    ("status", "headers", "error", "said"),
    [
        (401, {}, Unauthenticated, "refused the token"),
        (403, {}, PermissionDenied, "does not let"),
        (403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1767225600"}, Overloaded, "until 2026-01-01"),
        (429, {}, Overloaded, "no more requests"),
        (404, {}, NotFound, "no such comparison"),
        (422, {}, UpstreamFailed, "status 422"),
    ],
)
def test_refusals_are_told_apart(status, headers, error, said):
    fake, _ = transport(httpx.Response(status, headers=headers))
    with pytest.raises(error, match=said):
        fetch_compare(URL, transport=fake)


def test_a_failing_server_is_asked_again_and_then_said():
    pauses: list[float] = []
    fake, _ = transport(httpx.Response(502), httpx.Response(503), httpx.Response(200, json=answer(entry())))
    assert len(fetch_compare(URL, transport=fake, sleep=pauses.append).files) == 1
    assert pauses == [2.0, 4.0]
    fake, _ = transport(*[httpx.Response(502) for _ in range(3)])
    with pytest.raises(UpstreamFailed, match="status 502"):
        fetch_compare(URL, transport=fake, sleep=pauses.append)


def test_a_server_that_cannot_be_reached_is_said():
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("no route")

    with pytest.raises(UpstreamFailed, match="could not be reached: no route"):
        fetch_compare(URL, transport=httpx.MockTransport(refuse), sleep=lambda _: None)


def test_an_address_of_something_else_is_refused():
    with pytest.raises(InvalidRequest, match="no comparison"):
        fetch_compare("https://github.com/owner/docs")
