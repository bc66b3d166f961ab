"""Who sees the dashboard, and what each role may do in it."""

from __future__ import annotations

import re
import socket
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import oidc_provider_mock
import pytest
from playwright.sync_api import expect
from streamlit.testing.v1 import AppTest

from caravan.access import Role, User
from caravan.errors import AccessError, RecipeError, SettingsError
from caravan.identity import load_identity
from caravan.recipe.io import parse_recipe
from caravan.registry import State
from caravan.settings import load_settings
from caravan_dashboard import signin
from caravan_dashboard.launch import APP, command, write_secrets
from caravan_pipelines import actions

CARAVAN = str(Path(sys.executable).with_name("caravan"))
RECIPES = Path(__file__).parents[2] / "pipelines" / "recipes"
OIDC = {
    "CARAVAN_OIDC_ISSUER": "https://login.example.com",
    "CARAVAN_OIDC_CLIENT_ID": "caravan",
    "CARAVAN_OIDC_CLIENT_SECRET": 'secret "quoted"',
    "CARAVAN_OIDC_COOKIE_SECRET": "0123456789abcdef0123456789abcdef",
    "CARAVAN_OIDC_REDIRECT_URI": "https://caravan.example.com/oauth2callback",
    "CARAVAN_OIDC_VIEWER_GROUPS": '["staff"]',
    "CARAVAN_OIDC_LAUNCHER_GROUPS": '["ml"]',
    "CARAVAN_OIDC_ADMIN_GROUPS": '["ml-admins"]',
}


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OIDC.items():
        monkeypatch.setenv(name, value)


def visit(page: str, claims: dict[str, object] | None, **parameters: str) -> AppTest:
    app = AppTest.from_file(str(APP), default_timeout=240)
    app.user = {"is_logged_in": False}
    if claims is not None:
        app.user = {"is_logged_in": True, "iat": int(time.time()), "sub": "1"} | claims
    if page != "runs":
        app.switch_page(f"views/{page}.py")
    app.query_params.update(parameters)
    app.run()
    assert not app.exception, [e.message for e in app.exception]
    return app


def ann(*groups: str) -> dict[str, object]:
    """The owner of the runs of the fixtures."""
    return {"email": "ann", "email_verified": True, "groups": list(groups)}


def bob(*groups: str) -> dict[str, object]:
    return {"email": "bob@example.com", "email_verified": True, "groups": list(groups)}


def labels(app: AppTest) -> list[str]:
    return [button.label for button in app.button]


def button(app: AppTest, label: str):
    return next(b for b in app.button if b.label == label)


def everything(app: AppTest) -> str:
    texts = [str(e.value) for kind in (app.title, app.text, app.code, app.error) for e in kind]
    html = [e.proto.body for e in app.get("html") if not e.proto.body.startswith("<style>")]
    return "\n".join(texts + html)


# --- the door -----------------------------------------------------------------------------------


@pytest.mark.parametrize("page", ["runs", "run", "data", "pairs", "evaluation", "launch"])
def test_a_stranger_sees_a_way_to_sign_in_and_nothing_else(provider, run_ids, page):
    app = visit(page, None, run=run_ids["complete"])

    assert labels(app) == ["Sign in"]
    assert not any(run_id in everything(app) for run_id in run_ids.values())


def test_someone_in_no_group_sees_why_and_nothing_else(provider, run_ids):
    app = visit("runs", bob("sales"))

    assert labels(app) == ["Sign out"]
    assert "in no group that may use this dashboard" in everything(app)
    assert not any(run_id in everything(app) for run_id in run_ids.values())


def test_an_old_session_signs_in_again(provider, run_ids):
    app = visit("runs", bob("ml-admins") | {"iat": int(time.time()) - 13 * 3600})

    assert labels(app) == ["Sign in"]


def test_a_download_ends_with_the_session(provider, monkeypatch):
    claims = bob("staff") | {"sub": "1", "iat": int(time.time())}
    monkeypatch.setattr(signin, "_claims", lambda: claims)
    rows = signin.in_session(lambda: "rows")
    assert rows() == "rows"

    claims["iat"] = int(time.time()) - 13 * 3600
    with pytest.raises(AccessError, match="session is over"):
        rows()


def test_half_a_provider_opens_nothing(provider, run_ids, monkeypatch):
    monkeypatch.delenv("CARAVAN_OIDC_CLIENT_SECRET")

    app = visit("runs", bob("ml-admins"))

    assert "CARAVAN_OIDC_CLIENT_SECRET" in everything(app)
    assert run_ids["complete"] not in everything(app)


def test_without_a_provider_other_machines_are_refused(run_ids, monkeypatch):
    monkeypatch.setattr(
        "streamlit.runtime.context.ContextProxy.ip_address", property(lambda _: "192.0.2.7")
    )

    app = visit("runs", None)

    assert "is for the browser of its own machine" in everything(app)
    assert run_ids["complete"] not in everything(app)


# --- roles --------------------------------------------------------------------------------------


def test_a_viewer_looks_and_may_do_nothing(provider, run_ids):
    app = visit("run", ann("staff"), run=run_ids["failed"])
    assert button(app, "Resume").disabled  # though the run is theirs
    assert "ann" in everything(app)
    assert "viewer" in everything(app)

    app = visit("pairs", ann("staff"), run=run_ids["complete"], view="Rate")
    assert "Rating takes the role launcher." in everything(app)
    assert labels(app) == ["Sign out"]

    app = visit("run", ann("staff"), run=run_ids["complete"], view="Notes")
    assert button(app, "Save tags").disabled
    assert button(app, "Add note").disabled
    assert not {"Save", "Delete"} & set(labels(app))

    for start in ("pocket", run_ids["complete"]):
        app = visit("launch", ann("staff"), recipe=start)
        assert button(app, "Launch").disabled
        assert button(app, "Launch").help == "Launching takes the role launcher"


def test_a_viewer_does_not_learn_from_a_recipe_which_files_are_on_the_server(
    provider, run_ids, registry, home, tmp_path
):
    there, absent = tmp_path / "there.jsonl", tmp_path / "absent.jsonl"
    there.write_text("")
    text = """
name: mine
base_model: {{kind: imported, model_name_or_path: {0}}}
curate: {{sources: [{{name: a, license: MIT, skill: s, origin: {{kind: files, paths: ["{0}"]}}}}]}}
sft: {{}}
"""

    def told(*groups: str, path: object) -> str:
        app = visit("launch", bob(*groups), recipe="Paste a recipe")
        app.text_area[0].set_value(text.format(path)).run()
        return everything(app)

    assert told("staff", path=there).replace(str(there), "") == told("staff", path=absent).replace(
        str(absent), ""
    )
    assert f"{absent} is not there" in told("ml", path=absent)

    (home / "secret.yaml").write_text("password: hush")
    recipe = parse_recipe((RECIPES / "pocket.yaml").read_text()).model_dump(mode="json")
    own = registry.create_run(recipe, name="own", seed=1, recipe_digest="d", recipe_dir=home)
    for groups, said in ((["staff"], "there is no file"), (["ml"], "password")):
        app = visit("launch", bob(*groups), recipe=own)
        app.text_area[0].set_value(f"extends: secret.yaml\n{app.text_area[0].value}").run()
        assert said in everything(app)


def test_a_launcher_may_do_so_with_their_own_runs(provider, run_ids, registry):
    assert not button(visit("run", ann("ml"), run=run_ids["failed"]), "Resume").disabled
    assert button(visit("run", bob("ml"), run=run_ids["failed"]), "Resume").disabled
    assert not button(visit("run", bob("ml-admins"), run=run_ids["failed"]), "Resume").disabled
    assert not button(visit("launch", bob("ml"), recipe="pocket"), "Launch").disabled

    app = visit("run", bob("ml"), run=run_ids["complete"], view="Notes")
    assert button(app, "Save tags").disabled
    app.text_area(key="new note").set_value("Seen by Bob.")
    button(app, "Add note").click().run()
    assert not app.exception
    note = registry.notes(run_ids["complete"])[-1]
    assert (note.author, note.text) == ("bob@example.com", "Seen by Bob.")


def test_the_library_refuses_what_a_page_should_not_have_offered(home, run_ids, registry):
    viewer, bob = User("ann", Role.VIEWER), User("bob@example.com", Role.LAUNCHER)
    settings = load_settings()
    run_id = run_ids["running"]
    before = registry.notes(run_ids["complete"])
    recipe = parse_recipe((RECIPES / "pocket.yaml").read_text("utf-8"))

    for attempt in (
        lambda: actions.launch(viewer, recipe, settings, recipe_dir=home),
        lambda: actions.cancel(viewer, run_id, registry, settings),
        lambda: actions.cancel(bob, run_id, registry, settings),
        lambda: actions.resume(bob, run_id, registry, settings),
        lambda: actions.set_tags(bob, run_id, ["mine"], registry),
        lambda: actions.add_note(viewer, run_id, "hello", registry),
        lambda: actions.rate_pair(viewer, "d" * 64, "x/1", "chosen", registry),
        lambda: actions.edit_note(bob, before[0].id, "rewritten", registry),
        lambda: actions.delete_note(bob, before[0].id, registry),
    ):
        with pytest.raises(AccessError):
            attempt()

    code = parse_recipe(
        f"verifiers: {{own: own.py}}\n{(RECIPES / 'pocket.yaml').read_text('utf-8')}"
    )
    with pytest.raises(RecipeError, match="own would run code of the recipe's own"):
        actions.launch(User("cat", Role.ADMIN), code, settings, recipe_dir=home)

    assert registry.get_run(run_id).state is not State.CANCELLED
    assert registry.get_run(run_id).tags == ()
    assert registry.notes(run_ids["complete"]) == before
    assert len(registry.list_runs()) == len(run_ids)


# --- how it is started --------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7", "caravan.example.com", ""])
def test_without_a_provider_it_serves_this_machine_only(address):
    with pytest.raises(SettingsError, match="no identity provider, so it serves this machine only"):
        command(8501, address)


def test_the_command_line_refuses_in_a_sentence(nothing):
    found = subprocess.run(
        [CARAVAN, "dashboard", "--address", "0.0.0.0"],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip

    assert found.returncode == 2
    assert found.stderr.startswith("error: the dashboard has no identity provider")


def test_secrets_go_to_a_file_that_nobody_else_reads(provider, tmp_path):
    identity = load_identity()
    assert identity is not None

    path = write_secrets(identity, tmp_path / "home")
    arguments = " ".join(command(8501, "0.0.0.0", identity=identity, secrets=str(path)))

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tomllib.loads(path.read_text())["auth"] == {
        "redirect_uri": OIDC["CARAVAN_OIDC_REDIRECT_URI"],
        "cookie_secret": OIDC["CARAVAN_OIDC_COOKIE_SECRET"],
        "client_id": "caravan",
        "client_secret": 'secret "quoted"',
        "server_metadata_url": "https://login.example.com/.well-known/openid-configuration",
        "client_kwargs": {"scope": "openid profile email"},
    }
    assert "quoted" not in arguments
    assert OIDC["CARAVAN_OIDC_COOKIE_SECRET"] not in arguments


# --- a browser, a provider ----------------------------------------------------------------------

WITH_A_BROWSER = pytest.mark.timeout(900)


@pytest.fixture
def new_address(home: Path, start_dashboard: Callable[..., str]) -> Iterator[Callable[..., str]]:
    """Starts a dashboard that signs people in; gives the address that browsers reach it by."""
    claims = [
        oidc_provider_mock.User(
            sub=name, claims={"email": email, "email_verified": True, "groups": groups}
        )
        for name, email, groups in (
            ("ann", "ann", ["staff", "ml"]),
            ("vic", "vic@example.com", ["staff"]),
            ("eve", "eve@example.com", ["sales"]),
        )
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with oidc_provider_mock.run_server_in_thread(user_claims=claims) as provider:
        environment = OIDC | {
            "CARAVAN_OIDC_ISSUER": f"http://localhost:{provider.server_port}",
            "CARAVAN_OIDC_REDIRECT_URI": f"http://localhost:{port}/oauth2callback",
        }
        yield lambda **more: start_dashboard(
            lambda port: [CARAVAN, "dashboard", "--port", str(port), "--address", "0.0.0.0"],
            port,
            **environment,
            **more,
        )


@pytest.fixture
def address(new_address: Callable[..., str]) -> str:
    return new_address()


@WITH_A_BROWSER
def test_signing_in_and_out_in_a_browser(address, page, run_ids):
    page.goto(f"{address}/run?run={run_ids['failed']}")
    sign_in(page, "vic")
    expect(page.get_by_text("vic@example.com")).to_be_visible()
    page.goto(f"{address}/run?run={run_ids['failed']}")
    expect(page.get_by_role("button", name="Resume")).to_be_disabled()

    sign_out(page, address)
    sign_in(page, "eve")
    expect(page.get_by_text("in no group that may use this dashboard")).to_be_visible()
    assert run_ids["failed"] not in page.content()

    sign_out(page, address)
    sign_in(page, "ann")
    page.goto(f"{address}/run?run={run_ids['failed']}")
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()


@WITH_A_BROWSER
def test_a_page_that_draws_itself_anew_closes_with_the_session(new_address, page, run_ids):
    address = new_address(CARAVAN_OIDC_SESSION_HOURS="0.015")
    opened, closed = (page.get_by_role("button", name=name) for name in ("Cancel", "Sign in"))
    for shown in (opened.or_(closed), opened):  # at first the server imports what it needs
        page.context.clear_cookies()
        page.goto(f"{address}/run?run={run_ids['running']}")
        sign_in(page, "vic")
        expect(page.get_by_text("vic@example.com")).to_be_visible()
        page.goto(f"{address}/run?run={run_ids['running']}")
        expect(shown).to_be_visible()

    expect(closed).to_be_visible()
    expect(opened).to_be_hidden()
    expect(page.locator("body")).not_to_contain_text(run_ids["running"])


@WITH_A_BROWSER
def test_a_forged_cookie_signs_nobody_in(address, page, run_ids):
    forged = '{"is_logged_in": true, "email": "ann", "iat": 9999999999, "groups": ["ml-admins"]}'
    page.context.add_cookies([{"name": "_streamlit_user", "value": forged, "url": address}])

    page.goto(address)

    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    assert run_ids["complete"] not in page.content()


def sign_in(page, name: str) -> None:
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(re.compile(r"/oauth2/authorize"))
    page.get_by_role("button", name=name).first.click()


def sign_out(page, address: str) -> None:
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(re.compile(r"/oauth2/end_session"))  # the provider asks about its own session
    page.goto(address)
