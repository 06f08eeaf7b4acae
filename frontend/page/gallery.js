/** This client's generations. */

import { html } from "./ui.js";

export function Gallery() {
  return html`<section class="gallery" aria-label="Gallery" />`;
}
