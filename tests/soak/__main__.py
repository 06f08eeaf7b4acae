"""`python -m tests.soak`: half an hour of random traffic and faults, then a verdict."""

import random
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
from tests.support.command_line import called_as, exit_on_sigterm, folder_option

_REPORT_S = 60.0
_MAX_SHOWN_FAILURES = 20
_QUIET_TIMEOUT_S = 30.0
_FILES_PER_ACTION = 0.5  # a little less than the average, so that the store fills up now and then


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
    help="Minutes of traffic before the figures that the final ones are compared with.  [default: 4, at most half]",
)
@click.option("--clients", type=click.IntRange(1, 64), default=5, show_default=True, help="Number of clients.")
@click.option(
    "--rate",
    type=click.FloatRange(0.1),
    default=8.0,
    show_default=True,
    help="Maximum actions per second of all clients together; leaves CPU to the server.",
)
@click.option("--seed", type=int, help="Seed of all random choices.  [default: random; it is printed]")
@click.option(
    "--kill-every",
    type=click.FloatRange(1),
    default=45.0,
    show_default=True,
    help="Average seconds between two faults.",
)
@click.option(
    "--ttl",
    type=click.FloatRange(2),
    default=60.0,
    show_default=True,
    help="Seconds until files expire on the server; both quiet phases wait for that.",
)
@folder_option
@click.option(
    "--report",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Also write the report to this file, as Markdown.",
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
    r"""Run random traffic and faults against the server for half an hour, then print a verdict.

    This starts the real frontend with its embedded Triton and small limits. Several clients upload, generate, download,
    cancel, disconnect and send invalid requests. Every response is checked, and every video with known frames is
    compared. Now and then tritonserver or a model's process is killed, a model exits or hangs, or the frontend is
    paused (SIGSTOP).

    In two quiet phases, after the warm-up and at the end, once all files have expired, memory, descriptors, threads,
    processes, files, shared memory, regions and sequences are counted. They must be equal within the limits in the
    report.

    Status 0: no failures. Status 1: failures, of which the first 20 are shown. Ctrl-C ends the traffic and shows the
    results so far (status 130, or 1).

    \b
    A full run:         python -m tests.soak
    To try a change:    python -m tests.soak --minutes 3 --warm-up 1 --ttl 10 --kill-every 20
    To repeat a run:    python -m tests.soak --seed N     (the same choices, but threads vary their timing)
    """
    exit_on_sigterm()
    options = Options(
        duration_s=60 * minutes,
        warm_up_s=60 * min(minutes / 2, 4.0 if warm_up is None else warm_up),
        clients=clients,
        rate=rate,
        kill_every_s=kill_every,
        seed=random.randrange(2**32) if seed is None else seed,
        ttl_s=ttl,
    )
    command = called_as("tests.soak")
    click.echo(f"{command}, seed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="filmstrip-soak-", dir=folder) as own:
        verdict = soak(options, Path(own), interrupts())
    text = markdown(command, options.seed, verdict)
    click.echo(f"\n{text}")
    if report is not None:
        report.write_text(text)
    sys.exit(verdict.status)


def soak(options: Options, folder: Path, interrupted: threading.Event) -> Verdict:
    """Run the whole soak, or as much as there is time for before an interrupt."""
    judge = Judge()
    store_files = max(10, round(_FILES_PER_ACTION * options.rate * options.ttl_s))
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
        verdict = Verdict(judge, sampler.peaks)
        quiet_timeout_s = 1.5 * options.ttl_s + _QUIET_TIMEOUT_S
        with sampler.running():
            run_traffic(options.warm_up_s, traffic, faults, sampler=sampler, verdict=verdict, interrupted=interrupted)
            verdict.before = quiet(server, judge, quiet_timeout_s, interrupted)
            if verdict.before is not None:
                click.echo("warm-up done: the final figures are compared with the present ones")
            run_traffic(
                options.duration_s - options.warm_up_s,
                traffic,
                faults,
                sampler=sampler,
                verdict=verdict,
                interrupted=interrupted,
            )
            verdict.after = quiet(server, judge, quiet_timeout_s, interrupted)
        verdict.interrupted = interrupted.is_set()
        verdict.longest_recovery_s = faults.longest_recovery_s
        verdict.check_log(server.log)
        return verdict
    finally:
        server.stop()


def run_traffic(
    duration_s: float,
    traffic: Traffic,
    faults: FaultInjector,
    *,
    sampler: Sampler,
    verdict: Verdict,
    interrupted: threading.Event,
) -> None:
    """Run traffic and faults for this long, with a status line every minute."""
    failures = verdict.judge.failures
    until, shown = time.monotonic() + duration_s, len(failures)
    with traffic.running(), faults.running():
        while (left_s := until - time.monotonic()) > 0 and not interrupted.is_set():
            interrupted.wait(min(_REPORT_S, left_s))
            click.echo(status_line(verdict.judge, sampler.last))
            for failure in failures[shown:_MAX_SHOWN_FAILURES]:  # at once, not only at the end of a long run
                click.echo(f"  {failure}")
            shown = len(failures)


def interrupts() -> threading.Event:
    """An event that the first Ctrl-C sets, for an orderly end; the second Ctrl-C interrupts as usual."""
    interrupted = threading.Event()

    def note(*_: object) -> None:
        interrupted.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, note)
    return interrupted


if __name__ == "__main__":
    main()
