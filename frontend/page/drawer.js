/** The request as JSON, to read, edit and copy. */

import { address, needsKey } from "./api.js";
import { DEFAULT_FPS } from "./request.js";
import { edit, getState, say, useStore } from "./store.js";
import { Icon, IconButton, copyText, html, useEffect, useId, useRef, useState } from "./ui.js";

/** @param {{onClose: () => void}} props */
export function Drawer({ onClose }) {
  const request = useStore((state) => state.request);
  const check = useStore((state) => state.check);
  const [text, setText] = useState(() => JSON.stringify(request, null, 2));
  const [problem, setProblem] = useState("");
  const written = useRef(/** @type {unknown} */ (null));
  const id = useId();
  useEffect(() => {
    if (written.current === request) return; // what was typed here stays as it was typed
    setText(JSON.stringify(request, null, 2));
    setProblem("");
  }, [request]);
  const type = (/** @type {string} */ next) => {
    setText(next);
    let parsed;
    try {
      parsed = JSON.parse(next);
    } catch (error) {
      setProblem(String(error instanceof Error ? error.message : error));
      return;
    }
    if (typeof parsed !== "object" || parsed === null || Array.isArray(parsed)) return setProblem("The request is an object.");
    if (parsed.chunk_specs != null && !(Array.isArray(parsed.chunk_specs) && parsed.chunk_specs.every((/** @type {any} */ spec) => spec && typeof spec === "object"))) {
      return setProblem("chunk_specs is a list of objects.");
    }
    setProblem("");
    written.current = parsed;
    edit(() => parsed, "json");
  };
  const copy = async (/** @type {string} */ what, /** @type {string} */ copied) => {
    await copyText(copied);
    say(`Copied as ${what}.`);
  };
  const base = address("");
  const fps = getState().media[request.input_path]?.fps ?? DEFAULT_FPS;
  return html`<aside class="drawer panel" aria-label="JSON">
    <div class="bar"><h2><label for=${id}>Request as JSON</label></h2>
      <div class="tools">
        <button type="button" class="quiet" onClick=${() => copy("curl", asCurl(request, base, needsKey))}><${Icon} name="copy" /> Copy as curl</button>
        <button type="button" class="quiet" onClick=${() => copy("Python", asPython(request, base, needsKey, Number(fps.toFixed(3))))}><${Icon} name="copy" /> Copy as Python</button>
        <${IconButton} icon="close" label="Close the JSON" onClick=${onClose} />
      </div>
    </div>
    <textarea id=${id} class="code" spellcheck=${false} value=${text} aria-invalid=${Boolean(problem)} onInput=${(/** @type {any} */ event) => type(event.target.value)} />
    ${problem ? html`<p class="problem" role="alert">${problem}</p>` : check.status === "refused" ? html`<p class="problem">${check.error?.message}</p>` : html`<p class="hint">${check.status === "ok" ? "The server would take this." : " "}</p>`}
  </aside>`;
}

/** @param {string} text */
const shellQuoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/**
 * The request as a command; the key is a variable of the shell.
 * @param {import("./store.js").GenerateRequest} request
 * @param {string} base  address of the server, with a slash at its end
 * @param {boolean} needsKey
 */
function asCurl(request, base, needsKey) {
  const lines = [`curl -X POST ${shellQuoted(`${base}api/v1/generations`)}`];
  if (needsKey) lines.push(`-H "Authorization: Bearer $FILMSTRIP_TOKEN"`);
  lines.push(`--json ${shellQuoted(JSON.stringify(request))}`);
  return `${lines.join(" \\\n    ")}\n`;
}

/**
 * The request as a program; the key is a variable of the environment.
 * @param {import("./store.js").GenerateRequest} request
 * @param {string} base
 * @param {boolean} needsKey
 * @param {number} fps
 */
function asPython(request, base, needsKey, fps) {
  const url = asLiteral(base.replace(/\/$/, ""));
  const fields = Object.entries(request).map(([name, value]) => `        ${name}=${asLiteral(value)},`);
  return [
    ...(needsKey ? ["import os", ""] : []),
    "from filmstrip.client import Client",
    "",
    `with Client(${url}${needsKey ? ', os.environ["FILMSTRIP_TOKEN"]' : ""}) as client:`,
    "    complete = client.run(",
    ...fields,
    "    )",
    `    client.download_mp4(complete.output_path, "video.mp4", fps=${fps})`,
    "",
  ].join("\n");
}

/** A value as Python writes it. @param {any} value @returns {string} */
function asLiteral(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(asLiteral).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([name, entry]) => `${JSON.stringify(name)}: ${asLiteral(entry)}`).join(", ")}}`;
  return JSON.stringify(value);
}
