"""Serve the chat by daphne, with the command line of Channels' deployment page.

https://channels.readthedocs.io/en/latest/deploying.html: `daphne -b HOST -p PORT application`. The
only addition is `-v 0`: no access log, which would be two lines for every socket.
"""

from __future__ import annotations

import os

from daphne.cli import CommandLineInterface

APPLICATION = "benchmarks.peers.tutorial.asgi:application"

if __name__ == "__main__":
    options = ["-v", "0", "-b", "127.0.0.1", "-p", os.environ["PORT"]]
    CommandLineInterface().run([*options, APPLICATION])
