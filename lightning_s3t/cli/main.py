"""The `s3t` command: its commands and error handling."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from lightning_s3t.columns import printable
from lightning_s3t.errors import S3TError

if TYPE_CHECKING:
    from cyclopts import App

LIGHTNING_COMMANDS = {
    "fit": "Train every missing unit of a store, from a LightningCLI config.",
    "validate": "Validate the ensemble of a store's survivors.",
    "test": "Test the ensemble of a store's survivors.",
    "predict": "Predict with the ensemble of a store's survivors.",
}
_GROUPS = ("evidence", "receipt", "recipients", "store")
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as in shells


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: The arguments; None for those of the process.

    Returns:
        0, or 1 if a check has failed; 2 after an error of lightning_s3t or in the arguments (with a message on stderr),
        or 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        if given and given[0] in LIGHTNING_COMMANDS:
            from lightning_s3t.cli.lightning import run_lightning

            run_lightning(given)
            return 0
        return _run(given)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("litserve", "fastapi", "starlette", "uvicorn", "prometheus_client"):
            print(f's3t: the service needs {package}: pip install "lightning-s3t[serve]"', file=sys.stderr)
            return EXIT_ERROR
        if package not in ("cyclopts", "rich", "jsonargparse"):
            raise
        print(f's3t: the command needs {package}: pip install "lightning-s3t[cli]"', file=sys.stderr)
        return EXIT_ERROR
    except S3TError as error:
        print(printable(f"s3t: {error}"), file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("s3t: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def make_app() -> App:
    """Return the application: every command is a typed function, whose docstring is its help."""
    from cyclopts import App, Group, Parameter

    from lightning_s3t.cli.audit import audit
    from lightning_s3t.cli.compare import compare
    from lightning_s3t.cli.copying import copy
    from lightning_s3t.cli.correcting import rectify, release, restrict
    from lightning_s3t.cli.demo import demo
    from lightning_s3t.cli.drill import drill
    from lightning_s3t.cli.export import export
    from lightning_s3t.cli.forget import forget
    from lightning_s3t.cli.layers import layers
    from lightning_s3t.cli.plan import plan
    from lightning_s3t.cli.receipts import list_receipts, verify_receipt
    from lightning_s3t.cli.recipients import acknowledge, add_recipient, complete, list_recipients
    from lightning_s3t.cli.reports import make_evidence, report, verify_evidence
    from lightning_s3t.cli.serve import serve
    from lightning_s3t.cli.simulate import simulate
    from lightning_s3t.cli.status import status
    from lightning_s3t.cli.store import consolidate, pending, provenance, rotate_key, verify

    learn, design, train, erase, keep = (
        Group(title, sort_key=number)
        for number, title in enumerate(
            ("Get started", "Choose before training", "Train and serve", "Forget and correct", "Keep a store")
        )
    )
    # flags do not have a --no-... form, and lists take several values: s3t plan --requests 1 5 20
    app = App(
        "s3t",
        help="Exact machine unlearning for Lightning: plan, train by slices, forget, and prove it.",
        help_format="plaintext",
        version_flags=[],
        default_parameter=Parameter(negative=(), consume_multiple=True),
    )
    app["--help"].group = learn
    app.command(demo, group=learn)
    app.command(completion, group=learn)
    app.command(plan, group=design)
    app.command(simulate, group=design)
    app.command(compare, group=design)
    app.command(layers, group=design)
    for name, summary in LIGHTNING_COMMANDS.items():
        app.command(App(name, help=summary, group=train))
    app.command(serve, group=train)
    app.command(export, group=train)
    app.command(forget, group=erase)
    app.command(rectify, group=erase)
    app.command(restrict, group=erase)
    app.command(release, group=erase)
    receipt = App("receipt", help="List the receipts of requests, or check one.", group=erase)
    receipt.command(list_receipts, name="list")
    receipt.command(verify_receipt, name="verify")
    receipt.command(complete)
    app.command(receipt)
    recipients = App("recipients", help="Record who holds exported copies, and who has erased theirs.", group=erase)
    recipients.command(list_recipients, name="list")
    recipients.command(add_recipient, name="add")
    recipients.command(acknowledge)
    app.command(recipients)
    store = App("store", help="Inspect a store, verify it, and manage its key.", group=keep)
    store.command(status)
    store.command(verify)
    store.command(audit)
    store.command(provenance)
    store.command(pending)
    store.command(consolidate)
    store.command(rotate_key)
    app.command(store)
    app.command(copy, group=keep)
    app.command(drill, group=keep)
    app.command(report, group=keep)
    evidence = App("evidence", help="Make an archive for an auditor, or check one without the store.", group=keep)
    evidence.command(make_evidence, name="make")
    evidence.command(verify_evidence, name="verify")
    app.command(evidence)
    return app


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a completion script for a shell.

    Args:
        shell: The shell, as in eval "$(s3t completion bash)".
    """
    print(make_app().generate_completion(shell=shell))


def _run(given: list[str]) -> int:
    from cyclopts import CycloptsError

    app = make_app()
    if given in (
        [],
        *([group] for group in _GROUPS),
    ):  # help was not requested: a script must fail
        app.help_print(given)
        return EXIT_ERROR
    if given[0] not in app and (meant := [f"s3t {group} {given[0]}" for group in _GROUPS if given[0] in app[group]]):
        print(f"s3t: There is no command {given[0]!r}. Did you mean {' or '.join(meant)}?", file=sys.stderr)
        return EXIT_ERROR
    if "-" in given and "--" not in given:  # standard input, which is an argument and not an option
        given = [*(part for part in given if part != "-"), "--", "-"]
    try:
        command, bound, _ = app.parse_args(given, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        print(f"s3t: {error}\nSee: {' '.join(['s3t', *(error.command_chain or ()), '--help'])}", file=sys.stderr)
        return EXIT_ERROR
    found: int | None = command(*bound.args, **bound.kwargs)
    return found or 0
