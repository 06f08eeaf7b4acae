/** This client's generations: to watch again, compare, download, go on from, and delete. */

import { ApiError, address, call, enlargement, fileAddress, generationPath, key, needsKey, send } from "./api.js";
import { InStep, videoAddress } from "./player.js";
import { openSession } from "./session.js";
import { listChanged, reuse, say, set, useAsInput, useStore } from "./store.js";
import { Dialog, Icon, classes, html, useEffect, useRef, useState } from "./ui.js";
import { isLive, unwatch, watch } from "./watch.js";

/** @typedef {import("./api.js").Generation} Generation */

const PAGE = 12;
const MOST = 100; // of one answer
const POLL_MS = 3000;
const HEADER_BYTES = 20; // before raw frames
const SMALL = 256;

/** Requests do not change, and lists come without them. @type {Map<string, Promise<Record<string, any>>>} */
const requests = new Map();

/** @param {Generation} generation @returns {Promise<Record<string, any>>} what was asked for, or nothing if it is gone */
function requestOf({ id, created_at: created }) {
  const name = `${created} ${id}`;
  const found = requests.get(name) ?? call(generationPath(id)).then((whole) => whole.request ?? {});
  requests.set(name, found);
  found.catch(() => requests.delete(name));
  return found;
}

/** Posters that load; the server encodes two files at a time, and browsers open six connections. */
const MOST_POSTERS = 2;
let posters = 0;
/** @type {Set<() => void>} */
const waiting = new Set();

/**
 * The address of a poster once it is its turn to load.
 * @param {string | null} source
 * @returns {[string | undefined, () => void]} to be called when it has loaded
 */
function useTurn(source) {
  const [granted, grant] = useState(/** @type {string | undefined} */ (undefined));
  const release = useRef(() => {});
  useEffect(() => {
    if (!source) return;
    const start = () => {
      posters++;
      release.current = () => {
        release.current = () => {};
        posters--;
        for (const next of waiting) {
          waiting.delete(next);
          next();
          break;
        }
      };
      grant(source);
    };
    if (posters < MOST_POSTERS) start();
    else waiting.add(start);
    return () => {
      waiting.delete(start);
      release.current();
    };
  }, [source]);
  return [granted, () => release.current()];
}

/** @param {Generation} generation */
const isExpired = ({ expires_at: expires }) => expires !== null && expires * 1000 <= Date.now();

/**
 * @typedef {object} Listed
 * @property {"loading" | "ready" | "failed"} status
 * @property {Generation[]} entries
 * @property {string | null} next
 * @property {string} problem
 */

/** The list, kept up to date while something runs, and when something expires. */
function useList() {
  const version = useStore((state) => state.listVersion);
  const isOnline = useStore((state) => state.isOnline);
  const [list, setList] = useState(/** @type {Listed} */ ({ status: "loading", entries: [], next: null, problem: "" }));
  const [more, setMore] = useState(PAGE); // how many are to be shown
  const [turn, setTurn] = useState(0);
  const again = () => setTurn((count) => count + 1);

  useEffect(() => {
    if (needsKey && !key()) return;
    const aborted = new AbortController();
    void load(more, aborted.signal).then(
      (found) => setList({ status: "ready", problem: "", ...found }),
      (error) => {
        if (aborted.signal.aborted) return;
        if (!(error instanceof ApiError)) throw error;
        if (error.status === 0) set({ isOnline: false });
        setList((before) => ({ ...before, status: "failed", problem: error.message }));
      },
    );
    return () => aborted.abort();
  }, [version, isOnline, more, turn]);

  useEffect(() => {
    const expiries = list.entries.flatMap(({ expires_at: expires }) => (expires === null ? [] : [expires * 1000 - Date.now()]));
    const delays = [...expiries.map((delay) => Math.max(delay, 0) + 50), ...(list.entries.some(isLive) ? [POLL_MS] : [])];
    if (!delays.length || list.status !== "ready") return;
    const timer = setTimeout(again, Math.min(...delays, 2 ** 31 - 1));
    return () => clearTimeout(timer);
  }, [list]);

  return { ...list, showMore: () => setMore(list.entries.length + PAGE), again };
}

/** @param {number} count @param {AbortSignal} signal */
async function load(count, signal) {
  await openSession();
  /** @type {Generation[]} */
  const entries = [];
  let next = null;
  do {
    const limit = Math.min(count - entries.length, MOST);
    const page = await call(`api/v1/generations?limit=${limit}${next ? `&after=${encodeURIComponent(next)}` : ""}`, { signal });
    entries.push(...page.generations);
    next = page.next;
  } while (next && entries.length < count);
  return { entries: entries.filter((entry) => !isExpired(entry)), next };
}

export function Gallery() {
  const { status, entries, next, problem, showMore, again } = useList();
  const watched = useStore((state) => state.generation?.id);
  const isOnline = useStore((state) => state.isOnline);
  const [chosen, choose] = useState(/** @type {string[]} */ ([]));
  const [doomed, setDoomed] = useState(/** @type {Generation | null} */ (null));
  const compared = chosen.map((id) => entries.find((entry) => entry.id === id)).filter((entry) => entry !== undefined);
  const toggle = (/** @type {string} */ id) => choose((before) => (before.includes(id) ? before.filter((other) => other !== id) : [...before, id].slice(-2)));
  return html`<section class="gallery panel" aria-label="Gallery" aria-busy=${status === "loading"}>
    <header class="bar"><h2>Gallery</h2>
      ${compared.length === 1 && html`<p class="choosing" role="status">Choose another video to compare with. <button type="button" class="link" onClick=${() => choose([])}>Stop comparing</button></p>`}
    </header>
    ${status === "failed" && (isOnline || !entries.length) && html`<div class="bad outcome" role="alert"><p><strong>The gallery could not be loaded.</strong> ${problem}</p>
      <button type="button" class="quiet" onClick=${again}>Try again</button></div>`}
    ${status === "loading" && html`<ul class="cards" aria-label="Loading">${[0, 1, 2, 3].map((number) => html`<li class="card" key=${number}><span class="thumb blank" /></li>`)}</ul>`}
    ${status === "ready" && !entries.length && html`<div class="empty"><${Icon} name="film" /><p>No videos yet. What you generate is kept here until it expires.</p></div>`}
    ${entries.length > 0 && html`<ul class="cards">
      ${entries.map((entry) => html`<${Card} key=${`${entry.created_at} ${entry.id}`} generation=${entry} isWatched=${entry.id === watched} isChosen=${chosen.includes(entry.id)}
        onChoose=${() => toggle(entry.id)} onDelete=${() => setDoomed(entry)} />`)}
    </ul>`}
    ${next && status !== "loading" && html`<button type="button" class="quiet more" onClick=${showMore}>Show more</button>`}
    ${compared.length === 2 && html`<${Comparison} generations=${compared} onClose=${() => choose([])} />`}
    ${doomed && html`<${Deletion} generation=${doomed} onClose=${() => setDoomed(null)} />`}
  </section>`;
}

/** What was asked for; empty until it is known. @param {Generation} generation */
function useRequest(generation) {
  const [request, setRequest] = useState(/** @type {Record<string, any> | null} */ (null));
  useEffect(() => {
    let isCurrent = true;
    requestOf(generation).then((found) => isCurrent && setRequest(found), () => {});
    return () => void (isCurrent = false);
  }, [generation.id, generation.created_at]);
  return request;
}

/**
 * What a request shows, in a line.
 * @param {Record<string, any> | null} request
 * @param {string} otherwise
 */
function title(request, otherwise) {
  if (!request) return otherwise;
  const text = (/** @type {any} */ prompt) => (Array.isArray(prompt) ? prompt.map((part) => part.text ?? part).join(" + ") : prompt ?? "");
  const later = (request.chunk_specs ?? []).map((/** @type {any} */ spec) => text(spec.text ?? spec.prompts ?? spec.transition_target_prompts));
  return [text(request.prompt), ...later].filter(Boolean).join(" → ") || request.pipeline_id;
}

/** @param {Generation} generation */
function facts({ state, frames, video_shape: shape, seed, expires_at: expires }) {
  const left = expires === null ? null : Math.max(expires - Date.now() / 1000, 0);
  return [
    state === "cancelled" && "cancelled",
    frames > 0 && `${frames} frames`,
    shape && `${shape[2]}×${shape[1]}`,
    seed !== null && state !== "failed" && `seed ${seed}`,
    left !== null && `${timeLeft(left)} left`,
  ].filter(Boolean).join(" · ");
}

/** @param {number} seconds */
function timeLeft(seconds) {
  const minutes = Math.floor(seconds / 60);
  return minutes < 1 ? "less than 1 min" : minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/**
 * @param {{generation: Generation, isWatched: boolean, isChosen: boolean, onChoose: () => void, onDelete: () => void}} props
 */
function Card({ generation, isWatched, isChosen, onChoose, onDelete }) {
  const request = useRequest(generation);
  const { id, state, output_path: output, video_shape: shape, error } = generation;
  const name = title(request, id);
  const [isPosterLost, setPosterLost] = useState(false);
  const hasPoster = Boolean(output) && !isPosterLost;
  const [poster, onLoaded] = useTurn(hasPoster ? fileAddress(id, "poster.png") : null);
  const onLost = () => {
    onLoaded();
    setPosterLost(true);
  };
  const show = () => {
    void watch(generation);
    document.getElementById("watch")?.scrollIntoView({ block: "nearest" });
  };
  return html`<li class=${classes("card", isWatched && "watched", isChosen && "chosen")}>
    <button type="button" class="thumb" aria-label=${`Watch: ${name}`} aria-current=${isWatched ? "true" : undefined} onClick=${show}>
      ${hasPoster
        ? html`<img class=${classes(shape && shape[2] < SMALL && "pixels")} src=${poster} alt="" onLoad=${onLoaded} onError=${onLost} />`
        : html`<span class="blank"><${Icon} name="film" /></span>`}
      ${isLive(generation) && html`<span class="badge">${progress(generation)}</span>`}
      ${state === "failed" && html`<span class="badge bad">failed</span>`}
    </button>
    <p class="title" title=${name}>${name}</p>
    ${state === "failed" ? html`<p class="problem">${error?.message}</p>` : html`<p class="facts">${facts(generation)}</p>`}
    <div class="tools">
      <button type="button" class="link" disabled=${!request} onClick=${() => takeOver(generation)}>Reuse</button>
      ${output && html`<button type="button" class="link" aria-pressed=${isChosen} onClick=${onChoose}>Compare</button>`}
      <${Menu} name=${name} generation=${generation} onDelete=${onDelete} />
    </div>
  </li>`;
}

/** @param {Generation} generation */
function progress({ state, position, chunk, total_chunks: total }) {
  if (state === "queued") return position === null ? "waiting" : `waiting, number ${position}`;
  return chunk ? `chunk ${chunk} of ${total}` : "starting";
}

/** @param {{name: string, generation: Generation, onDelete: () => void}} props */
function Menu({ name, generation, onDelete }) {
  const details = useRef(/** @type {HTMLDetailsElement | null} */ (null));
  const { id, output_path: output } = generation;
  const close = () => {
    const opened = details.current;
    if (!opened?.open) return;
    opened.open = false;
    if (opened.contains(document.activeElement)) opened.querySelector("summary")?.focus();
  };
  const onKey = (/** @type {KeyboardEvent} */ event) => {
    if (event.key !== "Escape" || !details.current?.open) return;
    event.preventDefault();
    close();
  };
  const onLeave = (/** @type {FocusEvent} */ event) => {
    if (details.current && !details.current.contains(/** @type {Node | null} */ (event.relatedTarget))) details.current.open = false;
  };
  return html`<details class="menu" ref=${details} onKeyDown=${onKey} onFocusOut=${onLeave}>
    <summary aria-label=${`More for ${name}`} title="More"><${Icon} name="more" /></summary>
    <div class="entries" onClick=${close}>
      ${output && html`
        <button type="button" onClick=${() => makeInput(generation, name)}><${Icon} name="film" /> Use as next input</button>
        <a href=${videoAddress(generation)} download=${`${id}.mp4`}><${Icon} name="download" /> MP4</a>
        <a href=${fileAddress(id, "video.gif", gifOptions(generation))} download=${`${id}.gif`}><${Icon} name="download" /> GIF</a>
        <a href=${address(`api/v1/generate/download?path=${encodeURIComponent(output)}`)} download=${`${id}.thwc`}><${Icon} name="download" /> Raw frames</a>`}
      <button type="button" class="bad" onClick=${onDelete}><${Icon} name="trash" /> Delete</button>
    </div>
  </details>`;
}

/** Small frames are enlarged, but less than in other files: GIFs get large. @param {Generation} generation */
const gifOptions = ({ video_shape: shape }) => (shape ? { scale: Math.min(enlargement(shape[2], shape[1]), 4) } : {});

/** Takes over all settings, with the seed that was used. @param {Generation} generation */
async function takeOver(generation) {
  const request = await requestOf(generation);
  reuse(generation.seed === null ? request : { ...request, seed: generation.seed });
  say("All settings are those of this video, with its seed.");
  document.querySelector("textarea")?.focus();
}

/**
 * Uploads the frames again, as they are, and makes them the input of the request.
 * @param {Generation} generation
 * @param {string} name
 */
async function makeInput({ id, output_path: output, video_shape: shape }, name) {
  if (!output || !shape) return;
  try {
    say("The frames are being copied…");
    const file = await (await send(`api/v1/generate/download?path=${encodeURIComponent(output)}`)).blob();
    const names = ["Frames", "Height", "Width", "Channels"];
    const headers = Object.fromEntries(names.map((side, index) => [`X-Video-${side}`, String(shape[index])]));
    const stored = await call("api/v1/generate/upload", { method: "POST", body: file.slice(HEADER_BYTES), headers });
    const poster = await dataAddress(await (await send(`${generationPath(id)}/poster.png`)).blob());
    const [frames, height, width] = shape;
    useAsInput(stored.input_path, { kind: "video", name, poster, fps: 16, frames, width, height });
    say("This video is the next input.");
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say(error.message);
  }
}

/** @param {Blob} blob @returns {Promise<string>} */
const dataAddress = (blob) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });

/** @param {{generations: Generation[], onClose: () => void}} props */
function Comparison({ generations, onClose }) {
  const [left, right] = generations.map(useRequest);
  const isSame = (/** @type {string} */ name) => JSON.stringify(left?.[name]) === JSON.stringify(right?.[name]);
  const names = [...new Set([...Object.keys(left ?? {}), ...Object.keys(right ?? {})])];
  const others = names.filter((name) => !["prompt", "chunk_specs", "seed"].includes(name) && !isSame(name));
  const [one, two] = generations;
  const captions = [left, right].map(
    (request, index) => html`<strong>${title(request, generations[index].id)}</strong><br />Seed ${generations[index].seed}${one.seed === two.seed ? " (the same)" : ""}
      ${request && others.map((name) => html`<br /><code>${name}</code> ${shown(request[name])}`)}`,
  );
  return html`<${Dialog} title="Compare" onClose=${onClose} wide>
    <${InStep} generations=${generations} captions=${captions} />
  <//>`;
}

/** @param {unknown} value */
function shown(value) {
  const text = value === undefined ? "not set" : typeof value === "string" ? value : JSON.stringify(value);
  return text.length > 60 ? `${text.slice(0, 60)}…` : text;
}

/** @param {{generation: Generation, onClose: () => void}} props */
function Deletion({ generation, onClose }) {
  const request = useRequest(generation);
  const [isSent, setSent] = useState(false);
  const remove = async () => {
    setSent(true);
    try {
      await call(generationPath(generation.id), { method: "DELETE" });
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status !== 404) {
        say(error.message);
        onClose();
        return;
      }
    }
    unwatch(generation.id);
    listChanged();
    onClose();
  };
  return html`<${Dialog} title="Delete this video?" onClose=${onClose}>
    <p>${title(request, generation.id)}</p>
    <p class="muted">${isLive(generation) ? "It is still being generated, and ends now." : "Its files are deleted, and cannot be brought back."}</p>
    <footer>
      <button type="button" class="quiet" onClick=${onClose}>Keep it</button>
      <button type="button" class="danger" disabled=${isSent} onClick=${remove}>Delete</button>
    </footer>
  <//>`;
}
