// Buttons, sliders and words around the scene: what they do, and what they show.

import { isFinished } from "./follower.js";
import { icon } from "./icons.js";
import { listenToKeys } from "./keyboard.js";
import { COLOR_MODES } from "./shaders.js";
import { element } from "./shell.js";
import * as texts from "./texts.js";

const FRAMES_PER_SECOND = 8;
const BACKGROUNDS = { black: "#000000", grey: "#7d828a", white: "#ffffff" };
const THEME_BACKGROUNDS = { light: "#eceef1", dark: "#17191d" };

/** Wires a viewer's parts to its scene, timeline and viewpoint. */
export class Controls {
  /** @param {import("./viewer.js").Viewer} viewer */
  constructor(viewer) {
    this.viewer = viewer;
    this.parts = viewer.parts;
    this.#wireTimeline();
    this.#wireScene();
    this.#wireStage();
    this.#wireRun();
    listenToKeys(this.parts.root, this);
  }

  dispose() {
    clearInterval(this.ticking);
  }

  // Commands, for buttons and keys alike.

  togglePlay() {
    const { timeline } = this.viewer;
    if (timeline.isPlaying) timeline.pause();
    else timeline.play();
  }

  step(frames) {
    this.viewer.timeline.step(frames);
  }

  seek(position) {
    this.viewer.timeline.seek(position);
  }

  toEdge() {
    this.viewer.timeline.toEdge();
  }

  turn(right, up) {
    this.viewer.viewpoint?.turn(right, up);
  }

  zoom(factor) {
    this.viewer.viewpoint?.zoom(factor);
  }

  setView(mode) {
    this.viewer.viewpoint?.setMode(mode);
    this.showView();
  }

  fit() {
    this.viewer.viewpoint?.fit();
  }

  nextColors() {
    const next = COLOR_MODES[(COLOR_MODES.indexOf(this.parts.colors.value) + 1) % COLOR_MODES.length];
    this.setColors(next);
  }

  setColors(mode) {
    this.parts.colors.value = mode;
    this.viewer.scene.setColors(mode);
    this.viewer.stage.requestDraw();
  }

  toggleExtent() {
    this.setExtent(!this.viewer.scene.onlyOne);
  }

  setExtent(onlyOne) {
    const { scene, timeline } = this.viewer;
    scene.onlyOne = onlyOne;
    press(this.parts.extent, onlyOne ? "one" : "all");
    timeline.onChange();
  }

  toggleCameras() {
    this.parts.cameras.checked = !this.parts.cameras.checked;
    this.#applyCameras();
  }

  async toggleFullscreen() {
    try {
      if (this.parts.root.matches(":fullscreen")) await document.exitFullscreen();
      else await this.parts.root.requestFullscreen();
    } catch {
      this.viewer.report("This browser or page does not allow full screen.");
    }
  }

  async saveScreenshot() {
    if (!this.viewer.hasWebgl) return;
    const { timeline, stage } = this.viewer;
    const link = element("a", {
      href: URL.createObjectURL(await stage.screenshot()),
      download: `streamvggt-${String(timeline.position + 1).padStart(4, "0")}.png`,
    });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  toggleHelp() {
    const { helpBox, helpClose, help } = this.parts;
    helpBox.hidden = !helpBox.hidden;
    help.ariaExpanded = String(!helpBox.hidden);
    (helpBox.hidden ? help : helpClose).focus();
  }

  closeHelp() {
    if (!this.parts.helpBox.hidden) this.toggleHelp();
  }

  applyBackground() {
    const { value } = this.parts.background;
    const color = BACKGROUNDS[value] ?? THEME_BACKGROUNDS[this.viewer.host.dataset.theme];
    this.parts.stage.style.background = color;
    if (this.viewer.hasWebgl) this.viewer.stage.setBackground(color);
  }

  async stop() {
    this.parts.stop.disabled = true;
    try {
      await this.viewer.follower.stop();
    } catch (error) {
      this.parts.stop.disabled = false;
      this.viewer.report(`The run could not be stopped: ${error.message}.`);
    }
  }

  async copyLink() {
    const link = `${location.origin}${location.pathname}?run=${encodeURIComponent(this.viewer.run)}`;
    try {
      await navigator.clipboard.writeText(link);
      this.#confirmCopy();
    } catch {
      this.viewer.report(`Copy this link: ${link}`);
    }
  }

  // What the viewer's state looks like.

  showView() {
    press(this.parts.views, this.viewer.viewpoint?.mode ?? "orbit");
    this.#applyCameras();
  }

  showTimeline() {
    const { timeline, expectedFrames, scene } = this.viewer;
    const { time, clock, play, back, forward, edge } = this.parts;
    time.max = Math.max(0, expectedFrames - 1);
    time.value = Math.max(0, timeline.position);
    time.disabled = play.disabled = timeline.count < 2;
    back.disabled = timeline.position <= 0;
    forward.disabled = timeline.position >= timeline.count - 1;
    edge.disabled = timeline.count === 0;
    edge.dataset.at = timeline.atEdge && timeline.count > 0;
    clock.textContent = timeline.count ? `${timeline.position + 1} / ${expectedFrames}` : "";
    const { timeS } = scene.frames[timeline.position] ?? {};
    time.ariaValueText = `Frame ${timeline.position + 1} of ${expectedFrames}` + (timeS != null ? `, ${texts.clock(timeS)}` : "");
    if (play.dataset.playing !== String(timeline.isPlaying)) {
      play.dataset.playing = timeline.isPlaying;
      play.replaceChildren(icon(timeline.isPlaying ? "pause" : "play"));
      play.ariaLabel = play.title = timeline.isPlaying ? "Pause (Space)" : "Play (Space)";
    }
    this.#tickWhilePlaying(timeline.isPlaying);
  }

  showTexts() {
    const { viewer, parts } = this;
    const { manifest, scene } = viewer;
    const frames = scene.frames.length;
    const words = texts.placeholder({ manifest, frames, hasWebgl: viewer.hasWebgl, isGone: viewer.isGone, goneMessage: viewer.goneMessage });
    parts.message.hidden = words === null;
    parts.message.classList.toggle("busy", words?.busy ?? false);
    if (words) parts.message.replaceChildren(element("strong", {}, words.title), element("span", {}, words.text));
    parts.badge.hidden = !manifest || viewer.isGone;
    if (manifest) {
      parts.badge.replaceChildren(element("span", {}, texts.badge(manifest)));
      parts.badge.dataset.state = manifest.status;
    }
    const drawnShare = viewer.hasWebgl && scene.points ? (viewer.stage.restDetail * scene.cloud.count) / scene.points : 1;
    const rows = texts.numbers(manifest, { frames, points: scene.points, drawnShare });
    parts.numbers.replaceChildren(...rows.map(([name, value]) =>
      element("div", {}, element("dt", {}, name), element("dd", {}, value))));
    parts.status.replaceChildren(manifest?.message ?? "");
    if (viewer.problem) parts.status.append(element("span", { className: "problem" }, ` ${viewer.problem}`));
    const isActive = manifest && !isFinished(manifest.status) && !viewer.isGone;
    parts.stop.hidden = !isActive || viewer.isOffline;
    if (!isActive) parts.stop.disabled = false;
    parts.copy.hidden = !manifest || viewer.isOffline || viewer.isGone;
    this.#showDownloads(manifest?.downloads ?? []);
    parts.footer.hidden = !parts.status.textContent && [parts.stop, parts.copy, parts.downloads].every((part) => part.hidden);
  }

  #showDownloads(downloads) {
    const key = JSON.stringify(downloads);
    if (key === this.shownDownloads) return;
    this.shownDownloads = key;
    const { follower, isOffline } = this.viewer;
    const links = isOffline ? [] : downloads.map(({ format, name = "", label = format }) => {
      const href = follower.address(`download/${encodeURIComponent(format)}`);
      // "GLB: points and cameras": the first word is enough to see, the rest is there to point at.
      const [short] = label.split(": ");
      return element("a", { href, download: name, title: label, ariaLabel: `Download ${label}` }, icon("download"), short);
    });
    this.parts.downloads.replaceChildren(...links);
    this.parts.downloads.hidden = !links.length;
  }

  #wireTimeline() {
    const { play, back, forward, time, edge } = this.parts;
    play.addEventListener("click", () => this.togglePlay());
    back.addEventListener("click", () => this.step(-1));
    forward.addEventListener("click", () => this.step(1));
    edge.addEventListener("click", () => this.toEdge());
    time.addEventListener("input", () => {
      this.viewer.timeline.isPlaying = false;
      this.seek(Number(time.value));
    });
  }

  #wireScene() {
    const { colors, size, sizeOutput, confidence, confidenceOutput, extent, cameras } = this.parts;
    const { scene, stage } = this.viewer;
    colors.addEventListener("change", () => this.setColors(colors.value));
    const applySize = () => {
      scene.setPointSize(Number(size.value));
      sizeOutput.textContent = `${Number(size.value).toFixed(1)}×`;
      stage.requestDraw();
    };
    const applyConfidence = () => {
      scene.setHiddenPercent(Number(confidence.value));
      confidenceOutput.textContent = `${confidence.value} %`;
      stage.requestDraw();
    };
    size.addEventListener("input", applySize);
    confidence.addEventListener("input", applyConfidence);
    cameras.addEventListener("change", () => this.#applyCameras());
    for (const button of extent) button.addEventListener("click", () => this.setExtent(button.value === "one"));
    press(extent, "all");
    applySize();
    applyConfidence();
  }

  #wireStage() {
    const { fit, screenshot, fullscreen, help, helpClose, views, background } = this.parts;
    fit.addEventListener("click", () => this.fit());
    screenshot.addEventListener("click", () => this.saveScreenshot());
    fullscreen.addEventListener("click", () => this.toggleFullscreen());
    help.addEventListener("click", () => this.toggleHelp());
    helpClose.addEventListener("click", () => this.closeHelp());
    background.addEventListener("change", () => this.applyBackground());
    for (const button of views) button.addEventListener("click", () => this.setView(button.value));
    for (const control of [fit, screenshot, ...views]) control.disabled = !this.viewer.hasWebgl;
  }

  #wireRun() {
    this.parts.stop.addEventListener("click", () => this.stop());
    this.parts.copy.addEventListener("click", () => this.copyLink());
  }

  #applyCameras() {
    // Looking through a camera, its own lines would be in the way.
    const { scene, stage, viewpoint } = this.viewer;
    scene.cameras.group.visible = this.parts.cameras.checked && viewpoint?.mode !== "through";
    stage.requestDraw();
  }

  #confirmCopy() {
    this.parts.copy.lastChild.textContent = "Copied";
    this.parts.announcer.textContent = "Link copied";
    setTimeout(() => (this.parts.copy.lastChild.textContent = "Copy link"), 2000);
  }

  #tickWhilePlaying(isPlaying) {
    if (isPlaying === Boolean(this.ticking)) return;
    clearInterval(this.ticking);
    this.ticking = isPlaying ? setInterval(() => this.viewer.timeline.advance(), 1000 / FRAMES_PER_SECOND) : null;
  }
}

function press(buttons, value) {
  for (const button of buttons) button.ariaPressed = String(button.value === value);
}
