import datetime

import pytest

from tunekeeper.errors import ModelRetired
from tunekeeper.lifecycle.catalog import Catalog, Claim
from tunekeeper.lifecycle.policy import notices, refuse_retired, stand
from tunekeeper.settings import Lifecycle, ModelLife

TODAY = datetime.date(2027, 1, 15)
PAST = datetime.date(2027, 1, 15)
SOON = datetime.date(2027, 3, 1)
FAR = datetime.date(2029, 1, 1)


def catalog(date: datetime.date = PAST, qualifier: str = "exact", field: str = "retirement_date") -> Catalog:
    text = date.isoformat()
    said = Claim(model="m", field=field, text=text, date=text, qualifier=qualifier, origin="page")
    return Catalog([said, Claim(model="m", field="replacement", text="n", origin="page")])


def test_weights_stored_here_outlive_every_date_that_the_operator_did_not_make_his_own():
    standing = stand(["m"], Lifecycle(), catalog(), TODAY)
    assert (standing.stage, standing.shutdown, standing.is_retired, standing.is_closed_for_training) == (
        "ga",
        None,
        False,
        False,
    )


def test_a_date_of_the_operator_binds_from_its_day_on():
    policy = Lifecycle(models={"m": ModelLife(shutdown_date=PAST, replacement="n")})
    standing = stand(["m"], policy, Catalog(()), TODAY)
    assert (standing.stage, standing.is_retired, standing.replacement) == ("retired", True, "n")
    assert not stand(["m"], policy, Catalog(()), TODAY - datetime.timedelta(days=1)).is_retired
    with pytest.raises(ModelRetired, match=r"'m' was retired on 2027-01-15. Use n instead\."):
        refuse_retired("m", standing)


def test_the_catalog_binds_where_it_is_enforced_and_sure():
    for enforce in (("m",), ("*",)):
        assert stand(["m"], Lifecycle(enforce=enforce), catalog(), TODAY).is_retired
    assert not stand(["m"], Lifecycle(enforce=("other",)), catalog(), TODAY).is_retired
    # "no earlier than" names no day on which anything ends
    assert not stand(["m"], Lifecycle(enforce=("m",)), catalog(qualifier="not_before"), TODAY).is_retired


def test_an_upstreams_dates_are_shown_but_are_the_upstreams_affair():
    standing = stand(["m"], Lifecycle(), catalog(SOON), TODAY, is_upstream=True)
    assert (standing.shutdown, standing.replacement, standing.is_binding) == (SOON, "n", False)


def test_training_may_end_before_answers_do():
    policy = Lifecycle(models={"m": ModelLife(training_retirement_date=PAST, shutdown_date=FAR)})
    standing = stand(["m"], policy, Catalog(()), TODAY)
    assert (standing.is_closed_for_training, standing.is_retired, standing.stage) == (True, False, "ga")


def test_tuned_models_outlive_their_base_unless_they_have_a_date_of_their_own():
    policy = Lifecycle(models={"m": ModelLife(shutdown_date=PAST)})
    assert not stand(["ft:m:x"], policy, Catalog(()), TODAY, base="m").is_retired
    policy = Lifecycle(models={"m": ModelLife(tuned_shutdown_date=PAST)})
    assert stand(["ft:m:x"], policy, Catalog(()), TODAY, base="m").is_retired
    assert not stand(["m"], policy, Catalog(()), TODAY).is_retired


@pytest.mark.parametrize(
    ("deprecated_days", "legacy_days", "stage"), [(180, 365, "deprecated"), (30, 365, "legacy"), (30, 0, "ga")]
)
def test_stages_follow_the_operators_periods(deprecated_days, legacy_days, stage):
    policy = Lifecycle(
        deprecated_days=deprecated_days, legacy_days=legacy_days, models={"m": ModelLife(shutdown_date=SOON)}
    )
    assert stand(["m"], policy, Catalog(()), TODAY).stage == stage


def test_a_stage_follows_the_catalogs_own_date_first():
    said = catalog(FAR)
    told = Claim(model="m", field="deprecation_date", text="x", date="2027-01-01", origin="page")
    both = Catalog([*said.entries[0].history, told])
    assert stand(["m"], Lifecycle(), both, TODAY, is_upstream=True).stage == "deprecated"


@pytest.mark.parametrize(("days", "period"), [(200, None), (180, 180), (45, 60), (7, 7), (0, 7), (-1, None)])
def test_a_notice_is_due_in_the_narrowest_period(days, period):
    assert notices(TODAY + datetime.timedelta(days=days), Lifecycle(), TODAY) == period
