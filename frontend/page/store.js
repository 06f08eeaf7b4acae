/**
 * The state of the page. `request` is what the server gets: the timeline, the fields and the JSON drawer are views of
 * it, and it alone can be undone.
 */

import { useLayoutEffect, useRef, useState } from "./vendor/hooks.js";
import { keep, kept } from "./ui.js";

/**
 * @typedef {Record<string, any>} ChunkSpec
 * @typedef {Record<string, any>} GenerateRequest
 *
 * @typedef {object} Media  what the page knows of a stored file
 * @property {"video" | "image" | "blob"} kind
 * @property {string} name  of the file that was dropped
 * @property {string} [poster]  a data URL
 * @property {number} [fps]
 * @property {number} [frames]
 * @property {number} [width]
 * @property {number} [height]
 * @property {Record<string, string>} [masks]  of a blob: images of the masks, by their offset
 * @property {number} [at]  when it was stored, in milliseconds
 *
 * @typedef {object} State
 * @property {GenerateRequest} request
 * @property {GenerateRequest[]} past
 * @property {GenerateRequest[]} future
 * @property {number} chunk  the selected chunk
 * @property {Record<string, any>[] | null} pipelines
 * @property {import("./api.js").Generation | null} generation  the one that is watched
 * @property {Record<number, string>} previews  images of the watched generation, by the number of their chunk
 * @property {boolean} isBroken  whether the connection to its events is lost
 * @property {{status: "none" | "checking" | "ok" | "refused" | "offline", plan: any, error: import("./api.js").Problem | null}} check
 * @property {Record<string, Media>} media
 * @property {boolean} isOnline
 * @property {number} listVersion  grows when the list of generations has changed
 * @property {string} notice  one sentence for the user
 * @property {boolean} asksKey  whether the dialog for the API key is open
 * @property {boolean} isSending  whether a request is on its way to the server
 * @property {import("./inputs.js").Clip | null} clip  the video file that was dropped, until the page is loaded again
 * @property {GenerateRequest | null} watchedRequest  the request of the watched generation
 */

export const EMPTY_REQUEST = { pipeline_id: "", prompt: "", num_frames: 69 };
const MAX_UNDO = 200;
const MERGE_MS = 900;
const STORED_MS = 55 * 60 * 1000; // the server keeps files for an hour by default

/** The request of the last visit, without files that the server no longer has. */
function lastRequest() {
  const text = JSON.stringify(kept("request", EMPTY_REQUEST));
  const media = kept("media", /** @type {Record<string, Media>} */ ({}));
  const isThere = (/** @type {string} */ name) => Date.now() - (media[name]?.at ?? 0) < STORED_MS;
  return JSON.parse(text, (field, value) => {
    if (field === "data_blob_path" || field === "input_path") return isThere(value) ? value : undefined;
    if (field.endsWith("_frame_image")) return isThere(value) ? value : undefined;
    if (field === "vace_ref_images") return value.every(isThere) ? value : undefined;
    if (/^vace_(masks|frames)_|^input_video_/.test(field)) return undefined;
    return value;
  });
}

/** @type {State} */
let state = {
  request: lastRequest(),
  past: [],
  future: [],
  chunk: 0,
  pipelines: null,
  generation: null,
  previews: {},
  isBroken: false,
  check: { status: "none", plan: null, error: null },
  media: kept("media", {}),
  isOnline: true,
  listVersion: 0,
  notice: "",
  asksKey: false,
  isSending: false,
  clip: null,
  watchedRequest: null,
};

/** @type {Set<() => void>} */
const listeners = new Set();

export const getState = () => state;

/** @param {() => void} listener */
export function subscribe(listener) {
  listeners.add(listener);
  return () => void listeners.delete(listener);
}

/** @param {Partial<State>} patch */
export function set(patch) {
  state = { ...state, ...patch };
  for (const listener of [...listeners]) listener();
}

/**
 * A part of the state; the component renders again when it is another one.
 * @template T
 * @param {(state: State) => T} select
 * @returns {T}
 */
export function useStore(select) {
  const [, render] = useState(0);
  const latest = useRef({ select, value: select(state) });
  latest.current = { select, value: select(state) };
  useLayoutEffect(
    () =>
      subscribe(() => {
        if (!Object.is(latest.current.select(state), latest.current.value)) render((/** @type {number} */ count) => count + 1);
      }),
    [],
  );
  return latest.current.value;
}

let lastEdit = { topic: "", time: 0 };

/**
 * Changes the request, so that it can be undone.
 * @param {(request: GenerateRequest) => GenerateRequest} change
 * @param {string} [topic] edits of the same topic that follow each other quickly are undone together
 */
export function edit(change, topic = "") {
  const request = change(state.request);
  if (request === state.request) return;
  const now = Date.now();
  const isMerged = topic !== "" && topic === lastEdit.topic && now - lastEdit.time < MERGE_MS && state.past.length > 0;
  lastEdit = { topic, time: now };
  set({ request, past: isMerged ? state.past : [...state.past.slice(-MAX_UNDO), state.request], future: [] });
  keep("request", request);
}

/**
 * Sets fields of the request; undefined, null and "" remove one, but `prompt` may be empty.
 * @param {Record<string, any>} fields
 */
export function setFields(fields) {
  edit((request) => withFields(request, fields), Object.keys(fields).join());
}

/**
 * @template {Record<string, any>} T
 * @param {T} object
 * @param {Record<string, any>} fields
 * @returns {T}
 */
export function withFields(object, fields) {
  const next = /** @type {Record<string, any>} */ ({ ...object, ...fields });
  for (const [name, value] of Object.entries(fields)) {
    const isText = name === "prompt" || name === "text";
    if (value === undefined || value === null || (value === "" && !isText)) delete next[name];
  }
  return /** @type {T} */ (next);
}

export function undo() {
  const request = state.past.at(-1);
  if (!request) return;
  lastEdit = { topic: "", time: 0 };
  set({ request, past: state.past.slice(0, -1), future: [state.request, ...state.future] });
  keep("request", request);
}

export function redo() {
  const [request, ...future] = state.future;
  if (!request) return;
  lastEdit = { topic: "", time: 0 };
  set({ request, past: [...state.past, state.request], future });
  keep("request", request);
}

/**
 * Takes over all settings of a generation.
 * @param {GenerateRequest} request
 */
export function reuse({ on_disconnect: _, previews: __, uploads: ___, ...request }) {
  edit(() => request);
  set({ chunk: 0 });
}

/**
 * Remembers what a stored name stands for.
 * @param {string} name
 * @param {Media} media
 */
export function addMedia(name, media) {
  const entries = Object.entries({ ...state.media, [name]: { at: Date.now(), ...media } }).slice(-40);
  set({ media: Object.fromEntries(entries) });
  keep("media", state.media);
}

/**
 * Makes a stored video the input of the request.
 * @param {string} inputPath from an upload
 * @param {Media} media
 */
export function useAsInput(inputPath, media) {
  addMedia(inputPath, media);
  edit((request) => withFields(request, { input_path: inputPath, num_frames: media.frames ?? request.num_frames }));
}

/** Whether the clip is still on its way, so that a request would not have it. @param {State} state */
export const isUploading = ({ clip }) => clip !== null && clip.progress !== null;

/** @param {string} notice */
export const say = (notice) => set({ notice });

/** The list of generations has changed. */
export const listChanged = () => set({ listVersion: state.listVersion + 1 });
