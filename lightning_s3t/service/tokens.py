"""Tokens: who may make requests at the control server, and who may only look."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from lightning_s3t.errors import ConfigurationError

Role = Literal["ask", "look"]
"""Whoever may ask may look too."""
VARIABLES: dict[str, Role] = {"S3T_ASK_TOKEN": "ask", "S3T_LOOK_TOKEN": "look"}
_SHORTEST = 16


@dataclass(frozen=True)
class Tokens:
    """The tokens of a control server, as digests.

    Attributes:
        roles: The role of each token, by its SHA-256.

    Example:
        >>> tokens = Tokens.of([("ask", "a-long-secret-token-1"), ("look", "a-long-secret-token-2")])
        >>> tokens.role_of("a-long-secret-token-2"), tokens.role_of("another")
        ('look', None)
    """

    roles: Mapping[bytes, Role] = field(repr=False)

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]]) -> Tokens:
        """Make them of roles and tokens.

        Args:
            pairs: Role and token of each.

        Raises:
            ConfigurationError: There is none that may ask, or one is too short, or a role is unknown.
        """
        roles: dict[bytes, Role] = {}
        known: dict[str, Role] = {role: role for role in get_args(Role)}
        for name, token in pairs:
            role = known.get(name)
            if role is None:
                raise ConfigurationError(f"A token has the role {name!r:.20}. Expected one of {get_args(Role)}.")
            if len(token) < _SHORTEST or not token.isascii() or not token.isprintable():
                raise ConfigurationError(
                    f"A token for {role!r} is shorter than {_SHORTEST} characters, or not in ASCII. Draw one: "
                    "openssl rand -hex 32."
                )
            if roles.setdefault(_digest(token), role) != role:
                raise ConfigurationError("A token has two roles. Expected one for each.")
        if "ask" not in roles.values():
            raise ConfigurationError(
                'There is no token with the role "ask". Expected one in the environment (S3T_ASK_TOKEN; S3T_LOOK_TOKEN '
                'for read-only access), or --tokens with a file of lines like "ask 5f2c..." and "look 9b1e...".'
            )
        return cls(roles)

    @classmethod
    def read(cls, path: Path | None) -> Tokens:
        """Read them from a file, or from the environment.

        Args:
            path: A file with a role and a token in each line; lines that start with # are ignored. None for the
                environment alone.

        Raises:
            ConfigurationError: The file cannot be read, or other users may write it; or there is no "ask" token.
        """
        pairs: list[tuple[str, str]] = [
            (role, os.environ[name]) for name, role in VARIABLES.items() if os.environ.get(name)
        ]
        if path is not None:
            try:
                lines = path.read_text(encoding="ascii").splitlines()
                if path.stat().st_mode & 0o022:
                    raise ConfigurationError(f"Other users may write the file with tokens: chmod 600 {path}.")
            except (OSError, ValueError) as error:
                if isinstance(error, ConfigurationError):
                    raise
                raise ConfigurationError(f"The file with tokens cannot be read ({type(error).__name__}).") from None
            for number, line in enumerate(lines, start=1):
                parts = line.split()
                if parts and not parts[0].startswith("#"):
                    if len(parts) != 2:
                        raise ConfigurationError(
                            f"Line {number} of {path} does not have a role and a token. Expected a line like: ask "
                            "5f2c..."
                        )
                    pairs.append((parts[0], parts[1]))
        return cls.of(pairs)

    def role_of(self, token: str) -> Role | None:
        """Return the role of a token, in a time that does not reveal how much of it is right; None without a role.

        Args:
            token: The token that was sent.
        """
        digest, found = _digest(token), None
        for known, role in self.roles.items():
            if hmac.compare_digest(digest, known):
                found = role
        return found


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()
