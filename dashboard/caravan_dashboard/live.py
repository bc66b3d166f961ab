"""Parts of a page that draw themselves anew while something goes on."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from caravan.errors import AccessError
from caravan_dashboard.signin import current_user


def live(function: Callable[[], None], seconds: float | None) -> None:
    """Draw now and, where `seconds` is given, again every so often while the session lasts.

    Streamlit runs such a part alone, without the script around it and its `gate`.
    """

    def draw() -> None:
        try:
            current_user()
        except AccessError:
            st.rerun()
        function()

    st.fragment(draw, run_every=seconds)()
