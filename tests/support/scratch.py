"""Folders and ports that tests borrow, and that are given back whatever happens to the tests."""

from __future__ import annotations

import socket
import subprocess
import tempfile
from functools import cache
from pathlib import Path

# Reads until the pipe's other end is gone, however that came about. A server that is being killed
# may still write into its folder: then once more.
SWEEP = 'read -r _; until rm -rf "$0"; do sleep 0.2; done'


def reserve_port() -> socket.socket:
    """A bound socket that listens to nothing: as long as it is open its port is given to nobody,
    and a server may still listen there, again and again."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    return holder


def scratch_folder() -> Path:
    """The folder of this process for its servers' data. It goes when the process has gone."""
    return _scratch()[0]


@cache
def _scratch() -> tuple[Path, subprocess.Popen[bytes]]:
    """The folder, and the process that waits to remove it, at the other end of a pipe."""
    folder = tempfile.mkdtemp(prefix="wukongim-servers-")
    # A session of its own: Ctrl-C at the terminal must not end it before its work is done.
    sweeper = subprocess.Popen(
        ["sh", "-c", SWEEP, folder], stdin=subprocess.PIPE, start_new_session=True
    )
    return Path(folder), sweeper
