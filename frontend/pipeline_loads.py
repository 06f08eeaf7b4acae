"""Loading pipelines on request, and the defaults that a client's last load sets for its later requests."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from filmstrip.contract import PipelineSpec
from filmstrip.errors import FilmstripError, InvalidField, UnknownPipeline

from .features import GENERIC_FIELDS, check_features, frame_size, lora_name, lora_scales
from .model_registry import ModelState, ModelStatus, Registries
from .schema import GenerateRequest, LoadEntry, LoadParams, LoadRequest


@dataclass
class PipelineLoad:
    """A client's last POST /pipeline/load and its progress."""

    status: Literal["not_loaded", "loading", "loaded", "error"] = "not_loaded"
    pipeline_id: str | None = None
    load_params: dict[str, Any] | None = None
    ignored: tuple[str, ...] = ()
    error: str | None = None


@dataclass
class LoadedDefaults:
    """The defaults that a client's last load of a pipeline set for its later requests.

    Attributes:
        fields: values by the request's fields.
        were_loaded: the pipeline was seen loaded since; the defaults end when it is seen unloaded after that.
    """

    fields: dict[str, Any]
    were_loaded: bool = False


class PipelineLoads:
    """Each client's last load of pipelines, and the defaults that it set for the client's later requests."""

    def __init__(self, registries: Registries) -> None:
        self._registries = registries
        self._loads: dict[str, PipelineLoad] = {}
        self._defaults: dict[tuple[str, str], LoadedDefaults] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def last(self, client: str) -> PipelineLoad:
        """The client's last load."""
        return self._loads.get(client, PipelineLoad())

    async def pipelines(self) -> dict[str, ModelStatus]:
        """All pipelines of the repository, by id; defaults for those that have been unloaded are dropped.

        Raises:
            TritonUnavailable: Triton does not answer.
        """
        known = await self._registries.pipelines()
        for key, defaults in list(self._defaults.items()):
            state = known[key[1]].state if key[1] in known else ModelState.UNLOADED
            if defaults.were_loaded and state is ModelState.UNLOADED:
                del self._defaults[key]
            defaults.were_loaded |= state is ModelState.READY
        return known

    async def apply_defaults(self, client: str, request: GenerateRequest) -> GenerateRequest:
        """Fill in a client's request with the defaults of its last load of the pipeline.

        Raises:
            TritonUnavailable: Triton does not answer.
        """
        key = (client, request.pipeline_id)
        if key in self._defaults:
            await self.pipelines()
        return with_defaults(request, self._defaults[key].fields if key in self._defaults else {})

    def default_lora_scales(self, client: str, pipeline_id: str) -> dict[str, float]:
        """The default scale of each LoRA of a pipeline, by the path that the client loaded it with, else its name."""
        names = self._registries.loras(pipeline_id)
        defaults = self._defaults.get((client, pipeline_id))
        loaded = {} if defaults is None else defaults.fields.get("lora_scales", {})
        paths = {lora_name(path, names): path for path in loaded}
        return {paths.get(name, name): loaded.get(paths.get(name, name), 0.0) for name in names}

    async def start(self, client: str, request: LoadRequest) -> PipelineLoad:
        """Load pipelines that are not loaded yet, in the background; `last` returns the progress.

        The load parameters become defaults at once. A loaded pipeline that does not support them refuses them here;
        for one that is not loaded, the load ends in an error, and requests with these defaults are refused.

        Raises:
            UnknownPipeline: the repository has no pipeline of this name.
            InvalidField: a pipeline does not support the load parameters.
            TritonUnavailable: Triton does not answer.
        """
        known = await self.pipelines()
        entries = request.entries
        ignored: set[str] = set()
        for entry in entries:
            if entry.pipeline_id not in known:
                there = ", ".join(known) or "none"
                message = f"{entry.id_field}: no pipeline {entry.pipeline_id[:80]!r}; there are: {there}"
                raise UnknownPipeline(message, entry.id_field)
            spec = known[entry.pipeline_id].spec
            if spec is not None and known[entry.pipeline_id].loaded:
                check_defaults(request_defaults(entry.load_params), spec, entry.params_field)
            ignored |= ignored_params(entry.load_params, spec)
        for entry in entries:
            self._defaults[client, entry.pipeline_id] = LoadedDefaults(request_defaults(entry.load_params))
        load = self._loads[client] = PipelineLoad(
            "loading", entries[0].pipeline_id, entries[0].load_params, tuple(sorted(ignored))
        )
        if all(self._registries.is_loaded_everywhere(entry.pipeline_id) for entry in entries):
            load.status = "loaded"
            return load
        task = asyncio.create_task(self._load(load, entries), name="load pipelines")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return load

    def close(self) -> None:
        """Stop all loads that are still running."""
        for task in self._tasks:
            task.cancel()

    async def _load(self, load: PipelineLoad, entries: list[LoadEntry]) -> None:
        try:
            for entry in entries:
                await self._registries.load(entry.pipeline_id)
                _, specs = await self._registries.load_pipelines(pipeline_id=entry.pipeline_id)
                check_defaults(request_defaults(entry.load_params), specs["pipeline_id"], entry.params_field)
            load.status = "loaded"
        except FilmstripError as error:
            load.status, load.error = "error", error.message


def request_defaults(load_params: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of a GenerateRequest that load parameters set."""
    params = LoadParams.of(load_params)
    defaults = {name: getattr(params, name) for name in params.model_fields_set - {"loras"}}
    if params.loras is not None:
        defaults["lora_scales"] = {lora.path: lora.scale for lora in params.loras}
    return defaults


def check_defaults(defaults: Mapping[str, Any], pipeline: PipelineSpec, field: str) -> None:
    """Refuse defaults with which every request would be refused; `field` is that of the load parameters.

    Raises:
        InvalidField: the pipeline does not support the size, a LoRA or a feature.
    """
    others = {name: value for name, value in defaults.items() if name != "lora_scales"}
    request = GenerateRequest(pipeline_id=pipeline.id, prompt="", **others)
    try:
        check_features(request, pipeline)
        frame_size(pipeline, (request.height, request.width))
        lora_scales(defaults.get("lora_scales"), pipeline, "loras")
    except InvalidField as error:
        raise InvalidField(f"{field}.{error.message}", f"{field}.{error.field}") from None


def ignored_params(load_params: Mapping[str, Any] | None, pipeline: PipelineSpec | None) -> frozenset[str]:
    """Names of the load parameters that have no effect, as far as the pipeline is known."""
    has_seed = pipeline is None or pipeline.features.seed
    useless = frozenset() if has_seed else LoadParams.of(load_params).model_fields_set & {"seed"}
    return LoadParams.ignored(load_params) | useless


def with_defaults(request: GenerateRequest, defaults: Mapping[str, Any]) -> GenerateRequest:
    """The request with defaults for fields that it does not set."""
    added = {name: value for name, value in defaults.items() if name not in request.model_fields_set}
    # The client did not send the added fields: they must not count as unused.
    fields_set = request.model_fields_set | (added.keys() - GENERIC_FIELDS)
    return GenerateRequest.model_construct(_fields_set=fields_set, **(dict(request) | added))
