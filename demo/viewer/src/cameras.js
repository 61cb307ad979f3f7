// The path of the camera and a small pyramid for every frame, as lines.

import { BufferAttribute, BufferGeometry, DynamicDrawUsage, GLSL3, Group, Line, LineSegments, ShaderMaterial } from "three";
import { CAMERA_FRAGMENT_SHADER, CAMERA_VERTEX_SHADER } from "./shaders.js";

// Ends of the eight edges of a pyramid: 0 is the camera's centre, 1 to 4 the corners of its picture; then the two edges
// of a small roof that says which way is up.
const EDGES = [0, 1, 0, 2, 0, 3, 0, 4, 1, 2, 2, 3, 3, 4, 4, 1, 1, 5, 5, 2];
const ENDS = EDGES.length;
const MOST_PYRAMIDS = 60;

/** All cameras of a scene, as one object for three.js: `group`. */
export class Cameras {
  constructor() {
    this.uniforms = { reach: { value: 0.1 }, lastFrame: { value: 1 }, currentFrame: { value: -1 }, every: { value: 1 } };
    const material = new ShaderMaterial({
      glslVersion: GLSL3,
      vertexShader: CAMERA_VERTEX_SHADER,
      fragmentShader: CAMERA_FRAGMENT_SHADER,
      uniforms: this.uniforms,
      transparent: true,
    });
    this.frusta = new LineSegments(new BufferGeometry(), material);
    this.path = new Line(new BufferGeometry(), material);
    this.group = new Group();
    for (const object of [this.frusta, this.path]) {
      object.frustumCulled = false;
      object.matrixAutoUpdate = false;
      this.group.add(object);
    }
    this.clear();
  }

  clear() {
    this.count = 0;
    this.#reserve(64);
    this.show(-1);
  }

  /** Add a camera: `matrix` is camera-to-world, column by column; `fovY` in radians. */
  append({ matrix, fovY, aspect }) {
    if (this.count === this.capacity) this.#reserve(2 * this.capacity);
    const height = Math.tan(fovY / 2);
    const width = height * aspect;
    const inCamera = [[0, 0, 0], [-width, height, -1], [width, height, -1], [width, -height, -1], [-width, -height, -1],
      [0, 1.5 * height, -1]];
    const corners = inCamera.map(([x, y, z]) =>
      [0, 1, 2].map((axis) => matrix[axis] * x + matrix[4 + axis] * y + matrix[8 + axis] * z));
    const center = matrix.slice(12, 15);
    EDGES.forEach((corner, end) => write(this.frusta.geometry, this.count * ENDS + end, center, corners[corner], this.count));
    write(this.path.geometry, this.count, center, [0, 0, 0], this.count);
    this.count++;
  }

  /** Show the cameras up to `frame`, and that one larger. */
  show(frame) {
    this.uniforms.currentFrame.value = frame;
    this.uniforms.every.value = Math.ceil((frame + 1) / MOST_PYRAMIDS);
    this.frusta.geometry.setDrawRange(0, ENDS * (frame + 1));
    this.path.geometry.setDrawRange(0, frame + 1);
  }

  #reserve(capacity) {
    this.capacity = capacity;
    for (const [object, vertices] of [[this.frusta, ENDS], [this.path, 1]]) {
      const larger = new BufferGeometry();
      for (const [name, width] of [["position", 3], ["corner", 3], ["frame", 1]]) {
        const values = new Float32Array(capacity * vertices * width);
        if (this.count) values.set(object.geometry.attributes[name].array.subarray(0, this.count * vertices * width));
        larger.setAttribute(name, new BufferAttribute(values, width).setUsage(DynamicDrawUsage));
      }
      object.geometry.dispose();
      object.geometry = larger;
    }
  }
}

function write(geometry, vertex, position, corner, frame) {
  for (const [name, values] of [["position", position], ["corner", corner], ["frame", [frame]]]) {
    const attribute = geometry.attributes[name];
    attribute.array.set(values, vertex * attribute.itemSize);
    attribute.addUpdateRange(vertex * attribute.itemSize, attribute.itemSize);
    attribute.needsUpdate = true;
  }
}
