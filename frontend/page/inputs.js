/** The input video and the images of the request. */

import { ApiError, upload } from "./api.js";
import { useProblem } from "./check.js";
import { DropZone, Field, SelectField } from "./fields.js";
import { currentPipeline, has } from "./pipelines.js";
import { estimate, resize, sharedReferences, specOf, withReferences, withSpec } from "./request.js";
import { addMedia, edit, getState, say, set, setFields, useStore, withFields } from "./store.js";
import { Icon, IconButton, classes, duration, html, useEffect, useRef } from "./ui.js";

/**
 * @typedef {object} Clip  a video file, and which part of it to use
 * @property {File} file
 * @property {string} url
 * @property {number} duration_s  0 if the browser cannot play it
 * @property {number} width
 * @property {number} height
 * @property {number} start
 * @property {number | null} end  null: to the end
 * @property {string} rate  frames per second; "" is the file's own
 * @property {number | null} progress  share that is uploaded; null: nothing is on its way
 * @property {string} problem
 * @property {string} poster  from the server
 * @property {string} inputPath  what the server called it
 */

const DEFAULT_SECONDS = 5;
const DEFAULT_RATE = "16";
const MAX_SIDE = 640;
const MAX_BYTES = 400 * 2 ** 20;
const MAX_CLIP_FRAMES = 1500;
const PROBE_MS = 4000;
const TRIM_PAUSE_MS = 700;
const THUMBNAIL = 160;
const MAX_PIXELS = 4096 * 4096;
const IMAGE_TYPES = ["image/png", "image/jpeg", "image/webp"];
const VIDEO_FILES = "video/*,.mp4,.mov,.mkv,.webm";

let uploading = new AbortController();
let trimTimer = 0;

/** Whether a file is a video, also if the system does not know its type. @param {File} file */
export const isVideo = (file) => file.type.startsWith("video/") || /\.(mp4|m4v|mov|mkv|webm)$/i.test(file.name);

/** @param {Partial<Clip>} patch */
function setClip(patch) {
  const { clip } = getState();
  if (clip) set({ clip: { ...clip, ...patch } });
}

/**
 * Makes a file the input video: the part and size that the pipeline can take are uploaded at once.
 * @param {File} file
 */
export async function chooseVideo(file) {
  const { clip } = getState();
  if (clip) URL.revokeObjectURL(clip.url);
  const url = URL.createObjectURL(file);
  const isFilter = currentPipeline(getState())?.features?.frame_processor;
  /** @type {Clip} */
  const chosen = {
    file, url, duration_s: 0, width: 0, height: 0, start: 0, end: DEFAULT_SECONDS, rate: isFilter ? "" : DEFAULT_RATE,
    progress: 0, problem: "", poster: "", inputPath: "",
  };
  set({ clip: chosen });
  document.getElementById("input-video")?.scrollIntoView({ block: "nearest" });
  const probed = await probe(url);
  if (getState().clip?.url !== url) return;
  setClip({ ...probed, end: probed.duration_s ? Math.min(probed.duration_s, DEFAULT_SECONDS) : DEFAULT_SECONDS });
  await uploadClip();
}

/** What the browser can tell of a video; nothing if it cannot play it. @param {string} url */
function probe(url) {
  return new Promise((resolve) => {
    const video = document.createElement("video");
    const done = () => {
      clearTimeout(timer);
      const isPlayable = video.videoWidth > 0 && Number.isFinite(video.duration);
      resolve(isPlayable ? { duration_s: video.duration, width: video.videoWidth, height: video.videoHeight } : { duration_s: 0, width: 0, height: 0 });
      video.removeAttribute("src");
    };
    const timer = setTimeout(done, PROBE_MS);
    video.onloadedmetadata = done;
    video.onerror = done;
    video.preload = "metadata";
    video.muted = true;
    video.src = url;
  });
}

/** The size at which to decode a clip: what the pipeline makes, or else what is not too large. @param {Clip} clip */
function targetSize(clip) {
  const state = getState();
  const pipeline = currentPipeline(state);
  const { width = pipeline?.width, height = pipeline?.height } = state.request;
  if (width && height) return { width, height };
  const step = Math.max(pipeline?.granularity ?? 1, 2);
  if (!clip.width) return { width: Math.floor(MAX_SIDE / step) * step };
  const share = Math.min(1, MAX_SIDE / Math.max(clip.width, clip.height));
  const side = (/** @type {number} */ length) => Math.max(Math.round((length * share) / step) * step, 64);
  return { width: side(clip.width), height: side(clip.height) };
}

/** Uploads the chosen part of the clip, and makes it the input. */
async function uploadClip() {
  const { clip } = getState();
  if (!clip) return;
  uploading.abort();
  uploading = new AbortController();
  const { signal } = uploading;
  const size = targetSize(clip);
  const pixels = size.width * (size.height ?? size.width);
  const query = new URLSearchParams({
    start: String(clip.start),
    max_frames: String(Math.max(Math.min(MAX_CLIP_FRAMES, Math.floor(MAX_BYTES / (pixels * 3))), 1)),
    ...Object.fromEntries(Object.entries(size).map(([name, value]) => [name, String(value)])),
    ...(clip.end === null ? {} : { end: String(clip.end) }),
    ...(clip.rate ? { fps: clip.rate } : {}),
    format: "mp4",
  });
  setClip({ progress: 0, problem: "" });
  try {
    const answer = await upload(`api/v1/generate/upload?${query}`, clip.file, {
      type: clip.file.type.startsWith("video/") ? clip.file.type : "video/mp4",
      onProgress: (progress) => setClip({ progress }),
      signal,
    });
    const [frames, height, width] = answer.shape;
    addMedia(answer.input_path, { kind: "video", name: clip.file.name, poster: answer.poster, fps: answer.fps, frames, width, height });
    setClip({ progress: null, poster: answer.poster, inputPath: answer.input_path });
    const pipeline = currentPipeline(getState());
    edit((request) => resize(withFields(request, { input_path: answer.input_path }), frames, pipeline), "clip");
  } catch (error) {
    if (signal.aborted) return;
    if (!(error instanceof ApiError)) throw error;
    setClip({ progress: null, problem: error.message });
  }
}

/** Changes which part of the clip is used; it is uploaded again after a short pause. @param {Partial<Clip>} patch */
function trim(patch) {
  setClip({ ...patch, progress: 0 });
  clearTimeout(trimTimer);
  trimTimer = setTimeout(() => void uploadClip(), TRIM_PAUSE_MS);
}

function removeVideo() {
  uploading.abort();
  const { clip } = getState();
  if (clip) URL.revokeObjectURL(clip.url);
  set({ clip: null });
  setFields({ input_path: undefined, vace_use_input_video: undefined, pre_processor_id: undefined });
}

function VideoInput() {
  const clip = useStore((state) => state.clip);
  const request = useStore((state) => state.request);
  const pipeline = useStore(currentPipeline);
  const stored = useStore((state) => state.media[request.input_path]);
  const problem = useProblem("input_path");
  const size = `${request.width ?? pipeline?.width}x${request.height ?? pipeline?.height}`;
  const last = useRef(size);
  useEffect(() => {
    const isOther = last.current !== size;
    last.current = size;
    if (isOther && getState().clip && getState().clip?.progress === null) trim({});
  }, [size]);
  if (pipeline?.modes && !pipeline.modes.includes("video") && !has(pipeline, "vace")) {
    return html`<p class="hint">${pipeline.id} takes no input video.</p>`;
  }
  const isCurrent = clip && (clip.inputPath === (request.input_path ?? "") || clip.progress !== null || clip.problem);
  if (!isCurrent && !request.input_path) {
    return html`<div>
      <${DropZone} label="Drop a video here, or choose one" accept=${VIDEO_FILES} onFile=${chooseVideo} />
      ${problem && html`<p class="problem">${problem}</p>`}
    </div>`;
  }
  return html`<div class="clip" data-input=${request.input_path ?? ""}>
    <div class="clip-head">
      <${Icon} name="film" /><span class="name">${isCurrent ? clip.file.name : (stored?.name ?? request.input_path)}</span>
      <${IconButton} icon="close" label="Remove the input video" onClick=${removeVideo} />
    </div>
    ${isCurrent ? html`<${Trim} clip=${clip} />` : stored?.poster && html`<img class="poster" src=${stored.poster} alt="First frame of the input video" />`}
    ${isCurrent && clip.problem && html`<p class="problem">${clip.problem}</p>`}
    ${problem && html`<p class="problem">${problem}</p>`}
    ${isCurrent && clip.progress !== null
      ? html`<p class="hint" role="status">${clip.progress < 1 ? `Uploading, ${Math.round(clip.progress * 100)} %` : "The server decodes it…"}</p>
          <progress value=${clip.progress < 1 ? clip.progress : undefined} aria-label="Upload of the video" />`
      : stored && html`<p class="hint" role="status">${stored.frames} frames of ${stored.width}x${stored.height} at ${Number(stored.fps?.toFixed(2))} per second</p>`}
    ${has(pipeline, "vace") && pipeline?.modes?.includes("video") && html`<${SelectField} label="Use the video as" value=${request.vace_use_input_video ? "guide" : ""}
      options=${[["", "starting point, repainted"], ["guide", "guide for new frames (VACE)"]]}
      onChange=${(/** @type {string} */ value) => setFields({ vace_use_input_video: value ? true : undefined })} />`}
  </div>`;
}

/** @param {{clip: Clip}} props */
function Trim({ clip }) {
  const video = useRef(/** @type {HTMLVideoElement | null} */ (null));
  const seek = (/** @type {number} */ time) => {
    if (video.current && clip.duration_s) video.current.currentTime = Math.min(time, clip.duration_s - 0.01);
  };
  const end = clip.end ?? clip.duration_s;
  const bound = clip.duration_s || 600;
  const setStart = (/** @type {number} */ value) => {
    const start = Math.max(0, Math.min(value, end - 0.1));
    seek(start);
    trim({ start });
  };
  const setEnd = (/** @type {number} */ value) => {
    const next = Math.min(bound, Math.max(value, clip.start + 0.1));
    seek(next);
    trim({ end: next });
  };
  const share = (/** @type {number} */ time) => `${(time / bound) * 100}%`;
  const number = (/** @type {string} */ label, /** @type {number} */ value, /** @type {(value: number) => void} */ onChange) => html`<${Field} label=${label}>
    ${(/** @type {any} */ { id }) => html`<div class="with-unit"><input id=${id} type="number" min="0" max=${clip.duration_s || undefined} step="0.1"
      value=${Number(value.toFixed(2))} onChange=${(/** @type {any} */ event) => onChange(Number(event.target.value))} /><span class="unit">s</span></div>`}
  <//>`;
  return html`<div class="trim">
    ${clip.duration_s
      ? html`<video ref=${video} src=${clip.url} muted playsinline controls preload="metadata" aria-label="Input video" />
        <div class="span" style=${{ "--start": share(clip.start), "--end": share(end) }}>
          <input type="range" aria-label="In point" min="0" max=${bound} step="0.05" value=${clip.start} onInput=${(/** @type {any} */ event) => setStart(Number(event.target.value))} />
          <input type="range" aria-label="Out point" min="0" max=${bound} step="0.05" value=${end} onInput=${(/** @type {any} */ event) => setEnd(Number(event.target.value))} />
        </div>`
      : clip.poster
        ? html`<img class="poster" src=${clip.poster} alt="First frame of the input video" /><p class="hint">This browser cannot play the file; the server can.</p>`
        : html`<div class="poster empty" />`}
    <div class="triple">
      ${number("In", clip.start, setStart)}
      ${number("Out", end, setEnd)}
      <${SelectField} label="Rate" value=${clip.rate} options=${[["8", "8 fps"], ["12", "12 fps"], ["16", "16 fps"], ["24", "24 fps"], ["30", "30 fps"], ["", "its own"]]}
        onChange=${(/** @type {string} */ rate) => trim({ rate })} />
    </div>
    <p class="hint">${duration(end - clip.start)} of ${clip.duration_s ? duration(clip.duration_s) : "the file"}</p>
  </div>`;
}

/**
 * Uploads an image; its stored name, or null if that failed.
 * @param {File} file
 * @returns {Promise<string | null>}
 */
export async function uploadImage(file) {
  try {
    const bitmap = await createImageBitmap(file).catch(() => null);
    const isFine = IMAGE_TYPES.includes(file.type) && (!bitmap || bitmap.width * bitmap.height <= MAX_PIXELS) && file.size < 30 * 2 ** 20;
    const body = isFine || !bitmap ? file : await drawn(bitmap, 2048);
    const { path } = await upload("api/v1/assets", body, { type: body.type || "application/octet-stream" });
    const poster = bitmap ? await asDataUrl(await drawn(bitmap, THUMBNAIL)) : undefined;
    addMedia(path, { kind: "image", name: file.name, poster, width: bitmap?.width, height: bitmap?.height });
    return path;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say(`${file.name}: ${error.message}`);
    return null;
  }
}

/** @param {ImageBitmap} bitmap @param {number} side @returns {Promise<Blob>} */
function drawn(bitmap, side) {
  const share = Math.min(1, side / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(Math.round(bitmap.width * share), 1);
  canvas.height = Math.max(Math.round(bitmap.height * share), 1);
  canvas.getContext("2d")?.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no image"))), "image/jpeg", 0.9));
}

/** @param {Blob} blob @returns {Promise<string>} */
const asDataUrl = (blob) =>
  new Promise((resolve) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.readAsDataURL(blob);
  });

/**
 * An image that is set, or a place to drop one.
 * @param {{label: string, name: string | undefined, onName: (name: string | undefined) => void, disabled?: boolean, problem?: string}} props
 */
export function ImageSlot({ label, name, onName, disabled, problem }) {
  const media = useStore((state) => (name ? state.media[name] : undefined));
  return html`<div class=${classes("image-slot", disabled && "off")}>
    ${name
      ? html`<div class="thumb">
          ${media?.poster || name.startsWith("data:") ? html`<img src=${media?.poster ?? name} alt=${`${label}: ${media?.name ?? "an image"}`} />` : html`<span class="name">${media?.name ?? name}</span>`}
          <${IconButton} icon="close" label=${`Remove: ${label.toLowerCase()}`} onClick=${() => onName(undefined)} />
        </div><span class="caption">${label}</span>`
      : html`<${DropZone} small icon="image" label=${label} accept=${IMAGE_TYPES.join()} disabled=${disabled}
          onFile=${async (/** @type {File} */ file) => {
            const path = await uploadImage(file);
            if (path) onName(path);
          }} />`}
    ${problem && html`<p class="problem">${problem}</p>`}
  </div>`;
}

function Images() {
  const request = useStore((state) => state.request);
  const pipeline = useStore(currentPipeline);
  const chunks = estimate(request, pipeline).length;
  const isOff = !has(pipeline, "vace");
  const references = sharedReferences(request, chunks) ?? [];
  const most = pipeline?.max_references ?? 16;
  const setSpec = (/** @type {number} */ index, /** @type {string} */ field) => (/** @type {string | undefined} */ name) =>
    edit((old) => withSpec(old, index, { [field]: name }));
  const setReference = (/** @type {number} */ position) => (/** @type {string | undefined} */ name) =>
    edit((old) => withReferences(old, name ? [...references.slice(0, position), name, ...references.slice(position + 1)] : references.filter((_, other) => other !== position), chunks));
  return html`<div class="field">
    <div class="field-head"><span>Images</span></div>
    <div class="slots">
      <${ImageSlot} label="First frame" name=${specOf(request, 0).first_frame_image} onName=${setSpec(0, "first_frame_image")} disabled=${isOff} />
      <${ImageSlot} label="Last frame" name=${specOf(request, chunks - 1).last_frame_image} onName=${setSpec(chunks - 1, "last_frame_image")} disabled=${isOff} />
      ${references.map((name, position) => html`<${ImageSlot} key=${position} label=${`Reference ${position + 1}`} name=${name} onName=${setReference(position)} />`)}
      ${references.length < most && html`<${ImageSlot} key=${references.length} label="Reference" name=${undefined} onName=${setReference(references.length)} disabled=${isOff} />`}
    </div>
    ${isOff && html`<p class="hint">${pipeline?.id} takes no images.</p>`}
  </div>`;
}

export function Inputs() {
  return html`<div class="field" id="input-video"><div class="field-head"><span>Input video</span></div><${VideoInput} /></div><${Images} />`;
}

/** Files that are dropped next to a field: a video becomes the input, an image the first frame. */
export function catchDrops() {
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", async (event) => {
    if (event.defaultPrevented) return;
    event.preventDefault();
    const file = event.dataTransfer?.files[0];
    if (!file) return;
    if (isVideo(file)) return chooseVideo(file);
    const path = file.type.startsWith("image/") ? await uploadImage(file) : null;
    if (path) edit((request) => withSpec(request, 0, { first_frame_image: path }));
  });
}
