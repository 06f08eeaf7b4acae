/** The page: its frame, and what runs as long as it is open. */

import { ApiError, key, needsKey } from "./api.js";
import { Gallery } from "./gallery.js";
import { Make } from "./make.js";
import { loadPipelines } from "./pipelines.js";
import { openSession } from "./session.js";
import { set, useStore } from "./store.js";
import { Timeline } from "./timeline.js";
import { html, render } from "./ui.js";
import { Watch, watchLatest } from "./watch.js";

function App() {
  const notice = useStore((state) => state.notice);
  return html`
    <header class="top"><h1>Filmstrip</h1></header>
    <main>
      <${Make} />
      <${Watch} />
      <${Timeline} />
      <${Gallery} />
    </main>
    <p class="notice" role="status">${notice}</p>
  `;
}

/** Loads what the page shows first; again when the server can be reached again. */
export async function start() {
  if (needsKey && !key()) return;
  try {
    await openSession();
    await loadPipelines();
    await watchLatest();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    set({ isOnline: error.status !== 0, notice: error.message });
  }
}

render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
void start();
