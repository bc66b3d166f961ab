"""The identity provider's settings, and the role that its claims give."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.access import Role
from caravan.errors import SettingsError
from caravan.identity import Identity, load_identity

GOOD = {
    "ISSUER": "https://login.example.com/realms/ml",
    "CLIENT_ID": "caravan",
    "CLIENT_SECRET": "hush-hush",
    "COOKIE_SECRET": "0123456789abcdef0123456789abcdef",
    "REDIRECT_URI": "https://caravan.example.com/oauth2callback",
    "VIEWER_GROUPS": '["staff"]',
    "LAUNCHER_GROUPS": '["ml", "research"]',
    "ADMIN_GROUPS": '["ml-admins"]',
}


@pytest.fixture
def provider(monkeypatch):
    def load(**changes: str | None) -> Identity | None:
        for name, value in {**GOOD, **changes}.items():
            if value is None:
                monkeypatch.delenv(f"CARAVAN_OIDC_{name}", raising=False)
            else:
                monkeypatch.setenv(f"CARAVAN_OIDC_{name}", value)
        return load_identity()

    return load


def test_without_variables_there_is_no_provider():
    assert load_identity() is None


def test_the_provider_of_the_environment(provider):
    identity = provider()

    assert identity.metadata_url == f"{GOOD['ISSUER']}/.well-known/openid-configuration"
    assert "hush" not in repr(identity)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ISSUER": None}, "CARAVAN_OIDC_ISSUER: Field required"),
        ({"CLIENT_SECRET": ""}, "CARAVAN_OIDC_CLIENT_SECRET"),
        ({"COOKIE_SECRET": "short-and-guessed"}, "CARAVAN_OIDC_COOKIE_SECRET.*32"),
        ({"ISSUER": "http://login.example.com"}, "issuer.*https://"),
        ({"REDIRECT_URI": "https://caravan.example.com/"}, "/oauth2callback"),
        ({"VIEWER_GROUPS": "staff"}, "viewer_groups"),
        ({"VIEWER_GROUPS": None, "LAUNCHER_GROUPS": "[]", "ADMIN_GROUPS": "[]"}, "no group"),
        ({"ISUER": "https://typo.example.com"}, "CARAVAN_OIDC_ISUER is not a setting"),
    ],
)
def test_half_a_provider_is_refused_and_no_secret_is_shown(provider, changes, said):
    with pytest.raises(SettingsError, match=said) as refused:
        provider(**changes)
    assert "hush-hush" not in str(refused.value)
    assert "guessed" not in str(refused.value)


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        (["staff"], Role.VIEWER),
        (["staff", "research"], Role.LAUNCHER),
        (["ml-admins", "staff"], Role.ADMIN),
        ("ml", Role.LAUNCHER),
        (["sales"], None),
        ([], None),
        (None, None),
        ("m", None),
        ({"ml-admins": True}, None),
        ([["ml-admins"]], None),
    ],
)
def test_groups_give_the_highest_role(provider, groups, role):
    assert provider().role({"groups": groups}) == role


def test_a_star_lets_everyone_look_and_no_more(provider):
    identity = provider(VIEWER_GROUPS='["*"]')

    assert identity.role({}) == Role.VIEWER
    assert identity.role({"groups": ["*"]}) == Role.VIEWER
    assert provider().role({"groups": ["*"]}) is None


@given(groups=st.lists(st.text(max_size=12)))
def test_no_group_gives_a_role_that_is_not_listed(groups):
    identity = Identity(
        issuer=GOOD["ISSUER"], client_id="c", client_secret="s",
        cookie_secret=GOOD["COOKIE_SECRET"], redirect_uri=GOOD["REDIRECT_URI"],
        launcher_groups=("ml",),
    )  # fmt: skip
    assert identity.role({"groups": groups}) == (Role.LAUNCHER if "ml" in groups else None)


@pytest.mark.parametrize(
    ("claims", "name", "trusting"),
    [
        ({"email_verified": True}, "ann@example.com", "ann@example.com"),
        ({"email_verified": "true"}, "ann@example.com", "ann@example.com"),
        ({}, "4711", "ann@example.com"),
        ({"email_verified": False}, "4711", "4711"),
        ({"email_verified": "false"}, "4711", "4711"),
        ({"email_verified": ""}, "4711", "4711"),
        ({"email_verified": True, "email": ""}, "4711", "4711"),
        ({"email_verified": True, "email": ["ann@example.com"]}, "4711", "4711"),
    ],
)
def test_users_go_by_their_address_if_it_is_verified(provider, claims, name, trusting):
    """Where the provider does not tell, a setting decides."""
    all_claims = {"sub": "4711", "email": "ann@example.com"} | claims

    assert provider().name(all_claims) == name
    assert provider(TRUST_EMAIL="true").name(all_claims) == trusting


def test_a_session_ends(provider):
    identity = provider(SESSION_HOURS="2")
    now = time.time()

    assert not identity.expired({"iat": now - 3600}, now)
    assert identity.expired({"iat": now - 3 * 3600}, now)
    assert identity.expired({}, now)
