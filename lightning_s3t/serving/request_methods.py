"""The requests of a person under a privacy law, as methods of whatever passes them on to a store."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from lightning_s3t.core.tickets import Ticket
from lightning_s3t.serving.notifier import Answer
from lightning_s3t.store import RequestRecord, Store


class RequestMethods:
    """Adds `forget`, `rectify`, `restrict` and `release` to a callback or a served model.

    A subclass says in `_request` how the store is found, and who is notified. `Store` has methods of the same names,
    with the details.
    """

    def forget(
        self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None
    ) -> RequestRecord | Ticket:
        """Remove subjects from the model, permanently and within milliseconds.

        The units that their data reached are revoked in one transaction and erased; the other units keep serving.
        `on_forget(receipt)` is then called on the module, and in a trainer on the data module and the callbacks too.

        Args:
            subjects: Their ids.
            strict: Raise an error if the store has never seen one of the subjects.
            request_id: The caller's name for the request, so that a retry does not count twice (`Store.forget`).

        Returns:
            The revoked and erased units, and the serving ones; or a ticket, if the method answers requests with a new
            model: then the next fit carries the request out.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
            StoreError: The store does not exist, or could not be written.
        """
        return self._request(lambda store: store.forget(subjects, strict, request_id))

    def rectify(
        self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None
    ) -> RequestRecord | Ticket:
        """Remove everything that the subjects' old data reached; the next fit trains on the corrected data.

        Correct the rows first: the next fit trains on the rows that the data set then returns. `on_rectify(receipt)` is
        called where `forget` calls `on_forget`.

        Args:
            subjects: Their ids.
            strict: Raise an error if the store has never seen one of the subjects.
            request_id: The caller's name for the request, so that a retry does not count twice (`Store.rectify`).

        Returns:
            The revoked and erased units, and the serving ones; or a ticket, if the request waits for a fit.

        Raises:
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
            StoreError: The store does not exist, or could not be written.
        """
        return self._request(lambda store: store.rectify(subjects, strict, request_id))

    def restrict(self, subjects: Iterable[Any], strict: bool = True, request_id: str | None = None) -> RequestRecord:
        """Set aside the units that the subjects' data reached, until the subjects are released or forgotten.

        The units are kept but do not serve, and no fit trains on the data. `on_restrict(receipt)` is called where
        `forget` calls `on_forget`.

        Args:
            subjects: Their ids.
            strict: Raise an error if the store has never seen one of the subjects.
            request_id: The caller's name for the request, so that a retry does not count twice (`Store.restrict`).

        Raises:
            UnsupportedError: The method trains one model on everyone's data.
            UnknownSubjectError: A subject is unknown and `strict` is set. Nothing was changed.
            StoreError: The store does not exist, or could not be written.
        """
        return self._request(lambda store: store.restrict(subjects, strict, request_id))

    def release(self, subjects: Iterable[Any], request_id: str | None = None) -> RequestRecord:
        """End the restriction of subjects: units that were set aside only for them serve again, bit for bit.

        `on_release(receipt)` is called where `forget` calls `on_forget`.

        Args:
            subjects: Their ids.
            request_id: The caller's name for the request, so that a retry does not count twice (`Store.release`).

        Raises:
            UnknownSubjectError: A subject is not restricted. Nothing was changed.
            StoreError: The store does not exist, or could not be written.
        """
        return self._request(lambda store: store.release(subjects, request_id))

    @abstractmethod
    def _request(self, ask: Callable[[Store], Answer]) -> Answer:
        """Make a request of the store, and notify those who listen."""
