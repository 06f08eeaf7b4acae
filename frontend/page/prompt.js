/** A prompt: one text, or several that are blended; with the words that a small model understands. */

import { Field } from "./fields.js";
import { Icon, IconButton, html, useRef } from "./ui.js";

const COLOURS = ["red", "green", "blue", "yellow", "orange", "purple", "white", "black"];

/** The sentences that a pipeline understands: choices of words at fixed places. */
const GRAMMARS = /** @type {Record<string, {slots: {name: string, words: string[]}[], sentence: (words: string[]) => string, pattern: RegExp, start: string[]}>} */ ({
  "longlive-small": {
    slots: [
      { name: "Colour", words: COLOURS },
      { name: "Shape", words: ["circle", "square", "triangle"] },
      { name: "Direction", words: ["left", "right", "up", "down"] },
      { name: "Background", words: COLOURS },
    ],
    sentence: ([colour, shape, direction, background]) =>
      `a ${colour} ${shape} moving ${direction} on a ${background} background`,
    pattern: new RegExp(`^a (${COLOURS.join("|")}) (circle|square|triangle) moving (left|right|up|down) on a (${COLOURS.join("|")}) background$`),
    start: ["yellow", "circle", "left", "green"],
  },
});

/** A prompt that the pipeline certainly understands; "" if nothing is known of it. @param {string} pipeline */
export const examplePrompt = (pipeline) => (GRAMMARS[pipeline] ? GRAMMARS[pipeline].sentence(GRAMMARS[pipeline].start) : "");

/**
 * The words of the pipeline as buttons: each replaces its part of the sentence.
 * @param {{pipeline: string, text: string, onText: (text: string) => void}} props
 */
export function Words({ pipeline, text, onText }) {
  const grammar = GRAMMARS[pipeline];
  const chosen = useRef(/** @type {string[]} */ ([]));
  if (!grammar) return null;
  const found = grammar.pattern.exec(text.trim().toLowerCase())?.slice(1);
  if (found) chosen.current = found;
  else if (!chosen.current.length) chosen.current = grammar.start;
  return html`<div class="words">
    ${grammar.slots.map(({ name, words }, slot) => html`<div key=${name} role="group" aria-label=${name}>
      <span class="slot" aria-hidden="true">${name}</span>
      ${words.map((word) => html`<button key=${word} type="button" class="chip" data-word=${word} aria-pressed=${found?.[slot] === word}
        onClick=${() => onText(grammar.sentence(chosen.current.map((/** @type {string} */ old, /** @type {number} */ index) => (index === slot ? word : old))))}>${word}</button>`)}
    </div>`)}
    ${!found && text.trim() !== "" && html`<p class="hint">${pipeline} only understands sentences of these words.</p>`}
  </div>`;
}

/**
 * @param {{label: string, value: import("./request.js").Prompt, onChange: (value: import("./request.js").Prompt) => void,
 *   pipeline: string, problem?: string, placeholder?: string, hint?: any, canBlend?: boolean, rows?: number}} props
 */
export function PromptField({ label, value, onChange, pipeline, problem, placeholder, hint, canBlend = true, rows = 3 }) {
  const entries = typeof value === "string" ? [{ text: value, weight: 100 }] : value;
  const isBlend = entries.length > 1;
  const change = (/** @type {number} */ index, /** @type {object} */ fields) => {
    const next = entries.map((entry, position) => (position === index ? { ...entry, ...fields } : entry));
    onChange(next.length === 1 ? next[0].text : next);
  };
  const total = entries.reduce((sum, entry) => sum + (entry.weight ?? 100), 0) || 1;
  return html`<div class="prompt">
    ${entries.map((entry, index) => html`<div key=${index} class="prompt-entry">
      <${Field} label=${index ? `${label} ${index + 1}` : label} problem=${index ? "" : problem} hint=${index ? "" : hint}
        action=${isBlend && html`<span class="value">${Math.round(((entry.weight ?? 100) / total) * 100)} %
          <${IconButton} icon="close" label=${`Remove ${label.toLowerCase()} ${index + 1}`} onClick=${() => {
            const next = entries.filter((_, position) => position !== index);
            onChange(next.length === 1 ? next[0].text : next);
          }} /></span>`}>
        ${(/** @type {any} */ { id, described, invalid }) => html`<textarea id=${id} rows=${rows} value=${entry.text} placeholder=${placeholder}
          aria-describedby=${described} aria-invalid=${invalid} maxlength="100000" spellcheck=${true}
          onInput=${(/** @type {any} */ event) => change(index, { text: event.target.value })} />`}
      <//>
      ${isBlend && html`<input type="range" min="0" max="100" value=${entry.weight ?? 100} aria-label=${`Weight of ${label.toLowerCase()} ${index + 1}`}
        style=${{ "--share": `${entry.weight ?? 100}%` }} onInput=${(/** @type {any} */ event) => change(index, { weight: Number(event.target.value) })} />`}
      <${Words} pipeline=${pipeline} text=${entry.text} onText=${(/** @type {string} */ text) => change(index, { text })} />
    </div>`)}
    ${canBlend && entries.length < 8 && html`<button type="button" class="link" onClick=${() =>
      onChange([...entries, { text: entries[entries.length - 1].text, weight: 100 }])}><${Icon} name="plus" /> Blend with another prompt</button>`}
  </div>`;
}
