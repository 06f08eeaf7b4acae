/** What every part of the page is written with: Preact, its hooks, and templates in place of JSX. */

import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";
import { useEffect, useRef, useState } from "./vendor/hooks.js";

export { Fragment, render } from "./vendor/preact.js";
export { useEffect, useLayoutEffect, useMemo, useRef, useState } from "./vendor/hooks.js";

export const html = htm.bind(h);

/**
 * Joins the names of classes, without those that are false.
 * @param {...(string | false | null | undefined)} names
 */
export const classes = (...names) => names.filter(Boolean).join(" ");

/** @param {number} value @param {number} low @param {number} high */
export const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  return minutes < 60 ? `${minutes} min ${Math.round(seconds % 60)} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/**
 * A component whose module is loaded after the first paint.
 * @param {() => Promise<Record<string, any>>} load
 * @param {string} name
 */
export function lazy(load, name) {
  /** @type {any} */
  let component = null;
  return (/** @type {object} */ props) => {
    const [, render] = useState(0);
    useEffect(() => {
      if (component) return;
      void load().then((module) => {
        component = module[name];
        render(1);
      });
    }, []);
    return component && h(component, props);
  };
}

let nextId = 0;

/** An id for an element, to connect it with its label. */
export function useId() {
  const id = useRef("");
  if (!id.current) id.current = `e${++nextId}`;
  return id.current;
}

const ICONS = {
  undo: "M4 9h10a5 5 0 0 1 0 10h-3M4 9l4-4M4 9l4 4",
  redo: "M20 9H10a5 5 0 0 0 0 10h3M20 9l-4-4M20 9l-4 4",
  dice: "M5 5h14v14H5zM9 9h.01M15 15h.01M15 9h.01M9 15h.01M12 12h.01",
  plus: "M12 5v14M5 12h14",
  trash: "M5 7h14M10 7V5h4v2M7 7l1 12h8l1-12",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
  close: "M6 6l12 12M18 6L6 18",
  code: "M9 7l-5 5 5 5M15 7l5 5-5 5",
  copy: "M9 9h10v10H9zM5 15V5h10",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.5 1.5M17.5 17.5L19 19M19 5l-1.5 1.5M6.5 17.5L5 19",
  moon: "M19 14A8 8 0 0 1 10 5a8 8 0 1 0 9 9z",
  key: "M15 4a5 5 0 1 0 0 10 5 5 0 0 0 0-10zM11 13l-7 7M7 17l2 2",
  film: "M4 5h16v14H4zM8 5v14M16 5v14M4 9h4M4 15h4M16 9h4M16 15h4",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M9 9h.01",
  play: "M8 5l11 7-11 7z",
  pause: "M8 5v14M16 5v14",
  stop: "M6 6h12v12H6z",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  loop: "M6 9h10l-3-3M18 15H8l3 3M18 15v-2M6 9v2",
  more: "M6 12h.01M12 12h.01M18 12h.01",
};

/**
 * A drawn icon, which screen readers skip.
 * @param {{name: keyof typeof ICONS}} props
 */
export function Icon({ name }) {
  return html`<svg class="icon" viewBox="0 0 24 24" aria-hidden="true"><path d=${ICONS[name]} /></svg>`;
}

/**
 * A button that shows an icon alone; its name is for screen readers and the tooltip.
 * @param {{icon: keyof typeof ICONS, label: string, [name: string]: any}} props
 */
export function IconButton({ icon, label, ...rest }) {
  return html`<button type="button" class="icon-button" aria-label=${label} title=${label} ...${rest}>
    <${Icon} name=${icon} />
  </button>`;
}

/**
 * A modal dialog; it closes with Esc and gives the focus back.
 * @param {{title: string, onClose: () => void, children?: any, wide?: boolean}} props
 */
export function Dialog({ title, onClose, children, wide }) {
  const dialog = useRef(/** @type {HTMLDialogElement | null} */ (null));
  const id = useId();
  useEffect(() => {
    const opened = dialog.current;
    if (opened && !opened.open) opened.showModal();
    return () => opened?.close();
  }, []);
  return html`<dialog ref=${dialog} class=${classes("dialog", wide && "wide")} aria-labelledby=${id} onClose=${onClose}>
    <header><h2 id=${id}>${title}</h2><${IconButton} icon="close" label="Close" onClick=${onClose} /></header>
    ${children}
  </dialog>`;
}

/**
 * Text that is copied to the clipboard; also without a secure context, where browsers have no clipboard API.
 * @param {string} text
 */
export async function copyText(text) {
  if (navigator.clipboard) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const area = document.createElement("textarea");
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

/**
 * State that stays in this browser.
 * @template T
 * @param {string} name
 * @param {T} initial
 * @returns {[T, (value: T) => void]}
 */
export function useKept(name, initial) {
  const [value, set] = useState(() => kept(name, initial));
  return [
    value,
    (next) => {
      set(next);
      keep(name, next);
    },
  ];
}

/**
 * Reads what `keep` wrote in this browser.
 * @template T
 * @param {string} name
 * @param {T} otherwise
 * @returns {T}
 */
export function kept(name, otherwise) {
  try {
    const text = localStorage.getItem(`filmstrip.${name}`);
    return text === null ? otherwise : JSON.parse(text);
  } catch {
    return otherwise; // storage may be blocked, or hold something else
  }
}

/** @param {string} name @param {unknown} value undefined forgets it */
export function keep(name, value) {
  try {
    if (value === undefined) localStorage.removeItem(`filmstrip.${name}`);
    else localStorage.setItem(`filmstrip.${name}`, JSON.stringify(value));
  } catch {
    // full or blocked: the page works without it
  }
}
