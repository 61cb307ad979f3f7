// Reads one chunk: a binary glTF 2.0 file with the new points of one frame, its camera and its two pictures.
// Reads the subset that the package writes, checks what it reads and says what is wrong.

const MAGIC = 0x46546c67;
const JSON_CHUNK = 0x4e4f534a;
const BINARY_CHUNK = 0x004e4942;

const COMPONENTS = {
  5121: { size: 1, highest: 255, read: (view, at) => view.getUint8(at) },
  5123: { size: 2, highest: 65535, read: (view, at) => view.getUint16(at, true) },
  5126: { size: 4, highest: 1, read: (view, at) => view.getFloat32(at, true) },
};
const COMPONENTS_OF_TYPE = { SCALAR: 1, VEC2: 2, VEC3: 3, VEC4: 4 };

/** A chunk that cannot be read; the message says why. */
export class ChunkError extends Error {}

/**
 * Read a chunk.
 *
 * Positions and the camera's pose are in glTF axes (x right, y up, z back). Colours are linear, 0 to 65535, with a
 * fourth, unused value a point. Confidences are as in the file.
 *
 * @param {ArrayBuffer} buffer
 * @returns {{points: ?{count: number, positions: Float32Array, colors: Uint16Array, confidences: Float32Array},
 *   camera: {matrix: number[], fovY: number, aspect: number}, timeS: ?number, imageHw: ?number[],
 *   pictures: {image: ?Uint8Array, depth: ?Uint8Array}}}
 *   `matrix` is camera-to-world, 16 numbers column by column; `fovY` in radians; pictures are JPEG files.
 * @throws {ChunkError}
 */
export function readChunk(buffer) {
  const { document, binary } = readContainer(buffer);
  const nodes = list(document.nodes);
  const cameraNode = nodes.find((node) => Number.isInteger(node?.camera));
  require(cameraNode, "it has no camera");
  const pointNode = nodes.find((node) => node?.name === "points");
  const extras = cameraNode.extras ?? {};
  return {
    points: pointNode ? readPoints(document, binary, pointNode) : null,
    camera: readCamera(document, cameraNode),
    timeS: Number.isFinite(extras.time_s) ? extras.time_s : null,
    imageHw: extras.image_hw ?? null,
    pictures: { image: readPicture(document, binary, "image"), depth: readPicture(document, binary, "depth") },
  };
}

function require(condition, problem) {
  if (!condition) throw new ChunkError(`This is not a readable GLB chunk: ${problem}.`);
}

const list = (value) => (Array.isArray(value) ? value : []);

function readContainer(buffer) {
  require(buffer.byteLength >= 20, `it has ${buffer.byteLength} bytes`);
  const view = new DataView(buffer);
  require(view.getUint32(0, true) === MAGIC, "it does not begin with glTF");
  require(view.getUint32(4, true) === 2, `its version is ${view.getUint32(4, true)}, not 2`);
  const length = view.getUint32(8, true);
  require(length === buffer.byteLength, `it should have ${length} bytes and has ${buffer.byteLength}`);
  const parts = {};
  for (let at = 12; at + 8 <= length; ) {
    const size = view.getUint32(at, true);
    require(at + 8 + size <= length, "a part reaches beyond its end");
    parts[view.getUint32(at + 4, true)] ??= new Uint8Array(buffer, at + 8, size);
    at += 8 + size;
  }
  require(parts[JSON_CHUNK], "it has no JSON");
  try {
    const document = JSON.parse(new TextDecoder().decode(parts[JSON_CHUNK]));
    require(document && typeof document === "object", "its JSON is no object");
    return { document, binary: parts[BINARY_CHUNK] ?? new Uint8Array(0) };
  } catch (error) {
    if (error instanceof ChunkError) throw error;
    throw new ChunkError(`This is not a readable GLB chunk: its JSON is broken (${error.message}).`);
  }
}

function viewBytes(document, binary, index) {
  const view = list(document.bufferViews)[index];
  require(view, `buffer view ${index} is missing`);
  const offset = view.byteOffset ?? 0;
  require(offset >= 0 && view.byteLength >= 0 && offset + view.byteLength <= binary.byteLength, "it is cut off");
  return { bytes: binary.subarray(offset, offset + view.byteLength), stride: view.byteStride };
}

function readPoints(document, binary, node) {
  require(!node.matrix && !node.translation && !node.rotation && !node.scale, "its points are moved by their node");
  const attributes = list(document.meshes)[node.mesh]?.primitives?.[0]?.attributes ?? {};
  const count = list(document.accessors)[attributes.POSITION]?.count;
  require(Number.isInteger(count) && count > 0, "its points have no positions");
  const positions = new Float32Array(count * 3);
  readAccessor(document, binary, attributes.POSITION, positions, 3, 1);
  require(positions.every(Number.isFinite), "a position is not finite");
  const colors = new Uint16Array(count * 4).fill(65535);
  if (attributes.COLOR_0 !== undefined) readAccessor(document, binary, attributes.COLOR_0, colors, 4, 65535);
  const confidences = new Float32Array(count).fill(1);
  if (attributes._CONFIDENCE !== undefined) readAccessor(document, binary, attributes._CONFIDENCE, confidences, 1, 1);
  return { count, positions, colors, confidences };
}

/** Copy an accessor into `target`, which holds `width` values an element; 1 in the file becomes `one`. */
function readAccessor(document, binary, index, target, width, one) {
  const accessor = list(document.accessors)[index];
  const component = COMPONENTS[accessor?.componentType];
  const inFile = COMPONENTS_OF_TYPE[accessor?.type];
  const count = target.length / width;
  require(component && inFile, `accessor ${index} has a type that is not read here`);
  require(accessor.count === count, `accessor ${index} has ${accessor.count} elements, not ${count}`);
  const { bytes, stride = component.size * inFile } = viewBytes(document, binary, accessor.bufferView);
  const start = accessor.byteOffset ?? 0;
  require(start + stride * (count - 1) + component.size * inFile <= bytes.byteLength, `accessor ${index} is cut off`);
  const view = new DataView(bytes.buffer, bytes.byteOffset + start, bytes.byteLength - start);
  const copied = Math.min(width, inFile);
  const scale = (accessor.normalized || component.size === 4) ? one / component.highest : 1;
  for (let element = 0; element < count; element++) {
    for (let k = 0; k < copied; k++) {
      target[element * width + k] = component.read(view, element * stride + k * component.size) * scale;
    }
  }
}

function readCamera(document, node) {
  const lens = list(document.cameras)[node.camera]?.perspective;
  const matrix = node.matrix ?? [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1];
  require(list(matrix).length === 16 && matrix.every(Number.isFinite), "the pose of its camera is no 4x4 matrix");
  require(lens?.yfov > 0 && lens.yfov < Math.PI, "its camera has no field of view");
  return { matrix, fovY: lens.yfov, aspect: lens.aspectRatio > 0 ? lens.aspectRatio : 1 };
}

function readPicture(document, binary, name) {
  const image = list(document.images).find((candidate) => candidate?.name === name);
  return image ? viewBytes(document, binary, image.bufferView).bytes : null;
}
