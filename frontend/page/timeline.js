/** The chunks of the request as a strip, and what each of them sets. */

import { refusedChunk } from "./check.js";
import { ChunkEditor } from "./chunk.js";
import { LoraCurves } from "./curve.js";
import { currentPipeline } from "./pipelines.js";
import { addChunk, moveChunk, removeChunk } from "./chunks.js";
import { estimate, promptText, promptsInForce, specOf } from "./request.js";
import { edit, redo, set, undo, useStore } from "./store.js";
import { IconButton, classes, html, useEffect, useRef } from "./ui.js";

/** @typedef {import("./request.js").Span} Span */

/** Where the chunks lie: as the server plans them, or until it has, as we estimate. @returns {Span[]} */
export function useSpans() {
  const request = useStore((state) => state.request);
  const pipeline = useStore(currentPipeline);
  const check = useStore((state) => state.check);
  return check.status === "ok" && check.plan ? check.plan.chunks : estimate(request, pipeline);
}

const MAX_SHOWN = 200;
const NO_SPEC = {};

export function Timeline() {
  const request = useStore((state) => state.request);
  const pipeline = useStore(currentPipeline);
  const selected = useStore((state) => state.chunk);
  const canUndo = useStore((state) => state.past.length > 0);
  const canRedo = useStore((state) => state.future.length > 0);
  const spans = useSpans();
  const chunk = Math.min(selected, spans.length - 1);
  const strip = useRef(/** @type {HTMLElement | null} */ (null));
  const select = (/** @type {number} */ index) => set({ chunk: Math.min(Math.max(index, 0), spans.length - 1) });
  const move = (/** @type {number} */ by) => {
    const to = chunk + by;
    if (to < 0 || to >= spans.length) return;
    edit((old) => moveChunk(old, chunk, to, spans.length));
    set({ chunk: to });
  };
  const remove = () => spans.length > 1 && edit((old) => removeChunk(old, chunk, spans));
  const add = () => {
    edit((old) => addChunk(old, chunk + 1, spans, pipeline));
    set({ chunk: chunk + 1 });
  };
  return html`<section class="timeline panel" aria-label="Timeline">
    <div class="bar">
      <h2>Timeline</h2>
      <div class="tools" role="group" aria-label="Chunks">
        <${IconButton} icon="plus" label="Add a chunk after this one" onClick=${add} />
        <${IconButton} icon="left" label="Move the chunk to the left" disabled=${chunk === 0} onClick=${() => move(-1)} />
        <${IconButton} icon="right" label="Move the chunk to the right" disabled=${chunk >= spans.length - 1} onClick=${() => move(1)} />
        <${IconButton} icon="trash" label="Remove the chunk" disabled=${spans.length < 2} onClick=${remove} />
      </div>
      <div class="tools" role="group" aria-label="History">
        <${IconButton} icon="undo" label="Undo" aria-keyshortcuts="Control+Z" disabled=${!canUndo} onClick=${undo} />
        <${IconButton} icon="redo" label="Redo" aria-keyshortcuts="Control+Shift+Z" disabled=${!canRedo} onClick=${redo} />
      </div>
    </div>
    <div class="strip" ref=${strip} tabindex="-1">
      <div class="lanes" style=${{ "--columns": spans.slice(0, MAX_SHOWN).map(({ frames }) => `${frames}fr`).join(" "), "--count": Math.min(spans.length, MAX_SHOWN) }}>
        <div class="lane frames" role="listbox" aria-label="Chunks" aria-orientation="horizontal">
          ${spans.slice(0, MAX_SHOWN).map((span, index) => html`<${Cell} key=${index} index=${index} span=${span} isSelected=${index === chunk} onSelect=${select} />`)}
        </div>
        <${PromptBars} spans=${spans} chunk=${chunk} onSelect=${select} />
        ${pipeline?.features?.loras?.length > 0 && html`<${LoraCurves} names=${pipeline?.features.loras} spans=${spans.slice(0, MAX_SHOWN)} />`}
      </div>
    </div>
    ${spans.length > MAX_SHOWN && html`<p class="hint">The first ${MAX_SHOWN} of ${spans.length} chunks are shown; the JSON has them all.</p>`}
    <${ChunkEditor} key=${chunk} index=${chunk} spans=${spans} request=${request} />
  </section>`;
}

/** Short marks of what a chunk sets. @param {Record<string, any>} spec */
function marks(spec) {
  return [
    spec.transition_target_prompts && ["⇢", "transition"],
    spec.seed !== undefined && ["#", "seed"],
    spec.noise_scale !== undefined && ["≈", "noise scale"],
    spec.lora_scales !== undefined && ["∿", "LoRA"],
    (spec.first_frame_image || spec.last_frame_image || spec.vace_ref_images) && ["▣", "image"],
    spec.vace_masks_shape && ["◪", "mask"],
    spec.reset_cache && ["✂", "cut"],
  ].filter(Boolean);
}

/**
 * @param {{index: number, span: Span, isSelected: boolean, onSelect: (index: number) => void}} props
 */
function Cell({ index, span, isSelected, onSelect }) {
  const spec = useStore((state) => state.request.chunk_specs?.find((/** @type {any} */ entry) => entry.chunk === index) ?? NO_SPEC);
  const image = useStore((state) => state.previews[index + 1]);
  const keyImage = useStore((state) => state.media[specOf(state.request, index).first_frame_image]?.poster);
  const isRefused = useStore((state) => refusedChunk(state) === index);
  const isNext = useStore((state) => state.generation?.state === "running" && state.generation.chunk === index);
  const isStale = useStore((state) => isOfOther(state.watchedRequest, state.request));
  const cell = useRef(/** @type {HTMLElement | null} */ (null));
  const found = marks(spec);
  useEffect(() => {
    if (isSelected) cell.current?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }, [isSelected]);
  const drag = (/** @type {any} */ event) => event.dataTransfer?.setData("application/x-chunk", String(index));
  return html`<div ref=${cell} class=${classes("cell", isSelected && "selected", isRefused && "refused", isNext && "next", isStale && "stale")}
    role="option" aria-selected=${isSelected} tabindex=${isSelected ? 0 : -1} draggable=${true} data-chunk=${index}
    aria-label=${[`Chunk ${index + 1}`, `${span.frames} frames`, ...found.map(([, name]) => name), isRefused && "refused"].filter(Boolean).join(", ")}
    onClick=${() => onSelect(index)} onFocus=${() => onSelect(index)} onDragStart=${drag}
    onDragOver=${(/** @type {any} */ event) => event.dataTransfer?.types.includes("application/x-chunk") && event.preventDefault()}
    onDrop=${(/** @type {any} */ event) => {
      const from = event.dataTransfer?.getData("application/x-chunk");
      if (!from) return;
      event.preventDefault();
      const chunks = event.currentTarget.parentElement.children.length;
      edit((old) => moveChunk(old, Number(from), index, chunks));
      onSelect(index);
    }}
    onKeyDown=${(/** @type {any} */ event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[/** @type {string} */ (event.key)];
      if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      const next = event.currentTarget.parentElement.children[index + step];
      if (next) next.focus();
    }}>
    <div class="frame">
      ${image ? html`<img src=${image} alt="" />` : keyImage ? html`<img class="faint" src=${keyImage} alt="" />` : html`<span class="number" aria-hidden="true">${index + 1}</span>`}
    </div>
    <div class="foot" aria-hidden="true"><span>${image || keyImage ? index + 1 : ""}</span><span class="marks">${found.map(([sign, name]) => html`<i key=${name} title=${name}>${sign}</i>`)}</span><span>${span.frames}f</span></div>
  </div>`;
}

/**
 * Whether the previews are of another request than the one that is shown.
 * @param {Record<string, any> | null} watched
 * @param {Record<string, any>} request
 */
const isOfOther = (watched, request) => watched !== null && watched !== request && bare(watched) !== bare(request);
/** @type {WeakMap<object, string>} */
const texts = new WeakMap();
/** @param {Record<string, any>} request */
function bare(request) {
  let text = texts.get(request);
  if (text === undefined) {
    const { previews: _, on_disconnect: __, ...rest } = request;
    text = JSON.stringify(rest, (_name, value) => (value && typeof value === "object" && !Array.isArray(value) ? Object.fromEntries(Object.entries(value).sort()) : value));
    texts.set(request, text);
  }
  return text;
}

/**
 * The prompts in force, as bars that go on until the next one.
 * @param {{spans: Span[], chunk: number, onSelect: (index: number) => void}} props
 */
function PromptBars({ spans, chunk, onSelect }) {
  const request = useStore((state) => state.request);
  const inForce = promptsInForce(request, Math.min(spans.length, MAX_SHOWN));
  /** @type {{start: number, end: number, text: string, isTransition: boolean}[]} */
  const bars = [];
  for (const [index, { prompt, isOwn, transition }] of inForce.entries()) {
    const isTransition = transition !== null;
    const last = bars.at(-1);
    const text = isTransition ? promptText(transition.target) : promptText(prompt);
    const begins = isOwn || isTransition !== last?.isTransition || (isTransition && transition.step === 0);
    if (last && !(begins && !(isOwn && isTransition && transition.step > 0))) last.end = index + 1;
    else bars.push({ start: index, end: index + 1, text, isTransition });
  }
  return html`<div class="lane bars">
    ${bars.map(({ start, end, text, isTransition }) => html`<button key=${start} type="button" tabindex="-1"
      class=${classes("prompt-bar", isTransition && "transition", start <= chunk && chunk < end && "current")}
      style=${{ gridColumn: `${start + 1} / ${end + 1}` }} title=${text} onClick=${() => onSelect(start)}>
      <span>${isTransition ? "⇢ " : ""}${text || "no prompt"}</span></button>`)}
  </div>`;
}
