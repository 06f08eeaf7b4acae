"""Stands for ComfyUI's module: the interrupt, which the user's stop button sets."""

import threading


class InterruptProcessingException(Exception):
    pass


interrupt_processing = False
times_asked = 0


def interrupt_current_processing(value: bool = True) -> None:
    global interrupt_processing
    interrupt_processing = value


def throw_exception_if_processing_interrupted() -> None:
    global interrupt_processing, times_asked
    assert threading.current_thread() is threading.main_thread(), "ComfyUI's thread alone may be interrupted"
    times_asked += 1
    if interrupt_processing:
        interrupt_processing = False
        raise InterruptProcessingException
