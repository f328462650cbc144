"""Evidence: an archive of a store's records, which a third party can check without the store."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lightning_s3t.core.documents import STRICT, canonical, read_json
from lightning_s3t.core.events import Event, first_break
from lightning_s3t.core.receipts import Receipt
from lightning_s3t.core.units import UnitId
from lightning_s3t.errors import ConfigurationError, StoreError
from lightning_s3t.reporting.report import StoreReport
from lightning_s3t.store import Store
from lightning_s3t.store.disk.files import write_atomically
from lightning_s3t.store.history import has_given
from lightning_s3t.store.keys.authentication import change_of
from lightning_s3t.store.keys.signing import sign_document, verify_document

FORMAT = 1
_STATEMENT = "statement.json"
_SETTINGS, _PLAN, _UNITS, _HISTORY = "settings.json", "plan.json", "units.json", "history.jsonl"
_RECEIPTS, _CHECKS, _AUDIT, _REPORT, _README = "receipts.json", "checks.json", "audit.json", "report.html", "README.txt"
_NEEDED = (_SETTINGS, _PLAN, _UNITS, _HISTORY, _RECEIPTS, _CHECKS, _REPORT, _README)
_LARGEST = 1 << 30  # of one file, unpacked: an archive from a stranger must not fill the memory
_TRIES = 5  # to read the history while no request comes in
_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the same store produces the same bytes

_EXPLANATION = """\
Evidence of a lightning_s3t store
=================================

Check it:  s3t evidence verify {name} --key public.pem

statement.json  what the archive is about, the SHA-256 of each file, and the signature of its author
settings.json   what the units were trained with: model, layers, adapter, training, how people are spread
plan.json       the sequences of slices that each shard is trained on
units.json      the units that are alive: what each was trained on and with, and as of which request
history.jsonl   all events of the store, each bound to the one before by its digest
receipts.json   the receipts of all requests
checks.json     what `s3t store verify` found when the archive was made, and the rows of each closed-form head
audit.json      what `s3t store audit --json` found, if it was given
report.html     the same for people to read

What a check shows: the files are those that were signed; the history is unbroken; every request has its receipt; every
unit fits the plan; and by the history, no unit that is alive was trained before a request that reaches its data.

What it does not show: that the history is true. Whoever holds the store wrote it, and signs for it. A receipt that was
given to a person earlier binds it: compare it by `s3t receipt verify RECEIPT --journal history.jsonl`. An audit trains
units again and compares every bit; it is as good as whoever ran it.

There is no id of a person in here. Each is a hash under a key that stays with the store, beside the slice that the data
was in: do not publish the archive.
"""


@dataclass(frozen=True)
class Statement:
    """The subject of an archive.

    Attributes:
        format: The version of the archive's form.
        model: The class of the module; None before the first fit.
        method: The unlearning method.
        guarantee: The guarantee of the remaining units.
        isolation: How units were isolated from each other during training.
        time: The time of the newest event (UTC, ISO 8601); None without one.
        position: The position of the newest event.
        chain: The digest of that event, which binds all events before it; None without one.
        files: By name, the SHA-256 of each file in the archive.
    """

    __pydantic_config__ = STRICT

    format: int
    model: str | None
    method: str
    guarantee: str
    isolation: str
    time: str | None
    position: Annotated[int, Field(ge=0)]
    chain: str | None
    files: dict[str, str]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked.

    Attributes:
        what: The checked item.
        problems: The problems, one sentence each.
        note: A remark if there are no problems.
    """

    what: str
    problems: tuple[str, ...] = ()
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def write_evidence(store: Store, path: str | Path, key: str | Path | None = None, audit: str | None = None) -> Path:
    """Write an archive that an auditor can check without access to the store.

    It holds the plan, the seeds, the provenance of every unit, the history, the receipts, the result of checking the
    store and, if given, an audit. It does not contain ids of people, but keyed hashes of them with the slices of their
    data: it is for an auditor, not for the public.

    Args:
        store: The opened store. It is checked, as by `Store.verify`.
        path: The path of the archive, which ends in .zip.
        key: A private key (Ed25519, PEM) to sign it with; None for an archive without a signature.
        audit: The report of an audit, as JSON (`s3t store audit --json`).

    Returns:
        The path.

    Raises:
        ConfigurationError: The name does not end in .zip, the key cannot sign, or the audit is not a report.
        StoreError: The store's history was changed.

    Example:
        >>> import tempfile
        >>> settings = {"partition": {"shards": 1, "slices": 2, "seed": 0}}
        >>> with tempfile.TemporaryDirectory() as folder, Store.create(f"{folder}/store", settings) as store:
        ...     _ = store.forget(["user-1"], strict=False)
        ...     path = write_evidence(store, f"{folder}/evidence.zip")
        ...     all(finding.passed for finding in Evidence.read(path).check())
        True
    """
    path = Path(path)
    if path.suffix != ".zip":
        raise ConfigurationError(f"Expected the name of the archive to end in .zip but got {path.name!r}.")
    if audit is not None:
        _read_audit(audit)
    report = StoreReport.of(store)
    history, texts = _at_one_time(store)
    files = {name: text.encode() for name, text in (_texts(store, report, path.name) | texts).items()}
    if audit is not None:
        files[_AUDIT] = audit.encode()
    newest = history[-1] if history else None
    statement = Statement(
        FORMAT,
        report.model,
        report.overview.method,
        report.overview.guarantee,
        report.overview.isolation,
        newest.time if newest else None,
        newest.position if newest else 0,
        newest.digest if newest else None,
        {name: hashlib.sha256(data).hexdigest() for name, data in sorted(files.items())},
    )
    document = asdict(statement) if key is None else sign_document(asdict(statement), Path(key))
    files[_STATEMENT] = json.dumps(document, indent=2, sort_keys=True).encode()
    write_atomically(path, _pack(files))
    return path


def _at_one_time(store: Store) -> tuple[list[Event], dict[str, str]]:
    """Return the history, and the files that an auditor compares with it: read again if a request comes in between."""
    for _ in range(_TRIES):
        history, receipts = store.history(), store.receipts()
        ages, alive, overview = store.ages(), store.alive(), store.status()
        units = [
            {"unit": str(unit), "key": record.key, "snapshot": record.snapshot, "score": record.score}
            | {"as_of": ages[unit], "serves": overview.serving.get(unit.shard) == unit}
            | {"provenance": record.provenance}
            for unit, record in alive.items()
            if unit in ages  # a fit may have added it since
        ]
        if store.count_events() == len(history):
            return history, {
                _PLAN: _pretty({"shards": overview.shards, "slices": overview.slices, "sequences": overview.sequences}),
                _UNITS: _pretty(units),
                _HISTORY: "".join(f"{event.to_json()}\n" for event in history),
                _RECEIPTS: _pretty([json.loads(record.receipt.to_json()) for record in receipts]),
            }
    raise StoreError(f"Requests to the store {store.path} come faster than its history can be read. Try again.")


def _texts(store: Store, report: StoreReport, name: str) -> dict[str, str]:
    checks = report.verification
    assert checks is not None
    found = {"passed": checks.passed, "problems": checks.problems, "skipped": checks.skipped, "notes": checks.notes}
    heads = {source: head.rows for source, head in store.heads().items()}
    return {
        _SETTINGS: _pretty(store.settings),
        _CHECKS: _pretty(found | {"events": checks.events, "units": checks.units, "heads": heads}),
        _REPORT: report.to_html(),
        _README: _EXPLANATION.format(name=name),
    }


@dataclass(frozen=True)
class Evidence:
    """An archive that was written by `write_evidence`.

    Attributes:
        statement: The statement of its subject.
        files: Its files, by name.
        document: The statement with its signature, as written.
    """

    statement: Statement
    files: Mapping[str, bytes]
    document: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> Evidence:
        """Read an archive. It may be a stranger's: nothing is unpacked to the disk.

        Args:
            path: The file.

        Raises:
            StoreError: It cannot be read, or is not such an archive.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                files = dict(_unpack(archive))
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
            raise StoreError(
                f"The archive {path} cannot be read: {error}. Expected a file written by `s3t evidence make`."
            ) from error
        try:
            document: Any = json.loads(files.pop(_STATEMENT, b""))
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                raise ValueError(f"expected a statement of format {FORMAT}")
            bare = {name: value for name, value in document.items() if name != "signature"}
            statement = read_json(Statement, json.dumps(bare))
        except (ValueError, RecursionError) as error:
            raise StoreError(f"{path} is not evidence of a store: {error}.") from error
        return cls(statement, files, document)

    def check(self, key: str | Path | None = None) -> list[Finding]:
        """Check everything that can be checked without the store.

        Args:
            key: The public key of the expected signature (Ed25519, PEM); None to skip the check.

        Raises:
            ConfigurationError: The file holds no such key.
        """
        found = [self._check_signature(key), self._check_files()]
        if not found[-1].passed:
            return found
        try:
            history = [Event.from_json(line) for line in self.files[_HISTORY].splitlines()]
            return [*found, *self._check_contents(history)]
        except (StoreError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            return [*found, Finding("the files can be read", (f"A file is not as expected: {error}.",))]

    def _check_signature(self, key: str | Path | None) -> Finding:
        what = "signature"
        if key is None:
            signed = "It is signed, and" if "signature" in self.document else "It is not signed, so"
            return Finding(what, note=f"{signed} the signature was not checked: pass the public key.")
        try:
            verify_document(self.document, Path(key), "The archive")
        except StoreError as error:
            return Finding(what, (str(error),))
        return Finding(what, note=f"It was signed with the key of {key}.")

    def _check_files(self) -> Finding:
        named = self.statement.files
        problems = [f"{name} is missing." for name in sorted({*_NEEDED, *named} - self.files.keys())]
        problems += [f"{name} is not named in the statement." for name in sorted(self.files.keys() - named.keys())]
        for name in sorted(named.keys() & self.files.keys()):
            if hashlib.sha256(self.files[name]).hexdigest() != named[name]:
                problems.append(f"{name} does not match the statement.")
        return Finding("files", tuple(problems), f"{len(named)} files match the statement.")

    def _check_contents(self, history: list[Event]) -> Iterator[Finding]:
        units = {UnitId.parse(one["unit"]): one for one in json.loads(self.files[_UNITS])}
        receipts = [Receipt.from_json(json.dumps(one)) for one in json.loads(self.files[_RECEIPTS])]
        yield Finding(
            "history", tuple(self._history_problems(history)), (f"{len(history)} events form an unbroken chain.")
        )
        yield Finding(
            "receipts",
            tuple(_receipt_problems(history, receipts)),
            f"{len(receipts)} requests, each with a receipt that matches the history.",
        )
        plan = json.loads(self.files[_PLAN])
        yield Finding("plan", tuple(_plan_problems(plan, units)), _plan_note(plan, units))
        ages = {unit: int(one["as_of"]) for unit, one in units.items()}
        yield Finding(
            "reach",
            tuple(_reach_problems(history, ages)),
            f"None of the {len(units)} units was trained on data that a request reaches.",
        )
        checks = json.loads(self.files[_CHECKS])
        note = f"A check of the store read {checks['units']} snapshots"
        heads = checks.get("heads")
        note += f", and compared the sums of {len(heads)} closed-form heads with their rows." if heads else "."
        yield Finding("store", tuple(checks["problems"]), note)
        yield self._check_audit()

    def _history_problems(self, history: list[Event]) -> Iterator[str]:
        broken = first_break(history)
        if broken is not None:
            yield f"The chain of events is broken at position {broken}."
        newest = (history[-1].position, history[-1].digest) if history else (0, None)
        if newest != (self.statement.position, self.statement.chain):
            yield f"The history ends at event {newest[0]}, but the statement is about event {self.statement.position}."

    def _check_audit(self) -> Finding:
        if _AUDIT not in self.files:
            return Finding("audit", note="There is none in the archive.")
        report = _read_audit(self.files[_AUDIT].decode())
        found = [*report["units"], *report.get("heads", ())]
        equal = sum(one["outcome"] == "equal" for one in found)
        problems = () if report["passed"] else ("The audit in the archive did not pass.",)
        return Finding("audit", problems, f"{equal} of {len(found)} units and heads were bitwise equal.")


def _receipt_problems(history: list[Event], receipts: list[Receipt]) -> Iterator[str]:
    asked = [event.request for event in history if event.kind == "request"]
    if [receipt.request for receipt in receipts] != asked:
        yield f"The history has {len(asked)} requests, but there are receipts for {len(receipts)}."
    for receipt in receipts:
        if not has_given(history, receipt):
            yield f"The receipt of request {receipt.request} does not match the history."


def _plan_problems(plan: Mapping[str, Any], units: Collection[UnitId]) -> Iterator[str]:
    for unit in units:
        if not 0 <= unit.shard < plan["shards"] or max(unit.prefix) >= plan["slices"]:
            yield f"Unit {unit} is not in the plan of {plan['shards']} shards and {plan['slices']} slices."
        if unit.parent and unit.parent not in units:
            yield f"Unit {unit.parent}, which unit {unit} was trained on top of, is missing."


def _plan_note(plan: Mapping[str, Any], units: Collection[UnitId]) -> str:
    prefixes = {tuple(sequence[:length]) for sequence in plan["sequences"] for length in range(1, len(sequence) + 1)}
    others = sum(unit.prefix not in prefixes for unit in units)
    return f"{len(units)} units; {others} of them belong to sequences that the newest fit has not chosen."


def _reach_problems(history: Iterable[Event], ages: Mapping[UnitId, int]) -> Iterator[str]:
    newest: dict[str, int] = {}
    # without the hashes, which a rotation of the key changes
    marks: Counter[tuple[str, int, str]] = Counter()
    for event in history:
        change = change_of(event)
        if change is None:
            continue
        for _, number, cell in change.buried:
            newest[cell] = max(number, newest.get(cell, 0))
        marks.update((mark.kind, mark.number, mark.cell) for mark in change.marked)
        marks.subtract((mark.kind, mark.number, mark.cell) for mark in change.unmarked)
    for (kind, number, cell), count in marks.items():
        if kind in ("rectified", "restricted") and count > 0:
            newest[cell] = max(number, newest.get(cell, 0))
    for unit, as_of in ages.items():
        for cell in unit.cells:
            if newest.get(cell, 0) > as_of:
                yield f"Unit {unit} was trained as of request {as_of}, but request {newest[cell]} reaches its data."


def _read_audit(text: str) -> dict[str, Any]:
    try:
        found: Any = json.loads(text)
        if isinstance(found["passed"], bool) and all(
            "outcome" in one for one in (*found["units"], *found.get("heads", ()))
        ):
            return dict(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ConfigurationError("The audit file is not a report. Expected the output of `s3t store audit --json`.")


def _pack(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(name, _EARLIEST), data, zipfile.ZIP_DEFLATED)
    return packed.getvalue()


def _unpack(archive: zipfile.ZipFile) -> Iterator[tuple[str, bytes]]:
    known, seen = {*_NEEDED, _AUDIT, _STATEMENT}, set[str]()
    for entry in archive.infolist():
        name = entry.filename
        if name not in known or name in seen:
            raise ValueError(f"it contains {name[:80]!r}, which is not part of such an archive")
        seen.add(name)
        with archive.open(entry) as file:
            data = file.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise ValueError(f"{name} is larger than {_LARGEST >> 20} MiB")
        yield name, data


def _pretty(data: Any) -> str:
    return json.dumps(json.loads(canonical(data)), indent=1, sort_keys=True)
