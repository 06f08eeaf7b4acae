"""Ends a model's process when its tritonserver is gone."""

import os
import threading
import time


def exit_with_parent(period_s: float = 0.5) -> None:
    """Watch the parent process from a daemon thread, and exit at once when it has died.

    A model that works while tritonserver is killed would otherwise live on, with all its memory. The kernel's own
    signal (PR_SET_PDEATHSIG) does not serve here: it comes when the parent's *thread* that started us ends, which
    a tritonserver that lives on may do at any time.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(period_s)
        os._exit(1)

    threading.Thread(target=watch, name="watchdog", daemon=True).start()
