"""[recording]; the other sections are tested with what they are for."""

import pytest

from tunekeeper.errors import InvalidConfig
from tunekeeper.settings import Recording, load_settings


def read(tmp_path, text: str):
    (tmp_path / "tunekeeper.toml").write_text(text)
    return load_settings(tmp_path, environ={}).recording


def test_nothing_is_recorded_unless_it_is_said(tmp_path):
    assert read(tmp_path, "") == Recording()
    assert not Recording().records("any")


def test_models_are_named_one_by_one_or_all_at_once(tmp_path):
    named = read(tmp_path, '[recording]\nmodels = ["a", "b"]\nmax_bytes = 5\nretention_days = 90\n')
    assert named == Recording(models=("a", "b"), max_bytes=5, retention_days=90)
    assert named.records("alias", "b")
    assert not named.records("c")
    for every in ('"*"', '["*"]'):
        assert read(tmp_path, f"[recording]\nmodels = {every}\n").records("any")


@pytest.mark.parametrize(
    "wrong", ['models = "a"', "models = [1]", "max_bytes = -1", "max_bytes = 1.5", 'retention_days = "x"', "colour = 1"]
)
def test_what_is_no_setting_is_refused_with_its_place(tmp_path, wrong):
    with pytest.raises(InvalidConfig, match=r"\[recording\]"):
        read(tmp_path, f"[recording]\n{wrong}\n")
