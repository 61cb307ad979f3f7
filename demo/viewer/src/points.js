// The points of all frames on the graphics card. Chunks gather in pages, so that the number of draw calls follows the
// number of points and not that of frames.

import { BufferAttribute, BufferGeometry, DynamicDrawUsage, GLSL3, Group, Points, ShaderMaterial, Sphere, Vector2,
  Vector3 } from "three";
import { POINT_FRAGMENT_SHADER, POINT_VERTEX_SHADER } from "./shaders.js";

const PAGE_POINTS = 65536;
const MOST_POINTS = 4_000_000;
const MOST_FRAMES = 65536;

/** All points of a scene, as one object for three.js: `group`. */
export class PointCloud {
  constructor() {
    this.uniforms = {
      mode: { value: 0 },
      frames: { value: new Vector2(0, -1) },
      confidenceThreshold: { value: -1 },
      confidenceRange: { value: new Vector2(0, 1) },
      depthRange: { value: new Vector2(1, 2) },
      lastFrame: { value: 1 },
      pointScale: { value: 0.01 },
      pixelsPerUnit: { value: 500 },
      leastPixels: { value: 1 },
      mostPixels: { value: 40 },
    };
    this.material = new ShaderMaterial({
      glslVersion: GLSL3,
      vertexShader: POINT_VERTEX_SHADER,
      fragmentShader: POINT_FRAGMENT_SHADER,
      uniforms: this.uniforms,
    });
    this.group = new Group();
    this.detail = 1;
    this.clear();
  }

  clear() {
    for (const page of this.pages ?? []) page.geometry.dispose();
    this.group.clear();
    this.pages = [];
    this.count = 0;
    this.keptShare = 1;
    this.uniforms.frames.value.set(0, -1);
  }

  /** Draw round points, or square ones, which cost less. */
  setRound(isRound) {
    this.material.defines = isRound ? { ROUND: "" } : {};
    this.material.needsUpdate = true;
  }

  /**
   * Add the points of a frame.
   * @param {number} frame at most 65535
   * @param {{count: number, positions: Float32Array, colors: Uint16Array, confidences: Float32Array,
   *   depths: Float32Array}} points colours sRGB, 0 to 65535; depths z in the frame's camera
   */
  append(frame, points) {
    if (frame >= MOST_FRAMES) return;
    // The order within a chunk is random: its beginning is an even subsample.
    const count = Math.max(1, Math.floor(points.count * this.keptShare));
    let page = this.pages.at(-1);
    if (!page || page.count + count > page.capacity) {
      page?.seal();
      page = new Page(Math.max(PAGE_POINTS, count), this.material);
      this.pages.push(page);
      this.group.add(page.object);
    }
    page.append(frame, points, count);
    this.count += count;
    if (this.count > MOST_POINTS) this.#thin();
  }

  /** Show the frames from `first` to `last`. */
  showFrames(first, last) {
    this.uniforms.frames.value.set(first, last);
    for (const page of this.pages) page.object.visible = page.lastFrame >= first && page.firstFrame <= last;
  }

  /** Draw this share of the points, an even subsample. */
  setDetail(share) {
    this.detail = share;
    for (const page of this.pages) page.setDetail(share);
  }

  /** How many points of the frames that are shown a threshold leaves. */
  countShown() {
    const { x: first, y: last } = this.uniforms.frames.value;
    const threshold = this.uniforms.confidenceThreshold.value;
    return this.pages.reduce((sum, page) => sum + page.countShown(first, last, threshold), 0);
  }

  /** How many points the next picture draws or skips in the shader. */
  countDrawn() {
    return this.pages.reduce((sum, page) => sum + (page.object.visible ? page.geometry.drawRange.count : 0), 0);
  }

  #thin() {
    this.keptShare /= 2;
    this.count = 0;
    for (const page of this.pages) {
      page.seal();
      page.halve();
      this.count += page.count;
    }
  }
}

/** Some tens of thousands of points of consecutive frames in one buffer. */
class Page {
  constructor(capacity, material) {
    this.capacity = capacity;
    this.count = 0;
    this.countOfFrame = new Map();
    this.firstFrame = Infinity;
    this.lastFrame = -Infinity;
    this.isMixed = false;
    this.geometry = new BufferGeometry();
    const attribute = (values, width, normalized) =>
      new BufferAttribute(values, width, normalized).setUsage(DynamicDrawUsage);
    this.geometry.setAttribute("position", attribute(new Float32Array(3 * capacity), 3));
    this.geometry.setAttribute("color", attribute(new Uint16Array(4 * capacity), 4, true));
    this.geometry.setAttribute("confidence", attribute(new Float32Array(capacity), 1));
    this.geometry.setAttribute("depth", attribute(new Float32Array(capacity), 1));
    this.geometry.boundingSphere = new Sphere();
    this.geometry.setDrawRange(0, 0);
    this.lowest = [Infinity, Infinity, Infinity];
    this.highest = [-Infinity, -Infinity, -Infinity];
    this.object = new Points(this.geometry, material);
    this.object.matrixAutoUpdate = false;
  }

  append(frame, { positions, colors, confidences, depths }, count) {
    const { position, color, confidence, depth } = this.geometry.attributes;
    position.array.set(positions.subarray(0, 3 * count), 3 * this.count);
    color.array.set(colors.subarray(0, 4 * count), 4 * this.count);
    confidence.array.set(confidences.subarray(0, count), this.count);
    depth.array.set(depths.subarray(0, count), this.count);
    for (let i = 0; i < count; i++) color.array[4 * (this.count + i) + 3] = frame;
    for (const attribute of [position, color, confidence, depth]) {
      attribute.addUpdateRange(this.count * attribute.itemSize, count * attribute.itemSize);
      attribute.needsUpdate = true;
    }
    this.count += count;
    this.countOfFrame.set(frame, count);
    this.firstFrame = Math.min(this.firstFrame, frame);
    this.lastFrame = Math.max(this.lastFrame, frame);
    this.#extend(positions, count);
    this.setDetail(1);
  }

  /** Nothing more comes: mix the frames, so that the beginning of the page is an even subsample of it. */
  seal() {
    if (this.isMixed) return;
    this.isMixed = true;
    const order = randomOrder(this.count);
    for (const attribute of Object.values(this.geometry.attributes)) {
      const { array, itemSize } = attribute;
      const mixed = new array.constructor(array.length);
      for (let to = 0; to < this.count; to++) {
        const from = itemSize * order[to];
        for (let k = 0; k < itemSize; k++) mixed[itemSize * to + k] = array[from + k];
      }
      array.set(mixed);
      attribute.clearUpdateRanges();
      attribute.needsUpdate = true;
    }
  }

  /** Forget every second point and give the memory back. */
  halve() {
    this.count = this.capacity = Math.ceil(this.count / 2);
    this.geometry.dispose();
    for (const [name, { array, itemSize, normalized }] of Object.entries(this.geometry.attributes)) {
      const kept = new BufferAttribute(array.slice(0, itemSize * this.count), itemSize, normalized);
      this.geometry.setAttribute(name, kept);
    }
    this.countOfFrame.clear();
    const colors = this.geometry.attributes.color.array;
    for (let i = 0; i < this.count; i++) {
      const frame = colors[4 * i + 3];
      this.countOfFrame.set(frame, (this.countOfFrame.get(frame) ?? 0) + 1);
    }
    this.setDetail(1);
  }

  setDetail(share) {
    // One frame alone is in random order by itself.
    const canThin = this.isMixed || this.firstFrame === this.lastFrame;
    this.geometry.setDrawRange(0, canThin ? Math.ceil(this.count * share) : this.count);
  }

  countShown(first, last, threshold) {
    let shown = 0;
    if (threshold < 0) {
      for (const [frame, count] of this.countOfFrame) if (frame >= first && frame <= last) shown += count;
      return shown;
    }
    const colors = this.geometry.attributes.color.array;
    const confidences = this.geometry.attributes.confidence.array;
    for (let i = 0; i < this.count; i++) {
      const frame = colors[4 * i + 3];
      if (frame >= first && frame <= last && confidences[i] >= threshold) shown++;
    }
    return shown;
  }

  #extend(positions, count) {
    for (let i = 0; i < count; i++) {
      for (let axis = 0; axis < 3; axis++) {
        const value = positions[3 * i + axis];
        if (value < this.lowest[axis]) this.lowest[axis] = value;
        if (value > this.highest[axis]) this.highest[axis] = value;
      }
    }
    const low = new Vector3(...this.lowest);
    const high = new Vector3(...this.highest);
    this.geometry.boundingSphere.set(low.clone().add(high).divideScalar(2), low.distanceTo(high) / 2);
  }
}

function randomOrder(count) {
  const order = Uint32Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
