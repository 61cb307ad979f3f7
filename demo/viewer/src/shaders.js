// How points and camera frames are coloured and sized. Everything a control changes is a uniform.

export const COLOR_MODES = ["image", "depth", "confidence", "time"];

// First to last frame; the exported files use the same three colours.
export const TIME_COLORS = [
  [60, 100, 230],
  [220, 60, 160],
  [250, 160, 30],
];

// Near to far, by the logarithm of depth; the depth maps have the same nine.
const DEPTH_COLORS = [
  [254, 232, 150],
  [252, 195, 112],
  [252, 153, 89],
  [251, 101, 87],
  [220, 63, 128],
  [169, 49, 163],
  [107, 43, 179],
  [46, 34, 168],
  [4, 10, 141],
];

const glslColor = (rgb) => `vec3(${rgb.map((value) => (value / 255).toFixed(4)).join(", ")})`;

const RAMPS = /* glsl */ `
  vec3 timeColor(float t) {
    t = clamp(t, 0.0, 1.0) * 2.0;
    return t < 1.0 ? mix(${glslColor(TIME_COLORS[0])}, ${glslColor(TIME_COLORS[1])}, t)
                   : mix(${glslColor(TIME_COLORS[1])}, ${glslColor(TIME_COLORS[2])}, t - 1.0);
  }
  vec3 depthColor(float t) {
    const vec3 colors[${DEPTH_COLORS.length}] = vec3[](${DEPTH_COLORS.map(glslColor).join(", ")});
    t = clamp(t, 0.0, 1.0) * ${DEPTH_COLORS.length - 1}.0;
    int below = min(int(t), ${DEPTH_COLORS.length - 2});
    return mix(colors[below], colors[below + 1], t - float(below));
  }
  // Dark violet to yellow, even in lightness and safe for the colour-blind.
  vec3 valueColor(float t) {
    t = clamp(t, 0.0, 1.0) * 4.0;
    vec3 a = vec3(0.267, 0.005, 0.329), b = vec3(0.231, 0.322, 0.545), c = vec3(0.129, 0.569, 0.549);
    vec3 d = vec3(0.369, 0.788, 0.384), e = vec3(0.992, 0.906, 0.145);
    if (t < 1.0) return mix(a, b, t);
    if (t < 2.0) return mix(b, c, t - 1.0);
    if (t < 3.0) return mix(c, d, t - 2.0);
    return mix(d, e, t - 3.0);
  }
`;

// Colours are sRGB; the frame's number travels in their fourth value. `depth` is z in the frame's own camera.
export const POINT_VERTEX_SHADER = /* glsl */ `
  in vec4 color;
  in float confidence;
  in float depth;
  uniform int mode;
  uniform vec2 frames;
  uniform float confidenceThreshold, lastFrame, pointScale, pixelsPerUnit, leastPixels, mostPixels;
  uniform vec2 depthRange, confidenceRange;
  out vec3 pointColor;
  out float pointSize;
  ${RAMPS}
  void main() {
    float frame = floor(color.w * 65535.0 + 0.5);
    if (frame < frames.x || frame > frames.y || confidence < confidenceThreshold) {
      gl_Position = vec4(0.0, 0.0, 2.0, 1.0);
      gl_PointSize = 1.0;
      return;
    }
    vec4 seen = modelViewMatrix * vec4(position, 1.0);
    gl_Position = projectionMatrix * seen;
    // A pixel far from its camera stands for a larger patch than a near one.
    pointSize = clamp(pixelsPerUnit * pointScale * max(depth, 0.0) / max(-seen.z, 1e-6), leastPixels, mostPixels);
    gl_PointSize = pointSize;
    if (mode == 0) pointColor = color.rgb;
    else if (mode == 1) pointColor = depthColor(log(max(depth, 1e-6) / depthRange.x) / log(depthRange.y / depthRange.x));
    else if (mode == 2) pointColor = valueColor((confidence - confidenceRange.x) / (confidenceRange.y - confidenceRange.x));
    else pointColor = timeColor(frame / lastFrame);
  }
`;

// Without ROUND the card can skip what is hidden before it runs this: in software that is worth the square corners.
export const POINT_FRAGMENT_SHADER = /* glsl */ `
  in vec3 pointColor;
  in float pointSize;
  out vec4 fragment;
  void main() {
    #ifdef ROUND
      vec2 fromCentre = gl_PointCoord - 0.5;
      if (pointSize > 3.0 && dot(fromCentre, fromCentre) > 0.25) discard;
    #endif
    fragment = vec4(pointColor, 1.0);
  }
`;

// A camera frame is drawn as lines from `position` (its centre) by `corner`, scaled to the size of the scene.
export const CAMERA_VERTEX_SHADER = /* glsl */ `
  in vec3 corner;
  in float frame;
  uniform float reach, lastFrame, currentFrame, every;
  out vec4 lineColor;
  ${RAMPS}
  void main() {
    bool isCurrent = frame == currentFrame;
    vec3 end = position + corner * reach * (isCurrent ? 1.8 : 1.0);
    gl_Position = projectionMatrix * modelViewMatrix * vec4(end, 1.0);
    // Of a long path only some pyramids are drawn, and always the present one; lines of length 0 are none.
    if (mod(frame, every) != 0.0 && !isCurrent) gl_Position = projectionMatrix * modelViewMatrix * vec4(position, 1.0);
    lineColor = vec4(timeColor(frame / lastFrame), isCurrent ? 1.0 : 0.55);
  }
`;

export const CAMERA_FRAGMENT_SHADER = /* glsl */ `
  in vec4 lineColor;
  out vec4 fragment;
  void main() { fragment = lineColor; }
`;
