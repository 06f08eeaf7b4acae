/** The chunks of the request as a strip. */

import { html } from "./ui.js";

export function Timeline() {
  return html`<section class="timeline" aria-label="Timeline" />`;
}
