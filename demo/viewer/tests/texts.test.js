import assert from "node:assert/strict";
import { test } from "node:test";
import { belongsToControl } from "../src/keyboard.js";
import * as texts from "../src/texts.js";

test("times and sizes read well", () => {
  assert.deepEqual([0, 5.04, 59.96, 61.5].map(texts.clock), ["0:00.0", "0:05.0", "1:00.0", "1:01.5"]);
  assert.deepEqual([2048, 3 << 20, 1.5 * 2 ** 30].map(texts.bytes), ["2 KiB", "3.0 MiB", "1.50 GiB"]);
});

test("numbers that are not known are left out", () => {
  assert.deepEqual(texts.numbers(null, { frames: 0, points: 0 }), []);
  const manifest = { total: 40, stats: { frames_per_s: 2.04, cache_bytes: 1 << 20 } };
  assert.deepEqual(texts.numbers(manifest, { frames: 12, points: 45210 }), [
    ["Frames", "12 of 40"],
    ["Points", "45,210"],
    ["Speed", "2.0 frames/s"],
    ["Cache", "1.0 MiB"],
  ]);
});

test("that only some points are drawn is said", () => {
  const rows = texts.numbers(null, { frames: 1, points: 2_000_000, drawnShare: 0.5 });
  assert.deepEqual(rows.at(-1), ["Drawn of them", "50 %"]);
});

test("the place in the queue is told", () => {
  assert.equal(texts.badge({ status: "queued", queue_position: 2 }), "Waiting, 2 ahead");
  assert.equal(texts.badge({ status: "queued", queue_position: 0 }), "Next in the queue");
  assert.equal(texts.badge({ status: "running", title: "a.mp4" }), "Running · a.mp4");
});

test("there is a word for every state without a scene, and none over a scene", () => {
  const title = (state) => texts.placeholder({ manifest: null, frames: 0, hasWebgl: true, isGone: false, ...state })?.title;
  assert.equal(title({}), "No scene yet");
  assert.equal(title({ manifest: { status: "running" } }), "Working on the first frame");
  assert.equal(title({ manifest: { status: "failed" } }), "The run failed");
  assert.equal(title({ manifest: { status: "done", count: 3 } }), "Loading the scene");
  assert.equal(title({ manifest: { status: "done", count: 0 } }), "No frames");
  assert.equal(title({ isGone: true }), "This scene is not here any more");
  assert.equal(title({ hasWebgl: false, frames: 3 }), "3D cannot be shown here");
  assert.equal(title({ frames: 3 }), undefined);
});

test("a control keeps the keys that it needs itself", () => {
  const slider = { tagName: "INPUT", type: "range" };
  assert.equal(belongsToControl(slider, "ArrowLeft"), true);
  assert.equal(belongsToControl(slider, "f"), false);
  assert.equal(belongsToControl({ tagName: "SELECT" }, "c"), true);
  assert.equal(belongsToControl({ tagName: "BUTTON" }, " "), true);
  assert.equal(belongsToControl({ tagName: "BUTTON" }, "ArrowLeft"), false);
  assert.equal(belongsToControl({ tagName: "DIV" }, " "), false);
});
