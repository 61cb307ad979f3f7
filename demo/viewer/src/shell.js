// The viewer's own page: every element, by name. No behaviour.

import { icon } from "./icons.js";
import style from "./style.css";

/** An element with properties and children; strings become text, never markup. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in node && name !== "role") node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

const iconButton = (name, label) => element("button", { type: "button", className: "quiet", ariaLabel: label, title: label }, icon(name));

function choice(label, options) {
  const select = element("select", { ariaLabel: label }, ...options.map(([value, text]) => element("option", { value }, text)));
  return { select, field: element("label", { className: "field" }, element("span", {}, label), select) };
}

function slider(label, properties) {
  const input = element("input", { type: "range", ariaLabel: label, ...properties });
  // The value comes after the limits: the browser would cut it to the default ones.
  input.value = properties.value;
  const output = element("output");
  return { input, output, field: element("label", { className: "field" }, element("span", {}, label), input, output) };
}

/** One of several, as a row of buttons; `pressed` holds the value. */
function segments(label, options) {
  const buttons = options.map(([value, text, title]) =>
    element("button", { type: "button", value, title, ariaPressed: "false" }, text));
  return { buttons, field: element("div", { className: "segments", role: "group", ariaLabel: label }, ...buttons) };
}

const KEYS = [
  ["Space", "play or pause"],
  ["← →", "one frame back or on"],
  ["Home, End", "first frame, newest frame"],
  ["Shift + arrows", "turn the scene"],
  ["+ −", "nearer, farther"],
  ["1 2 3", "orbit, follow the camera, look through it"],
  ["F", "show the whole scene"],
  ["C", "next colouring"],
  ["A", "all points so far, or the new ones only"],
  ["T", "cameras on or off"],
  ["X", "full screen"],
  ["S", "save a picture"],
  ["?", "this help"],
];

function help() {
  const rows = KEYS.flatMap(([keys, text]) => [element("dt", {}, element("kbd", {}, keys)), element("dd", {}, text)]);
  const close = iconButton("close", "Close");
  const box = element("div", { className: "help", role: "dialog", ariaLabel: "Help", hidden: true, tabIndex: -1 },
    close,
    element("p", {}, "Drag to turn, right-drag or two fingers to move, wheel or pinch to come nearer."),
    element("dl", {}, ...rows));
  return { box, close };
}

/** Build the viewer's elements inside a shadow root. */
export function buildShell(shadow, height) {
  const parts = {};
  const colors = choice("Colour", [["image", "Image"], ["depth", "Depth"], ["confidence", "Confidence"], ["time", "Time"]]);
  const background = choice("Background", [["auto", "Auto"], ["black", "Black"], ["grey", "Grey"], ["white", "White"]]);
  const size = slider("Point size", { min: 0.3, max: 4, step: 0.1, value: 1 });
  const confidence = slider("Hide uncertain", { min: 0, max: 95, step: 1, value: 0 });
  const views = segments("View", [
    ["orbit", "Orbit", "Turn the scene freely (1)"],
    ["follow", "Follow", "Fly behind the camera of the video (2)"],
    ["through", "Through camera", "Look through the camera of the video (3)"],
  ]);
  const extent = segments("Points shown", [["all", "All so far", "The points of every frame up to this one (A)"], ["one", "New ones", "Only the points that this frame added (A)"]]);
  const cameras = element("input", { type: "checkbox", checked: true });
  const { box: helpBox, close: helpClose } = help();
  Object.assign(parts, {
    colors: colors.select, background: background.select, size: size.input, sizeOutput: size.output,
    confidence: confidence.input, confidenceOutput: confidence.output, views: views.buttons, extent: extent.buttons,
    cameras, helpBox, helpClose,
    fit: iconButton("fit", "Show the whole scene (F)"),
    screenshot: iconButton("screenshot", "Save a picture (S)"),
    fullscreen: iconButton("fullscreen", "Full screen (X)"),
    help: iconButton("help", "Help (?)"),
    play: iconButton("play", "Play"),
    back: iconButton("back", "One frame back"),
    forward: iconButton("forward", "One frame on"),
    time: element("input", { type: "range", className: "time", min: 0, max: 0, step: 1, value: 0, ariaLabel: "Frame" }),
    clock: element("output", { className: "clock" }),
    edge: element("button", { type: "button", className: "edge", title: "Go to the newest frame (End)" }, "Newest"),
    badge: element("div", { className: "badge" }),
    message: element("div", { className: "message" }),
    image: element("canvas", { role: "img", ariaLabel: "No frame yet" }),
    depth: element("canvas", { role: "img", ariaLabel: "No depth map yet" }),
    caption: element("figcaption", {}, "Frame"),
    numbers: element("dl", { className: "numbers" }),
    status: element("p", { className: "status" }),
    announcer: element("p", { className: "announcer", role: "status" }),
    stop: element("button", { type: "button", hidden: true }, icon("stop"), "Stop"),
    copy: element("button", { type: "button", hidden: true }, icon("link"), "Copy link"),
    downloads: element("nav", { className: "downloads", ariaLabel: "Downloads", hidden: true }),
  });
  parts.scene = element("div", { className: "scene", tabIndex: 0, role: "application", ariaLabel: "3D scene. Press question mark for the keys." });
  parts.stage = element("div", { className: "stage" },
    parts.scene, parts.message, parts.badge,
    element("div", { className: "corner" }, parts.fit, parts.screenshot, parts.fullscreen, parts.help),
    views.field, helpBox);
  parts.footer = element("footer", {}, parts.status, parts.downloads, parts.stop, parts.copy);
  parts.root = element("section", { className: "viewer", ariaLabel: "3D viewer" },
    parts.stage,
    element("div", { className: "pictures", role: "region", ariaLabel: "Frame, depth map and numbers", tabIndex: 0 },
      element("figure", {}, parts.image, parts.caption),
      element("figure", {}, parts.depth, element("figcaption", {}, "Its depth map")),
      parts.numbers),
    element("div", { className: "timeline" }, parts.back, parts.play, parts.forward, parts.time, parts.clock, parts.edge),
    element("div", { className: "controls" },
      extent.field, colors.field, size.field, confidence.field,
      element("label", { className: "field check" }, cameras, element("span", {}, "Cameras")), background.field),
    parts.footer,
    parts.announcer);
  const styles = element("style", {}, style);
  if (height) parts.root.style.setProperty("--stage-height", `${Number(height)}px`);
  shadow.append(styles, parts.root);
  return parts;
}
