/** Keys that work everywhere on the page. The player has its own, see player.js. */

import { getState, redo, undo } from "./store.js";
import { cancel, isLive, submit } from "./watch.js";

export function listenToKeys() {
  addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing) return;
    const hasControl = event.ctrlKey || event.metaKey;
    if (hasControl && event.key === "Enter") {
      event.preventDefault();
      void submit();
    } else if (hasControl && !event.altKey && event.key.toLowerCase() === "z") {
      event.preventDefault(); // also in fields: what is typed there is part of the same history
      if (event.shiftKey) redo();
      else undo();
    } else if (hasControl && !event.altKey && event.key.toLowerCase() === "y") {
      event.preventDefault();
      redo();
    } else if (event.key === "Escape" && !document.querySelector("dialog[open]") && isLive(getState().generation)) {
      event.preventDefault();
      void cancel();
    }
  });
}
