"""The files that a running fit keeps activations in: nobody needs them after it, and they are people's data."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

from lightning_s3t.errors import StoreError
from lightning_s3t.store.files import sync_folder

FOLDER = "cache"
_TRIES = 100


def activation_files(store: Path) -> Iterator[str]:
    """Returns the files of activations, relative to the store.

    Args:
        store: The store's folder.
    """
    for path in sorted((store / FOLDER).rglob("*")):
        if not path.is_dir():
            yield path.relative_to(store).as_posix()


def remove_activations(store: Path) -> None:
    """Removes all activations, with the folders that they lie in: a fit that runs cannot write there any more.

    Args:
        store: The store's folder.

    Raises:
        StoreError: Something could not be removed.
    """
    folder = store / FOLDER
    if not folder.is_dir():
        return
    for _ in range(_TRIES):
        try:
            shutil.rmtree(folder)
            break
        except FileNotFoundError:  # the fit removes its own, or another process is at it
            if not folder.exists():
                break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # a fit has written in between
                raise StoreError(
                    f"Activations in {folder} could not be removed ({error}). They are personal data: remove the cause "
                    "and open the store again."
                ) from error
    else:
        raise StoreError(f"{folder} fills as fast as it is removed. End the fit on this store, and open it again.")
    sync_folder(store)
