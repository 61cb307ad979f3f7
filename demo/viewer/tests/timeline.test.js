import assert from "node:assert/strict";
import { test } from "node:test";
import { Timeline } from "../src/timeline.js";

function withFrames(count) {
  const timeline = new Timeline();
  for (let i = 0; i < count; i++) timeline.append();
  return timeline;
}

test("at the edge the position moves along with the newest frame", () => {
  assert.equal(withFrames(3).position, 2);
});

test("going back leaves the edge, and new frames no longer move the position", () => {
  const timeline = withFrames(5);
  timeline.seek(1);
  timeline.append();
  assert.deepEqual([timeline.position, timeline.atEdge, timeline.count], [1, false, 6]);
  timeline.toEdge();
  timeline.append();
  assert.deepEqual([timeline.position, timeline.atEdge], [6, true]);
});

test("seeking ends at the frames that are there", () => {
  const timeline = withFrames(4);
  timeline.seek(-7);
  assert.equal(timeline.position, 0);
  timeline.seek(99);
  assert.deepEqual([timeline.position, timeline.atEdge], [3, true]);
});

test("seeking without frames does nothing", () => {
  const timeline = new Timeline();
  timeline.seek(2);
  assert.equal(timeline.position, -1);
});

test("playing from the end starts over, goes frame by frame and rests at the edge", () => {
  const timeline = withFrames(3);
  timeline.play();
  const seen = [timeline.position];
  while (timeline.isPlaying) {
    timeline.advance();
    seen.push(timeline.position);
  }
  assert.deepEqual(seen, [0, 1, 2]);
  assert.equal(timeline.atEdge, true);
});

test("playing from the middle goes on from there", () => {
  const timeline = withFrames(9);
  timeline.seek(4);
  timeline.play();
  timeline.advance();
  assert.equal(timeline.position, 5);
  timeline.step(-1);
  assert.deepEqual([timeline.position, timeline.isPlaying], [4, false]);
});

test("a single frame is not played", () => {
  const timeline = withFrames(1);
  timeline.play();
  assert.equal(timeline.isPlaying, false);
});

test("every change is told", () => {
  let changes = 0;
  const timeline = new Timeline(() => changes++);
  timeline.append();
  timeline.append();
  timeline.seek(0);
  timeline.reset();
  assert.equal(changes, 4);
});
