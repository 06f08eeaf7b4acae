/** The pipelines of the server: loaded once, and again until each is ready or has failed. */

import { call } from "./api.js";
import { examplePrompt } from "./prompt.js";
import { edit, getState, set, withFields } from "./store.js";

const PAUSE_MS = 2000;
const FAVOURITE = "longlive-small";

/** Loads the list, and chooses a pipeline if the request has none that exists. */
export async function loadPipelines() {
  const { pipelines } = await call("api/v1/pipelines");
  set({ pipelines, isOnline: true });
  const { request } = getState();
  if (!pipelines.some((/** @type {any} */ entry) => entry.id === request.pipeline_id)) {
    const usable = pipelines.filter((/** @type {any} */ entry) => entry.state !== "failed");
    const found =
      usable.find((/** @type {any} */ entry) => entry.id === FAVOURITE) ??
      usable.find((/** @type {any} */ entry) => entry.modes?.includes("text")) ??
      usable[0];
    if (found) set({ request: withFields(request, { pipeline_id: found.id, prompt: request.prompt || examplePrompt(found.id) }) });
  }
  if (pipelines.some((/** @type {any} */ entry) => entry.state === "loading")) setTimeout(() => loadPipelines().catch(() => {}), PAUSE_MS);
}

/** @param {string} id */
export function choosePipeline(id) {
  edit((request) => {
    const isExample = request.prompt === "" || request.prompt === examplePrompt(request.pipeline_id);
    return withFields(request, {
      pipeline_id: id,
      prompt: isExample ? examplePrompt(id) : request.prompt,
      height: undefined,
      width: undefined,
    });
  });
}

/** @param {import("./store.js").State} state */
export const currentPipeline = (state) => state.pipelines?.find((entry) => entry.id === state.request.pipeline_id) ?? null;

/** @param {Record<string, any> | null} pipeline */
export const isProcessor = (pipeline) => Boolean(pipeline?.features?.frame_processor);

/** Whether a pipeline has a feature; one that has not loaded yet may have every feature. @param {Record<string, any> | null} pipeline @param {string} feature */
export const has = (pipeline, feature) => !pipeline?.features || (feature === "loras" ? pipeline.features.loras.length > 0 : pipeline.features[feature]);
