"""The command `completion`."""

from __future__ import annotations

from typing import Literal


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a completion script for a shell.

    Args:
        shell: Which one: eval "$(s3t completion bash)".
    """
    from lightning_s3t.cli.main import make_app

    print(make_app().generate_completion(shell=shell))
