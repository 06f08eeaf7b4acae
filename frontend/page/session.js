/**
 * The session of a server with keys. `<video>` and `<img>` cannot send the key; the session's cookie lets them read media.
 */

import { call, key, needsKey } from "./api.js";

const EARLY_S = 1800;

/** @type {{key: string, expiresAt: number, started: Promise<void>} | null} */
let session = null;

/**
 * Starts a session if there is none for this key, or if it expires soon. To be awaited before media are shown.
 * @returns {Promise<void>}
 */
export function openSession() {
  if (!needsKey || !key()) return Promise.resolve();
  if (session?.key === key() && Date.now() / 1000 < session.expiresAt - EARLY_S) return session.started;
  const opened = { key: key(), expiresAt: Infinity, started: Promise.resolve() };
  opened.started = call("api/v1/session", { method: "POST" }).then(
    ({ expires_at: expiresAt }) => {
      if (expiresAt === null) return;
      opened.expiresAt = expiresAt;
      const renew = () => void (session === opened && openSession().catch(() => {})); // else the next load tries again
      setTimeout(renew, Math.max(expiresAt * 1000 - Date.now() - EARLY_S * 1000, 0) + 1000);
    },
    (error) => {
      if (session === opened) session = null;
      throw error;
    },
  );
  session = opened;
  return opened.started;
}

/** Ends the session; to be called while the key is still known. */
export async function closeSession() {
  session = null;
  await call("api/v1/session", { method: "DELETE" }).catch(() => {});
}
