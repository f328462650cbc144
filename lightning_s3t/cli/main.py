"""The `s3t` command: its verbs, and how errors leave it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from lightning_s3t.errors import S3TError

DESCRIPTION = "Exact machine unlearning for Lightning: what a store holds, who is forgotten, and a demo."
LIGHTNING_VERBS = {
    "fit": "Train every missing unit of a store, from a LightningCLI config.",
    "validate": "Validate the ensemble of a store's survivors.",
    "test": "Test the ensemble of a store's survivors.",
    "predict": "Predict with the ensemble of a store's survivors.",
}
EXIT_ERROR = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        args: The arguments; None for those of the process.

    Returns:
        0, or 1 if a check has failed; 2 after an error of ours (its message is on stderr), or 130 after Ctrl-C.

    Raises:
        SystemExit: The arguments are off (2), or help was asked for (0).
    """
    given = list(sys.argv[1:] if args is None else args)
    try:
        if given and given[0] in LIGHTNING_VERBS:
            from lightning_s3t.cli.lightning import run_lightning

            run_lightning(given)
            return 0
        from lightning_s3t.cli.arguments import Verb, make_parser, run_verb
        from lightning_s3t.cli.audit import audit
        from lightning_s3t.cli.demo import demo
        from lightning_s3t.cli.keeping import provenance, rotate_key, verify
        from lightning_s3t.cli.layers import layers
        from lightning_s3t.cli.plan import plan
        from lightning_s3t.cli.requests import forget, forget_due, pending, receipts, verify_receipt
        from lightning_s3t.cli.simulate import simulate
        from lightning_s3t.cli.status import status

        verbs: dict[str, Verb] = {
            "demo": demo,
            "layers": layers,
            "plan": plan,
            "simulate": simulate,
            "status": status,
            "forget": forget,
            "forget-due": forget_due,
            "pending": pending,
            "receipts": receipts,
            "verify-receipt": verify_receipt,
            "verify": verify,
            "audit": audit,
            "provenance": provenance,
            "rotate-key": rotate_key,
        }
        return run_verb(make_parser(verbs, "s3t", DESCRIPTION, LIGHTNING_VERBS).parse_args(given))
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("docstring_parser", "rich", "jsonargparse", "shtab"):
            raise
        print(f's3t: the command needs {package}: pip install "lightning-s3t[cli]"', file=sys.stderr)
        return EXIT_ERROR
    except S3TError as error:
        print(f"s3t: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("s3t: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
