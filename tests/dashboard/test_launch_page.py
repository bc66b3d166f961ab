"""The page Launch, drawn in process: a recipe is checked, compared and launched."""

from __future__ import annotations

from glob import iglob

import pytest
from drawn import checked, markup, plain

from caravan.recipe.io import parse_recipe
from caravan_dashboard import recipes


def test_a_shipped_recipe_can_be_launched(open_page, nothing):
    app = open_page("launch", recipe="pocket")

    assert "The recipe is valid." in plain(app)
    assert not app.button[0].disabled


def test_code_of_a_recipes_own_is_not_taken_from_the_page(open_page, nothing):
    app = open_page("launch", recipe="pocket")
    app.text_area[0].set_value(f"verifiers: {{polite: polite.py}}\n{app.text_area[0].value}").run()

    assert "polite would run code of the recipe's own, which is not taken from here" in plain(app)
    assert app.button[0].disabled


def test_a_pasted_recipe_whose_paths_lead_nowhere_is_not_called_valid(open_page, nothing, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    text = f"""
name: mine
base_model: {{kind: imported, model_name_or_path: ../base}}
curate:
  sources:
    - {{name: a, license: MIT, skill: s, origin: {{kind: files, paths: [../a.jsonl, {rows}]}}}}
sft: {{}}
evaluate: {{tasks: [{{name: gsm, task: gsm8k, path: ../gsm.jsonl}}]}}
"""
    app = open_page("launch", recipe="Paste a recipe")
    app.text_area[0].set_value(text).run()

    assert "cannot be launched from here" in plain(checked(app))
    assert "The recipe is valid." not in plain(app)
    assert "caravan run RECIPE.yaml" in plain(app)
    assert app.button[0].disabled
    for field in ("base_model.model_name_or_path", "origin.paths[0]", "evaluate.tasks[0].path"):
        assert f"{field}: ../" in plain(app)
    assert "origin.paths[1]" not in plain(app)

    model = tmp_path / "base"
    model.mkdir()
    here = text.replace("../a.jsonl, ", "").replace("../gsm.jsonl", str(rows))
    app.text_area[0].set_value(here.replace("../base", str(model))).run()
    assert "The recipe is valid." in plain(checked(app))
    assert not app.button[0].disabled


@pytest.mark.parametrize("in_pods", [False, True])
def test_a_pattern_does_not_search_the_whole_disk(tmp_path, monkeypatch, in_pods):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.jsonl").write_text("")
    searched = []
    monkeypatch.setattr(
        recipes, "iglob", lambda path, **options: searched.append(path) or iglob(path, **options)
    )

    def absent(*paths: str) -> list[str]:
        sources = {"origin": {"kind": "files", "paths": list(paths)}, "license": "MIT"}
        recipe = parse_recipe("name: a\nbase_model: {kind: pretrained}\n").derive(
            curate={"sources": [{"name": "a", "skill": "s", **sources}]}
        )
        return [path for _, path in recipes.absent_paths(recipe, tmp_path, in_pods=in_pods)]

    outside = ["/**/nothing", "../*/nothing", "~/**", "rows/../../**"]
    assert absent(*outside) == (outside if in_pods else [])
    assert searched == []
    assert absent("rows/*.jsonl", "**/a.jsonl") == []
    assert absent("**/nothing") == ["**/nothing"]


def test_a_path_that_cannot_even_be_looked_up_leads_nowhere(open_page, nothing):
    app = open_page("launch", recipe="pocket")
    too_long = f"{'x' * 300}.jsonl"  # what the system says of it is no "there is no such file"
    source = (
        f"{{name: a, license: Apache-2.0, skill: s, origin: {{kind: files, paths: [{too_long}]}}}}"
    )
    text = app.text_area[0].value
    app.text_area[0].set_value(
        text.replace("  sources:\n", f"  sources:\n    - {source}\n", 1)
    ).run()

    assert f"{too_long} is not there" in plain(checked(app))
    assert app.button[0].disabled

    app = open_page("launch", recipe="Paste a recipe")
    of_nobody = "name: mine\nbase_model: {kind: imported, model_name_or_path: ~nobody-here/base}\n"
    app.text_area[0].set_value(of_nobody).run()
    assert "~nobody-here/base is not there" in plain(checked(app))


def test_a_recipe_with_tasks_that_nobody_reads_is_not_launched(open_page, nothing):
    app = open_page("launch", recipe="tulu3-8b")

    text = app.text_area[0].value
    text = text.replace("task: gpqa,", "task: gpqa_extended,")
    text = text.replace("  safety_judge: {engine: wildguard}\n", "")
    app.text_area[0].set_value(text).run()

    assert "The recipe can be planned, not run." in plain(app)
    assert "there is no evaluation task 'gpqa_extended'" in plain(app)
    assert "evaluate.safety_judge: a classifier decides about harmbench" in plain(app)
    assert app.button[0].disabled


def test_a_mistake_in_a_recipe_is_named_with_line_and_field(open_page, nothing):
    app = open_page("launch", recipe="tulu3-8b")
    text = app.text_area[0].value
    app.text_area[0].set_value(text.replace("\ndpo:\n", "\ndpo:\n  betta: 5\n")).run()

    assert app.button[0].disabled
    assert "dpo.betta" in markup(checked(app))
    assert "did you mean" in markup(app)
    assert "+  betta: 5" in plain(app)


def test_changes_against_the_shipped_recipe_are_listed(open_page, nothing):
    app = open_page("launch", recipe="tulu3-70b")
    text = app.text_area[0].value
    app.text_area[0].set_value(text.replace("seed: 456", "seed: 7")).run()

    assert "<b>7</b>" in markup(checked(app))
    assert "Changes" in plain(app)


@pytest.mark.parametrize("text", ["", "[1, 2", "a: &x [*x]", "name: <script>\n", "- 1"])
def test_pasted_nonsense_is_refused_in_words(open_page, nothing, text):
    app = open_page("launch", recipe="Paste a recipe")
    app.text_area[0].set_value(text).run()

    assert app.button[0].disabled
    assert "to put right" in plain(checked(app))
    assert "<script>" not in markup(app)
