"""The verbs of the `caravan` command."""

from __future__ import annotations

import errno
import sys
from enum import StrEnum
from typing import Annotated

import typer

from caravan.errors import CaravanError
from caravan_pipelines.cli.artifact import artifact
from caravan_pipelines.cli.data import data
from caravan_pipelines.cli.metrics import metrics
from caravan_pipelines.cli.model import model
from caravan_pipelines.cli.recipe import FileOrRun, recipe
from caravan_pipelines.cli.registry import registry

app = typer.Typer(
    name="caravan",
    help="Take a base language model through an open post-training recipe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(recipe, name="recipe")
app.add_typer(artifact, name="artifact")
app.add_typer(data, name="data")
app.add_typer(model, name="model")
app.add_typer(registry, name="registry")
app.add_typer(metrics, name="metrics")


def _version(wanted: bool) -> None:
    if wanted:
        from caravan.version import caravan_version

        print(f"caravan {caravan_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


class Backend(StrEnum):
    kubeflow = "kubeflow"
    local = "local"


Changes = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="PATH=VALUE",
        help="Change a field; may be given more than once. Values are YAML: "
        "--set dpo.beta=2 --set 'rlvr.skills=[math, chat]'; an item of a list is named: "
        "--set evaluate.tasks.math.limit=100",
    ),
]  # fmt: skip
Seed = Annotated[int | None, typer.Option(help="Seed of the run.")]
Tags = Annotated[
    list[str], typer.Option(metavar="TAG", help="Tag the run: --tag nightly --tag beta-2")
]
Detach = Annotated[bool, typer.Option("--detach", help="Do not wait for the run.")]
RunOrSweep = Annotated[
    str,
    typer.Argument(
        metavar="[RUN]", help="Id of a run, the beginning of one, `latest`, or sweep:ID."
    ),
]
RunId = Annotated[str, typer.Argument(help="Id of a run, the beginning of one, or `latest`.")]


@app.command()
def run(
    recipe: FileOrRun,
    set_: Changes = [],  # noqa: B006  # typer copies it
    seed: Seed = None,
    tag: Tags = [],  # noqa: B006
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check all that can be known before the first step.")
    ] = False,
    detach: Detach = False,
) -> None:
    """Run a recipe on this machine: caravan run pipelines/recipes/pocket.yaml"""
    from caravan_pipelines.cli import run as command

    overrides = [*set_, *([f"seed={seed}"] if seed is not None else [])]
    command.run(recipe, overrides, tuple(tag), dry_run=dry_run, detach=detach)


@app.command()
def plan(
    recipe: FileOrRun,
    set_: Changes = [],  # noqa: B006  # typer copies it
    gpu: Annotated[
        str | None, typer.Option(help="Type of GPU where the recipe names none: h100, h200, ...")
    ] = None,
    compare: Annotated[
        str | None, typer.Option(metavar="RUN", help="Show how far off the plan of a run is.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Estimate memory, time and GPU-hours of every stage; nothing is started."""
    from caravan_pipelines.cli import plan as command

    command.plan(recipe, set_, gpu=gpu, run=compare, as_json=json)


@app.command()
def launch(
    recipe: FileOrRun,
    backend: Annotated[
        Backend, typer.Option(help="Kubeflow Pipelines (CARAVAN_KFP_URL), or this machine.")
    ] = Backend.kubeflow,
    set_: Changes = [],  # noqa: B006  # typer copies it
    seed: Seed = None,
    tag: Tags = [],  # noqa: B006
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the pods that the run would have.")
    ] = False,
    detach: Detach = False,
) -> None:
    """Launch a recipe on the cluster: caravan launch tulu3-8b"""
    overrides = [*set_, *([f"seed={seed}"] if seed is not None else [])]
    if backend is Backend.local:
        from caravan_pipelines.cli import run as here

        here.run(recipe, overrides, tuple(tag), dry_run=dry_run, detach=detach)
        return
    from caravan_pipelines.cli import launch as there

    there.launch(recipe, overrides, tuple(tag), dry_run=dry_run, detach=detach)


@app.command()
def sweep(
    recipe: FileOrRun,
    over: Annotated[
        list[str], typer.Option("--over", metavar="PATH=V,V,...", help="Values of a field.")
    ],
    backend: Annotated[
        Backend, typer.Option(help="Kubeflow Pipelines (CARAVAN_KFP_URL), or this machine.")
    ] = Backend.local,
    set_: Changes = [],  # noqa: B006  # typer copies it
    tag: Tags = [],  # noqa: B006
) -> None:
    """Run a recipe with each combination of values: caravan sweep pocket --over dpo.beta=1,2,5"""
    from caravan_pipelines.cli import sweep as command

    command.sweep(recipe, over, set_, tuple(tag), on_cluster=backend is Backend.kubeflow)


@app.command()
def serve(
    model: Annotated[str, typer.Argument(help="Digest or RUN:STAGE/model; with --stop, a server.")],
    args: Annotated[
        list[str] | None, typer.Argument(help="Arguments for vLLM, after `--`.", show_default=False)
    ] = None,
    *,
    name: Annotated[str, typer.Option(help="Name of the server.")] = "",
    gpus: Annotated[int, typer.Option(help="GPUs of each pod, one at least.")] = 1,
    gpu_type: Annotated[str, typer.Option(help="Type of GPU of the cluster profile.")] = "",
    cpus: Annotated[int, typer.Option(help="CPUs of each pod.")] = 4,
    memory: Annotated[float, typer.Option(help="Memory of each pod, in GiB.")] = 32.0,
    replicas: Annotated[int, typer.Option(help="Pods, at least.")] = 1,
    max_replicas: Annotated[int, typer.Option(help="Scale up to so many; 0 does not.")] = 0,
    api_key_secret: Annotated[
        str, typer.Option(help="Secret whose key `api-key` clients must give.")
    ] = "",
    max_tokens: Annotated[int, typer.Option(help="Of prompt and reply; 0: the model's own.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the objects only.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="Stop the server called MODEL.")] = False,
) -> None:
    """Serve a model on the cluster, OpenAI-compatible: caravan serve latest:dpo/model"""
    from caravan.recipe import Resources
    from caravan_pipelines.cli import serve as command

    if stop:
        command.stop(model)
        return
    command.serve(
        model, name, Resources(gpus=gpus, gpu_type=gpu_type, cpus=cpus, memory_gib=memory),
        replicas=replicas, max_replicas=max_replicas, api_key_secret=api_key_secret,
        max_model_len=max_tokens, args=tuple(args or ()), dry_run=dry_run,
    )  # fmt: skip


@app.command()
def chat(
    model: Annotated[str, typer.Argument(help="Digest, RUN:STAGE/model, or a directory.")],
    prompt: Annotated[
        str, typer.Option(help="Reply to this and end; or to what is piped in.")
    ] = "",
    system: Annotated[str, typer.Option(help="System message.")] = "",
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.7,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of a reply.")] = 512,
    seed: Annotated[int, typer.Option(help="Same seed, same replies.")] = 0,
) -> None:
    """Talk with a model on this machine: caravan chat latest:dpo/model"""
    from caravan_pipelines.cli import chat as command

    command.chat(
        model, prompt, system=system, temperature=temperature, max_tokens=max_tokens, seed=seed
    )


@app.command()
def watch(
    interval: Annotated[float, typer.Option(help="Seconds between two looks.")] = 15.0,
) -> None:
    """Keep the registry in step with runs on Kubeflow Pipelines; runs until it is stopped."""
    from caravan_pipelines.cli import launch as command

    command.watch(interval)


@app.command()
def resume(run: RunOrSweep = "latest") -> None:
    """Continue a stopped run, or what is left of a sweep; finished stages are not repeated."""
    from caravan.registry import SWEEP_TAG

    if run.startswith(SWEEP_TAG):
        from caravan_pipelines.cli import sweep as of_sweeps

        of_sweeps.resume(run)
        return
    from caravan_pipelines.cli import run as command

    command.resume(run)


@app.command()
def cancel(run: RunId = "latest") -> None:
    """Stop a run; `caravan resume` continues it."""
    from caravan_pipelines.cli import run as command

    command.cancel(run)


@app.command()
def runs(
    limit: Annotated[int, typer.Option(min=1, max=1_000_000, help="Newest runs to list.")] = 20,
    state: Annotated[
        str | None, typer.Option(help="running, succeeded, failed, cancelled, interrupted, pending")
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Those that have this tag.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Those of the recipe of this name.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List the runs, newest first: caravan runs --state failed"""
    from caravan_pipelines.cli import show as command

    command.runs(limit, state=state, tag=tag, recipe=recipe, as_json=json)


@app.command()
def tag(
    run: RunId,
    tags: Annotated[list[str] | None, typer.Argument(help="Tags to add.")] = None,
    remove: Annotated[list[str], typer.Option(help="A tag to take away.")] = [],  # noqa: B006
) -> None:
    """Tag a run: caravan tag latest good keep --remove draft"""
    from caravan_pipelines.cli import show as command

    command.tag(run, tags or [], remove)


@app.command()
def show(
    run: RunOrSweep = "latest",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a run: its stages, its scores, where its report is; or a sweep: its arms compared."""
    from caravan_pipelines.cli import show as command

    command.show(run, as_json=json)


@app.command()
def delete(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids of runs.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete stopped runs with their metrics and scores; `caravan gc` then frees the room."""
    from caravan_pipelines.cli import housekeeping as command

    command.delete(runs, sure=yes)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List only.")] = False,
    older_than: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="Leave younger artifacts alone.")
    ] = 1.0,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="Also artifacts that this registry has never known.")
    ] = False,
    candidates: Annotated[
        bool, typer.Option("--candidates", help="Also policies that no selection took.")
    ] = False,
    rated: Annotated[
        bool, typer.Option("--rated", help="Also pairs without a run that people have rated.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """Remove artifacts, work directories and checkpoints that no run needs any more."""
    from caravan_pipelines.cli import housekeeping as command

    command.gc(
        dry_run=dry_run, hours=older_than, unknown=unknown, candidates=candidates, rated=rated,
        as_json=json,
    )  # fmt: skip


@app.command()
def du(json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False) -> None:
    """Show how much room each run takes."""
    from caravan_pipelines.cli import housekeeping as command

    command.du(as_json=json)


@app.command()
def follow(run: RunId = "latest") -> None:
    """Follow a run until it ends; to stop following does not stop it."""
    from caravan_pipelines.cli import run as command

    command.follow_run(run)


@app.command()
def logs(
    run: RunId = "latest",
    stage: Annotated[str | None, typer.Argument(help="Its lines alone.")] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as long as the run does.")
    ] = False,
) -> None:
    """Print the log of a run: of this machine, or of its pods."""
    from caravan_pipelines.cli import run as command

    command.logs(run, stage, follow=follow)


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8501,
    address: Annotated[
        str, typer.Option(help="Address to listen on; other than loopback it takes sign-in.")
    ] = "127.0.0.1",
) -> None:
    """Serve the dashboard: to this machine's browser or, with sign-in, to a team."""
    from caravan.settings import load_settings
    from caravan_dashboard.launch import serve

    serve(port, address, load_settings())


@app.command()
def costs(
    run: Annotated[
        str | None, typer.Argument(help="Id of a run; without one, the sums of projects.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show GPU-hours, core-hours and money of a run, or of all projects with their budgets."""
    from caravan_pipelines.cli import costs as command

    if run is None:
        command.of_projects(as_json=json)
    else:
        command.of_run(run, as_json=json)


@app.command()
def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """Check registry, store, cluster, GPUs, images and sign-in; say how to mend what is broken."""
    from caravan_pipelines.cli import doctor as command

    command.doctor(as_json=json)


def _list_whole(group: typer.Typer) -> None:
    """Let lists of commands show what each does in full: its example would be cut off."""
    for command in group.registered_commands:
        said = command.callback and command.callback.__doc__
        command.short_help = said.partition("\n\n")[0] if said else None
    for inner in group.registered_groups:
        if inner.typer_instance is not None:
            _list_whole(inner.typer_instance)


_list_whole(app)


def main() -> None:
    """Entry point: errors that a user can act on are printed without a traceback."""
    try:
        app()
    except CaravanError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a disk or a network that nobody below spoke of in better words
        unnamed = error.errno == errno.ENOSPC and not error.filename
        way_out = (
            "; free some on the disks of CARAVAN_HOME, the store and TMPDIR" if unnamed else ""
        )
        print(f"error: {error}{way_out}", file=sys.stderr)
        sys.exit(2)
