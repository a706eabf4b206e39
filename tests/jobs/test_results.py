import csv
import io
import math

from tunekeeper.jobs.results import (
    COLUMNS,
    checkpoint_metrics,
    history,
    metrics_data,
    metrics_message,
    results_csv,
)
from tunekeeper.trainer.step import Step
from tunekeeper.types import Event


def step(n, **changes):
    values = {
        "step": n,
        "total_steps": 4,
        "epoch": n / 2,
        "train_loss": 1 / n,
        "train_mean_token_accuracy": 0.5,
        "learning_rate": 1e-4,
        "grad_norm": 0.25,
        "tokens": 10 * n,
        "seconds": 0.1,
    }
    return Step(**{**values, **changes})


def event(measured):
    return Event(
        id=f"e{measured.step}",
        job_id="j",
        created_at=0,
        level="info",
        message="",
        type="metrics",
        data=metrics_data(measured),
    )


OTHER = Event(id="x", job_id="j", created_at=0, level="info", message="hello")


def test_the_csv_has_one_row_a_step_in_order_whatever_the_order_of_the_events():
    rows = list(csv.DictReader(io.StringIO(results_csv([event(step(2)), OTHER, event(step(1))]).decode())))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert tuple(rows[0]) == COLUMNS


def test_the_csv_spells_a_column_as_both_vendors_do_and_leaves_blank_what_was_not_measured():
    rewards = {"train_reward_mean": 0.25, "valid_reward_mean": 0.5}
    measured = step(1, valid_loss=2.0, valid_mean_token_accuracy=0.75, details=rewards)
    (row,) = csv.DictReader(io.StringIO(results_csv([event(measured)]).decode()))
    assert row["train_accuracy"] == row["train_mean_token_accuracy"] == "0.5"
    assert row["validation_mean_token_accuracy"] == row["valid_mean_token_accuracy"] == "0.75"
    assert row["train_mean_reward"] == row["train_reward_mean"] == "0.25"
    assert row["full_validation_mean_reward"] == row["valid_reward_mean"] == "0.5"
    assert row["full_valid_loss"] == ""


def test_a_job_without_a_step_has_a_header():
    assert results_csv([]) == ",".join(COLUMNS).encode() + b"\n"


def test_numbers_survive_the_way_through_the_csv():
    (row,) = csv.DictReader(io.StringIO(results_csv([event(step(3))]).decode()))
    assert float(row["train_loss"]) == 1 / 3


def test_what_is_no_number_is_left_out_of_the_event_and_comes_back_as_nan():
    data = metrics_data(step(1, train_loss=math.nan, grad_norm=math.inf))
    assert "train_loss" not in data
    assert "grad_norm" not in data
    (back,) = history([event(step(1, train_loss=math.nan))])
    assert math.isnan(back.train_loss)


def test_the_history_is_what_was_measured():
    steps = [step(1), step(2, full_valid_loss=1.5)]
    assert history([event(s) for s in reversed(steps)]) == [
        step(1, seconds=0.0),
        step(2, full_valid_loss=1.5, seconds=0.0),
    ]


def test_a_message_names_the_validation_loss_where_there_is_one():
    assert metrics_message(step(1)) == "Step 1/4: training loss=1.00"
    assert metrics_message(step(1, valid_loss=2.0)) == "Step 1/4: training loss=1.00, validation loss=2.00"
    assert metrics_message(step(1, valid_loss=2.0, full_valid_loss=3.0)).endswith("validation loss=3.00")


def test_a_checkpoint_shows_the_metrics_that_were_measured():
    assert checkpoint_metrics(step(2)) == {
        "step": 2,
        "train_loss": 0.5,
        "train_mean_token_accuracy": 0.5,
    }
