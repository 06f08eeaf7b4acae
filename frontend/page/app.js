/** The page: its frame, and what runs as long as it is open. */

import { ApiError, call, key, needsKey } from "./api.js";
import { checkAgain, startChecks } from "./check.js";
import { listenToKeys } from "./keys.js";
import { Make } from "./make.js";
import { loadPipelines } from "./pipelines.js";
import { getState, listChanged, say, set, useStore } from "./store.js";
import { Icon, IconButton, classes, html, kept, lazy, render, useEffect, useKept } from "./ui.js";
import { openSession } from "./session.js";
import { Watch, watchLatest } from "./watch.js";

const PING_MS = 3000;
const NOTICE_MS = 6000;

const Drawer = lazy(() => import("./drawer.js"), "Drawer");
const Gallery = lazy(() => import("./gallery.js"), "Gallery");
const KeyDialog = lazy(() => import("./access.js"), "KeyDialog");
const Timeline = lazy(() => import("./timeline.js"), "Timeline");

function App() {
  const [isDrawn, setDrawn] = useKept("drawer", false);
  const asksKey = useStore((state) => state.asksKey);
  const isOnline = useStore((state) => state.isOnline);
  useEffect(() => void start(), []);
  useEffect(() => {
    if (isOnline) return;
    const timer = setInterval(reconnect, PING_MS);
    return () => clearInterval(timer);
  }, [isOnline]);
  const unlocked = () => {
    set({ asksKey: false });
    void start().then(listChanged);
  };
  return html`
    <header class="top">
      <h1><img src="page/favicon.svg" alt="" width="22" height="22" /> Filmstrip</h1>
      ${!isOnline && html`<p class="offline" role="alert">The server cannot be reached. Trying again…</p>`}
      <nav aria-label="Page">
        <button type="button" class="quiet" aria-pressed=${isDrawn} onClick=${() => setDrawn(!isDrawn)}><${Icon} name="code" /> JSON</button>
        <a class="quiet" href="docs">API</a>
        ${needsKey && html`<${IconButton} icon="key" label="API key" onClick=${() => set({ asksKey: true })} />`}
        <${ThemeButton} />
      </nav>
    </header>
    <main class=${classes(isDrawn && "with-drawer")}>
      <${Make} />
      <div class="stage">
        <${Watch} />
        <${Timeline} />
        <${Gallery} />
      </div>
      ${isDrawn && html`<${Drawer} onClose=${() => setDrawn(false)} />`}
    </main>
    <${Notice} />
    ${asksKey && html`<${KeyDialog} onDone=${unlocked} onClose=${() => set({ asksKey: false })} />`}
  `;
}

function ThemeButton() {
  const [theme, setTheme] = useKept("theme", "");
  const isDark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const change = () => {
    const next = isDark ? "light" : "dark";
    document.documentElement.dataset.theme = next;
    setTheme(next);
  };
  return html`<${IconButton} icon=${isDark ? "sun" : "moon"} label=${isDark ? "Light colours" : "Dark colours"} onClick=${change} />`;
}

function Notice() {
  const notice = useStore((state) => state.notice);
  useEffect(() => {
    if (!notice) return;
    const timer = setTimeout(() => say(""), NOTICE_MS);
    return () => clearTimeout(timer);
  }, [notice]);
  return html`<p class=${classes("notice", notice && "shown")} role="status">${notice}</p>`;
}

/** Loads what the page shows first; again when the server can be reached again. */
async function start() {
  if (needsKey && !key()) return set({ asksKey: true });
  try {
    await openSession();
    await loadPipelines();
    await watchLatest();
    startChecks();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    set({ isOnline: error.status !== 0, asksKey: error.status === 401 });
    if (error.status) say(error.message);
  }
}

async function reconnect() {
  try {
    await call("health/live");
  } catch {
    return;
  }
  set({ isOnline: true });
  if (getState().pipelines) checkAgain();
  else await start();
  listChanged();
}

const theme = kept("theme", "");
if (theme) document.documentElement.dataset.theme = theme;
listenToKeys();
void import("./inputs.js").then(({ catchDrops }) => catchDrops());
render(html`<${App} />`, /** @type {HTMLElement} */ (document.getElementById("app")));
