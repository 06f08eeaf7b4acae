/** What one chunk sets. */

import { useChunkProblem } from "./check.js";
import { CheckField, NumberField, SelectField, SliderField, noiseMeaning } from "./fields.js";
import { ImageSlot } from "./inputs.js";
import { MaskButton } from "./mask.js";
import { currentPipeline, has } from "./pipelines.js";
import { PromptField } from "./prompt.js";
import { DEFAULT_NOISE_SCALE, DEFAULT_SEED, DEFAULT_TRANSITION, promptFields, promptText, promptsInForce, specOf, startsFromNoise, withSpec } from "./request.js";
import { edit, useStore } from "./store.js";
import { Icon, IconButton, html } from "./ui.js";

/**
 * @param {{index: number, spans: import("./request.js").Span[], request: Record<string, any>}} props
 */
export function ChunkEditor({ index, spans, request }) {
  const pipeline = useStore(currentPipeline);
  const media = useStore((state) => state.media);
  const spec = specOf(request, index);
  const problems = {
    any: useChunkProblem(index),
    text: useChunkProblem(index, "text") || useChunkProblem(index, "prompts"),
    transition: useChunkProblem(index, "transition"),
    seed: useChunkProblem(index, "seed"),
    noise: useChunkProblem(index, "noise_scale"),
    lora: useChunkProblem(index, "lora_scales"),
    first: useChunkProblem(index, "first_frame_image"),
    last: useChunkProblem(index, "last_frame_image"),
    references: useChunkProblem(index, "vace_ref_images"),
    mask: useChunkProblem(index, "vace_masks"),
  };
  const change = (/** @type {Record<string, any>} */ fields) =>
    edit((old) => withSpec(old, index, fields), `${index} ${Object.keys(fields).join()}`);
  const span = spans[index];
  const { any, ...shown } = problems;
  return html`<div class="chunk" role="group" aria-label=${`Chunk ${index + 1}`}>
    <div class="bar"><h3>Chunk ${index + 1}</h3><span class="muted">frames ${span.start + 1} to ${span.start + span.frames}</span></div>
    ${any && !Object.values(shown).some(Boolean) && html`<p class="problem">${any}</p>`}
    <div class="columns">
      <${ChunkPrompt} index=${index} request=${request} spans=${spans} change=${change} problems=${problems} />
      <div class="column">
        <${NumberField} label="Seed of this chunk" min="0" value=${spec.seed} disabled=${!has(pipeline, "seed")} problem=${problems.seed}
          placeholder=${request.seed === -1 ? "random" : String(request.seed ?? DEFAULT_SEED)} onChange=${(/** @type {number} */ seed) => change({ seed })}
          action=${html`<${IconButton} icon="dice" label="Roll a seed for this chunk" disabled=${!has(pipeline, "seed")}
            onClick=${() => change({ seed: Math.floor(Math.random() * 2 ** 32) })} />`} />
        <${SliderField} label="Noise scale of this chunk" min=${0} max=${1} step=${0.01} value=${spec.noise_scale ?? request.noise_scale ?? DEFAULT_NOISE_SCALE}
          disabled=${!has(pipeline, "noise") || (startsFromNoise(request) && !spec.input_video_shape)} problem=${problems.noise}
          hint=${spec.noise_scale === undefined ? "as the whole video" : noiseMeaning(spec.noise_scale)}
          onChange=${(/** @type {number} */ value) => change({ noise_scale: value })}
          onReset=${spec.noise_scale === undefined ? undefined : () => change({ noise_scale: undefined })} />
        <${CheckField} label="Start afresh here" hint="A cut: the chunk forgets those before it." checked=${Boolean(spec.reset_cache)} disabled=${!has(pipeline, "cache")}
          onChange=${(/** @type {boolean} */ on) => change({ reset_cache: on || undefined })} />
        ${problems.lora && html`<p class="problem">${problems.lora}</p>`}
      </div>
      <div class="column">
        <div class="slots">
          <${ImageSlot} label="Starts with" name=${spec.first_frame_image} disabled=${!has(pipeline, "vace")} problem=${problems.first}
            onName=${(/** @type {string | undefined} */ name) => change({ first_frame_image: name })} />
          <${ImageSlot} label="Ends with" name=${spec.last_frame_image} disabled=${!has(pipeline, "vace")} problem=${problems.last}
            onName=${(/** @type {string | undefined} */ name) => change({ last_frame_image: name })} />
        </div>
        ${problems.references && html`<p class="problem">${problems.references}</p>`}
        <${MaskButton} index=${index} spec=${spec} request=${request} pipeline=${pipeline} poster=${media[request.input_path]?.poster} problem=${problems.mask} />
      </div>
    </div>
  </div>`;
}

/**
 * @param {{index: number, request: Record<string, any>, spans: unknown[], change: (fields: Record<string, any>) => void, problems: Record<string, string>}} props
 */
function ChunkPrompt({ index, request, spans, change, problems }) {
  const pipeline = useStore(currentPipeline);
  const spec = specOf(request, index);
  const inForce = promptsInForce(request, spans.length)[index];
  const own = spec.text ?? spec.prompts;
  const canChange = has(pipeline, "prompts");
  if (!canChange && own === undefined) return html`<p class="hint column">${pipeline?.id} has no prompts.</p>`;
  const set = (/** @type {any} */ prompt) => change(promptFields(prompt));
  const isWithin = inForce.transition && inForce.transition.step > 0;
  return html`<div class="column wide">
    ${own !== undefined
      ? html`<${PromptField} label="Prompt from here on" value=${own} onChange=${set} pipeline=${request.pipeline_id} problem=${problems.text} rows=${2} />
          <button type="button" class="link" onClick=${() => change(promptFields(undefined))}><${Icon} name="close" /> Go on with the earlier prompt</button>`
      : index === 0
        ? html`<div class="field"><div class="field-head"><span>Prompt</span></div><p class="inherited">Begins with the prompt of the video: “${promptText(request.prompt ?? "")}”</p></div>`
        : html`<div class="field"><div class="field-head"><span>Prompt</span></div>
          <p class="inherited">${isWithin ? `On the way to “${promptText(inForce.transition?.target ?? "")}”, step ${(inForce.transition?.step ?? 0) + 1} of ${inForce.transition?.steps}` : `Goes on with “${promptText(inForce.prompt)}”`}</p>
          <button type="button" class="quiet" onClick=${() => set(typeof inForce.prompt === "string" ? inForce.prompt : promptText(inForce.prompt))}><${Icon} name="plus" /> Change the prompt here</button>
        </div>`}
    ${spec.transition_target_prompts
      ? html`<${PromptField} label="Transition to" value=${spec.transition_target_prompts.length === 1 ? spec.transition_target_prompts[0].text : spec.transition_target_prompts}
            pipeline=${request.pipeline_id} problem=${problems.transition} rows=${2}
            onChange=${(/** @type {any} */ prompt) => change({ transition_target_prompts: typeof prompt === "string" ? [{ text: prompt }] : prompt })} />
          <div class="pair">
            <${NumberField} label="Transition takes" unit="chunks" min="0" max="10000" value=${spec.transition_num_steps ?? DEFAULT_TRANSITION}
              onChange=${(/** @type {number} */ steps) => change({ transition_num_steps: steps })} />
            <${SelectField} label="Transition path" value=${spec.transition_method ?? "linear"} options=${[["linear", "straight"], ["slerp", "along an arc"]]}
              onChange=${(/** @type {string} */ method) => change({ transition_method: method === "linear" ? undefined : method })} />
          </div>
          <button type="button" class="link" onClick=${() => change({ transition_target_prompts: undefined, transition_num_steps: undefined, transition_method: undefined })}><${Icon} name="close" /> Remove the transition</button>`
      : html`<button type="button" class="quiet" disabled=${!canChange} onClick=${() => change({
            transition_target_prompts: [{ text: promptText(inForce.transition?.target ?? inForce.prompt) }],
            transition_num_steps: Math.max(1, Math.min(2, spans.length - index - 1)),
          })}>⇢ Add a transition to another prompt</button>`}
  </div>`;
}
