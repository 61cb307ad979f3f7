// The canvas: draws when asked to and only then, with fewer points while the view moves.

import { Color, PerspectiveCamera, Scene, WebGLRenderer } from "three";

const HIGHEST_PIXEL_RATIO = 2;
const REST_MS = 200;
const SLOW_MS = 45;
const FAST_MS = 20;
const GROWTH_MS_IN_SOFTWARE = 120;
const LEAST_DETAIL = 0.02;
const SMOOTH_POINTS = 1_000_000;
const MOST_POINTS_IN_SOFTWARE = 1_000_000;
const SMOOTH_POINTS_IN_SOFTWARE = 120_000;

/** A scene on a canvas inside `host`. `start()` throws where there is no WebGL 2. */
export class Stage {
  /**
   * @param {HTMLElement} host
   * @param {import("./points.js").PointCloud} cloud
   */
  constructor(host, cloud) {
    this.host = host;
    this.cloud = cloud;
    this.scene = new Scene();
    this.camera = new PerspectiveCamera(50, 1, 0.01, 1000);
    this.isMoving = false;
    this.movingDetail = 1;
    this.draws = 0;
    this.drawMs = 0;
    this.onResize = () => {};
    this.onLost = () => {};
  }

  start() {
    this.renderer = new WebGLRenderer({ antialias: false, powerPreference: "high-performance" });
    const gl = this.renderer.getContext();
    const info = gl.getExtension("WEBGL_debug_renderer_info");
    const name = String(gl.getParameter(info ? info.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
    this.isSoftware = /swiftshader|llvmpipe|software|basic render/i.test(name);
    this.canvas = this.renderer.domElement;
    this.host.prepend(this.canvas);
    this.canvas.addEventListener("webglcontextlost", (event) => {
      event.preventDefault();
      this.isLost = true;
      this.onLost(true);
    });
    this.canvas.addEventListener("webglcontextrestored", () => {
      this.isLost = false;
      this.onLost(false);
      this.requestDraw();
    });
    this.observer = new ResizeObserver(() => this.#resize());
    this.observer.observe(this.host);
    this.#resize();
  }

  dispose() {
    cancelAnimationFrame(this.pending);
    clearTimeout(this.growthTimer);
    clearTimeout(this.restTimer);
    this.observer?.disconnect();
    this.renderer?.dispose();
    this.canvas?.remove();
  }

  /** Draw before the next repaint of the page. */
  requestDraw() {
    if (this.pending || !this.renderer || this.isLost) return;
    this.pending = requestAnimationFrame((now) => {
      this.pending = 0;
      this.#adaptDetail(now);
      this.drawNow();
    });
  }

  /** Draw soon; in software not so often that a growing scene keeps the processor from everything else. */
  requestDrawOfGrowth() {
    const pause = this.isSoftware ? Math.max(GROWTH_MS_IN_SOFTWARE, 2 * this.drawMs) : 0;
    const wait = pause - (performance.now() - (this.lastDraw ?? -Infinity));
    if (wait <= 0) this.requestDraw();
    else this.growthTimer ??= setTimeout(() => this.requestDraw(), wait);
  }

  /** The view moves: draw fewer points where all of them would be too slow, and all of them soon after the last move. */
  moved() {
    if (!this.isMoving) {
      this.isMoving = true;
      const smooth = this.isSoftware ? SMOOTH_POINTS_IN_SOFTWARE : SMOOTH_POINTS;
      this.movingDetail = Math.min(1, Math.max(smooth / Math.max(this.cloud.count, 1), LEAST_DETAIL));
      this.lastMovingDraw = null;
    }
    clearTimeout(this.restTimer);
    this.restTimer = setTimeout(() => {
      this.isMoving = false;
      this.requestDraw();
    }, REST_MS);
    this.requestDraw();
  }

  /** The share of the points that is drawn while the view rests: all of them, unless software would take too long. */
  get restDetail() {
    return this.isSoftware ? Math.min(1, MOST_POINTS_IN_SOFTWARE / Math.max(this.cloud.count, 1)) : 1;
  }

  drawNow() {
    this.cloud.setDetail(this.isMoving ? Math.min(this.movingDetail, this.restDetail) : this.restDetail);
    this.onBeforeDraw?.();
    this.renderer.render(this.scene, this.camera);
    this.draws++;
    const start = (this.lastDraw = performance.now());
    // The browser calls again when it has shown this picture: a measure of what drawing costs.
    if (this.isSoftware) requestAnimationFrame(() => (this.drawMs = performance.now() - start));
    clearTimeout(this.growthTimer);
    this.growthTimer = null;
  }

  setBackground(cssColor) {
    this.scene.background = new Color(cssColor);
    this.requestDraw();
  }

  /** The picture on the canvas as a PNG file. */
  screenshot() {
    this.isMoving = false;
    this.drawNow();
    return new Promise((resolve, reject) => {
      this.canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the canvas gave no picture"))), "image/png");
    });
  }

  #adaptDetail(now) {
    if (!this.isMoving) return;
    const took = this.lastMovingDraw === null ? null : now - this.lastMovingDraw;
    this.lastMovingDraw = now;
    if (took === null || took > REST_MS) return;
    if (took > SLOW_MS) this.movingDetail = Math.max(LEAST_DETAIL, this.movingDetail * 0.7);
    else if (took < FAST_MS) this.movingDetail = Math.min(1, this.movingDetail * 1.15);
  }

  #resize() {
    const { clientWidth: width, clientHeight: height } = this.host;
    if (!width || !height) return;
    this.renderer.setPixelRatio(Math.min(globalThis.devicePixelRatio || 1, this.isSoftware ? 1 : HIGHEST_PIXEL_RATIO));
    this.renderer.setSize(width, height, false);
    this.camera.aspect = width / height;
    this.onResize();
    // Changing the size clears the canvas: draw at once, or it flickers.
    this.camera.updateProjectionMatrix();
    this.drawNow();
  }
}
