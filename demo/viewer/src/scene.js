// The scene in memory: frames in their order, what has been seen of them, and what of it is shown.

import { Cameras } from "./cameras.js";
import { PointCloud } from "./points.js";
import { COLOR_MODES } from "./shaders.js";
import { robustSphere, Sample } from "./statistics.js";

const POINTS_FOR_EXTENT = 48;
const REACH_OF_RADIUS = 0.06;
// Neighbouring points overlap a little, so that surfaces close.
const OVERLAP = 1.35;

/** All that belongs to one run. Draws nothing itself: `cloud.group` and `cameras.group` are for the stage. */
export class GrowingScene {
  constructor() {
    this.cloud = new PointCloud();
    this.cameras = new Cameras();
    this.pointSize = 1;
    this.hiddenPercent = 0;
    this.onlyOne = false;
    this.clear();
  }

  clear() {
    this.cloud.clear();
    this.cameras.clear();
    this.frames = [];
    this.points = 0;
    this.confidences = new Sample();
    this.depths = new Sample();
    this.extent = [];
    this.spacing = null;
    this.sphere = null;
  }

  /** Add what a chunk holds; null stands for a frame that could not be had. */
  append(chunk) {
    const frame = this.frames.length;
    const before = this.frames.findLast((candidate) => candidate.camera);
    // Without a chunk the camera stays where it was, so that everything has a place on the timeline.
    const camera = chunk?.camera ?? before?.camera ?? null;
    this.frames.push({ camera, timeS: chunk?.timeS ?? null, pictures: chunk?.pictures ?? {}, isMissing: !chunk });
    this.cameras.append(camera ?? { matrix: IDENTITY, fovY: 1e-3, aspect: 1 });
    if (!chunk) return;
    if (!chunk.points) return;
    const points = { ...chunk.points, colors: toSrgb(chunk.points.colors), depths: depthsOf(chunk.points, camera) };
    this.cloud.append(frame, points);
    this.#learn(points, camera);
  }

  /** Show frame `position` and, unless only one is wanted, those before it. `expected` is how many there will be. */
  show(position, expected) {
    this.cloud.showFrames(this.onlyOne ? position : 0, position);
    this.cameras.show(position);
    const lastFrame = Math.max(1, expected - 1);
    this.cloud.uniforms.lastFrame.value = lastFrame;
    this.cameras.uniforms.lastFrame.value = lastFrame;
  }

  setColors(mode) {
    this.cloud.uniforms.mode.value = COLOR_MODES.indexOf(mode);
  }

  setPointSize(size) {
    this.pointSize = size;
    this.#refresh();
  }

  /** Hide this percentage of all points seen so far, the least certain ones. */
  setHiddenPercent(percent) {
    this.hiddenPercent = percent;
    this.#refresh();
  }

  /** Bring uniforms up to date with what was seen: once a picture, not once a chunk. */
  refreshIfGrown() {
    if (!this.hasGrown) return;
    this.hasGrown = false;
    const sphere = robustSphere(this.extent);
    if (sphere) {
      this.sphere = sphere;
      this.cameras.uniforms.reach.value = REACH_OF_RADIUS * sphere.radius;
    }
    this.#refresh();
  }

  #learn({ count, positions, confidences, depths }, { matrix, fovY, aspect }) {
    this.points += count;
    this.confidences.add(count, (i) => confidences[i]);
    this.depths.add(count, (i) => depths[i]);
    this.extent.push(...positions.subarray(0, 3 * Math.min(POINTS_FOR_EXTENT, count)), ...matrix.slice(12, 15));
    // How far apart the first frame's points are, at depth 1.
    this.spacing ??= 2 * Math.tan(fovY / 2) * Math.sqrt(aspect / count);
    this.hasGrown = true;
  }

  #refresh() {
    const { uniforms } = this.cloud;
    uniforms.pointScale.value = this.pointSize * OVERLAP * (this.spacing ?? 0.01);
    const threshold = this.hiddenPercent > 0 ? this.confidences.percentile(this.hiddenPercent) : null;
    uniforms.confidenceThreshold.value = threshold ?? -1;
    setRange(uniforms.confidenceRange.value, this.confidences);
    setRange(uniforms.depthRange.value, this.depths, 1e-6);
  }
}

/** z of each point in a camera, which looks along its own -z axis. */
function depthsOf({ count, positions }, { matrix }) {
  const [x, y, z] = matrix.slice(8, 11);
  const offset = x * matrix[12] + y * matrix[13] + z * matrix[14];
  const depths = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    depths[i] = offset - x * positions[3 * i] - y * positions[3 * i + 1] - z * positions[3 * i + 2];
  }
  return depths;
}

let srgbLevels = null;

/** Linear colours as sRGB (IEC 61966-2-1), both 0 to 65535. */
function toSrgb(colors) {
  srgbLevels ??= Uint16Array.from({ length: 65536 }, (_, level) => {
    const linear = level / 65535;
    return Math.round(65535 * (linear <= 0.0031308 ? 12.92 * linear : 1.055 * linear ** (1 / 2.4) - 0.055));
  });
  return colors.map((level) => srgbLevels[level]);
}

const IDENTITY = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];

/** The range of most of a sample, not empty and not below `lowest`. */
function setRange(range, sample, lowest = -Infinity) {
  const low = Math.max(sample.percentile(3) ?? 0, lowest);
  const high = sample.percentile(97) ?? 1;
  range.set(low, Math.max(high, low + 1e-3 * Math.max(1, Math.abs(low))));
}
