"""Signatures of receipts and other documents: Ed25519 (RFC 8032), by the `cryptography` package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_s3t.core.documents import canonical
from lightning_s3t.core.receipts import Receipt
from lightning_s3t.errors import ConfigurationError, StoreError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

ALGORITHM = "Ed25519"
_MEMBERS = frozenset({"algorithm", "public_key", "value"})


def sign_receipt(receipt: Receipt, key: Path | Ed25519PrivateKey) -> str:
    """Return a receipt as a JSON document with a signature in it.

    Args:
        receipt: The receipt.
        key: A private key, or its file in PEM: `openssl genpkey -algorithm ed25519 -out key.pem`.

    Raises:
        ConfigurationError: The file holds no such key, or `cryptography` is not installed.
    """
    return json.dumps(sign_document(json.loads(receipt.to_json()), key), indent=2, sort_keys=True)


def verify_receipt(text: str, key: Path) -> Receipt:
    """Return the receipt in a signed document, if the signature is right.

    Args:
        text: The JSON document.
        key: The public key of the expected signature, in PEM: `openssl pkey -in key.pem -pubout -out public.pem`.

    Raises:
        ConfigurationError: The file holds no such key, or `cryptography` is not installed.
        StoreError: The signature is missing, or is by another key or for another text.
    """
    public = read_public_key(key)
    receipt = Receipt.from_json(text)
    _verify(json.loads(text), public, key, f"The receipt of request {receipt.request}", "s3t forget --sign KEY")
    return receipt


def sign_document(document: Mapping[str, Any], key: Path | Ed25519PrivateKey) -> dict[str, Any]:
    """Return a document with a member `signature`.

    Args:
        document: JSON-ready.
        key: A private key, or its file in PEM.

    Raises:
        ConfigurationError: The file holds no such key, or `cryptography` is not installed.
    """
    private = read_private_key(key) if isinstance(key, Path) else key
    signature = {
        "algorithm": ALGORITHM,
        "public_key": private.public_key().public_bytes_raw().hex(),
        "value": private.sign(_signed(document)).hex(),
    }
    return {**document, "signature": signature}


def verify_document(document: Mapping[str, Any], key: Path, what: str) -> None:
    """Check the signature of a document.

    Args:
        document: The output of `sign_document`.
        key: The public key of the expected signature, in PEM.
        what: The kind of document, for the message.

    Raises:
        ConfigurationError: The file holds no such key, or `cryptography` is not installed.
        StoreError: The signature is missing, or is by another key or for another text.
    """
    _verify(document, read_public_key(key), key, what, "s3t evidence make --sign KEY")


def _verify(document: Mapping[str, Any], public: Ed25519PublicKey, key: Path, what: str, command: str) -> None:
    bare = {name: value for name, value in document.items() if name != "signature"}
    signature = document.get("signature")
    if not isinstance(signature, dict) or signature.get("algorithm") != ALGORITHM or "value" not in signature:
        raise StoreError(f"{what} has no Ed25519 signature. Expected the output of `{command}`.")
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(bytes.fromhex(str(signature.get("value"))), _signed(bare))
    except (InvalidSignature, ValueError):
        raise StoreError(f"{what} was not signed with the key of {key}, or was changed afterwards.") from None
    if signature.keys() != _MEMBERS or signature["public_key"] != public.public_bytes_raw().hex():
        raise StoreError(
            f"{what} has members besides its signature that are not signed. Expected only "
            f"{', '.join(sorted(_MEMBERS))}, with the public key in {key}."
        )


def read_private_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key, so that problems with it are reported before anything is forgotten.

    Args:
        path: A PEM file without a password.

    Raises:
        ConfigurationError: The file holds no such key, or `cryptography` is not installed.
    """
    _check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(f"The key {path} cannot be read: {error}. Expected an Ed25519 key in PEM.") from error
    if not isinstance(found, Ed25519PrivateKey):
        raise ConfigurationError(f"The key {path} is of another kind. Expected an Ed25519 key in PEM.")
    return found


def read_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key.

    Args:
        path: A PEM file.

    Raises:
        ConfigurationError: The file holds no such key, or `cryptography` is not installed.
    """
    _check_installed()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        found = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"The key {path} cannot be read: {error}. Expected an Ed25519 public key in PEM."
        ) from error
    if not isinstance(found, Ed25519PublicKey):
        raise ConfigurationError(f"The key {path} is of another kind. Expected an Ed25519 public key in PEM.")
    return found


def _check_installed() -> None:
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigurationError('Signatures need cryptography: pip install "lightning-s3t[sign]".') from error


def _signed(document: Mapping[str, Any]) -> bytes:
    return canonical(dict(document)).encode()
