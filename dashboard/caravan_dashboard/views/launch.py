"""Launch a run: pick a recipe or a run's, change it, see that it is valid and what differs, start
it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import streamlit as st
import yaml

from caravan.access import Role
from caravan.errors import CaravanError, RegistryError
from caravan.recipe import Recipe
from caravan.registry import RunRow
from caravan_dashboard import launching, library, recipes, signin, ui
from caravan_dashboard.markup import facts, join, mono, table, tag
from caravan_dashboard.recipes import Draft
from caravan_dashboard.text import DASH
from caravan_pipelines.cli.common import shipped_recipes
from caravan_pipelines.graph import stage_graph
from caravan_pipelines.launch.files import unpack_files

PASTE = "Paste a recipe"


def main() -> None:
    st.title("Launch")
    known = starts()
    left, right = st.columns([3, 2], gap="large")
    with left:
        name = st.selectbox("Start from", list(known), key="recipe", bind="query-params")
        ui.name_tab("Launch", name if name != PASTE else "")
        original, directory = known[name]()
        with st.container(key="recipe-text"):  # the key names a style
            text = st.text_area(
                "Recipe", original, height=640, key=f"text of {name}",
                help="YAML. It is checked when you leave the field or press Ctrl+Enter.",
            )  # fmt: skip
    with right:
        in_pods = bool(library.settings().kfp_url)
        may = signin.may(Role.LAUNCHER)
        draft = recipes.check(text or "", directory, look=may, in_pods=in_pods)
        launch_button(draft, directory)
        if draft.recipe is None:
            show_problems(draft)
        else:
            show_recipe(draft.recipe, draft, directory)
    if original and text != original:
        show_changes(name, original, text or "", directory, draft)


Start = Callable[[], tuple[str, Path]]
"""Gives the text to begin with, and the directory that its relative paths are meant from."""


def starts() -> dict[str, Start]:
    """By name what a recipe can be made from: those that are shipped, the run of the address, or
    nothing."""
    directory = shipped_recipes()
    found: dict[str, Start] = {
        name: lambda path=path: (path.read_text("utf-8"), directory)  # type: ignore[misc]
        for name, path in recipes.shipped(directory).items()
    }
    wanted = st.query_params.get("recipe") or st.session_state.get("recipe") or PASTE
    if wanted not in found and wanted != PASTE:
        with suppress(RegistryError):
            run = library.registry().get_run(wanted)
            found[run.id] = lambda: of_run(run)
            if run.id != wanted:
                st.query_params["recipe"] = run.id
    return {**found, PASTE: lambda: ("", directory)}


def of_run(run: RunRow) -> tuple[str, Path]:
    text = yaml.safe_dump(dict(run.recipe), sort_keys=False, allow_unicode=True)
    if not signin.may(Role.LAUNCHER):  # who may not read what lies beside the recipe
        return text, shipped_recipes()
    return text, unpack_files(run.recipe_dir, library.settings())


def launch_button(draft: Draft, directory: Path) -> None:
    obstacle = None if draft.recipe else "The recipe has to be valid first"
    if draft.unfit_tasks:
        obstacle = "The recipe can be planned, not launched from here"
    elif draft.absent:
        obstacle = "What the recipe names is not here"
    if not signin.may(Role.LAUNCHER):
        obstacle = f"Launching takes the role {Role.LAUNCHER}"
    started = st.button(
        "Launch", type="primary", icon=":material/rocket_launch:", width="stretch",
        disabled=obstacle is not None, help=obstacle,
    )  # fmt: skip
    if not started or draft.recipe is None:
        return
    try:
        with st.spinner("Launching …"):
            run_id = launching.launch(draft.recipe, directory)
    except (CaravanError, OSError) as error:
        st.error("The run could not be launched.")
        st.code(str(error), language=None, wrap_lines=True)
        return
    st.session_state["last_run"] = run_id
    st.switch_page("views/run.py", query_params={"run": run_id})


def show_problems(draft: Draft) -> None:
    count = len(draft.problems)
    st.error(f"{count} thing{'s' if count > 1 else ''} to put right", icon=":material/error:")
    rows = [
        [recipes.line_of(p) or DASH, join([tag("div", p.path, class_="cv-path"), p.message])]
        for p in draft.problems
    ]
    ui.show(table(["Line", "What is wrong"], rows, "n"))


def show_recipe(recipe: Recipe, draft: Draft, directory: Path) -> None:
    if draft.unfit_tasks:
        st.warning("The recipe can be planned, not run.", icon=":material/warning:")
        st.code(draft.unfit_tasks, language=None, wrap_lines=True)
    if draft.absent:
        show_absent(draft, directory)
    if not draft.unfit_tasks and not draft.absent:
        st.success("The recipe is valid.", icon=":material/check_circle:")
    nodes = stage_graph(recipe)
    ui.show(facts([
        ("name", recipe.name), ("seed", recipe.seed), ("stages", len(nodes)),
        ("sources", len(recipe.sources)), ("tasks", len(recipe.tasks)),
    ]))  # fmt: skip
    if recipe.description:
        ui.show(tag("p", recipe.description))
    ui.show(facts([("largest stage", recipes.needs(nodes))]))
    ui.show(tag("div", *(tag("span", name, class_="cv-pill cv-mono")
                         for name in recipes.summary(nodes)), style="line-height:2"))  # fmt: skip
    where = "on Kubeflow Pipelines" if library.settings().kfp_url else "on this machine"
    st.caption(f"It runs {where}, in processes of its own: closing this page does not end it.")


def show_absent(draft: Draft, directory: Path) -> None:
    st.warning("The recipe cannot be launched from here: paths lead nowhere.",
               icon=":material/warning:")  # fmt: skip
    lines = [f"{field}: {path} is not there" for field, path in draft.absent]
    st.code("\n".join(lines), language=None, wrap_lines=True)
    in_pods = bool(library.settings().kfp_url)
    st.text(
        f"Relative paths are meant from {directory} on this page. Put there what is missing, "
        + ("" if in_pods else "give absolute paths, ")
        + "or start the recipe where its files are:"
    )
    st.code(f"caravan {'launch' if in_pods else 'run'} RECIPE.yaml", language=None)


def show_changes(name: str, original: str, text: str, directory: Path, draft: Draft) -> None:
    st.subheader("Changes")
    before = recipes.check(original, directory).recipe
    if draft.recipe is not None and before is not None:
        changes = recipes.changed_fields(before, draft.recipe)
        if changes:
            ui.show(table(["Field", name, "Edited"], [
                [mono(c.path), recipes.shown(c.old),
                 join([tag("b", recipes.shown(c.new))])]
                for c in changes
            ]))  # fmt: skip
        else:
            st.text("The text differs, the recipe does not.")
    with st.expander("As a diff of the text", expanded=draft.recipe is None):
        st.code(recipes.changed_lines(original, text, name), "diff")


main()
