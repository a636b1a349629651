"""Settings come from the environment, and every wrong one is named at once."""

import pytest
from pydantic import Field, ValidationError

from lmos_mesh.errors import SettingsError
from lmos_mesh.hosting import AgentSettings
from lmos_mesh.settings import Settings, load_settings
from lmos_mesh_registry.settings import RegistrySettings
from lmos_mesh_router.service import RouterSettings
from lmos_mesh_runtime.service import RuntimeSettings

KINDS = [Settings, AgentSettings, RegistrySettings, RouterSettings, RuntimeSettings]


class Ours(Settings):
    greeting: str = "hello"
    patience_s: float = Field(default=1.0, gt=0)
    replicas: int = 1
    eager: bool = False


@pytest.mark.parametrize("kind", KINDS)
def test_every_process_starts_without_any_setting(kind: type[Settings]) -> None:
    settings = load_settings(kind, {})

    assert settings.nats_url == "nats://127.0.0.1:4222"
    assert settings.tenant == "demo"


def test_a_field_is_read_from_the_variable_of_its_name() -> None:
    given = {"LMOS_PATIENCE_S": "2.5", "LMOS_REPLICAS": "3", "LMOS_EAGER": "true", "OTHER": "x"}

    settings = load_settings(Ours, given)

    assert (settings.patience_s, settings.replicas, settings.eager) == (2.5, 3, True)
    assert settings.greeting == "hello"


def test_an_empty_variable_counts_as_unset() -> None:
    assert load_settings(Ours, {"LMOS_GREETING": "", "LMOS_REPLICAS": ""}) == Ours()


def test_without_an_environment_the_process_s_own_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMOS_GREETING", "moin")

    assert load_settings(Ours).greeting == "moin"


def test_every_wrong_value_is_named_with_its_variable() -> None:
    given = {
        "LMOS_PATIENCE_S": "-1",
        "LMOS_REPLICAS": "many",
        "LMOS_LOG_LEVEL": "LOUD",
        "LMOS_LOG_FORMAT": "xml",
        "LMOS_GREETING": "fine",
    }

    with pytest.raises(SettingsError) as refused:
        load_settings(Ours, given)

    said = str(refused.value)
    for name in (
        "LMOS_PATIENCE_S='-1'",
        "LMOS_REPLICAS='many'",
        "LMOS_LOG_LEVEL",
        "LMOS_LOG_FORMAT",
    ):
        assert name in said
    assert "GREETING" not in said
    assert "docs/settings.md" in said


@pytest.mark.parametrize("level", ["debug", "INFO", "Warning", "error"])
def test_log_levels_are_taken_in_any_case(level: str) -> None:
    assert load_settings(Settings, {"LMOS_LOG_LEVEL": level}).log_level == level


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (RouterSettings, "LMOS_ROUTER_THRESHOLD", "1.5"),
        (RouterSettings, "LMOS_ROUTER_THREADS", "0"),
        (RuntimeSettings, "LMOS_RUNTIME_TURN_TIMEOUT_S", "0"),
        (RuntimeSettings, "LMOS_RUNTIME_CONCURRENCY", "0"),
        (RegistrySettings, "LMOS_REGISTRY_FORGET_AFTER_S", "-3"),
        (Settings, "LMOS_CONNECT_TIMEOUT_S", "soon"),
        (Settings, "LMOS_DRAIN_TIMEOUT_S", "nan"),
    ],
)
def test_values_out_of_bounds_are_refused(kind: type[Settings], name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load_settings(kind, {name: value})


def test_settings_are_frozen() -> None:
    settings = load_settings(Settings, {})

    with pytest.raises(ValidationError, match="frozen"):
        settings.tenant = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_password_in_a_setting_is_not_repeated_when_another_is_wrong() -> None:
    given = {"LMOS_NATS_URL": "nats://me:secret@host:4222", "LMOS_LOG_LEVEL": "LOUD"}

    with pytest.raises(SettingsError) as refused:
        load_settings(Settings, given)

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "replicas", "tags"),
    [
        ({}, None, ()),
        ({"LMOS_NATS_REPLICAS": "3"}, 3, ()),
        ({"LMOS_NATS_PLACEMENT": "ssd, zone:east,"}, None, ("ssd", "zone:east")),
    ],
)
def test_settings_say_who_keeps_what_is_made(
    given: dict[str, str], replicas: int | None, tags: tuple[str, ...]
) -> None:
    keeping = load_settings(Settings, given).keeping

    assert (keeping.replicas, keeping.tags) == (replicas, tags)


@pytest.mark.parametrize("given", ["0", "2", "4", "7"])
def test_a_number_of_servers_of_which_no_more_may_be_lost_than_of_one_less_is_refused(
    given: str,
) -> None:
    with pytest.raises(SettingsError, match=f"LMOS_NATS_REPLICAS='{given}': must be 1, 3 or 5"):
        load_settings(Settings, {"LMOS_NATS_REPLICAS": given})
