"""The commands `s3t report` and `s3t evidence`: a one-page report of a store, and an archive that others can check."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import asdict
from pathlib import Path

from lightning_s3t.cli.receipts import check_private_key
from lightning_s3t.columns import printable
from lightning_s3t.errors import ConfigurationError


def report(store: Path, /, *, output: Path = Path("report.html"), skip_verify: bool = False) -> int:
    """Write a report of a store: the serving units, how long they last, the requests, and the result of the checks.

    It is one HTML page without scripts, with no ids of people in it. Exits with 1 if a check has found a problem.

    Args:
        store: The store's folder.
        output: The page to write.
        skip_verify: Skip the check of the store, which reads every snapshot.
    """
    from lightning_s3t.reporting import StoreReport
    from lightning_s3t.store import Store

    if output.suffix not in (".html", ".htm"):
        raise ConfigurationError(f"Expected the name of the report to end in .html but got {output.name!r}.")
    with Store.open(store) as opened:
        found = StoreReport.of(opened, verify=not skip_verify)
    output.write_text(found.to_html(), encoding="utf-8")
    print(f"The report of {store} is in {output}.")
    return 0 if found.verification is None or found.verification.passed else 1


def make_evidence(
    store: Path, /, *, output: Path = Path("evidence.zip"), sign: Path | None = None, audit: Path | None = None
) -> None:
    """Write an archive of a store's records, which an auditor can check without the store.

    It holds plan, seeds, provenance, history and receipts. It does not contain ids of people, but keyed hashes of them
    with the slices of their data: do not publish it.

    Args:
        store: The store's folder.
        output: The archive to write.
        sign: A private key (Ed25519, PEM) to sign it with.
        audit: A file with the output of s3t store audit --json, to include.
    """
    from lightning_s3t.reporting import write_evidence
    from lightning_s3t.store import Store

    if sign is not None:
        check_private_key(sign)
    text = None
    if audit is not None:
        try:
            text = audit.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"The audit {audit} cannot be read: {error}.") from error
    with Store.open(store) as opened:
        write_evidence(opened, output, sign, text)
    print(f"The evidence of {store} is in {output}. Check it with: s3t evidence verify {output}")


def verify_evidence(archive: Path, /, *, key: Path | None = None, json: bool = False) -> int:
    """Check an archive of evidence: signature, history, receipts, and that no request reaches a living unit.

    Exits with 1 if anything is wrong.

    Args:
        archive: The archive.
        key: The public key of the expected signature (Ed25519, PEM).
        json: Print the result as a JSON document.
    """
    from lightning_s3t.errors import StoreError
    from lightning_s3t.reporting import Evidence

    try:
        evidence = Evidence.read(archive)
    except StoreError as error:
        print(printable(str(error)), file=sys.stderr)
        return 1
    found = evidence.check(key)
    passed = all(finding.passed for finding in found)
    if json:
        print(json_format.dumps({"passed": passed, "findings": [asdict(finding) for finding in found]}, indent=2))
        return 0 if passed else 1
    about = evidence.statement
    print(printable(f"Evidence of {about.model or 'a store without a fit'}: {about.method}, {about.guarantee}."))
    for finding in found:
        print(
            printable(
                f"{'ok   ' if finding.passed else 'WRONG'}  {finding.what}: {_said(finding.problems, finding.note)}"
            )
        )
    print("Nothing is wrong." if passed else "Something is wrong: see the lines above.")
    return 0 if passed else 1


def _said(problems: tuple[str, ...], note: str) -> str:
    shown = " ".join(problems[:5])
    return f"{shown} And {len(problems) - 5} more." if len(problems) > 5 else shown or note
