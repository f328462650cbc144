"""The guard of the control server: checks tokens, roles and rates."""

from __future__ import annotations

import math
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from lightning_s3t.service.limits import RateLimit
from lightning_s3t.service.tokens import Role, Tokens

_SCHEME = HTTPBearer(auto_error=False, description="A token of this server.")


class Guard:
    """Checks the tokens, roles and rates of calls.

    Args:
        tokens: The tokens and their roles.
        per_minute: Number of calls per minute that each role and address may make.
    """

    def __init__(self, tokens: Tokens, per_minute: int) -> None:
        self._tokens = tokens
        self._limit = RateLimit(per_minute)
        self._wrong = RateLimit(max(per_minute // 4, 10))

    def allows(self, role: Role) -> Any:
        """Return a dependency that requires a role, and returns the role of the caller.

        Args:
            role: The required role; "ask" includes "look".
        """

        def check(
            request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_SCHEME)]
        ) -> Role:
            found = self._tokens.role_of(credentials.credentials) if credentials is not None else None
            caller = request.client.host if request.client is not None else ""
            if found is None:
                _check_rate(self._wrong, caller)
                raise HTTPException(401, "unauthorized", {"WWW-Authenticate": "Bearer"})
            _check_rate(self._limit, f"{found} {caller}")
            if role == "ask" and found != "ask":
                raise HTTPException(403, "forbidden")
            return found

        return Depends(check)


def _check_rate(limit: RateLimit, caller: str) -> None:
    seconds = limit.wait_for(caller)
    if seconds:
        raise HTTPException(429, "too_many", {"Retry-After": str(math.ceil(seconds))})
