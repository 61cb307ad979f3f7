// Runs once, with `element`, `props` and `watch` from Gradio: mounts the viewer and tells it which run to show.
const REMEMBERED = "streamvggt-run";
const root = (window.gradio_config?.root ?? "").replace(/\/$/, "");
const place = element.querySelector(".stage");
let current = "";
let viewer = null;

function remember(run) {
  try {
    if (run) sessionStorage.setItem(REMEMBERED, run);
    else sessionStorage.removeItem(REMEMBERED);
  } catch {
    // A browser that forbids storage only forgets the run on reload.
  }
}

function remembered() {
  try {
    return sessionStorage.getItem(REMEMBERED) ?? "";
  } catch {
    return "";
  }
}

/** The address names the run of a link; a reload must not bring that back in place of what came after it. */
function forgetLink(run) {
  const address = new URL(location.href);
  if (address.searchParams.get("run") === run || !address.searchParams.has("run")) return;
  address.searchParams.delete("run");
  history.replaceState(history.state, "", address);
}

function open(run) {
  current = run;
  remember(run);
  forgetLink(run);
  viewer?.open(run || null);
}

function loadBundle() {
  window.streamvggtBundle ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `${root}/runs/viewer.js`;
    script.onload = resolve;
    script.onerror = () => reject(new Error("the viewer could not be loaded"));
    document.head.append(script);
  });
  return window.streamvggtBundle;
}

async function isKnown(run) {
  try {
    return (await fetch(`${root}/runs/${encodeURIComponent(run)}/manifest`)).status !== 404;
  } catch {
    return true; // The viewer tells of a lost connection better.
  }
}

window.streamvggtPage = {
  root,
  open,
  /** The run that is shown, or "". */
  current: () => current,
  viewer: () => viewer,
};

watch("value", () => {
  if (props.value) open(props.value);
});

async function mount() {
  try {
    await loadBundle();
    viewer = StreamVGGT.mount(place, { root });
  } catch (error) {
    const message = document.createElement("p");
    message.setAttribute("role", "alert");
    message.textContent = `The 3D viewer does not start here: ${error.message}. Reload the page to try again.`;
    place.replaceChildren(message);
    return;
  }
  const asked = new URLSearchParams(location.search).get("run");
  const linked = asked && !/^[\w-]+$/.test(asked) ? "no-run" : asked;
  const left = remembered();
  if (current) viewer.open(current);
  else if (linked) open(linked);
  else if (left && (await isKnown(left))) open(left);
  else if (props.first) viewer.open(props.first);
}

mount();
