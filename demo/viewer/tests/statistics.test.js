import assert from "node:assert/strict";
import { test } from "node:test";
import { robustSphere, Sample } from "../src/statistics.js";

test("percentiles of a sample are those of the numbers it was taken from", () => {
  const sample = new Sample();
  // 1600 numbers in random order: the first sixteenth of 0, 1/100, 2/100 ... is every hundredth.
  for (let chunk = 0; chunk < 20; chunk++) sample.add(1600, (i) => i);
  assert.equal(sample.length, 2000);
  assert.equal(sample.percentile(0), 0);
  assert.equal(sample.percentile(50), 50);
  assert.equal(sample.percentile(100), 99);
});

test("a sample goes on after it was asked", () => {
  const sample = new Sample();
  assert.equal(sample.percentile(50), null);
  sample.add(1, () => 3);
  assert.equal(sample.percentile(50), 3);
  sample.add(1, () => 1);
  assert.equal(sample.percentile(0), 1);
});

test("a stray point does not change the sphere around a scene", () => {
  const cube = [];
  for (let i = 0; i < 1000; i++) cube.push(i % 10, Math.floor(i / 10) % 10, Math.floor(i / 100));
  const sphere = robustSphere(cube);
  assert.deepEqual(sphere.center, [4.5, 4.5, 4.5]);
  assert.ok(Math.abs(sphere.radius - 4.5 * Math.sqrt(3)) < 1e-6);
  assert.deepEqual(robustSphere([...cube, 1e6, 0, 0]).center, [4.5, 4.5, 4.5]);
});

test("a single point has a sphere, no point has none", () => {
  assert.deepEqual(robustSphere([1, 2, 3]), { center: [1, 2, 3], radius: 1 });
  assert.equal(robustSphere([]), null);
});
