/** The request as JSON, to read, edit and copy. */

import { address, call, needsKey } from "./api.js";
import { DEFAULT_FPS } from "./request.js";
import { edit, getState, say, useStore } from "./store.js";
import { Icon, IconButton, copyText, html, useId, useState } from "./ui.js";

/** @param {unknown} value */
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** @param {unknown} value */
const isPrompt = (value) => typeof value === "string" || (Array.isArray(value) && value.length > 0 && value.every((entry) => typeof entry?.text === "string"));

/**
 * Whether fields have the types that the page can show; the server says what is wrong with others.
 * @param {Record<string, any>} fields of a request or a ChunkSpec
 * @returns {boolean}
 */
function isDisplayable(fields) {
  return Object.entries(fields).every(([name, value]) => {
    if (value === null) return true;
    if (name === "prompt") return isPrompt(value);
    if (["prompts", "transition_target_prompts"].includes(name)) return Array.isArray(value) && isPrompt(value);
    if (name === "lora_scales") return isObject(value) && Object.values(value).every((scale) => typeof scale === "number");
    if (name === "chunk_specs") return Array.isArray(value) && value.every((spec) => isObject(spec) && Number.isInteger(spec.chunk) && isDisplayable(spec));
    if (name === "vace_ref_images") return Array.isArray(value) && value.every((image) => typeof image === "string");
    if (/_id$|_path$|_image$|^text$/.test(name)) return typeof value === "string";
    if (/^(num_frames|height|width|seed|noise_scale|transition_num_steps)$/.test(name)) return typeof value === "number";
    return true;
  });
}

/** @param {{onClose: () => void}} props */
export function Drawer({ onClose }) {
  const request = useStore((state) => state.request);
  const check = useStore((state) => state.check);
  const [typed, setTyped] = useState({ text: "", problem: "", request: /** @type {unknown} */ (null) });
  const id = useId();
  const isTyped = typed.request === request; // then it stays as it was typed
  const text = isTyped ? typed.text : JSON.stringify(request, null, 2);
  const problem = isTyped ? typed.problem : "";
  const type = (/** @type {string} */ next) => {
    const refuse = (/** @type {string} */ why) => setTyped({ text: next, problem: why, request });
    let parsed;
    try {
      parsed = JSON.parse(next);
    } catch (error) {
      return refuse(String(error instanceof Error ? error.message : error));
    }
    if (!isObject(parsed)) return refuse("The request is an object.");
    if (!isDisplayable(parsed)) {
      refuse("Checking…");
      call("api/v1/generations?dry_run=1", { method: "POST", json: parsed }).catch(({ message }) =>
        setTyped((/** @type {typeof typed} */ now) => (now.text === next ? { ...now, problem: message } : now)));
      return;
    }
    edit(() => parsed, "json");
    setTyped({ text: next, problem: "", request: parsed });
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
