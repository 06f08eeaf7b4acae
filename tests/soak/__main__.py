"""`python -m tests.soak`: half an hour of traffic and faults, then a verdict."""

import random
import shlex
import signal
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import click

from tests.soak.judge import Judge
from tests.soak.report import Sampler, Verdict, markdown, quiet, status_line
from tests.soak.server import SoakServer
from tests.soak.traffic import FaultInjector, Traffic

_REPORT_S = 60.0
_SHOWN_AT_ONCE = 20
_PATIENCE_S = 30.0
_FULL_SHARE = 0.5  # files that an action leaves, about: the store is full now and then


@dataclass(frozen=True)
class Options:
    """The command's flags, in seconds."""

    duration_s: float
    warm_up_s: float
    clients: int
    rate: float
    kill_every_s: float
    seed: int
    ttl_s: float


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", type=click.FloatRange(0.05), default=30.0, show_default=True, help="Length of the traffic.")
@click.option(
    "--warm-up",
    type=click.FloatRange(0.01),
    help="Minutes of it before the figures are taken that the last ones are compared with.  [default: 4, at most half]",
)
@click.option("--clients", type=click.IntRange(1, 64), default=5, show_default=True, help="Clients at once.")
@click.option(
    "--rate",
    type=click.FloatRange(0.1),
    default=8.0,
    show_default=True,
    help="Most actions a second of all clients together; keeps them from taking the server's CPU.",
)
@click.option("--seed", type=int, help="Of all random choices.  [default: another each time; it is printed]")
@click.option(
    "--kill-every",
    type=click.FloatRange(1),
    default=45.0,
    show_default=True,
    help="Seconds between two faults, on average.",
)
@click.option(
    "--ttl",
    type=click.FloatRange(2),
    default=60.0,
    show_default=True,
    help="Seconds that files live on the server; both quiet moments wait for them to expire.",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Where the server keeps its files; 100 MB must be free.  [default: the system's folder of temporary files]",
)
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write the figures to this file as Markdown, too.",
)
def main(
    *,
    minutes: float,
    warm_up: float | None,
    clients: int,
    rate: float,
    seed: int | None,
    kill_every: float,
    ttl: float,
    folder: Path | None,
    report: Path | None,
) -> None:
    r"""Soak the server: random traffic and faults for half an hour, and then a verdict.

    The real frontend with its embedded Triton is started with small limits. Several clients upload, generate,
    download, cancel, go away in the middle and send what is wrong. Every answer is judged, and every video that can
    be known is compared. Now and then tritonserver or a model's process is killed, a model dies or hangs, or the
    frontend is stopped for a while (SIGSTOP).

    At two quiet moments, after the warm-up and at the end, when all files have expired, memory, descriptors,
    threads, processes, files, shared memory, regions and sequences are counted. They must be the same, within limits
    that the table names.

    Status 0: nothing was wrong. Status 1: something was; the first 20 failures are shown. Ctrl-C ends the traffic and
    shows what there is so far (status 130, or 1).

    \b
    For an afternoon:      python -m tests.soak
    To try a change:       python -m tests.soak --minutes 3 --warm-up 1 --ttl 10 --kill-every 20
    What failed once more: python -m tests.soak --seed N     (threads: the same choices, not the same moments)
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is ended then, too
    options = Options(
        duration_s=60 * minutes,
        warm_up_s=60 * min(minutes / 2, 4.0 if warm_up is None else warm_up),
        clients=clients,
        rate=rate,
        kill_every_s=kill_every,
        seed=random.randrange(2**32) if seed is None else seed,
        ttl_s=ttl,
    )
    command = shlex.join(["python", "-m", "tests.soak", *sys.argv[1:]])
    click.echo(f"{command}, seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="filmstrip-soak-", dir=folder) as own:
        found = soak(options, Path(own), interrupts())
    text = markdown(command, options.seed, found)
    click.echo(f"\n{text}")
    if report is not None:
        report.write_text(text)
    sys.exit(found.status)


def soak(options: Options, folder: Path, interrupted: threading.Event) -> Verdict:
    """Run it all, or what there is time for before it is interrupted."""
    judge = Judge()
    store_files = max(10, round(_FULL_SHARE * options.rate * options.ttl_s))
    server = SoakServer(folder / "server", options.ttl_s, store_files)
    try:
        traffic = Traffic(
            server,
            judge,
            num_clients=options.clients,
            rate=options.rate,
            seed=options.seed,
            ttl_s=options.ttl_s,
        )
        faults = FaultInjector(server, judge, options.kill_every_s, options.seed, options.ttl_s)
        sampler = Sampler(server)
        found = Verdict(judge, sampler.peaks)
        patience_s = 1.5 * options.ttl_s + _PATIENCE_S
        with sampler.running():
            flow(options.warm_up_s, traffic, faults, sampler=sampler, found=found, interrupted=interrupted)
            found.before = quiet(server, judge, patience_s, interrupted)
            if found.before is not None:
                click.echo("warm: the figures at the end are compared with those of now")
            flow(
                options.duration_s - options.warm_up_s,
                traffic,
                faults,
                sampler=sampler,
                found=found,
                interrupted=interrupted,
            )
            found.after = quiet(server, judge, patience_s, interrupted)
        found.interrupted = interrupted.is_set()
        found.longest_recovery_s = faults.longest_recovery_s
        found.look_at_log(server.log)
        return found
    finally:
        server.stop()


def flow(
    duration_s: float,
    traffic: Traffic,
    faults: FaultInjector,
    *,
    sampler: Sampler,
    found: Verdict,
    interrupted: threading.Event,
) -> None:
    """Traffic and faults for so long, with a line a minute."""
    failures = found.judge.failures
    until, shown = time.monotonic() + duration_s, len(failures)
    with traffic.running(), faults.running():
        while (left_s := until - time.monotonic()) > 0 and not interrupted.is_set():
            interrupted.wait(min(_REPORT_S, left_s))
            click.echo(status_line(found.judge, sampler.last))
            for failure in failures[shown:_SHOWN_AT_ONCE]:  # not only at the end of a long run
                click.echo(f"  {failure}")
            shown = len(failures)


def interrupts() -> threading.Event:
    """Set by the first Ctrl-C, so that all ends in order; the second one ends it at once."""
    interrupted = threading.Event()

    def note(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    return interrupted


if __name__ == "__main__":
    main()
