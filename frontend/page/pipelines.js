/** The pipelines of the server: loaded once, and again until each is ready or has failed. */

import { call } from "./api.js";
import { getState, set, setFields } from "./store.js";

const PAUSE_MS = 2000;
const FAVOURITE = "longlive-small";

/** Loads the list, and chooses a pipeline if the request has none that exists. */
export async function loadPipelines() {
  const { pipelines } = await call("api/v1/pipelines");
  set({ pipelines, isOnline: true });
  const { pipeline_id: id } = getState().request;
  const known = pipelines.filter((entry) => entry.modes && entry.state !== "failed");
  if (!pipelines.some((entry) => entry.id === id)) {
    const found = known.find((entry) => entry.id === FAVOURITE) ?? known.find((entry) => entry.modes.includes("text")) ?? known[0];
    if (found) {
      setFields({ pipeline_id: found.id });
      set({ past: [], future: [] });
    }
  }
  if (pipelines.some((entry) => entry.state === "loading")) setTimeout(() => loadPipelines().catch(() => {}), PAUSE_MS);
}

/** @param {import("./store.js").State} state */
export const currentPipeline = (state) => state.pipelines?.find((entry) => entry.id === state.request.pipeline_id) ?? null;

/** @param {Record<string, any> | null} pipeline */
export const isProcessor = (pipeline) => Boolean(pipeline?.features?.frame_processor);
