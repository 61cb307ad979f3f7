import assert from "node:assert/strict";
import { test } from "node:test";
import { ChunkError, readChunk } from "../src/glb.js";

/** A GLB of one point at (1, 2, 3), half red, confidence 5; `change` may spoil its JSON. */
function glb(change = () => {}, { cut = 0, magic = "glTF" } = {}) {
  const vertex = Buffer.alloc(24);
  [1, 2, 3].forEach((value, i) => vertex.writeFloatLE(value, 4 * i));
  [32768, 0, 65535].forEach((value, i) => vertex.writeUInt16LE(value, 12 + 2 * i));
  vertex.writeFloatLE(5, 20);
  const binary = Buffer.concat([vertex, Buffer.from([255, 216, 7, 0])]);
  const view = { bufferView: 0, count: 1 };
  const document = {
    asset: { version: "2.0" },
    nodes: [
      { name: "points", mesh: 0 },
      {
        name: "frame_000004",
        camera: 0,
        matrix: [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 7, 8, 9, 1],
        extras: { frame: 4, time_s: 2.5, image_hw: [30, 40] },
      },
    ],
    cameras: [{ type: "perspective", perspective: { yfov: 0.5, aspectRatio: 2, znear: 0.01 } }],
    meshes: [{ primitives: [{ mode: 0, attributes: { POSITION: 0, COLOR_0: 1, _CONFIDENCE: 2 } }] }],
    accessors: [
      { ...view, componentType: 5126, type: "VEC3" },
      { ...view, byteOffset: 12, componentType: 5123, normalized: true, type: "VEC3" },
      { ...view, byteOffset: 20, componentType: 5126, type: "SCALAR" },
    ],
    bufferViews: [
      { buffer: 0, byteOffset: 0, byteLength: 24, byteStride: 24 },
      { buffer: 0, byteOffset: 24, byteLength: 3 },
    ],
    images: [{ name: "image", mimeType: "image/jpeg", bufferView: 1 }],
    buffers: [{ byteLength: 28 }],
  };
  change(document);
  let text = Buffer.from(JSON.stringify(document));
  text = Buffer.concat([text, Buffer.alloc((4 - (text.length % 4)) % 4, " ")]);
  const head = (size, kind) => {
    const bytes = Buffer.alloc(8);
    bytes.writeUInt32LE(size, 0);
    bytes.write(kind, 4, "latin1");
    return bytes;
  };
  const body = Buffer.concat([head(text.length, "JSON"), text, head(binary.length, "BIN\0"), binary]);
  const start = Buffer.alloc(12);
  start.write(magic);
  start.writeUInt32LE(2, 4);
  start.writeUInt32LE(12 + body.length, 8);
  const all = Buffer.concat([start, body]).subarray(0, 12 + body.length - cut);
  return all.buffer.slice(all.byteOffset, all.byteOffset + all.length);
}

test("points, camera and pictures are read", () => {
  const chunk = readChunk(glb());
  assert.equal(chunk.points.count, 1);
  assert.deepEqual([...chunk.points.positions], [1, 2, 3]);
  assert.deepEqual([...chunk.points.colors.subarray(0, 3)], [32768, 0, 65535]);
  assert.deepEqual([...chunk.points.confidences], [5]);
  assert.deepEqual(chunk.camera.matrix.slice(12), [7, 8, 9, 1]);
  assert.deepEqual([chunk.camera.fovY, chunk.camera.aspect, chunk.timeS], [0.5, 2, 2.5]);
  assert.deepEqual([...chunk.pictures.image], [255, 216, 7]);
  assert.equal(chunk.pictures.depth, null);
});

test("a frame may bring no new point", () => {
  assert.equal(readChunk(glb((document) => document.nodes.shift())).points, null);
});

test("without colours points are white, without confidences they are sure", () => {
  const { points } = readChunk(glb((document) => {
    const { attributes } = document.meshes[0].primitives[0];
    delete attributes.COLOR_0;
    delete attributes._CONFIDENCE;
  }));
  assert.deepEqual([...points.colors.subarray(0, 3)], [65535, 65535, 65535]);
  assert.deepEqual([...points.confidences], [1]);
});

const spoiled = {
  "it is cut off": [(document) => (document.bufferViews[0].byteLength = 999)],
  "accessor 2 is cut off": [(document) => (document.accessors[2].byteOffset = 21)],
  "its points have no positions": [(document) => delete document.accessors],
  "accessor 1 has 3 elements, not 1": [(document) => (document.accessors[1].count = 3)],
  "accessor 0 has a type that is not read here": [(document) => (document.accessors[0].componentType = 5125)],
  "it has no camera": [(document) => document.nodes.pop()],
  "the pose of its camera is no 4x4 matrix": [(document) => (document.nodes[1].matrix = [1, 2])],
  "its camera has no field of view": [(document) => delete document.cameras],
  "its points are moved by their node": [(document) => (document.nodes[0].translation = [0, 0, 1])],
  "it does not begin with glTF": [undefined, { magic: "PNG!" }],
  "it should have": [undefined, { cut: 4 }],
  "buffer view 1 is missing": [(document) => document.bufferViews.pop()],
};
for (const [problem, [change, options]] of Object.entries(spoiled)) {
  test(`what is wrong is said: ${problem}`, () => {
    assert.throws(() => readChunk(glb(change, options)), (error) => {
      assert.ok(error instanceof ChunkError);
      assert.ok(error.message.includes(problem), error.message);
      return true;
    });
  });
}

test("a position that is not finite is refused", () => {
  const buffer = glb();
  const bytes = new Uint8Array(buffer);
  const at = Buffer.from(buffer).indexOf(Buffer.from([0, 0, 128, 63, 0, 0, 0, 64]));
  bytes.set([0, 0, 192, 127], at);
  assert.throws(() => readChunk(buffer), /not finite/);
});

test("anything else is refused too", () => {
  assert.throws(() => readChunk(new ArrayBuffer(0)), ChunkError);
  assert.throws(() => readChunk(new TextEncoder().encode("<html>an error page of a proxy</html>").buffer), ChunkError);
});
