"""The dashboard: `caravan dashboard`, or `streamlit run` on this file."""

from __future__ import annotations

from pathlib import Path

import streamlit as st
from streamlit.navigation.page import StreamlitPage

from caravan.errors import CaravanError
from caravan_dashboard import signin, ui

PAGES = {
    "": [
        ("views/runs.py", "Runs", "", ":material/list:"),
        ("views/run.py", "Run", "run", ":material/account_tree:"),
        ("views/launch.py", "Launch", "launch", ":material/play_circle:"),
    ],
    "Data": [
        ("views/data.py", "Data mix", "data", ":material/database:"),
        ("views/pairs.py", "Preference pairs", "pairs", ":material/compare:"),
    ],
    "Results": [
        ("views/evaluation.py", "Evaluation", "evaluation", ":material/leaderboard:"),
        ("views/curves.py", "Training curves", "curves", ":material/show_chart:"),
        ("views/sweeps.py", "Sweeps", "sweeps", ":material/tune:"),
        ("views/rollouts.py", "Rollouts", "rollouts", ":material/casino:"),
    ],
}


def main() -> None:
    st.set_page_config(page_title="Caravan", page_icon="🐫", layout="wide")
    st.html(Path(__file__).with_name("style.css"))
    pages = {
        section: [
            st.Page(path, title=title, url_path=url or None, icon=icon, default=not url)
            for path, title, url, icon in entries
        ]
        for section, entries in PAGES.items()
    }
    try:
        signin.gate()
        page = st.navigation(pages, position="hidden")
        ui.name_tab(page.title)
        navigation(pages)
        page.run()
    except CaravanError as error:
        st.error("This page cannot be shown.", icon=":material/error:")
        st.code(str(error), language=None, wrap_lines=True)


def navigation(pages: dict[str, list[StreamlitPage]]) -> None:
    """Links to the pages, those of one run with it in their address: were it put there when the
    page is drawn, the browser's history would have the page twice, and Back would not leave it."""
    run = ui.looked_at()
    with st.sidebar:
        for section, of_section in pages.items():
            if section:
                st.caption(section)
            for page in of_section:
                of_run = page.url_path not in ("", "launch", "sweeps")
                st.page_link(page, query_params={"run": run} if run and of_run else None)


main()
