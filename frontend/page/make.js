/** What to generate: the settings of the whole request. */

import { key, needsKey } from "./api.js";
import { refusedChunk, useProblem } from "./check.js";
import { CheckField, NumberField, SelectField, SliderField, noiseMeaning } from "./fields.js";
import { choosePipeline, currentPipeline, isProcessor } from "./pipelines.js";
import { PromptField } from "./prompt.js";
import { DEFAULT_FPS, DEFAULT_NOISE_SCALE, DEFAULT_NUM_FRAMES, DEFAULT_SEED, estimate, framesOf, resize, startsFromNoise } from "./request.js";
import { edit, isUploading, set, setFields, useStore } from "./store.js";
import { Icon, IconButton, duration, html, lazy } from "./ui.js";
import { submit } from "./watch.js";

const Inputs = lazy(() => import("./inputs.js"), "Inputs");

export function Make() {
  const request = useStore((state) => state.request);
  const pipeline = useStore(currentPipeline);
  const problem = useProblem("prompt");
  const takesPrompt = !isProcessor(pipeline);
  return html`<form class="make panel" aria-label="Settings" onSubmit=${(/** @type {Event} */ event) => event.preventDefault()}>
    <div class="scroll">
      <${PipelinePicker} />
      <${PromptField} label="Prompt" value=${request.prompt ?? ""} problem=${problem} pipeline=${request.pipeline_id}
        onChange=${(/** @type {any} */ prompt) => setFields({ prompt })} canBlend=${takesPrompt} rows=${takesPrompt ? 3 : 1}
        placeholder=${takesPrompt ? "Describe what the video shows" : "Not used by this pipeline"} />
      <${Length} />
      <div class="pair"><${Size} /><${Seed} /></div>
      <${Inputs} />
      <${Noise} />
      <${Processors} />
    </div>
    <${GenerateBar} />
  </form>`;
}

function PipelinePicker() {
  const pipelines = useStore((state) => state.pipelines);
  const request = useStore((state) => state.request);
  const pipeline = useStore(currentPipeline);
  const problem = useProblem("pipeline_id");
  const options = (pipelines ?? []).map(({ id, state, modes }) => [id, state === "ready" || !modes ? (modes ? id : `${id} (${state})`) : `${id} (${state})`, state === "failed"]);
  return html`<div class="picker">
    <${SelectField} label="Pipeline" value=${request.pipeline_id} options=${pipelines ? options : [["", "Loading…"]]} disabled=${!pipelines}
      problem=${problem} onChange=${choosePipeline} />
    ${pipeline && html`<p class="abilities">${abilities(pipeline).map((text) => html`<span class="tag" key=${text}>${text}</span>`)}</p>`}
    ${pipeline?.reason && html`<p class="problem">${pipeline.reason}</p>`}
  </div>`;
}

/** What a pipeline can do, in a few words each. @param {Record<string, any>} pipeline */
function abilities({ modes, features, sizes, height, width }) {
  if (!features) return ["not loaded yet"];
  return [
    modes.includes("text") && "from text",
    modes.includes("video") && (features.frame_processor ? "filters a video" : "from video"),
    features.prompts && "transitions",
    features.vace && "images and masks",
    features.loras.length && `${features.loras.length} LoRA${features.loras.length > 1 ? "s" : ""}`,
    sizes.length ? sizes.map((/** @type {number[]} */ [high, wide]) => `${wide}x${high}`).join(", ") : height ? `${width}x${height}` : "any size",
  ].filter(Boolean);
}

function Length() {
  const request = useStore((state) => state.request);
  const pipeline = useStore(currentPipeline);
  const media = useStore((state) => state.media);
  const problem = useProblem("num_frames");
  const frames = request.num_frames ?? DEFAULT_NUM_FRAMES;
  const fps = media[request.input_path]?.fps ?? DEFAULT_FPS;
  const chunks = estimate(request, pipeline).length;
  const change = (/** @type {number | undefined} */ value) =>
    value !== undefined && value >= 1 && edit((old) => resize(old, Math.min(Math.round(value), 10000), pipeline), "num_frames");
  const whole = framesOf(request, pipeline, chunks);
  return html`<div class="length">
    <div class="pair">
      <${NumberField} label="Length" unit="s" min="0.1" step="any" value=${Number((frames / fps).toFixed(2))}
        onChange=${(/** @type {number} */ seconds) => seconds && change(seconds * fps)} />
      <${NumberField} label="Frames" min="1" max="10000" value=${frames} problem=${problem} onChange=${change} />
    </div>
    <p class="hint">${chunks} chunk${chunks > 1 ? "s" : ""} at ${Number(fps.toFixed(2))} frames per second.
      ${whole !== frames && html` The last one is cut; <button type="button" class="link" onClick=${() => change(whole)}>use ${whole} frames</button>.`}</p>
  </div>`;
}

function Size() {
  const request = useStore((state) => state.request);
  const pipeline = useStore(currentPipeline);
  const problems = [useProblem("height"), useProblem("width")];
  const media = useStore((state) => state.media[request.input_path]);
  const own = pipeline?.height ? `${pipeline.width}x${pipeline.height}` : media?.width ? `as the video, ${media.width}x${media.height}` : "as the video";
  const chosen = request.height && request.width ? `${request.width}x${request.height}` : "";
  /** @type {Set<string>} */
  const sizes = new Set((pipeline?.sizes ?? []).map((/** @type {number[]} */ [high, wide]) => `${wide}x${high}`));
  if (pipeline && !pipeline.sizes?.length) for (const [wide, high] of [[320, 180], [576, 320], [640, 360], [832, 480]]) {
    if (wide % pipeline.granularity === 0 && high % pipeline.granularity === 0) sizes.add(`${wide}x${high}`);
  }
  if (chosen) sizes.add(chosen);
  sizes.delete(pipeline?.height ? `${pipeline.width}x${pipeline.height}` : "");
  return html`<${SelectField} label="Size" value=${chosen} problem=${problems.find(Boolean)}
    options=${[["", own], ...[...sizes].map((size) => [size, size])]}
    onChange=${(/** @type {string} */ size) => {
      const [width, height] = size ? size.split("x").map(Number) : [undefined, undefined];
      setFields({ width, height });
    }} />`;
}

function Seed() {
  const request = useStore((state) => state.request);
  const pipeline = useStore(currentPipeline);
  const problem = useProblem("seed");
  const isRandom = request.seed === -1;
  const isOff = pipeline?.features && !pipeline.features.seed;
  return html`<div class="seed">
    <${NumberField} label="Seed" min="0" value=${isRandom ? undefined : (request.seed ?? DEFAULT_SEED)} disabled=${isOff || isRandom}
      placeholder=${isRandom ? "random" : ""} problem=${problem} onChange=${(/** @type {number} */ seed) => setFields({ seed })}
      action=${html`<${IconButton} icon="dice" label="Roll a new seed" disabled=${isOff}
        onClick=${() => setFields({ seed: Math.floor(Math.random() * 2 ** 32) })} />`} />
    <${CheckField} label="New each time" checked=${isRandom} disabled=${isOff} onChange=${(/** @type {boolean} */ on) => setFields({ seed: on ? -1 : undefined })} />
  </div>`;
}

function Noise() {
  const request = useStore((state) => state.request);
  const pipeline = useStore(currentPipeline);
  const problem = useProblem("noise_scale");
  const scale = request.noise_scale ?? DEFAULT_NOISE_SCALE;
  const lacks = pipeline?.features && !pipeline.features.noise;
  const why = lacks ? `${pipeline.id} has no noise scale.` : startsFromNoise(request) ? "Matters once there is an input video to start from." : "";
  return html`<${SliderField} label="Noise scale" value=${scale} min=${0} max=${1} step=${0.01} disabled=${Boolean(why)}
    hint=${why || html`<span aria-live="polite">${noiseMeaning(scale)}</span>`} problem=${problem}
    onChange=${(/** @type {number} */ value) => setFields({ noise_scale: value })}
    onReset=${request.noise_scale === undefined ? undefined : () => setFields({ noise_scale: undefined })} />`;
}

function Processors() {
  const request = useStore((state) => state.request);
  const pipelines = useStore((state) => state.pipelines);
  const problems = [useProblem("pre_processor_id"), useProblem("post_processor_id")];
  const filters = (pipelines ?? []).filter((entry) => isProcessor(entry)).map((entry) => [entry.id, entry.id, entry.state === "failed"]);
  return html`<div class="pair">
    <${SelectField} label="Filter before" value=${request.pre_processor_id ?? ""} options=${[["", "none"], ...filters]} problem=${problems[0]}
      disabled=${!request.input_path && !request.pre_processor_id} hint=${request.input_path ? "" : "needs an input video"}
      onChange=${(/** @type {string} */ id) => setFields({ pre_processor_id: id })} />
    <${SelectField} label="Filter after" value=${request.post_processor_id ?? ""} options=${[["", "none"], ...filters]} problem=${problems[1]}
      onChange=${(/** @type {string} */ id) => setFields({ post_processor_id: id })} />
  </div>`;
}

function GenerateBar() {
  const request = useStore((state) => state.request);
  const check = useStore((state) => state.check);
  const pipelines = useStore((state) => state.pipelines);
  const chunk = useStore(refusedChunk);
  const isSending = useStore((state) => state.isSending);
  const isWaiting = useStore(isUploading);
  const media = useStore((state) => state.media);
  const plan = check.status === "ok" ? check.plan : null;
  const fps = media[request.input_path]?.fps ?? DEFAULT_FPS;
  const isRefused = check.status === "refused";
  return html`<div class="go">
    <div id="verdict" class="verdict" role=${isRefused ? "alert" : undefined}>
      ${isRefused
        ? html`<p class="problem">${check.error?.message}${chunk !== null && html` <button type="button" class="link" onClick=${() => set({ chunk })}>Show chunk ${chunk + 1}</button>`}</p>`
        : html`<p class="hint">${isWaiting ? "Your clip is on its way to the server…" : plan
            ? `${plan.width}x${plan.height}, ${duration(plan.chunks.reduce((/** @type {number} */ sum, /** @type {any} */ entry) => sum + entry.frames, 0) / fps)}, ${plan.num_chunks} chunk${plan.num_chunks > 1 ? "s" : ""}${plan.unused.length ? `; without effect: ${plan.unused.join(", ")}` : ""}`
            : check.status === "offline" ? "The server cannot be reached." : check.status === "checking" ? "Checking…" : ""}</p>`}
    </div>
    <button type="button" class="primary" aria-describedby="verdict" aria-keyshortcuts="Control+Enter" title="Ctrl+Enter"
      disabled=${!pipelines || !request.pipeline_id || isSending || isWaiting || (needsKey && !key())} onClick=${submit}>
      <${Icon} name="play" /> Generate
    </button>
  </div>`;
}
