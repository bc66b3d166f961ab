from pathlib import Path

import pytest

from caravan.errors import SettingsError
from caravan.registry import Registry
from caravan.settings import Settings, load_settings


def test_everything_lies_in_one_directory_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = Settings()
    assert settings.home == tmp_path / ".caravan"
    assert settings.resolved_registry_url == f"sqlite:///{tmp_path}/.caravan/registry.db"
    assert settings.resolved_store_url == f"{tmp_path}/.caravan/store"
    assert list(tmp_path.iterdir()) == []


def test_settings_go_to_a_child_process_and_back(tmp_path, monkeypatch):
    settings = Settings(home=tmp_path, s3_secret_key="secret", patience_seconds=0.5)
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    assert load_settings() == settings
    assert settings.environment()["CARAVAN_S3_SECRET_KEY"] == "secret"
    assert "secret" not in repr(settings).replace("secret_key", "")


def test_a_relative_home_is_meant_from_where_the_process_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CARAVAN_HOME", "here/../there")
    assert load_settings().home == Path(tmp_path, "there")


def test_a_home_may_have_any_name(tmp_path):
    home = tmp_path / "what? 100% #1"
    home.mkdir()
    with Registry(Settings(home=home).resolved_registry_url):
        assert (home / "registry.db").is_file()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CARAVAN_HEARTBEAT_SECONDS", "often", "CARAVAN_HEARTBEAT_SECONDS='often': Input should"),
        ("CARAVAN_PRICES", "{x", "CARAVAN_PRICES='{x': not JSON .*; write an object, such as"),
        (
            "CARAVAN_PRICES",
            '{"H100": 2, "h100": 3}',
            "CARAVAN_PRICES=.*: two names differ in upper",
        ),
        ("CARAVAN_PRICES", '{"gpu": 1, "h100": "x"}', r"PRICES\['h100'\]='x': Input should"),
        ("CARAVAN_BUDGETS", '{"lab": -1}', r"CARAVAN_BUDGETS\['lab'\]=-1: Input should be greater"),
        ("CARAVAN_STORE_URI", "s3://b", "not a setting; did you mean CARAVAN_STORE_URL"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=message):
        load_settings()


def test_a_home_of_links_that_go_round_is_named(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    monkeypatch.setenv("CARAVAN_HOME", str(tmp_path / "loop" / "home"))
    with pytest.raises(SettingsError, match=r"CARAVAN_HOME='.*loop/home': .*; name a directory"):
        load_settings()


def test_an_empty_variable_counts_as_not_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CARAVAN_HOME", "")
    monkeypatch.setenv("CARAVAN_PATIENCE_SECONDS", "")
    assert load_settings() == Settings(home=tmp_path / ".caravan")
