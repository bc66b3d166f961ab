"""The identity provider of the dashboard, from variables `CARAVAN_OIDC_...`, and what it tells.

Without any of them there is no provider, and the dashboard serves this machine only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from caravan.access import Role, User
from caravan.errors import SettingsError

PREFIX = "CARAVAN_OIDC_"
EVERYONE = "*"
CALLBACK = "/oauth2callback"
"""Where Streamlit receives the provider's answer."""


class Identity(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", use_attribute_docstrings=True
    )

    issuer: str = Field(min_length=1)
    """`https://login.example.com/realms/ml`; its /.well-known/openid-configuration is read."""
    client_id: str = Field(min_length=1)
    client_secret: SecretStr = Field(min_length=1)
    cookie_secret: SecretStr = Field(min_length=32)
    """Signs the session cookie; 32 random characters or more, the same in every replica."""
    redirect_uri: str
    """`https://caravan.example.com/oauth2callback`, as registered with the provider."""
    scopes: str = "openid profile email"
    groups_claim: str = "groups"
    """The claim that lists a user's groups."""
    viewer_groups: tuple[str, ...] = ()
    """JSON list of the groups that may look; `*` stands for everyone who can sign in."""
    launcher_groups: tuple[str, ...] = ()
    """JSON list of the groups that may also launch."""
    admin_groups: tuple[str, ...] = ()
    """JSON list of the groups that may change everyone's runs."""
    trust_email: bool = False
    """Name users by their e-mail address also where the provider does not tell whether it is
    verified (no claim `email_verified`): for one whose users cannot choose their address."""
    session_hours: PositiveFloat = 12.0
    """Hours after which a user signs in again, so that changed groups take effect."""

    @model_validator(mode="after")
    def _is_safe(self) -> Self:
        for name in ("issuer", "redirect_uri"):
            url = urlsplit(getattr(self, name))
            local = url.hostname in ("localhost", "127.0.0.1", "::1")
            if url.scheme != "https" and not (url.scheme == "http" and local):
                raise ValueError(f"{name} {getattr(self, name)!r} has to begin with https://")
        if urlsplit(self.redirect_uri).path != CALLBACK:
            raise ValueError(f"redirect_uri {self.redirect_uri!r} has to end with {CALLBACK}")
        if not (self.viewer_groups or self.launcher_groups or self.admin_groups):
            raise ValueError(
                f"no group may use the dashboard: set {PREFIX}VIEWER_GROUPS, LAUNCHER_GROUPS or "
                'ADMIN_GROUPS to a JSON list such as ["ml-team"]'
            )
        return self

    @property
    def metadata_url(self) -> str:
        return self.issuer.rstrip("/") + "/.well-known/openid-configuration"

    def user(self, claims: Mapping[str, Any]) -> User | None:
        """The user whom the provider's claims describe; None where no group gives them a role."""
        role = self.role(claims)
        return User(self.name(claims), role) if role else None

    def name(self, claims: Mapping[str, Any]) -> str:
        """The e-mail address if the provider says that it is verified, else the subject: with an
        address that anybody may claim, runs of others would be theirs."""
        email, verified = claims.get("email"), claims.get("email_verified")
        trusted = verified in (True, "true") or (verified is None and self.trust_email)
        return email if isinstance(email, str) and email and trusted else str(claims["sub"])

    def role(self, claims: Mapping[str, Any]) -> Role | None:
        """The highest role that the claimed groups give."""
        claimed = claims.get(self.groups_claim)
        groups = {claimed} if isinstance(claimed, str) else set(_strings(claimed))
        for role, members in (
            (Role.ADMIN, self.admin_groups),
            (Role.LAUNCHER, self.launcher_groups),
            (Role.VIEWER, self.viewer_groups),
        ):
            if EVERYONE in members or groups.intersection(members):
                return role
        return None

    def expired(self, claims: Mapping[str, Any], now: float | None = None) -> bool:
        """Whether the sign-in is older than a session may be; so is one that tells no time."""
        issued = claims.get("iat")
        if not isinstance(issued, int | float):
            return True
        return (time.time() if now is None else now) - issued > self.session_hours * 3600


def load_identity(environment: Mapping[str, str] | None = None) -> Identity | None:
    """The identity provider of this process's environment; None where no variable names one.

    Raises:
        SettingsError: some of the variables are there, but they do not make a provider.
    """
    names = {
        name
        for name in (os.environ if environment is None else environment)
        if name.startswith(PREFIX)
    }
    if not names:
        return None
    known = {PREFIX + name.upper() for name in Identity.model_fields}
    if unknown := sorted(names - known):
        raise SettingsError(f"{unknown[0]} is not a setting; there are {', '.join(sorted(known))}")
    try:
        return Identity()
    except (ValidationError, ValueError) as error:
        raise SettingsError(f"the identity provider cannot be used: {_first(error)}") from error


def _first(error: ValueError) -> str:
    """What is wrong, without the value: it may be a secret."""
    if not isinstance(error, ValidationError):
        return str(error)  # names the variable whose JSON cannot be read
    first = error.errors()[0]
    if not first["loc"]:
        return first["msg"].removeprefix("Value error, ")
    return f"{PREFIX}{str(first['loc'][0]).upper()}: {first['msg']}"


def _strings(value: object) -> Collection[str]:
    if not isinstance(value, list | tuple | set):
        return ()
    return [item for item in value if isinstance(item, str)]
