// What a page may call: StreamVGGT.mount(...).

import { Viewer } from "./viewer.js";

/**
 * Put a viewer into an element, inside a shadow root so that neither styles the other.
 *
 * @param {HTMLElement} element
 * @param {{root?: string, height?: number}} options `root`: address of the page that serves `/runs/`, without a slash at
 *   its end; by default Gradio's. `height`: of the scene, pixels.
 * @returns {{open: (run: ?string) => void, load: (content: {manifest: object, chunks: (string|ArrayBuffer)[]}) => void,
 *   stats: () => object, dispose: () => void}}
 *   `open` follows a run on the server, null none; `load` shows a finished run without a server, chunks as base64 or
 *   bytes. After every change `element` dispatches a `streamvggt` event with `{kind, run, status, frames, frame}`.
 */
export function mount(element, { root = globalThis.gradio_config?.root ?? "", height } = {}) {
  const viewer = new Viewer(element, { root, height });
  return {
    open: (run) => viewer.open(run || null),
    load: (content) => viewer.load(content),
    stats: () => viewer.stats(),
    dispose: () => viewer.dispose(),
  };
}
