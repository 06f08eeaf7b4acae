/** What the server would say of the request: dry runs, shortly after each change. */

import { ApiError, call, key, needsKey } from "./api.js";
import { currentPipeline, isProcessor } from "./pipelines.js";
import { getState, set, subscribe, useStore } from "./store.js";

const PAUSE_MS = 350;
const MINUTE_MS = 60_000;
const MAX_A_MINUTE = 50; // the server allows 60; another tab may be open

/** @type {number[]} */
let sent = [];
let timer = 0;
/** @type {unknown} */
let checked = null;
let checkedStates = "";
let isStarted = false;

/** Checks the request whenever it, or the state of a pipeline, has changed. */
export function startChecks() {
  if (!isStarted) subscribe(schedule);
  isStarted = true;
  schedule();
}

function schedule() {
  const { request, pipelines } = getState();
  const states = pipelines?.map(({ state }) => state).join() ?? "";
  if ((request === checked && states === checkedStates) || !pipelines || (needsKey && !key())) return;
  checked = request;
  checkedStates = states;
  const now = Date.now();
  sent = sent.filter((time) => now - time < MINUTE_MS);
  const pause = sent.length < MAX_A_MINUTE ? PAUSE_MS : sent[0] + MINUTE_MS - now;
  clearTimeout(timer);
  timer = setTimeout(() => void check(), pause);
  set({ check: { ...getState().check, status: "checking" } });
}

async function check() {
  const { request } = getState();
  const missing = missingVideo(getState());
  if (missing) return set({ check: { status: "refused", plan: null, error: missing } });
  sent.push(Date.now());
  try {
    const plan = await call("api/v1/generations?dry_run=1", { method: "POST", json: request });
    if (request === getState().request) set({ check: { status: "ok", plan, error: null }, isOnline: true });
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    if (request !== getState().request) return;
    if (error.status === 429) {
      timer = setTimeout(() => void check(), (error.retryAfterS || 1) * 1000);
      return;
    }
    const problem = { code: error.code, message: error.message, field: error.field };
    set({
      check: { status: error.status ? "refused" : "offline", plan: null, error: problem },
      isOnline: error.status !== 0,
    });
  }
}

/** Checks the request again, although it is the same: the server is back, or a pipeline has loaded. */
export function checkAgain() {
  checked = null;
  schedule();
}

/**
 * The refusal of a request that lacks its input video. That is how every request with a frame processor begins, so it
 * is not worth a refused call.
 * @param {import("./store.js").State} state
 * @returns {import("./api.js").Problem | null}
 */
function missingVideo(state) {
  const { request } = state;
  const pipeline = currentPipeline(state);
  if (!pipeline?.modes || request.input_path || request.chunk_specs?.some((/** @type {any} */ spec) => spec.input_video_shape)) return null;
  if (!request.pre_processor_id && !isProcessor(pipeline) && pipeline.modes.includes("text")) return null;
  const who = request.pre_processor_id ? "the pre-processor" : pipeline.id;
  return { code: "invalid_field", message: `input_path: missing, ${who} needs an input video`, field: "input_path" };
}

/**
 * What the server says against a field; "" if nothing.
 * @param {string} field of the request
 */
export const useProblem = (field) => useStore((state) => problemOf(state, (name) => name === field || name.startsWith(`${field}[`) || name.startsWith(`${field}.`)));

/**
 * What the server says against a field of a chunk, or against the chunk.
 * @param {number} index
 * @param {string} [field]
 */
export const useChunkProblem = (index, field = "") =>
  useStore((state) => {
    const position = state.request.chunk_specs?.findIndex((/** @type {any} */ spec) => spec.chunk === index) ?? -1;
    const start = `chunk_specs[${position}]${field && `.${field}`}`;
    return position < 0 ? "" : problemOf(state, (name) => name.startsWith(start));
  });

/**
 * @param {import("./store.js").State} state
 * @param {(field: string) => boolean} isMeant
 */
function problemOf({ check: { error } }, isMeant) {
  return error?.field && isMeant(error.field) ? error.message : "";
}

/**
 * The chunk that a refusal is about; null if it is about the whole request.
 * @param {import("./store.js").State} state
 */
export function refusedChunk({ request, check: { error } }) {
  const position = /^chunk_specs\[(\d+)\]/.exec(error?.field ?? "")?.[1];
  return position === undefined ? null : (request.chunk_specs?.[Number(position)]?.chunk ?? null);
}
