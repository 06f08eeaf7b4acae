/** Edits of the timeline that concern several chunks: pure functions on the request. */

import { framesOf, isLastStep, isSame, nextStep, promptFields, promptsInForce, sharedReferences, specOf, withReferences, withSpecs } from "./request.js";
import { withFields } from "./store.js";

/**
 * @typedef {import("./store.js").GenerateRequest} GenerateRequest
 * @typedef {import("./request.js").Pipeline} Pipeline
 * @typedef {import("./request.js").Span} Span
 */

/**
 * Puts the chunks into another order, with everything that they set; the prompts go with them.
 * @param {GenerateRequest} request
 * @param {(number | null)[]} order  old indices in their new order; null is a new chunk
 * @param {number} chunks  how many there were
 */
function reorder(request, order, chunks) {
  const before = promptsInForce(request, chunks);
  const list = [];
  let prompt = before[order[0] ?? 0]?.prompt ?? request.prompt;
  const result = withFields(request, { prompt });
  let running = /** @type {import("./request.js").Transition | null} */ (null);
  for (const [index, old] of order.entries()) {
    if (running) {
      if (isLastStep(running)) prompt = running.target;
      running = nextStep(running);
    }
    if (old === null) continue;
    const { text: _, prompts: __, ...rest } = specOf(request, old);
    /** @type {import("./store.js").ChunkSpec} */
    let spec = { ...rest, chunk: index };
    const now = before[old];
    const isInside = now.transition && now.transition.step > 0;
    if (!running && !isInside && !isSame(now.prompt, prompt)) {
      spec = withFields(spec, promptFields(now.prompt));
      prompt = now.prompt;
    }
    if (spec.transition_target_prompts) running = now.transition;
    list.push(spec);
  }
  return withSpecs(result, list);
}

/**
 * Moves a chunk.
 * @param {GenerateRequest} request
 * @param {number} from
 * @param {number} to
 * @param {number} chunks
 */
export function moveChunk(request, from, to, chunks) {
  const order = Array.from({ length: chunks }, (_, index) => index);
  order.splice(to, 0, ...order.splice(from, 1));
  return reorder(request, order, chunks);
}

/**
 * Adds a chunk in front of another one, or at the end. It goes on with the prompt in force.
 * @param {GenerateRequest} request
 * @param {number} at
 * @param {Span[]} spans
 * @param {Pipeline | null} pipeline
 */
export function addChunk(request, at, spans, pipeline) {
  /** @type {(number | null)[]} */
  const order = spans.map((_, index) => index);
  order.splice(at, 0, null);
  const references = sharedReferences(request, spans.length);
  let result = reorder(request, order, spans.length);
  if (references) result = withReferences(result, references, order.length);
  const isWhole = request.num_frames === framesOf(request, pipeline, spans.length);
  const grown = request.num_frames + (pipeline?.chunk_size ?? 12);
  return withFields(result, { num_frames: isWhole ? framesOf(result, pipeline, order.length) : grown });
}

/**
 * Removes a chunk and its frames.
 * @param {GenerateRequest} request
 * @param {number} index
 * @param {Span[]} spans
 */
export function removeChunk(request, index, spans) {
  const order = spans.map((_, position) => position).filter((position) => position !== index);
  const removed = index === 0 && spans.length > 1 ? spans[1].frames : spans[index].frames;
  return withFields(reorder(request, order, spans.length), { num_frames: request.num_frames - removed });
}

/**
 * The scale of a LoRA in each chunk.
 * @param {GenerateRequest} request
 * @param {string} name
 * @param {number} chunks
 * @returns {number[]}
 */
export const loraCurve = (request, name, chunks) =>
  Array.from({ length: chunks }, (_, index) => (specOf(request, index).lora_scales ?? request.lora_scales ?? {})[name] ?? 0);

/**
 * Sets the scale of a LoRA in one chunk, or in all of them. What is the same everywhere stands in the request, and only
 * chunks with other scales have their own.
 * @param {GenerateRequest} request
 * @param {string[]} names  all LoRAs of the pipeline
 * @param {string} name
 * @param {number | null} index  null: all chunks
 * @param {number} value
 * @param {number} chunks
 */
export function withLoraScale(request, names, name, index, value, chunks) {
  /** @type {Record<string, number[]>} */
  const curves = Object.fromEntries(names.map((other) => [other, loraCurve(request, other, chunks)]));
  curves[name] = curves[name].map((old, chunk) => (index === null || chunk === index ? value : old));
  const isFlat = names.every((other) => curves[other].every((scale) => scale === curves[other][0]));
  const at = (/** @type {number} */ chunk) => Object.fromEntries(names.map((other) => [other, curves[other][chunk]]).filter(([, scale]) => scale !== 0));
  const base = isFlat ? at(0) : (request.lora_scales ?? {});
  const result = withFields(request, { lora_scales: Object.keys(base).length ? base : undefined });
  const isBase = (/** @type {number} */ chunk) => names.every((other) => curves[other][chunk] === (base[other] ?? 0));
  const list = Array.from({ length: chunks }, (_, chunk) => withFields(specOf(request, chunk), { lora_scales: isBase(chunk) ? undefined : at(chunk) }));
  return withSpecs(result, list);
}
