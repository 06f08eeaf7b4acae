/** A player for the video of one generation. */

import { fileAddress } from "./api.js";
import { html } from "./ui.js";

/**
 * @param {{generation: import("./api.js").Generation}} props a running one shows the video that grows
 */
export function Player({ generation }) {
  return html`<video key=${generation.id} src=${fileAddress(generation.id, "video.mp4")} controls muted playsinline />`;
}
