/** Players: the video of one generation, while it grows and when it is whole, and two of them in step. */

import { enlargement, fileAddress } from "./api.js";
import { Icon, IconButton, clamp, html, useEffect, useKept, useRef, useState } from "./ui.js";

/** @typedef {import("./api.js").Generation} Generation */

const USUAL_RATE = 16;
const BIG_STEP = 10;
const TYPING = "textarea, select, [contenteditable], input:not([type=range]):not([type=checkbox]):not([type=radio])";
const PRESSING = "button, a[href], summary, input[type=checkbox], input[type=radio]";
const MOVING = "[role=listbox], [role=tablist], [role=slider], [role=menu], input[type=range]:not(.scrub), input[type=radio]";

/**
 * The address of a whole video, enlarged if its frames are small, so that their edges stay sharp.
 * @param {Generation} generation
 */
export function videoAddress({ id, video_shape: shape }) {
  return fileAddress(id, "video.mp4", shape ? { scale: enlargement(shape[2], shape[1]) } : {});
}

/**
 * The video of a generation; one that still runs grows, and shows its newest preview until it plays.
 * @param {{generation: Generation, preview?: string}} props
 */
export function Player({ generation, preview }) {
  return generation.output_path && generation.video_shape
    ? html`<${Clip} generation=${generation} />`
    : html`<${GrowingVideo} generation=${generation} preview=${preview} />`;
}

/** @param {{generation: Generation, preview?: string}} props */
function GrowingVideo({ generation, preview }) {
  const video = useRef(/** @type {HTMLVideoElement | null} */ (null));
  const [isLost, setLost] = useState(false);
  useKeys(video, (pressed) => {
    const shown = video.current;
    if (pressed !== " " || !shown) return false;
    if (shown.paused) void shown.play().catch(() => {});
    else shown.pause();
    return true;
  });
  if (isLost) return html`<img class="frame pixels" src=${preview} alt="The newest frame" />`;
  return html`<video ref=${video} class="pixels" src=${fileAddress(generation.id, "video.mp4")} poster=${preview} autoplay muted playsinline
    aria-label="The video so far" onError=${() => setLost(true)} />`;
}

/**
 * A whole video with its controls.
 * @param {{generation: Generation}} props
 */
function Clip({ generation }) {
  const video = useRef(/** @type {HTMLVideoElement | null} */ (null));
  const clip = useClip([video], generation.frames);
  useEffect(() => {
    if (matchMedia("(prefers-reduced-motion: no-preference)").matches) clip.toggle();
  }, []);
  return html`<div class="clip-player">
    <${Picture} generation=${generation} video=${video} clip=${clip} />
    <${Controls} clip=${clip} />
  </div>`;
}

/**
 * Two videos that play in step.
 * @param {{generations: Generation[], captions: any[]}} props captions by their position
 */
export function InStep({ generations, captions }) {
  const videos = [useRef(/** @type {HTMLVideoElement | null} */ (null)), useRef(/** @type {HTMLVideoElement | null} */ (null))];
  const clip = useClip(videos, Math.min(...generations.map(({ frames }) => frames)));
  return html`<div class="clip-player">
    <div class="in-step">
      ${generations.map((generation, index) => html`<figure key=${generation.id}>
        <${Picture} generation=${generation} video=${videos[index]} clip=${clip} />
        <figcaption>${captions[index]}</figcaption>
      </figure>`)}
    </div>
    <${Controls} clip=${clip} isFirst />
  </div>`;
}

/** @param {{generation: Generation, video: any, clip: ReturnType<typeof useClip>}} props */
function Picture({ generation, video, clip }) {
  const [isBroken, setBroken] = useState(false);
  if (isBroken) return html`<p class="no-picture" role="alert">This video cannot be played. It may have expired.</p>`;
  return html`<video ref=${video} src=${videoAddress(generation)} muted playsinline preload="auto" aria-label="Video" data-frames=${generation.frames}
    onClick=${clip.toggle} onError=${() => setBroken(true)} />`;
}

/** @param {{clip: ReturnType<typeof useClip>, isFirst?: boolean}} props the first in a dialog gets the focus */
function Controls({ clip, isFirst = false }) {
  const { frame, frames, isPlaying, isLooping } = clip;
  const play = useRef(/** @type {HTMLButtonElement | null} */ (null));
  useEffect(() => {
    if (!isFirst) return;
    const request = requestAnimationFrame(() => play.current?.focus()); // after the dialog has opened
    return () => cancelAnimationFrame(request);
  }, []);
  const last = frames - 1;
  return html`<div class="controls" role="group" aria-label="Player">
    <button ref=${play} type="button" class="icon-button" aria-label=${isPlaying ? "Pause" : "Play"} title=${isPlaying ? "Pause" : "Play"} aria-keyshortcuts="Space" onClick=${clip.toggle}>
      <${Icon} name=${isPlaying ? "pause" : "play"} /></button>
    <${IconButton} icon="left" label="One frame back" aria-keyshortcuts="ArrowLeft" disabled=${frame === 0} onClick=${() => clip.seek(frame - 1)} />
    <${IconButton} icon="right" label="One frame on" aria-keyshortcuts="ArrowRight" disabled=${frame === last} onClick=${() => clip.seek(frame + 1)} />
    <input type="range" class="scrub" min="0" max=${last} step="1" value=${frame} aria-label="Frame" aria-valuetext=${`Frame ${frame + 1} of ${frames}`}
      style=${{ "--share": `${last ? (frame / last) * 100 : 100}%` }} onInput=${(/** @type {any} */ event) => clip.seek(Number(event.target.value))} />
    <span class="count" aria-hidden="true">${frame + 1} / ${frames}</span>
    <button type="button" class="icon-button" aria-pressed=${isLooping} aria-label="Loop" title="Loop" onClick=${clip.toggleLoop}><${Icon} name="loop" /></button>
  </div>`;
}

/**
 * Plays videos frame by frame; the first one leads, the others follow it.
 * @param {import("preact").RefObject<HTMLVideoElement>[]} videos
 * @param {number} frames how many of them play
 */
function useClip(videos, frames) {
  const [frame, setFrame] = useState(0);
  const [isPlaying, setPlaying] = useState(false);
  const [isLooping, setLooping] = useKept("loop", true);
  const looping = useRef(isLooping);
  looping.current = isLooping;
  const all = () => videos.map((video) => video.current).filter((video) => video !== null);
  const wanted = useRef(0); // while a video seeks, its time is the old one

  const show = (/** @type {number} */ number) => {
    wanted.current = clamp(number, 0, frames - 1);
    setFrame(wanted.current);
    for (const video of all()) video.currentTime = (wanted.current + 0.5) / rateOf(video);
  };
  const seek = (/** @type {number} */ number) => {
    for (const video of all()) video.pause();
    show(number);
  };
  const play = async () => {
    if (wanted.current >= frames - 1) show(0);
    await Promise.all(all().map((video) => video.play())).catch(() => {}); // interrupted by a pause
  };
  const toggle = () => {
    if (all().some((video) => !video.paused)) seek(wanted.current);
    else void play();
  };

  useEffect(() => {
    const [leader, ...others] = all();
    if (!leader) return;
    let request = 0;
    const follow = (/** @type {number} */ _now, /** @type {{mediaTime: number}} */ { mediaTime }) => {
      request = leader.requestVideoFrameCallback(follow);
      const shown = clamp(Math.floor(mediaTime * rateOf(leader) + 0.01), 0, frames - 1);
      if (leader.paused) return;
      wanted.current = shown;
      setFrame(shown);
      for (const other of others) {
        const behind = (shown + 0.5) / rateOf(other) - other.currentTime;
        if (Math.abs(behind) * rateOf(other) > 1.5 && !other.seeking) other.currentTime += behind;
      }
      if (shown === frames - 1 && Number(leader.dataset.frames) > frames) atEnd(); // the other one is shorter
    };
    const atEnd = () => {
      if (looping.current) {
        show(0);
        void play();
      } else seek(frames - 1);
    };
    const onPlay = () => setPlaying(true);
    const onPause = () => setPlaying(false);
    leader.addEventListener("play", onPlay);
    leader.addEventListener("pause", onPause);
    leader.addEventListener("ended", atEnd);
    request = leader.requestVideoFrameCallback(follow);
    return () => {
      leader.cancelVideoFrameCallback(request);
      leader.removeEventListener("play", onPlay);
      leader.removeEventListener("pause", onPause);
      leader.removeEventListener("ended", atEnd);
    };
  }, [frames]);

  useKeys(videos[0], (pressed, isShifted) => {
    const step = isShifted ? BIG_STEP : 1;
    if (pressed === " ") toggle();
    else if (pressed === "ArrowLeft") seek(wanted.current - step);
    else if (pressed === "ArrowRight") seek(wanted.current + step);
    else if (pressed === "Home") seek(0);
    else if (pressed === "End") seek(frames - 1);
    else return false;
    return true;
  });

  return { frame, frames, isPlaying, isLooping, toggle, seek, toggleLoop: () => setLooping(!isLooping) };
}

/** Frames per second of a video, once its metadata are there. @param {HTMLVideoElement} video */
function rateOf(video) {
  const frames = Number(video.dataset.frames);
  return frames && Number.isFinite(video.duration) && video.duration > 0 ? frames / video.duration : USUAL_RATE;
}

/**
 * Calls `press` with keys that are not meant for a field, a button or a dialog elsewhere.
 * @param {import("preact").RefObject<HTMLElement>} element
 * @param {(key: string, isShifted: boolean) => boolean} press true if the key did something
 */
function useKeys(element, press) {
  const latest = useRef(press);
  latest.current = press;
  useEffect(() => {
    const onKey = (/** @type {KeyboardEvent} */ event) => {
      const target = /** @type {Element} */ (event.target);
      if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || event.isComposing || target.closest(TYPING)) return;
      if (event.key === " " ? target.closest(PRESSING) : target.closest(MOVING)) return;
      const dialogs = document.querySelectorAll("dialog[open]");
      if (dialogs.length && !dialogs[dialogs.length - 1].contains(element.current)) return;
      if (latest.current(event.key, event.shiftKey)) event.preventDefault();
    };
    addEventListener("keydown", onKey);
    return () => removeEventListener("keydown", onKey);
  }, []);
}
