"""Settings of a project of which no worker comes up: each waits for what does not come."""

import time
from multiprocessing import parent_process

from wukongim.settings import *  # noqa: F403 - the project's, in all but this

if parent_process() is not None:
    print("hangs", flush=True)  # noqa: T201 - for the test
    time.sleep(600)
