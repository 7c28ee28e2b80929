"""Settings: where they come from, and how a wrong one is told."""

import os
from pathlib import Path

import pytest

from server.runtime import device_of
from server.settings import (
    Settings,
    SettingsError,
    default_data_dir,
    flag,
    is_loopback,
    load_settings,
    variable,
)


@pytest.fixture(autouse=True)
def no_settings_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("INNERLOOP_"):
            monkeypatch.delenv(name)


def test_flags_before_environment_before_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().port == 8000
    monkeypatch.setenv("INNERLOOP_PORT", "9000")
    monkeypatch.setenv("INNERLOOP_REDIS_URL", "")  # as compose files set what they do not know
    assert load_settings().port == 9000
    assert load_settings().redis_url is None
    assert load_settings({"port": "9001"}).port == 9001


def test_every_setting_says_what_it_is() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert variable(name) == "INNERLOOP_" + name.upper()
        assert flag(name).startswith("--")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("INNERLOOP_PORT", "abc", ["INNERLOOP_PORT='abc'", "integer", "expected int"]),
        ("INNERLOOP_PORT", "70000", ["INNERLOOP_PORT='70000'", "65535"]),
        ("INNERLOOP_ROWS", "0", ["INNERLOOP_ROWS='0'", "1"]),
        ("INNERLOOP_DEVICE", "tpu", ["INNERLOOP_DEVICE='tpu'"]),
        ("INNERLOOP_LOG_LEVEL", "loud", ["INNERLOOP_LOG_LEVEL='loud'", "'debug'"]),
        ("INNERLOOP_REDIS_URL", "http://x", ["INNERLOOP_REDIS_URL", "redis://"]),
        ("INNERLOOP_API_KEYS", "justakey", ["INNERLOOP_API_KEYS", "tenant:key"]),
        ("INNERLOOP_API_KEYS", "a b:key", ["INNERLOOP_API_KEYS"]),
        ("INNERLOOP_API_KEYS", "a:key,b:key", ["twice"]),
        ("INNERLOOP_PROT", "8000", ["INNERLOOP_PROT", "unknown"]),
        ("INNERLOOP_HOST", "0.0.0.0", ["0.0.0.0", "INNERLOOP_API_KEYS"]),
    ],
)
def test_wrong_values_stop_the_start(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: list[str]
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    for part in told:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_gpu_that_is_not_there_stops_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNERLOOP_DEVICE", "cuda:99")
    with pytest.raises(SettingsError, match=r"INNERLOOP_DEVICE='cuda:99': PyTorch sees \d+ GPUs"):
        device_of(load_settings())


def test_flags_are_named_as_flags() -> None:
    with pytest.raises(SettingsError, match="--drain-s='soon'"):
        load_settings({"drain_s": "soon"})
    with pytest.raises(SettingsError, match="colour"):
        load_settings({"colour": "red"})


def test_no_message_repeats_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNERLOOP_API_KEYS", "acme:hush,hush2")
    monkeypatch.setenv("INNERLOOP_REDIS_URL", "http://:hush@host")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "hush" not in str(caught.value)
    monkeypatch.delenv("INNERLOOP_REDIS_URL")
    good = Settings(api_keys="acme:hush", operator_keys="hush-too")  # type: ignore[arg-type]
    assert "hush" not in repr(good)


def test_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNERLOOP_API_KEYS", "acme:one, acme:two,globex:three:with:colons")
    settings = load_settings({"host": "0.0.0.0"})
    assert [(key.tenant, key.key.get_secret_value()) for key in settings.api_keys] == [
        ("acme", "one"),
        ("acme", "two"),
        ("globex", "three:with:colons"),
    ]
    assert settings.has_keys
    monkeypatch.delenv("INNERLOOP_API_KEYS")
    assert not Settings().has_keys


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "innerloop"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert default_data_dir() == Path.home() / ".local/share/innerloop"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.2", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
