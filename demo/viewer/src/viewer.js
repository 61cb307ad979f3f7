// Brings the parts together: a run comes in, a scene grows on the stage, controls act on it.

import { Controls } from "./controls.js";
import { Follower, isFinished } from "./follower.js";
import { readChunk } from "./glb.js";
import { Picture } from "./preview.js";
import { GrowingScene } from "./scene.js";
import { buildShell } from "./shell.js";
import { Stage } from "./stage.js";
import * as texts from "./texts.js";
import { followTheme } from "./theme.js";
import { Timeline } from "./timeline.js";
import { Viewpoint } from "./viewpoint.js";

/** A viewer inside `host`. See `index.js` for what the page may call. */
export class Viewer {
  constructor(host, { root, height }) {
    this.host = host;
    this.parts = buildShell(host.shadowRoot ?? host.attachShadow({ mode: "open" }), height);
    this.scene = new GrowingScene();
    this.timeline = new Timeline(() => this.#moved());
    this.follower = new Follower(
      {
        onManifest: (manifest) => this.#takeManifest(manifest),
        onChunk: (index, buffer) => this.#takeChunk(index, buffer),
        onConnection: (isUp) => this.#say(isUp ? "" : "Connection lost, trying again."),
        onGone: (message) => this.#gone(message),
        onRenewed: () => this.#renew(),
      },
      { root },
    );
    this.pictures = { image: new Picture(this.parts.image), depth: new Picture(this.parts.depth) };
    this.#startStage();
    this.controls = new Controls(this);
    this.stopFollowingTheme = followTheme(host, () => this.controls.applyBackground());
    this.#reset(null);
  }

  open(run) {
    this.#reset(run);
    this.follower.open(run);
  }

  load({ manifest, chunks }) {
    this.#reset(manifest.run ?? null);
    this.follower.open(null);
    this.isOffline = true;
    this.#takeManifest({ status: "done", count: chunks.length, ...manifest });
    chunks.forEach((chunk, index) => this.#takeChunk(index, chunk));
  }

  dispose() {
    this.follower.open(null);
    this.controls.dispose();
    this.stopFollowingTheme();
    this.scene.clear();
    this.viewpoint?.dispose();
    this.stage.dispose();
    this.host.shadowRoot.replaceChildren();
  }

  stats() {
    const { scene, stage, timeline, manifest } = this;
    stage.camera.updateMatrixWorld();
    return {
      run: this.run,
      status: manifest?.status ?? null,
      webgl: this.hasWebgl,
      frames: scene.frames.length,
      frame: timeline.position,
      atEdge: timeline.atEdge,
      playing: timeline.isPlaying,
      points: scene.points,
      shown: scene.cloud.countShown(),
      pointsDrawn: scene.cloud.countDrawn(),
      moving: stage.isMoving,
      draws: stage.draws,
      drawCalls: stage.renderer?.info.render.calls ?? 0,
      geometries: stage.renderer?.info.memory.geometries ?? 0,
      bytes: this.bytes,
      latencies_ms: [...this.latencies],
      appended_at_ms: [...this.appendedAt],
      view: this.viewpoint?.mode ?? null,
      touched: this.viewpoint?.isTouched ?? false,
      camera: stage.camera.matrixWorld.toArray(),
      problem: this.problem,
    };
  }

  /** The connection, a chunk or a command has a problem: say so in the status line; "" takes it back. */
  #say(problem) {
    this.problem = problem;
    this.updateTexts();
  }

  report(problem) {
    this.#say(problem);
  }

  /** How many frames the timeline has room for. */
  get expectedFrames() {
    const total = this.manifest && !isFinished(this.manifest.status) ? this.manifest.total : this.manifest?.count;
    return Math.max(total ?? 0, this.scene.frames.length);
  }

  #startStage() {
    this.stage = new Stage(this.parts.scene, this.scene.cloud);
    try {
      this.stage.start();
    } catch {
      this.hasWebgl = false;
      return;
    }
    this.hasWebgl = true;
    this.scene.cloud.setRound(!this.stage.isSoftware);
    this.stage.scene.add(this.scene.cloud.group, this.scene.cameras.group);
    this.viewpoint = new Viewpoint(this.stage, () => this.controls.showView());
    this.stage.onResize = () => this.viewpoint.resized();
    this.stage.onLost = (isLost) => this.#say(isLost ? "The graphics card was reset, waiting for it." : "");
    this.stage.onBeforeDraw = () => this.#beforeDraw();
  }

  #beforeDraw() {
    const { uniforms } = this.scene.cloud;
    const { renderer, camera } = this.stage;
    this.scene.refreshIfGrown();
    if (this.scene.sphere) this.viewpoint.grow(this.scene.sphere);
    uniforms.leastPixels.value = renderer.getPixelRatio();
    uniforms.mostPixels.value = (this.stage.isSoftware ? 16 : 40) * renderer.getPixelRatio();
    uniforms.pixelsPerUnit.value = (renderer.domElement.height * camera.projectionMatrix.elements[5]) / 2;
  }

  #reset(run) {
    this.run = run;
    this.manifest = null;
    this.announcedAt = [];
    this.latencies = [];
    this.appendedAt = [];
    this.bytes = 0;
    this.isGone = false;
    this.isOffline = false;
    this.goneMessage = "";
    this.problem = "";
    this.scene.clear();
    this.viewpoint?.reset();
    this.timeline.reset();
    this.controls.showView();
    this.parts.announcer.textContent = "";
  }

  /** All frames come again; the view stays. */
  #renew() {
    this.scene.clear();
    this.timeline.reset();
  }

  #takeManifest(manifest) {
    const before = this.manifest?.status;
    this.manifest = manifest;
    const now = performance.now();
    while (this.announcedAt.length < manifest.count) this.announcedAt.push(now);
    if (manifest.status !== before) this.parts.announcer.textContent = texts.badge(manifest);
    this.#moved();
    this.#emit("manifest");
  }

  #takeChunk(index, buffer) {
    let chunk = null;
    try {
      if (buffer === null) throw new Error("it could not be fetched");
      const content = typeof buffer === "string" ? fromBase64(buffer) : buffer;
      this.bytes += content.byteLength;
      chunk = readChunk(content);
    } catch (error) {
      this.problem = `Frame ${index + 1} is left out. ${error.message}`;
    }
    this.scene.append(chunk);
    this.latencies.push(performance.now() - (this.announcedAt[index] ?? performance.now()));
    this.appendedAt.push(Date.now());
    this.timeline.append();
    this.#emit("frame");
  }

  #gone(message) {
    this.isGone = true;
    this.goneMessage = message;
    this.updateTexts();
    this.#emit("gone");
  }

  /** Bring the scene, the pictures and the words in line with the timeline. */
  #moved() {
    const { position } = this.timeline;
    const frame = this.scene.frames[position];
    this.scene.show(position, this.expectedFrames);
    if (frame?.camera && this.viewpoint) this.viewpoint.atFrame(frame.camera);
    this.#showPictures(frame, position);
    this.stage.requestDrawOfGrowth();
    this.controls?.showTimeline();
    this.updateTexts();
  }

  #showPictures(frame, position) {
    if (frame === this.picturedFrame) return;
    this.picturedFrame = frame;
    const name = frame ? `Frame ${position + 1}` : "No frame yet";
    this.parts.caption.textContent = frame?.timeS != null ? `${name}, at ${texts.clock(frame.timeS)}` : name;
    this.pictures.image.show(frame?.pictures.image, name);
    this.pictures.depth.show(frame?.pictures.depth, frame ? `Depth map of frame ${position + 1}` : "No depth map yet");
  }

  updateTexts() {
    this.controls?.showTexts();
  }

  #emit(kind) {
    const { run, manifest, scene, timeline } = this;
    const detail = { kind, run, status: manifest?.status ?? null, frames: scene.frames.length, frame: timeline.position };
    this.host.dispatchEvent(new CustomEvent("streamvggt", { detail }));
  }
}

function fromBase64(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0)).buffer;
}
