"""Roles, and what each lets a user do."""

from __future__ import annotations

import pytest

from caravan.access import Role, User, local_user, require, require_own
from caravan.errors import AccessError

VIEWER = User("vic@example.com", Role.VIEWER)
ANN = User("ann@example.com", Role.LAUNCHER)
ADMIN = User("ada@example.com", Role.ADMIN)


@pytest.mark.parametrize(
    ("user", "role", "allowed"),
    [
        (VIEWER, Role.VIEWER, True),
        (VIEWER, Role.LAUNCHER, False),
        (VIEWER, Role.ADMIN, False),
        (ANN, Role.LAUNCHER, True),
        (ANN, Role.ADMIN, False),
        (ADMIN, Role.LAUNCHER, True),
        (ADMIN, Role.ADMIN, True),
    ],
)
def test_a_role_includes_the_ones_below_it(user, role, allowed):
    if allowed:
        require(user, role, "do it")
    else:
        with pytest.raises(AccessError, match=f"{user.name} is a {user.role}.*role {role}"):
            require(user, role, "do it")


def test_a_launcher_changes_what_is_theirs_an_admin_what_is_anyones():
    require_own(ANN, ANN.name, "cancel it")
    require_own(ADMIN, ANN.name, "cancel it")
    require_own(local_user("root"), ANN.name, "cancel it")
    with pytest.raises(AccessError, match="belongs to bob"):
        require_own(ANN, "bob@example.com", "cancel it")
    with pytest.raises(AccessError, match="belongs to nobody"):
        require_own(ANN, "", "cancel it")
    with pytest.raises(AccessError, match="is a viewer"):
        require_own(VIEWER, VIEWER.name, "cancel it")
