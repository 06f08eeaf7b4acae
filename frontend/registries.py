"""The models of all Tritons together: which Triton can serve a request, and loading models wherever they are."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from filmstrip.contract import PipelineSpec
from filmstrip.errors import FilmstripError, InvalidField, LoadFailed, TritonUnavailable, UnknownPipeline

from .model_registry import ModelRegistry, ModelState, ModelStatus, Readiness

T = TypeVar("T")
_BEST_FIRST = (ModelState.READY, ModelState.LOADING, ModelState.UNLOADED, ModelState.FAILED)


class Registries:
    """The registries of all Tritons, whose pipelines may differ.

    Attributes:
        all: one for each Triton.
    """

    def __init__(self, registries: Sequence[ModelRegistry]) -> None:
        self.all = tuple(registries)
        self._everywhere: dict[str, bool] = {}

    async def pipelines(self) -> dict[str, ModelStatus]:
        """All pipelines by id, each as on the Triton where its state is best; see `ModelRegistry.pipelines`.

        Raises:
            TritonUnavailable: no Triton answers.
        """
        found: dict[str, ModelStatus] = {}
        everywhere: dict[str, bool] = {}
        for _, pipelines in await self._answers(self.all, lambda registry: registry.pipelines()):
            for name, status in pipelines.items():
                everywhere[name] = status.loaded and everywhere.get(name, True)
                known = found.get(name)
                if known is None or _BEST_FIRST.index(status.state) < _BEST_FIRST.index(known.state):
                    found[name] = status
        self._everywhere = everywhere
        return dict(sorted(found.items()))

    def is_loaded_everywhere(self, name: str) -> bool:
        """Whether each Triton that has the pipeline had it loaded when `pipelines` was last called."""
        return self._everywhere.get(name, False)

    def loras(self, name: str) -> tuple[str, ...]:
        """The LoRAs of a pipeline that was loaded."""
        return next(filter(None, (registry.loras(name) for registry in self.all)), ())

    async def each_readiness(self) -> list[Readiness | None]:
        """The readiness of each Triton; None for one that starts or does not answer."""

        async def readiness(registry: ModelRegistry) -> Readiness | None:
            return None if registry.is_starting else await registry.readiness()

        return await asyncio.gather(*map(readiness, self.all))

    async def load(self, name: str) -> None:
        """Load a model on each Triton that has it; see `ModelRegistry.load`.

        Raises:
            LoadFailed: it could not be loaded on one of them.
            TritonUnavailable: none that has it answers.
        """
        having = [registry for registry in self.all if name in (registry.names or ())]
        await self._answers(having or self.all[:1], lambda registry: registry.load(name))

    async def load_pipelines(
        self, candidates: Sequence[ModelRegistry] = (), **names: str | None
    ) -> tuple[ModelRegistry, dict[str, PipelineSpec]]:
        """Choose the Triton for a request, and load the pipelines there; see `ModelRegistry.load_pipelines`.

        Args:
            candidates: the Tritons to choose from, the best one first; empty means all.
            names: of the pipelines, by the request's fields.

        Returns:
            The registry of that Triton, and the pipelines' specs by the request's fields.

        Raises:
            UnknownPipeline: there is no pipeline of this name.
            InvalidField: no Triton has all of them.
            LoadFailed: one could not be loaded.
            TritonUnavailable: no Triton that has them answers.
        """
        candidates = candidates or self.all
        if len(candidates) == 1:
            return candidates[0], await candidates[0].load_pipelines(**names)
        requested = {field: name for field, name in names.items() if name is not None}
        answers = await self._answers(candidates, lambda registry: registry.model_names())
        having = [registry for registry, there in answers if set(requested.values()) <= set(there)]
        if not having:
            raise self._refusal(requested)
        failure: FilmstripError | None = None
        for registry in sorted(having, key=lambda registry: registry.is_interrupted):
            try:
                return registry, await registry.load_pipelines(**names)
            except (LoadFailed, TritonUnavailable) as error:
                failure = failure or error
        assert failure is not None
        raise failure

    def _refusal(self, requested: dict[str, str]) -> FilmstripError:
        """Why no Triton that answers has all pipelines of a request."""
        known = frozenset[str]().union(*(registry.names or () for registry in self.all))
        for field, name in requested.items():
            if name not in known:
                if any(registry.names is None for registry in self.all):
                    return TritonUnavailable(f"no Triton that answers has {name[:80]!r}")
                there = ", ".join(sorted(known)) or "none"
                return UnknownPipeline(f"{field}: no pipeline {name[:80]!r}; there are: {there}", field)
        wanted = frozenset(requested.values())
        if any(registry.names is None or wanted <= registry.names for registry in self.all):
            return TritonUnavailable("the Triton with these pipelines does not answer")
        main = requested["pipeline_id"]
        together = [registry.names or frozenset() for registry in self.all if main in (registry.names or ())]
        field = next(
            (field for field, name in requested.items() if not any(name in names for names in together)),
            next(field for field in reversed(requested)),
        )
        return InvalidField(f"{field}: no Triton has both {requested[field]} and {main}", field)

    @staticmethod
    async def _answers(
        registries: Sequence[ModelRegistry], call: Callable[[ModelRegistry], Awaitable[T]]
    ) -> list[tuple[ModelRegistry, T]]:
        """What the Tritons that answer say; all other errors than their absence are raised."""
        answers = await asyncio.gather(*map(call, registries), return_exceptions=True)
        found: list[tuple[ModelRegistry, T]] = []
        absent: TritonUnavailable | None = None
        for registry, answer in zip(registries, answers, strict=True):
            if isinstance(answer, TritonUnavailable):
                absent = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found.append((registry, answer))
        if not found and absent is not None:
            raise absent
        return found
