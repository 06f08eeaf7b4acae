/** The generation that is watched: submitted here, or found on the server. */

import { ApiError, call, follow, generationPath, key, needsKey, randomName, send } from "./api.js";
import { examplePrompt } from "./prompt.js";
import { getState, isUploading, listChanged, say, set, useStore } from "./store.js";
import { Icon, duration, html, keep, kept, lazy, useEffect, useState } from "./ui.js";

/** @typedef {import("./api.js").Generation} Generation */

const Player = lazy(() => import("./player.js"), "Player");
const HEADER_BYTES = 20; // ndim, frames, height, width and channels, before the pixels of a download
const PREVIEWS = { every: 1, width: 192 };
let following = new AbortController();

/** @param {Generation | null} generation */
export const isLive = (generation) => generation?.state === "queued" || generation?.state === "running";

/** Generates what the request says, unless it is known that the server refuses it. */
export async function submit() {
  const { request, check, isSending, pipelines } = getState();
  if (isSending || isUploading(getState()) || !pipelines || !request.pipeline_id || (needsKey && !key())) return;
  if (check.status === "refused") {
    document.getElementById("verdict")?.scrollIntoView({ block: "nearest" });
    return;
  }
  set({ isSending: true, notice: "" });
  try {
    const generation = await call("api/v1/generations", {
      method: "POST",
      json: { ...request, previews: PREVIEWS },
      headers: { "Idempotency-Key": randomName() },
    });
    set({ isSending: false });
    listChanged();
    void watch({ ...generation, request });
    if (matchMedia("(max-width: 760px)").matches) document.getElementById("watch")?.scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    set({ isSending: false, isOnline: error.status !== 0 });
    const isField = Boolean(error.field);
    if (isField) set({ check: { status: "refused", plan: null, error: { code: error.code, message: error.message, field: error.field } } });
    else say(error.retryAfterS ? `${error.message}; try again in ${error.retryAfterS} s` : error.message);
  }
}

/**
 * Shows a generation, and follows its events.
 * @param {Generation} generation
 */
export async function watch(generation) {
  following.abort();
  following = new AbortController();
  const { signal } = following;
  set({ generation, previews: {}, isBroken: false, watchedRequest: generation.request ?? null });
  keep("watched", generation.id);
  try {
    if (!generation.request) {
      const whole = await call(generationPath(generation.id), { signal });
      set({ generation: whole, watchedRequest: whole.request });
    }
    const isThere = await follow(generation.id, { signal, onEvent: apply, onBroken: (isBroken) => set({ isBroken, isOnline: !isBroken }) });
    if (signal.aborted) return;
    const ended = isThere ? await call(generationPath(generation.id), { signal }) : null;
    if (signal.aborted) return;
    set({ generation: ended });
    listChanged();
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof ApiError)) throw error;
    if (error.status === 404) set({ generation: null });
    else set({ isBroken: true, isOnline: error.status !== 0 });
  }
}

/** @param {import("./api.js").ServerEvent} event */
function apply({ name, data }) {
  const { generation, previews } = getState();
  if (!generation) return;
  if (name === "queued") set({ generation: { ...generation, state: "queued", position: data.position } });
  if (name === "preview") {
    if (data.image) set({ previews: { ...previews, [data.chunk]: data.image } });
    else void drawPreview(generation.id, data.chunk, data.frames - 1);
  }
  if (name === "progress" && isLive(generation) && data.chunk > generation.chunk) {
    set({
      generation: {
        ...generation,
        state: "running",
        position: null,
        chunk: data.chunk,
        total_chunks: data.total_chunks,
        frames: generation.frames + data.frames,
        fps: data.fps,
        eta_s: (data.total_chunks - data.chunk) * data.latency,
      },
    });
  }
}

/**
 * Draws the image of a chunk from its last frame, if the server had no time for a preview.
 * @param {string} id
 * @param {number} chunk
 * @param {number} frame
 */
async function drawPreview(id, chunk, frame) {
  const response = await send(`${generationPath(id)}/frames?from=${frame}&to=${frame + 1}`).catch(() => null);
  if (!response) return;
  const bytes = new DataView(await response.arrayBuffer());
  const [height, width] = [bytes.getUint32(8, true), bytes.getUint32(12, true)];
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const pixels = context.createImageData(width, height);
  for (let pixel = 0; pixel < width * height; pixel += 1) {
    for (let channel = 0; channel < 3; channel += 1) pixels.data[4 * pixel + channel] = bytes.getUint8(HEADER_BYTES + 3 * pixel + channel);
    pixels.data[4 * pixel + 3] = 255;
  }
  context.putImageData(pixels, 0, 0);
  const { generation, previews } = getState();
  if (generation?.id === id) set({ previews: { ...previews, [chunk]: canvas.toDataURL("image/png") } });
}

/**
 * Shows the generation that runs, or waits, or was watched last: after a reload, or on another device. A page that has no
 * request yet takes over that of the generation.
 */
export async function watchLatest() {
  const { generations } = await call("api/v1/generations?limit=20");
  const states = ["running", "queued"];
  const live = states.flatMap((state) => generations.filter((/** @type {Generation} */ entry) => entry.state === state));
  const id = kept("watched", "");
  const found = live.find(({ id: other }) => other === id) ?? live[0] ?? generations.find((/** @type {Generation} */ entry) => entry.id === id) ?? null;
  if (!found) return;
  const whole = await call(generationPath(found.id));
  const { request } = getState();
  if (live.includes(found) && request.prompt === examplePrompt(request.pipeline_id) && !request.chunk_specs && whole.request) {
    const { previews: _, on_disconnect: __, ...sent } = whole.request;
    set({ request: sent });
  }
  void watch(whole);
}

/** Stops the watched generation; the frames made so far are kept. */
export async function cancel() {
  const { generation } = getState();
  if (!generation || !isLive(generation)) return;
  try {
    await call(`${generationPath(generation.id)}/cancel`, { method: "POST" });
    say("Stopping after this chunk.");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say(error.message);
  }
}

/** Forgets a generation that was deleted. @param {string} id */
export function unwatch(id) {
  if (getState().generation?.id !== id) return;
  following.abort();
  set({ generation: null, previews: {}, watchedRequest: null });
}

/** Seconds since the last progress, so that the time left goes down between chunks. @param {Generation} generation */
function useTimeLeft(generation) {
  const [now, setNow] = useState(Date.now());
  const [since, setSince] = useState(Date.now());
  useEffect(() => setSince(Date.now()), [generation.chunk, generation.state]);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000);
    return () => clearInterval(timer);
  }, []);
  return generation.eta_s === null ? null : Math.max(generation.eta_s - Math.max(now - since, 0) / 1000, 0);
}

/** @param {{generation: Generation}} props */
function Progress({ generation }) {
  const left = useTimeLeft(generation);
  const isBroken = useStore((state) => state.isBroken);
  const { state, position, chunk, total_chunks: total, frames, num_frames: all, fps } = generation;
  const text =
    state === "queued"
      ? position === 1 ? "Next in the queue" : position ? `Number ${position} in the queue` : "In the queue"
      : chunk === 0 ? "Starting…" : `Chunk ${chunk} of ${total}`;
  return html`<div class="progress-row">
    <progress max=${all || 1} value=${state === "queued" ? undefined : frames} aria-label="Progress of the video" />
    <p><strong role="status">${text}</strong>
      ${state === "running" && chunk > 0 && html`<span>${frames} of ${all} frames</span><span>${fps === null ? "" : `${fps.toFixed(1)} fps`}</span>
        <span>${left === null ? "" : left < 1 ? "almost done" : `${duration(Math.ceil(left))} left`}</span>`}
      ${isBroken && html`<span class="warning">Connection lost; it goes on, and this page connects again.</span>`}
    </p>
    <button type="button" class="quiet" aria-keyshortcuts="Escape" title="Esc" onClick=${cancel}><${Icon} name="stop" /> Cancel</button>
  </div>`;
}

/** @param {{generation: Generation}} props */
function Outcome({ generation }) {
  const { state, error, frames, num_frames: all, seed, started_at: start, ended_at: end } = generation;
  if (state === "failed") {
    return html`<div class="outcome bad" role="alert"><p><strong>No video.</strong> ${error?.message ?? "The generation failed."} <code>${error?.code}</code></p>
      <button type="button" class="quiet" onClick=${submit}>Try again</button></div>`;
  }
  const took = start && end ? `, in ${duration(end - start)}` : "";
  return html`<div class="outcome" role="status"><p>${state === "cancelled"
    ? html`<strong>Cancelled.</strong> ${frames ? `${frames} of ${all} frames are kept.` : "No frames were made."}`
    : html`<strong>Done.</strong> ${frames} frames${took}.`} <span class="muted">Seed ${seed}</span></p></div>`;
}

export function Watch() {
  const generation = useStore((state) => state.generation);
  const previews = useStore((state) => state.previews);
  const newest = Math.max(0, ...Object.keys(previews).map(Number));
  const hasVideo = generation && (isLive(generation) ? generation.state === "running" && generation.chunk > 0 : generation.output_path);
  return html`<section id="watch" class="watch panel" aria-label="Video">
    <div class="screen">
      ${!generation
        ? html`<div class="blank"><${Icon} name="film" /><p>Your video appears here, chunk by chunk.</p>
            <p class="hint">Drop a clip of your own anywhere to start from it.</p>
            <p class="hint">Press <kbd>Ctrl</kbd> <kbd>Enter</kbd> to start, <kbd>Space</kbd> to play, <kbd>←</kbd> <kbd>→</kbd> to step.</p></div>`
        : hasVideo
          ? html`<${Player} key=${`${generation.id} ${isLive(generation)}`} generation=${generation} preview=${previews[newest]} />`
          : html`<div class="blank" aria-hidden="true">${isLive(generation) ? html`<span class="reel" />` : html`<${Icon} name="film" />`}</div>`}
    </div>
    ${generation && (isLive(generation) ? html`<${Progress} generation=${generation} />` : html`<${Outcome} generation=${generation} />`)}
  </section>`;
}
