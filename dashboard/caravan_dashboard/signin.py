"""Who is looking: signed in through the identity provider, or working on this machine.

Every script run begins with `gate`, which shows nothing to strangers. Parts that draw themselves
anew (`live`) ask `current_user` again, as do actions, at the moment of the action; the library
checks what that user may do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import streamlit as st

from caravan.access import Role, User, local_user
from caravan.errors import AccessError
from caravan.identity import Identity, load_identity
from caravan_dashboard import library, ui
from caravan_dashboard.markup import facts

T = TypeVar("T")


def current_user() -> User:
    """The user of this browser session.

    Raises:
        AccessError: nobody is signed in, the session is over, or no group gives a role.
    """
    identity = load_identity()
    if identity is None:
        if st.context.ip_address is not None:  # None on the loopback interface
            raise AccessError(
                "the dashboard has no identity provider and is for the browser of its own machine: "
                "open http://localhost, or set the CARAVAN_OIDC_ variables to let others sign in"
            )
        return local_user(library.settings().owner)
    if not _is_signed_in(identity):
        raise AccessError("you are not signed in, or your session is over: sign in again")
    user = identity.user(_claims())
    if user is None:
        raise AccessError(
            "you are signed in, but in no group that may use this dashboard; "
            "an administrator of the identity provider adds people to its groups"
        )
    return user


def gate() -> User:
    """The user; where there is none, the page says why and how to sign in, and ends."""
    identity = load_identity()
    if identity is not None and not _is_signed_in(identity):
        _ask_to_sign_in()
    try:
        user = current_user()
    except AccessError as error:
        st.error("This dashboard is not open to you.", icon=":material/lock:")
        st.code(str(error), language=None, wrap_lines=True)
        if identity is not None and st.button("Sign out", key="sign out"):
            st.logout()
        st.stop()
    if identity is not None:
        _show(user)
    return user


def may(role: Role) -> bool:
    """Whether to offer what takes `role`; the library checks again when it is asked for."""
    return current_user().may(role)


def in_session(make: Callable[[], T]) -> Callable[[], T]:
    """`make` for a download, which is made when its button is pressed: Streamlit does not say then
    whose session it is, and the page may have been drawn long before.

    Raises:
        AccessError: by the time that it is called the session is over.
    """
    identity = load_identity()
    if identity is None:
        return make
    claims = _claims()

    def made() -> T:
        if identity.expired(claims):
            raise AccessError("your session is over: sign in again")
        return make()

    return made


def _is_signed_in(identity: Identity) -> bool:
    return bool(st.user.is_logged_in) and not identity.expired(_claims())


def _claims() -> dict[str, object]:
    claims: dict[str, object] = st.user.to_dict()
    return claims


def _ask_to_sign_in() -> None:
    st.title("Caravan")
    st.text("Runs, data and results are for those who are signed in.")
    if st.button("Sign in", type="primary", icon=":material/login:"):
        st.login()
    st.stop()


def _show(user: User) -> None:
    with st.sidebar:
        ui.show(facts([("", user.name), ("role", str(user.role))]))
        if st.button("Sign out", key="sign out", icon=":material/logout:"):
            st.logout()
