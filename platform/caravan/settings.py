"""The typed environment: where the work directory, the registry and the store are.

Every field is read from an environment variable with the prefix `CARAVAN_`
(`CARAVAN_REGISTRY_URL`); an empty one counts as not set. With none of them set, everything lies in
`./.caravan`.
"""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import quote

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    SecretStr,
    ValidationError,
)
from pydantic_settings import BaseSettings, SettingsConfigDict
from pydantic_settings import SettingsError as UnreadableSetting

from caravan.errors import SettingsError

PREFIX = "CARAVAN_"


def _absolute(value: object) -> object:
    try:
        return Path(value).expanduser().resolve() if isinstance(value, str | Path) else value
    except RuntimeError as error:  # links that go round, or a home directory of nobody
        raise ValueError(f"{error}; name a directory") from error


def _in_lower_case(prices: dict[str, float]) -> dict[str, float]:
    """Types of GPUs are looked up in lower case, as recipes may write them in any."""
    lowered = {name.lower(): price for name, price in prices.items()}
    if len(lowered) < len(prices):
        raise ValueError("two names differ in upper and lower case only; give one price for each")
    return lowered


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id without a name
        return "unknown"


class Settings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True,
        validate_default=True, env_ignore_empty=True,
    )  # fmt: skip

    home: Annotated[Path, BeforeValidator(_absolute)] = Path(".caravan")
    """Directory for work in progress, the cache, and by default the registry and the store."""
    registry_url: str = ""
    """Database of the registry: `postgresql://...`; empty takes an SQLite file in `home`."""
    store_url: str = ""
    """Artifact store: a directory or `s3://bucket/prefix`; empty takes a directory in `home`."""
    owner: str = Field(default_factory=_user)
    """Who launches runs."""

    s3_endpoint: str = ""
    """Endpoint of the S3 store: `http://minio:9000`, `https://s3.example.com`."""
    s3_access_key: str = ""
    s3_secret_key: SecretStr = SecretStr("")
    s3_region: str = ""

    kfp_url: str = ""
    """Address of Kubeflow Pipelines: `http://ml-pipeline.kubeflow:8888`."""
    kfp_namespace: str = ""
    """Namespace of the runs where Kubeflow Pipelines has several users: a user's profile."""
    kfp_token: SecretStr = SecretStr("")
    """Bearer token for Kubeflow Pipelines."""
    kfp_token_file: str = ""
    """File with a service account's token for Kubeflow Pipelines; read anew as it is renewed."""
    kfp_cookies: SecretStr = SecretStr("")
    """Session cookie, where Dex or another proxy asks for one: `authservice_session=...`."""
    kfp_headers: SecretStr = SecretStr("")
    """More headers for Kubeflow Pipelines, one `Name: value` a line."""
    kfp_ca_file: str = ""
    """Certificates that Kubeflow Pipelines is trusted by; empty takes the system's."""
    cluster_profile: str = ""
    """YAML file that says what the cluster gives to pods: images, secrets, nodes, volumes."""
    pod_name: str = ""
    """Pod that this process runs in; set by the cluster."""
    max_failures: NonNegativeInt = 0
    """Failures after which a stage is not tried again in a run; 0 sets no limit."""
    dashboard_url: str = ""
    """Address of the dashboard, for links to it."""

    project: str = ""
    """Project that launched runs belong to; they are tagged `project:NAME`."""
    prices: Annotated[dict[str, NonNegativeFloat], AfterValidator(_in_lower_case)] = {}
    """JSON: price of one GPU-hour by type (`gpu` for all others), of one core-hour as `cpu`."""
    budgets: dict[str, NonNegativeFloat] = {}
    """JSON: what a project may spend; a launch that would exceed it is refused."""
    currency: str = "USD"
    """Of prices and budgets."""
    log_format: Literal["text", "json"] = "text"
    """`json` writes one object a line, with the ids of run and stage."""

    heartbeat_seconds: PositiveFloat = 5.0
    """Time between two signs of life of a running stage."""
    stale_after_seconds: PositiveFloat = 60.0
    """A stage or run silent for longer counts as interrupted."""
    patience_seconds: PositiveFloat = 120.0
    """How long a stage waits for a registry or a store that is away."""

    @property
    def resolved_registry_url(self) -> str:
        # A path may hold characters that mean something in a URL.
        return self.registry_url or f"sqlite:///{quote(str(self.home / 'registry.db'))}"

    @property
    def resolved_store_url(self) -> str:
        return self.store_url or str(self.home / "store")

    @property
    def work_dir(self) -> Path:
        return self.home / "work"

    @property
    def cache_dir(self) -> Path:
        return self.home / "cache"

    def environment(self) -> dict[str, str]:
        """The variables that give a child process these settings, secrets included."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return {PREFIX + name.upper(): _as_variable(value) for name, value in values.items()}


def _as_variable(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return json.dumps(value) if isinstance(value, dict) else str(value)


def load_settings() -> Settings:
    """The settings of this process's environment.

    Raises:
        SettingsError: a variable holds a value that cannot be used, or is nearly one of ours.
    """
    _refuse_misspelt(os.environ)
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors()[0]
        field, *keys = first["loc"]
        name = PREFIX + str(field).upper() + "".join(f"[{key!r}]" for key in keys)
        problem = first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{name}={first['input']!r}: {problem}") from error
    except UnreadableSetting as error:
        name = next((n for n in Settings.model_fields if f'"{n}"' in str(error)), "")
        variable = PREFIX + name.upper()
        raise SettingsError(
            f"{variable}={os.environ.get(variable, '')!r}: not JSON ({error.__cause__}); write an "
            'object, such as {"gpu": 2.5}'
        ) from error


def _refuse_misspelt(names: Iterable[str]) -> None:
    """A store that silently is another one, for a letter, would be noticed too late."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in names:
        if name.startswith(PREFIX) and name not in known:
            close = get_close_matches(name, known, n=1, cutoff=0.9)
            if close:
                raise SettingsError(f"{name} is not a setting; did you mean {close[0]}?")
