/** Asks for the API key of a server that has keys. */

import { ApiError, call, isKeyKept, key, setKey } from "./api.js";
import { closeSession } from "./session.js";
import { Dialog, html, useState } from "./ui.js";

/** @param {{onDone: () => void, onClose: () => void}} props */
export function KeyDialog({ onDone, onClose }) {
  const [value, setValue] = useState("");
  const [isKept, setKept] = useState(false);
  const [problem, setProblem] = useState("");
  const apply = async (/** @type {Event} */ event) => {
    event.preventDefault();
    const before = key();
    const wasKept = isKeyKept();
    setKey(value.trim(), isKept);
    try {
      await call("api/v1/pipelines");
      onDone();
    } catch (error) {
      if (!(error instanceof ApiError)) throw error;
      if (error.status === 401) setKey(before, wasKept);
      setProblem(error.message);
    }
  };
  const forget = async () => {
    await closeSession();
    setKey("", false);
    location.reload();
  };
  return html`<${Dialog} title="API key" onClose=${onClose}>
    <form onSubmit=${apply}>
      <p>This server asks for a key. It is sent with each call, and never part of an address.</p>
      <label class="field"><span>Key</span>
        <input type="password" autocomplete="off" value=${value} aria-invalid=${Boolean(problem)} aria-describedby="key-problem" onInput=${(/** @type {any} */ event) => setValue(event.target.value)} /></label>
      <p class="problem" id="key-problem" role="alert">${problem}</p>
      <label class="check"><input type="checkbox" checked=${isKept} onChange=${(/** @type {any} */ event) => setKept(event.target.checked)} /> Remember it in this browser</label>
      <footer>${key() && html`<button type="button" class="quiet" onClick=${forget}>Forget the key</button>`}
        <button type="submit" class="primary" disabled=${!value.trim()}>Unlock</button></footer>
    </form>
  <//>`;
}
