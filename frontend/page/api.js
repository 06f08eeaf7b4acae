/**
 * Calls of the server. Addresses are relative to the document, so that they stay below a path prefix. The key is sent
 * as a header, never in an address.
 */

import { keep, kept } from "./ui.js";

/**
 * @typedef {{code: string, message: string, field?: string}} Problem
 *
 * @typedef {object} Generation  the resource of docs/api.md
 * @property {string} id
 * @property {"queued" | "running" | "complete" | "cancelled" | "failed"} state
 * @property {number | null} position
 * @property {number} chunk
 * @property {number} total_chunks
 * @property {number} frames
 * @property {number} num_frames
 * @property {number | null} fps
 * @property {number | null} eta_s
 * @property {number} created_at
 * @property {number | null} started_at
 * @property {number | null} ended_at
 * @property {number | null} expires_at
 * @property {number} seed
 * @property {string[]} unused
 * @property {Problem | null} error
 * @property {string | null} output_path
 * @property {[number, number, number, number] | null} video_shape
 * @property {Record<string, any>} [request]
 */

/** The server's refusal, or a code of our own: `offline`. */
export class ApiError extends Error {
  /**
   * @param {Problem} problem
   * @param {number} status 0 when the server was not reached
   * @param {number} retryAfterS
   */
  constructor(problem, status, retryAfterS = 0) {
    super(problem.message);
    this.code = problem.code;
    this.field = problem.field;
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

export const needsKey = document.documentElement.dataset.keys === "required";

const KEY = "key";

/** The API key: of this tab, or kept in this browser if the user wants that. */
export function key() {
  try {
    return sessionStorage.getItem(KEY) ?? kept(KEY, "");
  } catch {
    return kept(KEY, "");
  }
}

/** Whether the key outlives this tab. */
export const isKeyKept = () => Boolean(kept(KEY, ""));

/** @param {string} value @param {boolean} isKept */
export function setKey(value, isKept) {
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // blocked: then it can only be kept
  }
  keep(KEY, isKept && value ? value : undefined);
}

/** @param {string} path without a slash at its start */
export const address = (path) => new URL(path, document.baseURI).href;

/** @returns {Record<string, string>} */
const authorization = () => (key() ? { Authorization: `Bearer ${key()}` } : {});

const offline = () => new ApiError({ code: "offline", message: "The server cannot be reached." }, 0);

/** @param {Response} response */
async function refusal(response) {
  const retryAfterS = Number(response.headers.get("Retry-After")) || 0;
  try {
    return new ApiError((await response.json()).error, response.status, retryAfterS);
  } catch {
    const message = `The server answered ${response.status} ${response.statusText}.`;
    return new ApiError({ code: "error", message }, response.status, retryAfterS);
  }
}

/**
 * @param {string} path
 * @param {{method?: string, json?: unknown, body?: BodyInit, headers?: Record<string, string>, signal?: AbortSignal}} [options]
 */
export async function send(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  let response;
  try {
    response = await fetch(address(path), {
      method,
      body: json === undefined ? body : JSON.stringify(json),
      headers: { ...authorization(), ...(json === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw offline();
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/**
 * The JSON answer of a call; null if it has none.
 * @param {string} path
 * @param {Parameters<typeof send>[1]} [options]
 */
export async function call(path, options) {
  const response = await send(path, options);
  return response.status === 204 ? null : response.json();
}

/** @param {string} id */
export const generationPath = (id) => `api/v1/generations/${encodeURIComponent(id)}`;

/**
 * The address of a file of a generation, for `src` and downloads.
 * @param {string} id
 * @param {string} name such as video.mp4
 * @param {Record<string, string | number>} [query]
 */
export function fileAddress(id, name, query = {}) {
  const text = new URLSearchParams(Object.entries(query).map(([name, value]) => [name, String(value)])).toString();
  return address(`${generationPath(id)}/${name}${text && `?${text}`}`);
}

/**
 * How often to enlarge small frames, so that a video file keeps their edges.
 * @param {number} width
 * @param {number} height
 */
export const enlargement = (width, height) => Math.min(Math.max(Math.floor(512 / Math.max(width, height)), 1), 8);

/**
 * @typedef {{id: number | null, name: string, data: any}} ServerEvent
 */

/**
 * Follows a generation until its last event, also across broken connections. Every event comes once.
 * @param {string} id
 * @param {{after?: number, signal: AbortSignal, onEvent: (event: ServerEvent) => void, onBroken?: (isBroken: boolean) => void}} options
 * @returns {Promise<boolean>} false if there is no such generation
 */
export async function follow(id, { after = 0, signal, onEvent, onBroken = () => {} }) {
  let pause = 1;
  while (!signal.aborted) {
    try {
      const response = await send(`${generationPath(id)}/events`, {
        headers: { Accept: "text/event-stream", ...(after ? { "Last-Event-ID": String(after) } : {}) },
        signal,
      });
      onBroken(false);
      for await (const event of parse(response)) {
        pause = 1;
        if (event.id !== null) after = event.id;
        onEvent(event);
        if (["complete", "cancelled", "error"].includes(event.name)) return true;
      }
    } catch (error) {
      if (signal.aborted) return true;
      if (error instanceof ApiError && error.status === 404) return false;
      if (error instanceof ApiError && error.status === 401) throw error;
    }
    onBroken(true);
    await wait(pause, signal);
    pause = Math.min(pause * 2, 10);
  }
  return true;
}

/** @param {Response} response @returns {AsyncGenerator<ServerEvent>} */
async function* parse(response) {
  const reader = /** @type {ReadableStream<Uint8Array>} */ (response.body).getReader();
  const decoder = new TextDecoder();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += decoder.decode(value, { stream: true });
    const blocks = text.split("\n\n");
    text = /** @type {string} */ (blocks.pop());
    for (const block of blocks) {
      /** @type {Record<string, string>} */
      const fields = {};
      for (const line of block.split("\n")) {
        const [name, ...rest] = line.split(": ");
        if (name) fields[name] = rest.join(": ");
      }
      if (fields.data) yield { id: fields.id ? Number(fields.id) : null, name: fields.event, data: JSON.parse(fields.data) };
    }
  }
}

/** @param {number} seconds @param {AbortSignal} [signal] */
export const wait = (seconds, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000, undefined);
    const now = () => (clearTimeout(timer), resolve(undefined));
    signal?.addEventListener("abort", now, { once: true });
    addEventListener("online", now, { once: true });
  });

/**
 * Uploads a file, and tells how much of it is sent.
 * @param {string} path
 * @param {Blob} file
 * @param {{type: string, onProgress?: (share: number) => void, signal?: AbortSignal}} options
 * @returns {Promise<any>}
 */
export function upload(path, file, { type, onProgress = () => {}, signal }) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.open("POST", address(path));
    for (const [name, value] of Object.entries({ ...authorization(), "Content-Type": type })) {
      request.setRequestHeader(name, value);
    }
    request.upload.onprogress = (event) => onProgress(event.loaded / (event.total || 1));
    request.onerror = () => reject(offline());
    request.onabort = () => reject(new DOMException("aborted", "AbortError"));
    request.onload = () => {
      if (request.status === 200) return resolve(JSON.parse(request.responseText));
      try {
        return reject(new ApiError(JSON.parse(request.responseText).error, request.status));
      } catch {
        return reject(new ApiError({ code: "error", message: `The server answered ${request.status}.` }, request.status));
      }
    };
    signal?.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}

/** A random name for what may have to be sent twice. */
export function randomName() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
