/** Masks: which part of the input video a chunk replaces. */

import { ApiError, upload } from "./api.js";
import { currentPipeline, has } from "./pipelines.js";
import { specOf, withSpec } from "./request.js";
import { addMedia, edit, getState, say, useStore, withFields } from "./store.js";
import { Dialog, Icon, html, useEffect, useRef, useState } from "./ui.js";

/**
 * @param {{index: number, spec: Record<string, any>, request: Record<string, any>, pipeline: Record<string, any> | null, poster?: string, problem?: string}} props
 */
export function MaskButton({ index, spec, request, pipeline, poster, problem }) {
  const [isOpen, setOpen] = useState(false);
  const blob = useStore((state) => state.media[request.data_blob_path]);
  const image = spec.vace_masks_offset === undefined ? undefined : blob?.masks?.[spec.vace_masks_offset];
  const isForeign = request.data_blob_path && !blob?.masks;
  const why = !has(pipeline, "vace") ? `${pipeline?.id} takes no masks.` : !request.input_path ? "A mask needs an input video." : isForeign ? "This request has arrays of its own." : "";
  return html`<div class="mask">
    ${image && html`<img class="mask-image" src=${image} alt="The mask: white is replaced" />`}
    <button type="button" class="quiet" disabled=${Boolean(why)} onClick=${() => setOpen(true)}><${Icon} name="image" /> ${spec.vace_masks_shape ? "Edit the mask" : "Draw a mask"}</button>
    ${spec.vace_masks_shape && html`<button type="button" class="link" onClick=${() =>
      edit((old) => withSpec(old, index, { vace_masks_shape: undefined, vace_masks_offset: undefined, vace_use_input_video: undefined }))}>Remove the mask</button>`}
    ${why && html`<p class="hint">${why}</p>`}
    ${problem && html`<p class="problem">${problem}</p>`}
    ${isOpen && html`<${MaskDialog} index=${index} image=${image} poster=${poster} onClose=${() => setOpen(false)} />`}
  </div>`;
}

/** @param {{index: number, image?: string, poster?: string, onClose: () => void}} props */
function MaskDialog({ index, image, poster, onClose }) {
  const canvas = useRef(/** @type {HTMLCanvasElement | null} */ (null));
  const [brush, setBrush] = useState(12);
  const [erases, setErases] = useState(false);
  const { request } = getState();
  const pipeline = currentPipeline(getState());
  const media = getState().media[request.input_path];
  const width = request.width ?? pipeline?.width ?? media?.width ?? 64;
  const height = request.height ?? pipeline?.height ?? media?.height ?? 64;
  useEffect(() => {
    if (image) void loaded(image).then((picture) => canvas.current?.getContext("2d")?.drawImage(whiteOnly(picture, width, height), 0, 0));
  }, []);
  const last = useRef(/** @type {[number, number] | null} */ (null));
  const draw = (/** @type {PointerEvent} */ event) => {
    const context = canvas.current?.getContext("2d");
    const box = canvas.current?.getBoundingClientRect();
    if (!context || !box) return;
    const x = ((event.clientX - box.left) / box.width) * width;
    const y = ((event.clientY - box.top) / box.height) * height;
    context.globalCompositeOperation = erases ? "destination-out" : "source-over";
    context.strokeStyle = "#fff";
    context.lineCap = "round";
    context.lineWidth = (brush / 100) * Math.max(width, height);
    context.beginPath();
    context.moveTo(...(last.current ?? [x, y]));
    context.lineTo(x + 0.01, y);
    context.stroke();
    last.current = [x, y];
  };
  const fill = (/** @type {[number, number, number, number]} */ area) => {
    const context = canvas.current?.getContext("2d");
    if (!context) return;
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, width, height);
    context.fillStyle = "#fff";
    context.fillRect(...area);
  };
  const save = async () => {
    if (canvas.current && (await saveMask(index, canvas.current))) onClose();
  };
  return html`<${Dialog} title=${`Mask of chunk ${index + 1}`} onClose=${onClose}>
    <p class="hint">What you paint is replaced in this chunk; the rest of the input video is kept.</p>
    <div class="mask-area" style=${{ aspectRatio: `${width} / ${height}`, "--shape": String(width / height) }}>
      ${poster && html`<img src=${poster} alt="" />`}
      <canvas ref=${canvas} width=${width} height=${height} aria-label="Mask to paint" role="img"
        onPointerDown=${(/** @type {any} */ event) => {
          event.currentTarget.setPointerCapture(event.pointerId);
          last.current = null;
          draw(event);
        }}
        onPointerMove=${(/** @type {any} */ event) => event.buttons === 1 && draw(event)} />
    </div>
    <div class="pair">
      <label class="field"><span>Brush</span><input type="range" min="2" max="40" value=${brush} style=${{ "--share": `${((brush - 2) / 38) * 100}%` }} onInput=${(/** @type {any} */ event) => setBrush(Number(event.target.value))} /></label>
      <div class="tools" role="group" aria-label="Areas">
        <button type="button" class="chip" aria-pressed=${erases} onClick=${() => setErases(!erases)}>Erase</button>
        <button type="button" class="chip" onClick=${() => fill([0, 0, 0, 0])}>Clear</button>
        <button type="button" class="chip" onClick=${() => fill([0, 0, width, height])}>All</button>
        <button type="button" class="chip" onClick=${() => fill([width / 4, height / 4, width / 2, height / 2])}>Middle</button>
        <button type="button" class="chip" onClick=${() => fill([0, 0, width / 2, height])}>Left</button>
        <button type="button" class="chip" onClick=${() => fill([width / 2, 0, width / 2, height])}>Right</button>
      </div>
    </div>
    <footer><button type="button" class="quiet" onClick=${onClose}>Discard</button><button type="button" class="primary" onClick=${save}>Use the mask</button></footer>
  <//>`;
}

/** @param {string} address @returns {Promise<HTMLImageElement>} */
const loaded = (address) =>
  new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = reject;
    image.src = address;
  });

/** A mask as saved, black and white, with its black made transparent. @param {CanvasImageSource} picture @param {number} width @param {number} height */
function whiteOnly(picture, width, height) {
  const { canvas, context } = blank(width, height);
  context.drawImage(picture, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  for (let place = 0; place < pixels.data.length; place += 4) pixels.data[place + 3] = pixels.data[place];
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** @param {number} width @param {number} height */
function blank(width, height) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  return { canvas, context: /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d", { willReadFrequently: true })) };
}

/** @param {CanvasImageSource} picture @param {number} width @param {number} height @returns {Float32Array} 1 where the picture is bright */
function values(picture, width, height) {
  const { context } = blank(width, height);
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  context.drawImage(picture, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height);
  return Float32Array.from({ length: width * height }, (_, pixel) => (data[pixel * 4] > 127 ? 1 : 0));
}

/**
 * Uploads the masks of all chunks as one blob, because a request has only one.
 * @param {number} index  of the chunk whose mask is new
 * @param {HTMLCanvasElement} drawing
 */
async function saveMask(index, drawing) {
  const { request, media } = getState();
  const { width, height } = drawing;
  const old = media[request.data_blob_path]?.masks ?? {};
  const { canvas, context } = blank(width, height);
  context.fillRect(0, 0, width, height);
  context.drawImage(drawing, 0, 0);
  /** @type {Map<number, string>} */
  const images = new Map();
  for (const spec of request.chunk_specs ?? []) {
    if (spec.vace_masks_shape && old[spec.vace_masks_offset]) images.set(spec.chunk, old[spec.vace_masks_offset]);
  }
  images.set(index, canvas.toDataURL("image/png"));
  const frameBytes = width * height * 4;
  const blob = new Float32Array(images.size * width * height);
  /** @type {Record<string, string>} */
  const masks = {};
  /** @type {Map<number, number>} */
  const offsets = new Map();
  for (const [chunk, image] of images) {
    const offset = offsets.size * frameBytes;
    blob.set(values(chunk === index ? canvas : await loaded(image), width, height), offset / 4);
    masks[offset] = image;
    offsets.set(chunk, offset);
  }
  try {
    const answer = await upload("api/v1/generate/upload-data", new Blob([blob]), { type: "application/octet-stream" });
    addMedia(answer.data_blob_path, { kind: "blob", name: "masks", masks });
    edit((before) => {
      let next = withFields(before, { data_blob_path: answer.data_blob_path });
      for (const [chunk, offset] of offsets) {
        const isOwn = specOf(next, chunk).vace_use_input_video !== undefined;
        next = withSpec(next, chunk, {
          vace_masks_shape: [1, 1, 1, height, width],
          vace_masks_offset: offset,
          ...(isOwn || next.vace_use_input_video ? {} : { vace_use_input_video: true }),
        });
      }
      return next;
    });
    return true;
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    say(error.message);
    return false;
  }
}
