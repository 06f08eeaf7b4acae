/** The scales of LoRAs as curves over the chunks, which can be drawn. */

import { useProblem } from "./check.js";
import { loraCurve, withLoraScale } from "./chunks.js";
import { edit, useStore } from "./store.js";
import { clamp, html, useRef } from "./ui.js";

const TOP = 1.5;
const BOTTOM = 0;
const STEP = 0.05;

/** @typedef {import("./request.js").Span} Span */

/** @param {{names: string[], spans: Span[]}} props */
export function LoraCurves({ names, spans }) {
  const problem = useProblem("lora_scales");
  return html`${names.map((name) => html`<${Curve} key=${name} name=${name} names=${names} spans=${spans} />`)}
    ${problem && html`<p class="problem">${problem}</p>`}`;
}

/** @param {{name: string, names: string[], spans: Span[]}} props */
function Curve({ name, names, spans }) {
  const chunks = spans.length;
  const request = useStore((state) => state.request);
  const area = useRef(/** @type {HTMLElement | null} */ (null));
  const scales = loraCurve(request, name, chunks);
  const high = (/** @type {number} */ scale) => 1 - (clamp(scale, BOTTOM, TOP) - BOTTOM) / (TOP - BOTTOM);
  const change = (/** @type {number | null} */ chunk, /** @type {number} */ scale) =>
    edit((old) => withLoraScale(old, names, name, chunk, Math.round(scale / STEP) * STEP === 0 ? 0 : Number((Math.round(scale / STEP) * STEP).toFixed(2)), chunks), `lora ${name}`);
  const draw = (/** @type {PointerEvent} */ event) => {
    const columns = [...(area.current?.children ?? [])];
    const chunk = columns.findIndex((column) => event.clientX <= column.getBoundingClientRect().right);
    const box = area.current?.getBoundingClientRect();
    if (!box) return;
    change(chunk < 0 ? chunks - 1 : chunk, clamp(TOP - ((event.clientY - box.top - 4) / (box.height - 8)) * (TOP - BOTTOM), BOTTOM, TOP));
  };
  const total = spans[chunks - 1].start + spans[chunks - 1].frames;
  const points = scales.map((scale, index) => `${((spans[index].start + spans[index].frames / 2) / total) * 100},${4 + high(scale) * 40}`).join(" ");
  return html`<div class="lora">
    <span class="lora-name" aria-hidden="true">LoRA ${name}</span>
    <svg viewBox="0 0 100 48" preserveAspectRatio="none" aria-hidden="true"><polyline points=${`0,${4 + high(scales[0]) * 40} ${points} 100,${4 + high(scales[chunks - 1]) * 40}`} vector-effect="non-scaling-stroke" /></svg>
    <div class="lane points" ref=${area}
      onPointerDown=${(/** @type {any} */ event) => {
        event.currentTarget.setPointerCapture(event.pointerId);
        draw(event);
      }}
      onPointerMove=${(/** @type {any} */ event) => event.buttons === 1 && draw(event)}>
      ${scales.map((scale, index) => html`<div key=${index} class="point" role="slider" tabindex="0" aria-orientation="vertical"
        aria-label=${`LoRA ${name} in chunk ${index + 1}`} aria-valuemin=${BOTTOM} aria-valuemax=${TOP} aria-valuenow=${scale} title=${scale.toFixed(2)}
        style=${{ "--high": high(scale) }}
        onKeyDown=${(/** @type {any} */ event) => {
          const step = { ArrowUp: STEP, ArrowDown: -STEP, PageUp: 4 * STEP, PageDown: -4 * STEP }[/** @type {string} */ (event.key)];
          if (!step) return;
          event.preventDefault();
          change(event.shiftKey ? null : index, clamp(scale + step, BOTTOM, TOP));
        }}><span class="dot"></span></div>`)}
    </div>
  </div>`;
}
