/** What to generate. */

import { setFields, useStore } from "./store.js";
import { html } from "./ui.js";
import { submit } from "./watch.js";

export function Make() {
  const request = useStore((state) => state.request);
  return html`<section class="make" aria-label="Settings">
    <label class="field"><span>Prompt</span>
      <textarea rows="3" value=${request.prompt} onInput=${(/** @type {any} */ event) => setFields({ prompt: event.target.value })} />
    </label>
    <button type="button" class="primary" disabled=${!request.pipeline_id} onClick=${submit}>Generate</button>
  </section>`;
}
