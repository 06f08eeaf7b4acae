/** Form fields with their label, hint and the server's refusal. */

import { Icon, classes, html, useId, useState } from "./ui.js";

/**
 * A field: the control gets `id`, `described` (for aria-describedby) and `invalid`.
 * @param {{label: string, hint?: any, problem?: string, class?: string, action?: any,
 *   children: (ids: {id: string, described: string | undefined, invalid: boolean}) => any}} props
 */
export function Field({ label, hint, problem, class: name, action, children }) {
  const id = useId();
  const described = classes(hint && `${id}h`, problem && `${id}p`) || undefined;
  return html`<div class=${classes("field", name, problem && "refused")}>
    <div class="field-head"><label for=${id}>${label}</label>${action}</div>
    ${children({ id, described, invalid: Boolean(problem) })}
    ${hint && html`<p class="hint" id=${`${id}h`}>${hint}</p>`}
    ${problem && html`<p class="problem" id=${`${id}p`}>${problem}</p>`}
  </div>`;
}

/**
 * A number that may be empty.
 * @param {{label: string, value: number | undefined, onChange: (value: number | undefined) => void, min?: number, max?: number,
 *   step?: number | "any", placeholder?: string, hint?: any, problem?: string, unit?: string, disabled?: boolean, action?: any, class?: string}} props
 */
export function NumberField({ label, value, onChange, min, max, step, placeholder, hint, problem, unit, disabled, action, class: name }) {
  const [typed, setTyped] = useState(/** @type {string | null} */ (null)); // stays as typed while the field has the focus
  return html`<${Field} label=${label} hint=${hint} problem=${problem} action=${action} class=${classes(name, disabled && "off")}>
    ${(/** @type {any} */ { id, described, invalid }) => html`<div class="with-unit">
      <input
        id=${id} type="number" inputmode="decimal" min=${min} max=${max} step=${step ?? 1} placeholder=${placeholder}
        value=${typed ?? value ?? ""} disabled=${disabled} aria-describedby=${described} aria-invalid=${invalid}
        onInput=${(/** @type {any} */ event) => {
          if (event.target.validity.badInput) return; // half a number, such as "-"
          setTyped(event.target.value);
          onChange(event.target.value === "" ? undefined : Number(event.target.value));
        }}
        onBlur=${() => setTyped(null)}
        onKeyDown=${(/** @type {any} */ event) => (event.ctrlKey || event.metaKey) && setTyped(null)}
      />${unit && html`<span class="unit">${unit}</span>`}
    </div>`}
  <//>`;
}

/**
 * @param {{label: string, value: string, options: [string, string, boolean?][], onChange: (value: string) => void, hint?: any,
 *   problem?: string, disabled?: boolean, class?: string}} props options: value, text, and whether it is disabled
 */
export function SelectField({ label, value, options, onChange, hint, problem, disabled, class: name }) {
  return html`<${Field} label=${label} hint=${hint} problem=${problem} class=${classes(name, disabled && "off")}>
    ${(/** @type {any} */ { id, described, invalid }) => html`<select
      id=${id} value=${value} disabled=${disabled} aria-describedby=${described} aria-invalid=${invalid}
      onChange=${(/** @type {any} */ event) => onChange(event.target.value)}
    >
      ${options.map(([option, text, isOff]) => html`<option key=${option} value=${option} disabled=${isOff} selected=${option === value}>${text}</option>`)}
    </select>`}
  <//>`;
}

/**
 * A slider with its value.
 * @param {{label: string, value: number, min: number, max: number, step: number, onChange: (value: number) => void, hint?: any,
 *   problem?: string, disabled?: boolean, onReset?: () => void, text?: string}} props
 */
export function SliderField({ label, value, min, max, step, onChange, hint, problem, disabled, onReset, text }) {
  const share = ((value - min) / (max - min)) * 100;
  return html`<${Field} label=${label} hint=${hint} problem=${problem} class=${classes("slider", disabled && "off")}
    action=${html`<span class="value">${text ?? value.toFixed(2)}${onReset && html` <button type="button" class="link" onClick=${onReset} aria-label=${`Reset ${label.toLowerCase()}`}>reset</button>`}</span>`}>
    ${(/** @type {any} */ { id, described, invalid }) => html`<input
      id=${id} type="range" min=${min} max=${max} step=${step} value=${value} disabled=${disabled} aria-describedby=${described}
      aria-invalid=${invalid} style=${{ "--share": `${share}%` }}
      onInput=${(/** @type {any} */ event) => onChange(Number(event.target.value))}
    />`}
  <//>`;
}

/**
 * @param {{label: string, checked: boolean, onChange: (checked: boolean) => void, disabled?: boolean, hint?: any}} props
 */
export function CheckField({ label, checked, onChange, disabled, hint }) {
  const id = useId();
  return html`<div class=${classes("check", disabled && "off")}>
    <input id=${id} type="checkbox" checked=${checked} disabled=${disabled} aria-describedby=${hint ? `${id}h` : undefined}
      onChange=${(/** @type {any} */ event) => onChange(event.target.checked)} />
    <label for=${id}>${label}</label>
    ${hint && html`<p class="hint" id=${`${id}h`}>${hint}</p>`}
  </div>`;
}

/**
 * A place to drop a file, which is also a button to choose one.
 * @param {{label: string, accept: string, onFile: (file: File) => void, hint?: any, icon?: any, disabled?: boolean, small?: boolean}} props
 */
export function DropZone({ label, accept, onFile, hint, icon = "film", disabled, small }) {
  const id = useId();
  const drag = (/** @type {any} */ event, /** @type {boolean} */ isOver) => {
    event.preventDefault();
    event.currentTarget.classList.toggle("over", isOver && !disabled);
  };
  return html`<div class=${classes("drop", small && "small", disabled && "off")}
    onDragOver=${(/** @type {any} */ event) => drag(event, true)}
    onDragLeave=${(/** @type {any} */ event) => drag(event, false)}
    onDrop=${(/** @type {any} */ event) => {
      drag(event, false);
      const file = event.dataTransfer?.files[0];
      if (file && !disabled) onFile(file);
    }}>
    <input id=${id} type="file" accept=${accept} disabled=${disabled} aria-describedby=${hint ? `${id}h` : undefined}
      onChange=${(/** @type {any} */ event) => {
        const file = event.target.files[0];
        event.target.value = ""; // the same file can be chosen again
        if (file) onFile(file);
      }} />
    <label for=${id}><${Icon} name=${icon} /><span>${label}</span></label>
    ${hint && html`<p class="hint" id=${`${id}h`}>${hint}</p>`}
  </div>`;
}

/** What a noise scale does to the input, in a sentence. @param {number} scale */
export function noiseMeaning(scale) {
  if (scale < 0.15) return "The input comes through almost unchanged.";
  if (scale < 0.4) return "Shapes and motion stay; colours and surfaces follow the prompt.";
  if (scale < 0.65) return "The layout and motion stay; the prompt decides what things are.";
  if (scale < 0.85) return "Only the rough layout and motion of the input stay.";
  return "Hardly anything of the input stays; the prompt decides.";
}
