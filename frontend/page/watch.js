/** The generation that is watched: submitted here, or found on the server. */

import { call, follow, generationPath, randomName } from "./api.js";
import { Player } from "./player.js";
import { getState, listChanged, set, useStore } from "./store.js";
import { html } from "./ui.js";

const PREVIEWS = { every: 1, width: 192 };
let following = new AbortController();

/** Generates what the request says. */
export async function submit() {
  const { request } = getState();
  const generation = await call("api/v1/generations", {
    method: "POST",
    json: { ...request, previews: PREVIEWS },
    headers: { "Idempotency-Key": randomName() },
  });
  listChanged();
  void watch(generation);
}

/**
 * Shows a generation, and follows its events.
 * @param {import("./api.js").Generation} generation
 */
export async function watch(generation) {
  following.abort();
  following = new AbortController();
  const { signal } = following;
  set({ generation, previews: {}, isBroken: false });
  const isThere = await follow(generation.id, { signal, onEvent: apply, onBroken: (isBroken) => set({ isBroken }) });
  if (signal.aborted) return;
  const ended = isThere ? await call(generationPath(generation.id)) : null;
  if (signal.aborted) return;
  set({ generation: ended });
  listChanged();
}

/** @param {import("./api.js").ServerEvent} event */
function apply({ name, data }) {
  const { generation, previews } = getState();
  if (!generation) return;
  if (name === "queued") set({ generation: { ...generation, state: "queued", position: data.position } });
  if (name === "preview" && data.image) set({ previews: { ...previews, [data.chunk]: data.image } });
  if (name === "progress") {
    const left = (data.total_chunks - data.chunk) * data.latency;
    set({
      generation: {
        ...generation,
        state: "running",
        position: null,
        chunk: data.chunk,
        total_chunks: data.total_chunks,
        frames: generation.chunk < data.chunk ? generation.frames + data.frames : generation.frames,
        fps: data.fps,
        eta_s: left,
      },
    });
  }
}

/** Shows the generation that runs, or else the latest one: after a reload, or on another device. */
export async function watchLatest() {
  const { generations } = await call("api/v1/generations?limit=20");
  const found = generations.find((/** @type {any} */ entry) => entry.state === "running") ?? generations[0];
  if (found) void watch(found);
}

export function Watch() {
  const generation = useStore((state) => state.generation);
  return html`<section class="watch" aria-label="Video">
    ${generation && html`<${Player} generation=${generation} />`}
  </section>`;
}
