"""A distillation from the first request to the page, through the official client's `post` and `get`."""

import time

import openai
import pytest

from distilling import HYPERPARAMETERS, stocked
from tunekeeper.api.server import background

PATH = "/fine_tuning/distill"
ENDED = ("completed", "failed", "canceled")


@pytest.fixture(scope="module")
def client(tmp_path_factory, tiny_base):
    settings = stocked(tmp_path_factory.mktemp("distill") / "home", tiny_base)
    with background(settings) as url, openai.OpenAI(base_url=url, api_key="none", max_retries=0) as made:
        yield made


def until(ask, is_done):
    deadline = time.monotonic() + 240
    while not is_done(found := ask()):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def test_teacher_and_student_end_on_one_page(client):
    asked = {
        "student_model": "tiny",
        "filter": {"model": "large"},
        "held_out_fraction": 0.3,
        "seed": 7,
        "teacher_price": {"input": 2.5, "output": 10.0},
        "hyperparameters": HYPERPARAMETERS,
    }
    made = client.post(PATH, body=asked, cast_to=dict)
    job_id = made["job"]["id"]
    job = until(lambda: client.fine_tuning.jobs.retrieve(job_id), lambda job: job.finished_at is not None)
    assert job.status == "succeeded"

    begun = client.post(f"{PATH}/{job_id}/evaluate", body={}, cast_to=dict)
    again = client.post(f"{PATH}/{job_id}/evaluate", body={}, cast_to=dict)
    ids = [{role: run["id"] for role, run in each["evaluation"]["runs"].items()} for each in (begun, again)]
    assert ids[0] == ids[1]
    eval_id = begun["evaluation"]["eval_id"]
    for run_id in ids[0].values():
        run = until(
            lambda run_id=run_id: client.evals.runs.retrieve(run_id, eval_id=eval_id), lambda run: run.status in ENDED
        )
        assert (run.status, run.result_counts.errored) == ("completed", 0)

    found = client.get(f"{PATH}/{job_id}", cast_to=dict)
    teacher, student, before = found["comparison"]["series"]
    assert [one["name"] for one in (teacher, student, before)] == ["teacher", "student", "student before"]
    assert [one["model"] for one in (teacher, student, before)] == ["large", job.fine_tuned_model, "tiny"]
    assert teacher["passed"]["value"] == 1.0  # it agrees with itself
    assert student["passed"]["value"] < 1.0
    assert teacher["usage"]["latency, s"]["mean"] == 2.0
    # 20 tokens at 2.5 and 3 at 10 a million, a thousand times
    assert teacher["usage"]["cost of 1,000"]["mean"] == pytest.approx(0.08)
    assert teacher["n"] == student["n"] == found["counts"]["held_out"]
    page = client.get(f"{PATH}/{job_id}", options={"params": {"format": "html"}}, cast_to=str)
    for text in ("large", str(job.fine_tuned_model), "right by construction"):
        assert text in page

    grader = {"type": "string_check", "name": "digit", "operation": "like", "input": "{{ sample.output_text }}"}
    body = {"grader": {**grader, "reference": "nothing says this"}}
    other = client.post(f"{PATH}/{job_id}/evaluate", body=body, cast_to=dict)
    assert other["evaluation"]["eval_id"] != eval_id
    other = until(lambda: client.get(f"{PATH}/{job_id}", cast_to=dict), lambda found: found["comparison"] is not None)
    assert [one["passed"]["value"] for one in other["comparison"]["series"]] == [0.0, 0.0, 0.0]
    assert not any("by construction" in note for note in other["comparison"]["notes"])


def test_traffic_that_does_not_fit_is_an_error_that_the_client_knows(client):
    with pytest.raises(openai.BadRequestError, match="No stored completion fits"):
        client.post(PATH, body={"student_model": "tiny", "filter": {"model": "nobody"}}, cast_to=dict)
