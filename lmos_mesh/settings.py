"""Settings of a process, from `LMOS_*` environment variables and nowhere else."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from lmos_mesh.errors import SettingsError
from lmos_mesh.things import DEFAULT_TENANT
from lmos_mesh.wrong_fields import description_of

PREFIX = "LMOS_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeping:
    """How the servers keep every bucket and stream that this process makes.

    Args:
        replicas: How many servers keep each. One that is there already and is kept by fewer is
            raised to it; one that is kept by more stays as it is. None for one, and for nothing to
            say about what is there.
        tags: What each of these servers must be tagged with; only for what is made anew.
    """

    replicas: int | None = None
    tags: tuple[str, ...] = ()


class Settings(BaseModel):
    """What every process needs to know. Subclass it to add a service's own fields.

    A field `drain_timeout_s` is read from `LMOS_DRAIN_TIMEOUT_S`.
    """

    model_config = ConfigDict(frozen=True)

    nats_url: str = "nats://127.0.0.1:4222"
    nats_credentials: str | None = None
    tenant: str = Field(default=DEFAULT_TENANT, min_length=1)
    log_level: str = Field(default="INFO", pattern="(?i)^(debug|info|warning|error)$")
    log_format: str = Field(default="", pattern="^(|json|console)$")
    connect_timeout_s: float = Field(default=30.0, gt=0)
    drain_timeout_s: float = Field(default=10.0, ge=0)
    nats_ping_interval_s: float = Field(default=5.0, gt=0)
    nats_replicas: int | None = None
    nats_placement: str = ""

    @field_validator("nats_replicas")
    @classmethod
    def _can_agree(cls, replicas: int | None) -> int | None:
        """Of an even number no more may be lost than of the odd one below it."""
        if replicas not in (None, 1, 3, 5):
            raise ValueError("must be 1, 3 or 5")
        return replicas

    @property
    def keeping(self) -> Keeping:
        """How the servers keep what this process makes there."""
        tags = tuple(tag for one in self.nats_placement.split(",") if (tag := one.strip()))
        return Keeping(replicas=self.nats_replicas, tags=tags)


SettingsT = TypeVar("SettingsT", bound=Settings)


def load_settings(kind: type[SettingsT], environ: Mapping[str, str] | None = None) -> SettingsT:
    """Read settings from the environment; an empty variable counts as unset.

    Raises:
        SettingsError: A value cannot be used; every such variable is named.
    """
    environ = os.environ if environ is None else environ
    given = {
        name: value
        for name in kind.model_fields
        if (value := environ.get(f"{PREFIX}{name.upper()}", ""))
    }
    try:
        return kind.model_validate(given)
    except ValidationError as exc:
        faults = "; ".join(
            f"{PREFIX}{str(error['loc'][0]).upper()}={given[str(error['loc'][0])]!r}: "
            f"{description_of(error)}"
            for error in exc.errors(include_url=False)
        )
        raise SettingsError(f"bad settings: {faults}", hint="see docs/settings.md") from None
