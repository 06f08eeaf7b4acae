"""How tritonserver is started for Filmstrip, wherever it runs: its flags, and the secret of its protocols."""

from collections.abc import Sequence
from pathlib import Path

SECRET_NAME = "filmstrip"  # noqa: S105  of the header, as Triton is told it; on the wire it has a prefix
SECRET_HEADER = f"triton-grpc-protocol-{SECRET_NAME}"
RESTRICTED = "health,metadata,inference,shared-memory,model-config,model-repository,statistics,trace,logging"
"""All protocols of its gRPC port: each of them wants the secret."""
ALL_MODELS = ("*",)
NO_PROXY = ("grpc.enable_http_proxy", 0)
"""Channel argument of every gRPC client: a web proxy of the environment is never between us and Triton."""


def flags(
    repositories: Sequence[Path],
    *,
    address: str,
    port: int,
    shm_prefix: str,
    exit_timeout_s: int,
    secret: str = "",
    models: Sequence[str] = ALL_MODELS,
    metrics_port: int | None = None,
    backends: Path | None = None,
) -> list[str]:
    """The flags that all versions of tritonserver take.

    Args:
        repositories: folders of models.
        address: to listen on.
        port: of gRPC; there is no HTTP.
        shm_prefix: of the names of the models' own shared memory.
        exit_timeout_s: how long Triton waits for open sequences when it stops.
        secret: that all calls must carry, none where it is empty.
        models: to load at the start, before Triton answers; others are loaded when they are asked for.
        metrics_port: of Triton's own metrics, which ask for no secret; None for none.
        backends: folder of its backends, where it isn't Triton's own.
    """
    chosen = [f"--model-repository={folder}" for folder in repositories]
    if backends is not None:
        chosen.append(f"--backend-directory={backends}")
    # Explicit: in other modes Triton refuses to load a model again.
    chosen += ["--model-control-mode=explicit", *(f"--load-model={model}" for model in models)]
    # One broken model makes neither the start fail nor all of it unready.
    chosen += ["--exit-on-error=false", "--strict-readiness=false"]
    chosen += ["--allow-http=false", f"--grpc-address={address}", f"--grpc-port={port}"]
    if metrics_port is None:
        chosen.append("--allow-metrics=false")
    else:
        chosen += [f"--metrics-address={address}", f"--metrics-port={metrics_port}"]
    if secret:
        chosen.append(f"--grpc-restricted-protocol={RESTRICTED}:{SECRET_NAME}={secret}")
    return [
        *chosen,
        f"--exit-timeout-secs={exit_timeout_s}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        f"--backend-config=python,shm-default-byte-size={64 * 2**20}",
    ]
