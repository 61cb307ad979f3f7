// What has been seen so far, in numbers: percentiles and extents from an even sample of the points.

const SAMPLED_EVERY = 16;

/**
 * A growing sample of numbers, for percentiles. Points lie in random order within a chunk, so that the first
 * sixteenth of a chunk stands for all of it.
 */
export class Sample {
  constructor() {
    this.clear();
  }

  clear() {
    this.values = new Float32Array(1024);
    this.length = 0;
    this.isSorted = true;
  }

  /** Take every sixteenth of `count` values, at least one; `valueAt(i)` gives them. */
  add(count, valueAt) {
    const taken = Math.ceil(count / SAMPLED_EVERY);
    if (this.length + taken > this.values.length) {
      const larger = new Float32Array(Math.max(2 * this.values.length, this.length + taken));
      larger.set(this.values.subarray(0, this.length));
      this.values = larger;
    }
    for (let i = 0; i < taken; i++) this.values[this.length + i] = valueAt(i);
    this.length += taken;
    this.isSorted = false;
  }

  /** The value below which `percent` percent lie; null without values. */
  percentile(percent) {
    if (!this.length) return null;
    if (!this.isSorted) this.values.subarray(0, this.length).sort();
    this.isSorted = true;
    return this.values[Math.min(this.length - 1, Math.floor((percent / 100) * this.length))];
  }
}

/**
 * The box that holds most of the given points, `[x, y, z, x, y, z, ...]`; stray ones are left out.
 * @returns {?{center: number[], radius: number}} null without points
 */
export function robustSphere(coordinates) {
  const count = Math.floor(coordinates.length / 3);
  if (!count) return null;
  const center = [0, 0, 0];
  let squared = 0;
  for (let axis = 0; axis < 3; axis++) {
    const along = Float32Array.from({ length: count }, (_, i) => coordinates[3 * i + axis]).sort();
    const low = along[Math.floor(0.03 * (count - 1))];
    const high = along[Math.ceil(0.97 * (count - 1))];
    center[axis] = (low + high) / 2;
    squared += ((high - low) / 2) ** 2;
  }
  return { center, radius: Math.sqrt(squared) || 1 };
}
