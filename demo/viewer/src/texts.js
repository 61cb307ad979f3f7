// What the viewer says, as plain functions from state to words.

const STATUS_WORDS = { queued: "Waiting", running: "Running", done: "Finished", stopped: "Stopped", failed: "Failed" };

export const count = (number) => Math.round(number).toLocaleString("en");

/** Minutes and seconds, with tenths. */
export function clock(seconds) {
  const tenths = Math.round(seconds * 10);
  const minutes = Math.floor(tenths / 600);
  return `${minutes}:${String(((tenths % 600) / 10).toFixed(1)).padStart(4, "0")}`;
}

/** Bytes in the unit that fits. */
export function bytes(number) {
  if (number >= 2 ** 30) return `${(number / 2 ** 30).toFixed(2)} GiB`;
  if (number >= 2 ** 20) return `${(number / 2 ** 20).toFixed(1)} MiB`;
  return `${Math.round(number / 2 ** 10)} KiB`;
}

/** The state in a word or two, for the badge on the scene. */
export function badge(manifest) {
  const word = STATUS_WORDS[manifest.status] ?? "";
  if (manifest.status === "queued" && Number.isInteger(manifest.queue_position)) {
    return manifest.queue_position > 0 ? `Waiting, ${count(manifest.queue_position)} ahead` : "Next in the queue";
  }
  return manifest.title ? `${word} · ${manifest.title}` : word;
}

/** The numbers of a run, as pairs of name and value; those that are not known are left out. */
export function numbers(manifest, { frames, points, drawnShare = 1 }) {
  const { frames_per_s: rate, cache_bytes: cache } = manifest?.stats ?? {};
  const rows = [];
  if (frames) rows.push(["Frames", manifest?.total ? `${count(frames)} of ${count(manifest.total)}` : count(frames)]);
  if (points) rows.push(["Points", count(points)]);
  if (drawnShare < 1) rows.push(["Drawn of them", `${Math.max(1, Math.round(100 * drawnShare))} %`]);
  if (rate > 0) rows.push(["Speed", `${rate.toFixed(1)} frames/s`]);
  if (cache > 0) rows.push(["Cache", bytes(cache)]);
  return rows;
}

/**
 * What to say in place of a scene, or null where there is one.
 * @returns {?{title: string, text: string, busy: boolean}}
 */
export function placeholder({ manifest, frames, hasWebgl, isGone, goneMessage }) {
  if (isGone) {
    const text = goneMessage || "It may have expired: results are kept for a limited time.";
    return { title: "This scene is not here any more", text, busy: false };
  }
  if (!hasWebgl) {
    const text = "This browser offers no WebGL 2, which 3D needs. Pictures and downloads work all the same.";
    return { title: "3D cannot be shown here", text, busy: false };
  }
  if (frames) return null;
  switch (manifest?.status) {
    case undefined:
      return { title: "No scene yet", text: "Start a run: the scene appears here and grows frame by frame.", busy: false };
    case "queued":
      return { title: badge(manifest), text: "The scene starts as soon as the machine is free.", busy: true };
    case "running":
      return { title: "Working on the first frame", text: "It appears here as soon as it is ready.", busy: true };
    case "failed":
      return { title: "The run failed", text: manifest.message || "No frame could be reconstructed.", busy: false };
    default:
      return manifest.count > 0
        ? { title: "Loading the scene", text: "", busy: true }
        : { title: "No frames", text: manifest.message || "The run ended before its first frame.", busy: false };
  }
}
