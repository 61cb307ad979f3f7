// From where the scene is seen: free orbit, following the camera of the video, or looking through it.

import { Matrix4, Quaternion, Spherical, Vector3 } from "three";
import { OrbitControls } from "three/examples/jsm/controls/OrbitControls.js";

export const VIEW_MODES = ["orbit", "follow", "through"];

const FREE_FOV_DEGREES = 50;
const FLIGHT_MS = 400;
const REFIT_GROWTH = 1.25;
// The sphere around a scene is larger than the scene.
const TIGHTNESS = 0.88;
const RAISED_BY = 0.1;

/** Moves the stage's camera. Once the user has touched it, nothing but the user's own commands moves it in orbit. */
export class Viewpoint {
  /**
   * @param {import("./stage.js").Stage} stage already started
   * @param {(mode: string) => void} onMode called when the mode changes by itself
   */
  constructor(stage, onMode) {
    this.stage = stage;
    this.camera = stage.camera;
    this.onMode = onMode;
    this.controls = new OrbitControls(this.camera, stage.canvas);
    this.controls.zoomToCursor = true;
    this.controls.addEventListener("start", () => this.#touch());
    this.controls.addEventListener("change", () => this.stage.moved());
    this.reducedMotion = globalThis.matchMedia?.("(prefers-reduced-motion: reduce)");
    this.reset();
  }

  reset() {
    this.#cancelFlight();
    this.mode = "orbit";
    this.isTouched = false;
    this.fittedRadius = 0;
    this.pose = null;
    this.camera.position.set(0, 0, 1);
    this.controls.target.set(0, 0, -1);
    this.#setFov(FREE_FOV_DEGREES);
    this.controls.update();
  }

  dispose() {
    this.#cancelFlight();
    this.controls.dispose();
  }

  /** The scene has grown: while the user has not touched the view, keep all of it in sight. */
  grow(sphere) {
    this.sphere = sphere;
    this.camera.near = sphere.radius / 500;
    this.camera.far = sphere.radius * 200;
    this.camera.updateProjectionMatrix();
    if (this.mode !== "orbit" || this.isTouched || !this.pose) return;
    if (this.fittedRadius === 0) this.#showAll(directionBehind(this.pose), true);
    else if (sphere.radius > this.fittedRadius * REFIT_GROWTH) this.#showAll(this.#direction());
  }

  /** Show all of the scene, seen from behind the camera of the present frame. */
  fit() {
    if (!this.sphere || !this.pose) return;
    this.isTouched = true;
    if (this.mode !== "orbit") this.#changeMode("orbit");
    this.#showAll(directionBehind(this.pose));
  }

  /** The timeline has moved to a frame; `pose` is its camera `{matrix, fovY, aspect}`. */
  atFrame(pose) {
    const before = this.pose;
    this.pose = pose;
    if (this.mode === "through") this.#lookThrough();
    else if (this.mode === "follow" && before && before !== pose) this.#moveAlong(before, pose);
  }

  setMode(mode) {
    this.#cancelFlight();
    this.mode = mode;
    if (!this.pose) return;
    if (mode === "through") this.#lookThrough();
    else if (mode === "follow") this.#goBehind();
    else this.#settle();
    this.stage.moved();
  }

  /** Turn about the target, radians. */
  turn(right, up) {
    this.#touch();
    const offset = this.camera.position.clone().sub(this.controls.target);
    const spherical = new Spherical().setFromVector3(offset);
    spherical.theta += right;
    spherical.phi += up;
    spherical.makeSafe();
    this.camera.position.setFromSpherical(spherical).add(this.controls.target);
    this.controls.update();
    this.stage.moved();
  }

  /** Go nearer (factor below 1) or farther. */
  zoom(factor) {
    this.#touch();
    this.camera.position.sub(this.controls.target).multiplyScalar(factor).add(this.controls.target);
    this.controls.update();
    this.stage.moved();
  }

  /** The stage has another shape. */
  resized() {
    if (this.mode === "through" && this.pose) this.#lookThrough();
  }

  #touch() {
    this.#cancelFlight();
    this.isTouched = true;
    if (this.mode === "through") {
      this.#settle();
      this.#changeMode("orbit");
    }
  }

  /** Look at the whole scene from the given direction. */
  #showAll(direction, isInstant = false) {
    this.fittedRadius = this.sphere.radius;
    this.#setFov(FREE_FOV_DEGREES);
    const halfFov = Math.atan(Math.tan((FREE_FOV_DEGREES * Math.PI) / 360) * Math.min(1, this.camera.aspect));
    const center = new Vector3(...this.sphere.center);
    // A little above the middle: the lower edge of the stage has buttons.
    center.y -= RAISED_BY * this.sphere.radius;
    this.#flyTo(center.clone().addScaledVector(direction, (TIGHTNESS * this.sphere.radius) / Math.sin(halfFov)), center, isInstant);
  }

  #direction() {
    return this.camera.position.clone().sub(this.controls.target).normalize();
  }

  #changeMode(mode) {
    this.mode = mode;
    this.onMode(mode);
  }

  /** Put the centre of turning ahead of the camera, at the distance of the scene. */
  #settle() {
    const forward = this.camera.getWorldDirection(new Vector3());
    const distance = this.sphere
      ? Math.max(new Vector3(...this.sphere.center).distanceTo(this.camera.position), this.sphere.radius / 4)
      : 1;
    this.controls.target.copy(this.camera.position).addScaledVector(forward, distance);
  }

  #lookThrough() {
    const matrix = new Matrix4().fromArray(this.pose.matrix);
    matrix.decompose(this.camera.position, this.camera.quaternion, new Vector3());
    const { fovY, aspect } = this.pose;
    // All of the picture is in sight, whatever the shape of the stage.
    const tangent = Math.tan(fovY / 2) * Math.max(1, aspect / this.camera.aspect);
    this.#setFov((360 / Math.PI) * Math.atan(tangent));
    this.stage.requestDraw();
  }

  #goBehind() {
    const { center, back } = axes(this.pose);
    const distance = 0.35 * (this.sphere?.radius ?? 1);
    this.#setFov(FREE_FOV_DEGREES);
    const position = center.clone().addScaledVector(back, distance).add(new Vector3(0, 0.4 * distance, 0));
    this.#flyTo(position, center.clone().addScaledVector(back, -2 * distance));
  }

  #moveAlong(before, after) {
    this.#finishFlight();
    const motion = new Matrix4().fromArray(before.matrix).invert().premultiply(new Matrix4().fromArray(after.matrix));
    this.#flyTo(this.camera.position.clone().applyMatrix4(motion), this.controls.target.clone().applyMatrix4(motion));
  }

  #setFov(degrees) {
    this.camera.fov = degrees;
    this.camera.updateProjectionMatrix();
  }

  #flyTo(position, target, isInstant = false) {
    this.#cancelFlight();
    if (isInstant || this.reducedMotion?.matches) {
      this.#place(position, target);
      return;
    }
    this.flight = { position, target };
    const fromPosition = this.camera.position.clone();
    const fromTarget = this.controls.target.clone();
    let start = null;
    const fly = (now) => {
      start ??= now;
      const progress = Math.min(1, (now - start) / FLIGHT_MS);
      const eased = progress * progress * (3 - 2 * progress);
      this.#place(fromPosition.clone().lerp(position, eased), fromTarget.clone().lerp(target, eased));
      if (progress < 1) this.flightFrame = requestAnimationFrame(fly);
      else this.flight = null;
    };
    this.flightFrame = requestAnimationFrame(fly);
  }

  #place(position, target) {
    this.camera.position.copy(position);
    this.controls.target.copy(target);
    this.controls.update();
    this.stage.moved();
  }

  #cancelFlight() {
    cancelAnimationFrame(this.flightFrame);
    this.flight = null;
  }

  #finishFlight() {
    if (!this.flight) return;
    const { position, target } = this.flight;
    this.#cancelFlight();
    this.#place(position, target);
  }
}

/** From behind a camera, a little above and aside: seen straight from behind, a scene looks flat. */
function directionBehind(pose) {
  const { back } = axes(pose);
  const direction = new Vector3(back.x, Math.max(back.y, 0) + 0.35, back.z).normalize();
  return direction.applyAxisAngle(new Vector3(0, 1, 0), 0.3);
}

function axes({ matrix }) {
  const center = new Vector3();
  const rotation = new Quaternion();
  new Matrix4().fromArray(matrix).decompose(center, rotation, new Vector3());
  return { center, back: new Vector3(0, 0, 1).applyQuaternion(rotation) };
}
