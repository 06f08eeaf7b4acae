"""Data URLs in requests: stored as assets for requests that wait, and left out of what is kept."""

import asyncio
from collections.abc import Callable, Iterator

from filmstrip.errors import BadImage

from .images import ImageDecoder, Requester
from .schema import ChunkSpec, GenerateRequest
from .store import Kind, Store

_MAX_ASSETS = 256
_WHITESPACE = "".join(map(chr, range(0x21)))
_KEPT_CHARACTERS = 40
_IMAGE_FIELDS = ("first_frame_image", "last_frame_image", "vace_ref_images")


def is_data_url(source: str) -> bool:
    """Whether an image of a request is a data URL, and not the name of an asset."""
    return source.lstrip(_WHITESPACE)[:5].lower() == "data:"


async def data_urls_to_assets(
    request: GenerateRequest, client: str, store: Store, decoder: ImageDecoder
) -> tuple[GenerateRequest, tuple[str, ...]]:
    """Store the images that a request holds.

    What is not an image stays in the request, whose check refuses it.

    Returns:
        The request with the names of assets in place of data URLs, and these names; the caller removes the assets.

    Raises:
        StorageFull: the stored files would exceed their limits.
    """
    urls = list(dict.fromkeys(source for source in _images(request) if is_data_url(source)))
    if not urls or len(urls) > _MAX_ASSETS:
        return request, ()
    requester = Requester(client)
    names: dict[str, str] = {}
    try:
        for url in urls:
            with store.draft(Kind.ASSET, len(url) * 3 // 4, owner=client) as draft:
                try:
                    await decoder.save(url, requester, draft.path)
                except BadImage:
                    continue
                names[url] = draft.commit().name
    except BaseException:
        for name in names.values():
            store.remove(name)
        raise
    replaced = await asyncio.to_thread(_with_images, request, lambda source: names.get(source, source))
    return replaced, tuple(names.values())


def without_data_urls(request: GenerateRequest) -> GenerateRequest:
    """The request with only the start of each data URL."""

    def shortened(source: str) -> str:
        return source.lstrip(_WHITESPACE)[:_KEPT_CHARACTERS] + "..." if is_data_url(source) else source

    return _with_images(request, shortened)


def _images(request: GenerateRequest) -> Iterator[str]:
    for spec in request.chunk_specs or ():
        yield from filter(None, (spec.first_frame_image, spec.last_frame_image))
        yield from spec.vace_ref_images or ()


def _with_images(request: GenerateRequest, replace: Callable[[str], str]) -> GenerateRequest:
    if not any(map(is_data_url, _images(request))):
        return request

    def replaced(spec: ChunkSpec) -> ChunkSpec:
        values = {name: getattr(spec, name) for name in _IMAGE_FIELDS if getattr(spec, name) is not None}
        changes = {
            name: list(map(replace, value)) if isinstance(value, list) else replace(value)
            for name, value in values.items()
        }
        return spec.model_copy(update=changes) if changes else spec

    return request.model_copy(update={"chunk_specs": [replaced(spec) for spec in request.chunk_specs or ()]})
