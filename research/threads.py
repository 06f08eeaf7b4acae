"""How many threads PyTorch uses: on a machine that others use, too, one is often faster than two that wait."""

import ctypes
import time

import torch

_TRIED_EVERY = 300
_STEPS_A_TRIAL = 12
_CHOICES = (1, 2)
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Have the C library keep what is freed for what is asked for next: new pages cost a step a tenth of its time.

    Source: mallopt(3). Elsewhere than on glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 2**29)):
            mallopt(option, value)


class FastestThreads:
    """Tries each number of threads for some steps now and then, and keeps the fastest; to be called after each step."""

    def __init__(self) -> None:
        self._step = 0
        self._times: list[float] = []
        self._began = time.monotonic()

    def __call__(self) -> None:
        """Note that a step is done; the next one may have another number of threads."""
        at = self._step % _TRIED_EVERY
        if at % _STEPS_A_TRIAL == 0 and at <= _STEPS_A_TRIAL * len(_CHOICES):
            now = time.monotonic()
            trial = at // _STEPS_A_TRIAL
            if trial > 0:
                self._times.append(now - self._began)
            if trial < len(_CHOICES):
                torch.set_num_threads(_CHOICES[trial])
            else:
                torch.set_num_threads(_CHOICES[self._times.index(min(self._times))])
                self._times = []
            self._began = now
        self._step += 1
