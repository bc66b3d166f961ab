"""Who may do what: roles, and the check that every action begins with.

A viewer looks. A launcher also launches, and cancels, resumes and annotates what is theirs. An
admin does so with everyone's. Whoever uses the library or the command line holds the registry's
credentials already, and is an admin (`local_user`); roles bind those who come by the dashboard.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from caravan.errors import AccessError


class Role(IntEnum):
    """Each may do what the ones before it may."""

    VIEWER = 1
    LAUNCHER = 2
    ADMIN = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class User:
    name: str
    """How runs and notes name their owner: the e-mail address, or the provider's subject."""
    role: Role

    def may(self, role: Role) -> bool:
        return self.role >= role

    def may_change(self, owner: str) -> bool:
        """Whether what belongs to `owner` is theirs to change."""
        return self.may(Role.ADMIN) or (self.may(Role.LAUNCHER) and owner == self.name)


def local_user(name: str) -> User:
    """Who works on this machine, with its credentials."""
    return User(name, Role.ADMIN)


def require(user: User, role: Role, action: str) -> None:
    """Let `user` go on with `action` ("launch a run").

    Raises:
        AccessError: their role does not allow it.
    """
    if not user.may(role):
        raise AccessError(
            f"{user.name} is a {user.role} and may not {action}: that takes the role {role}; "
            "an administrator of the identity provider adds people to its groups"
        )


def require_own(user: User, owner: str, action: str) -> None:
    """Let a launcher go on with what is their own, and an admin with anyone's.

    Raises:
        AccessError: the role does not allow it, or it belongs to somebody else.
    """
    require(user, Role.LAUNCHER, action)
    if not user.may_change(owner):
        raise AccessError(
            f"{user.name} may not {action}: it belongs to {owner or 'nobody'}; "
            f"ask them or somebody with the role {Role.ADMIN}"
        )
