"""The kernel of the strict runner: always the running interpreter, reached through files that only its owner can open.

ipykernel's own default is TCP without encryption, which anybody on a shared node can listen to, and says so on stderr
each time. Unix sockets in a private folder need no encryption; where they do not exist, TCP stays.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager


class LocalKernel(AsyncKernelManager):
    """Starts `sys.executable -m ipykernel_launcher`, whatever the kernels registered on this machine are called."""

    folder: Path

    @classmethod
    def within(cls, folder: Path) -> type[LocalKernel]:
        """The class bound to a private folder (mode 0700, short path) for its sockets and its stderr."""
        return type("LocalKernel", (cls,), {"folder": folder})

    def __init__(self, **settings: Any):
        settings["connection_file"] = str(self.folder / "k.json")
        if os.name == "posix":
            settings |= {"transport": "ipc", "ip": str(self.folder / "k")}
        super().__init__(**settings)

    def format_kernel_cmd(self, extra_arguments: list[str] | None = None) -> list[str]:
        """The command line of the kernel."""
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", self.connection_file]
        return command + (extra_arguments or [])

    async def start_kernel(self, **settings: Any) -> None:
        """Start it without anybody's IPython start-up files; its stderr goes to a file, for its last words."""
        environment = {**settings.pop("env", os.environ), "IPYTHONDIR": str(self.folder / "ipython")}
        with open(self.folder / "stderr", "wb") as log:
            await super().start_kernel(**settings, env=environment, stderr=log)
