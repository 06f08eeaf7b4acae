/** The request as a timeline: pure functions on the object that the server gets. */

import { withFields } from "./store.js";

/**
 * @typedef {import("./store.js").GenerateRequest} GenerateRequest
 * @typedef {import("./store.js").ChunkSpec} ChunkSpec
 * @typedef {Record<string, any>} Pipeline
 * @typedef {{start: number, frames: number}} Span  where a chunk lies, in frames
 * @typedef {string | {text: string, weight?: number}[]} Prompt
 */

export const DEFAULT_FPS = 16;
export const MAX_FRAMES = 10000;
export const DEFAULT_NUM_FRAMES = 64;
export const DEFAULT_SEED = 42;
export const DEFAULT_NOISE_SCALE = 0.7;
export const DEFAULT_TRANSITION = 4;

/** @param {GenerateRequest} request @param {number} index @returns {ChunkSpec} */
export const specOf = (request, index) => request.chunk_specs?.find((/** @type {ChunkSpec} */ spec) => spec.chunk === index) ?? { chunk: index };

/** @param {GenerateRequest} request @returns {ChunkSpec[]} */
const specs = (request) => (Array.isArray(request.chunk_specs) ? request.chunk_specs : []);

/**
 * Replaces all specs; those that set nothing are dropped.
 * @param {GenerateRequest} request
 * @param {ChunkSpec[]} list
 */
export function withSpecs(request, list) {
  const kept = list.filter((spec) => Object.keys(spec).length > 1).sort((one, other) => one.chunk - other.chunk);
  return withFields(request, { chunk_specs: kept.length ? kept : undefined });
}

/**
 * Sets fields of one chunk; undefined and null remove one.
 * @param {GenerateRequest} request
 * @param {number} index
 * @param {Record<string, any>} fields
 */
export function withSpec(request, index, fields) {
  const others = specs(request).filter((spec) => spec.chunk !== index);
  return withSpecs(request, [...others, withFields(specOf(request, index), fields)]);
}

/** Whether the pipeline starts from noise in this request. @param {GenerateRequest} request */
export const startsFromNoise = (request) => !request.input_path || Boolean(request.vace_use_input_video);

/**
 * Where the chunks lie, as far as it can be told without the server.
 * @param {GenerateRequest} request
 * @param {Pipeline | null} pipeline
 * @returns {Span[]}
 */
export function estimate(request, pipeline) {
  const size = pipeline?.chunk_size ?? 12;
  const first = pipeline?.first_chunk_size ?? size;
  const total = Math.min(Math.max(Math.floor(request.num_frames ?? DEFAULT_NUM_FRAMES) || 1, 1), MAX_FRAMES);
  const spans = [];
  for (let start = 0, index = 0; start < total; index += 1) {
    const spec = specOf(request, index);
    const hasArrays = spec.vace_masks_shape || spec.vace_frames_shape || (request.input_path && request.vace_use_input_video);
    const isFirst = startsFromNoise(request) && !hasArrays && (index === 0 || spec.reset_cache);
    const frames = Math.min(isFirst ? first : size, total - start);
    spans.push({ start, frames });
    start += frames;
  }
  return spans;
}

/**
 * The number of frames with which the last chunk is whole.
 * @param {GenerateRequest} request
 * @param {Pipeline | null} pipeline
 * @param {number} chunks
 */
export function framesOf(request, pipeline, chunks) {
  const whole = estimate({ ...request, num_frames: MAX_FRAMES }, pipeline);
  return whole.slice(0, chunks).reduce((sum, { frames }) => sum + frames, 0);
}

/**
 * @typedef {{target: Prompt, step: number, steps: number}} Transition
 *
 * @typedef {object} InForce  the prompt of a chunk
 * @property {Prompt} prompt
 * @property {boolean} isOwn  the chunk sets it
 * @property {Transition | null} transition  the one that it is part of
 */

/** @param {Transition} transition */
export const isLastStep = ({ step, steps }) => step + 1 >= steps;

/** The transition in the next chunk; null once it has ended. @param {Transition} transition @returns {Transition | null} */
export const nextStep = (transition) => (isLastStep(transition) ? null : { ...transition, step: transition.step + 1 });

/**
 * The prompts of all chunks. They stay in force until another one is set; a transition ends with its target.
 * @param {GenerateRequest} request
 * @param {number} chunks
 * @returns {InForce[]}
 */
export function promptsInForce(request, chunks) {
  /** @type {InForce[]} */
  const found = [];
  /** @type {Prompt} */
  let prompt = request.prompt ?? "";
  let transition = /** @type {Transition | null} */ (null);
  for (let index = 0; index < chunks; index += 1) {
    const spec = specOf(request, index);
    if (transition) {
      if (isLastStep(transition)) prompt = transition.target;
      transition = nextStep(transition);
    }
    const own = spec.text ?? spec.prompts;
    if (own !== undefined) {
      prompt = own;
      transition = null;
    }
    if (spec.transition_target_prompts) {
      const steps = spec.transition_num_steps ?? DEFAULT_TRANSITION;
      const target = spec.transition_target_prompts;
      if (steps === 0) {
        prompt = target;
        transition = null;
      } else transition = { target, step: 0, steps };
    }
    found.push({ prompt, isOwn: index === 0 || own !== undefined, transition });
  }
  return found;
}

/** A prompt in one line. @param {Prompt} prompt */
export const promptText = (prompt) => (typeof prompt === "string" ? prompt : prompt.map((entry) => entry.text).join(" + "));

/**
 * The fields that set a prompt in a spec.
 * @param {Prompt | undefined} prompt
 */
export const promptFields = (prompt) => ({
  text: typeof prompt === "string" ? prompt : undefined,
  prompts: typeof prompt === "object" ? prompt : undefined,
});

/** @param {Prompt} one @param {Prompt} other */
export const isSame = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/**
 * Sets another length. What belongs to the last chunk stays there, and specs beyond it go.
 * @param {GenerateRequest} request
 * @param {number} numFrames
 * @param {Pipeline | null} pipeline
 */
export function resize(request, numFrames, pipeline) {
  const before = estimate(request, pipeline).length;
  const next = withFields(request, { num_frames: numFrames });
  const after = estimate(next, pipeline).length;
  if (before === after) return next;
  let list = specs(next);
  const last = specOf(next, before - 1).last_frame_image;
  const references = sharedReferences(next, before);
  list = list
    .map((spec) => (spec.chunk === before - 1 ? withFields(spec, { last_frame_image: undefined }) : spec))
    .filter((spec) => spec.chunk < after);
  let result = withSpecs(next, list);
  if (last) result = withSpec(result, after - 1, { last_frame_image: last });
  return references ? withReferences(result, references, after) : result;
}

/**
 * The reference images that all chunks share; null if there are none.
 * @param {GenerateRequest} request
 * @param {number} chunks
 * @returns {string[] | null}
 */
export function sharedReferences(request, chunks) {
  const all = Array.from({ length: chunks }, (_, index) => specOf(request, index).vace_ref_images ?? null);
  return all[0] && all.every((images) => JSON.stringify(images) === JSON.stringify(all[0])) ? all[0] : null;
}

/**
 * Gives all chunks the same reference images.
 * @param {GenerateRequest} request
 * @param {string[]} images
 * @param {number} chunks
 */
export function withReferences(request, images, chunks) {
  const value = images.length ? images : undefined;
  const list = Array.from({ length: chunks }, (_, index) => withFields(specOf(request, index), { vace_ref_images: value }));
  return withSpecs(request, list);
}
