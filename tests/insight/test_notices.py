import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from openai import OpenAI

from published_reports import publish, report
from scripted_server import scripted
from tunekeeper.errors import InvalidConfig
from tunekeeper.insight.notices import MAX_ISSUE_CHARACTERS, Notice, Targets, issue_body, notice_of, payload, send
from tunekeeper.insight.published import read_report

# apprise imports a module that Python is giving up
pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")

URL = "https://docs.example/2025/06/report.html"
HIT = "Deployment chat runs on gpt-4, which retires on 2025-07-16, 16 days earlier than before."


@pytest.fixture
def notice(tmp_path: Path) -> Notice:
    return notice_of(read_report(publish(tmp_path)), url=URL, hits=[HIT])


def test_what_hits_comes_first_and_breaking_changes_before_the_rest(notice: Notice) -> None:
    body = issue_body(notice)
    places = [body.index(text) for text in (HIT, "16 日前倒し", "道具の説明の更新")]
    assert places == sorted(places)
    assert [item.type for item in notice.items] == ["breaking change", "minor update"]
    assert f"({URL}#item-03fc2e): `docs/retirements.md`" in body


def test_a_webhook_gets_the_notice_and_a_signature_that_the_official_client_verifies(notice: Notice) -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    with scripted({("POST", "/hook"): {}}) as server:
        assert send(notice, Targets(webhooks=[f"{server.url}/hook"], secret=secret)) == []
        ((_, _, body, headers),) = server.requests
    assert json.loads(body) == payload(notice)
    assert json.loads(body)["data"]["items"][0]["url"] == f"{URL}#item-03fc2e"
    client = OpenAI(api_key="none", webhook_secret=secret)
    client.webhooks.verify_signature(body, headers)
    with pytest.raises(Exception, match="signature"):
        client.webhooks.verify_signature(body.replace(b"gpt-4", b"gpt-5"), headers)
    sent_at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
    assert abs((datetime.now(UTC) - sent_at).total_seconds()) < 120


def test_without_a_secret_nothing_is_signed(notice: Notice) -> None:
    with scripted({("POST", "/hook"): {}}) as server:
        assert send(notice, Targets(webhooks=[f"{server.url}/hook"])) == []
        ((_, _, _, headers),) = server.requests
    assert "webhook-signature" not in headers
    assert headers["webhook-id"] == notice.id


def test_targets_that_fail_are_named_without_their_tokens_and_stop_no_other(notice: Notice) -> None:
    with scripted({("POST", "/hook"): {}}) as server:
        failures = send(
            notice,
            Targets(
                apprise=["nosuch://token-a", f"json://127.0.0.1:{server.server_port}/v1/missing?token=token-b"],
                webhooks=[
                    f"{server.url}/missing?key=token-c",
                    "http://user:token-d@127.0.0.1:9/x",
                    "no address token-e",
                    f"{server.url}/hook",
                ],
            ),
        )
        assert len(server.bodies("POST", "/hook")) == 1
    assert len(failures) == 5
    assert "apprise does not understand the address" in failures[0]
    assert "the service did not take the message" in failures[1]
    assert "it answered 404" in failures[2]
    assert "http://127.0.0.1 was not told: ConnectError" in failures[3]
    assert not any("token-" in failure for failure in failures)


def test_apprise_tells_a_service(notice: Notice) -> None:
    with scripted({("POST", "/hook"): {}}) as server:
        assert send(notice, Targets(apprise=[f"json://127.0.0.1:{server.server_port}/v1/hook"])) == []
        (body,) = server.bodies("POST", "/hook")
    told = json.loads(body)
    assert told["title"] == "Diff Insight Report - openai 2025-06-12"
    assert told["type"] == "warning"
    assert told["message"].startswith(f"{HIT}\n[breaking change] gpt-4")


def test_a_secret_that_is_no_base64_is_refused_before_anything_is_sent(notice: Notice) -> None:
    with scripted({("POST", "/hook"): {}}) as server:
        with pytest.raises(InvalidConfig, match="base64"):
            send(notice, Targets(webhooks=[f"{server.url}/hook"], secret="whsec_***"))
        assert server.requests == []


def test_the_words_of_a_document_mention_nobody_and_link_no_issue(tmp_path: Path) -> None:
    text = report(summary="'ask @octocat about #12 <img src=x>'")
    body = issue_body(notice_of(read_report(publish(tmp_path, text))))
    assert "@octocat" not in body
    assert "#12" not in body
    assert "<img" not in body


def test_a_long_issue_is_cut_at_a_line_and_says_where_the_rest_is(tmp_path: Path) -> None:
    row = "| [a.md](#item-{0}) | minor update | " + "長い題名" * 20 + " | modified | 1 | 1 | 2 |\n"
    rows = "".join(row.format(n) for n in range(1500))
    text = report().replace("| [tools.md]", f"{rows}| [tools.md]")
    body = issue_body(notice_of(read_report(publish(tmp_path, text)), url=URL))
    assert MAX_ISSUE_CHARACTERS - 1000 < len(body) < 65_536
    assert body.endswith(f"… and more: {URL}\n")
    assert "16 日前倒し" in body


def test_the_same_report_has_the_same_id(notice: Notice, tmp_path: Path) -> None:
    assert notice.id == notice_of(read_report(publish(tmp_path))).id
    assert notice.id != notice_of(read_report(publish(tmp_path, day="2025-06-13"))).id
