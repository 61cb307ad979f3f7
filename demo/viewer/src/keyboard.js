// Keys, while the focus is inside the viewer.

const TURN = 0.12;
const ZOOM = 1.15;

const OWN_KEYS = {
  range: /^(Arrow.*|Home|End|Page.*)$/,
  select: /^(Arrow.*|Home|End| |Enter|[a-z0-9])$/i,
  button: /^( |Enter)$/,
  checkbox: /^ $/,
};

/** Whether the control that has the focus needs this key itself. */
export function belongsToControl(target, key) {
  if (target.tagName === "SELECT") return OWN_KEYS.select.test(key);
  if (target.tagName === "BUTTON" || target.tagName === "A") return OWN_KEYS.button.test(key);
  if (target.tagName === "INPUT") return OWN_KEYS[target.type]?.test(key) ?? true;
  return false;
}

/** What each key does, given the viewer's commands. */
export function keyCommands(commands) {
  return {
    " ": () => commands.togglePlay(),
    ArrowLeft: () => commands.step(-1),
    ArrowRight: () => commands.step(1),
    Home: () => commands.seek(0),
    End: () => commands.toEdge(),
    "Shift+ArrowLeft": () => commands.turn(-TURN, 0),
    "Shift+ArrowRight": () => commands.turn(TURN, 0),
    "Shift+ArrowUp": () => commands.turn(0, -TURN),
    "Shift+ArrowDown": () => commands.turn(0, TURN),
    "+": () => commands.zoom(1 / ZOOM),
    "=": () => commands.zoom(1 / ZOOM),
    "-": () => commands.zoom(ZOOM),
    1: () => commands.setView("orbit"),
    2: () => commands.setView("follow"),
    3: () => commands.setView("through"),
    f: () => commands.fit(),
    c: () => commands.nextColors(),
    a: () => commands.toggleExtent(),
    t: () => commands.toggleCameras(),
    x: () => commands.toggleFullscreen(),
    s: () => commands.saveScreenshot(),
    "?": () => commands.toggleHelp(),
    Escape: () => commands.closeHelp(),
  };
}

/** Listen for keys inside `root`. */
export function listenToKeys(root, commands) {
  const actions = keyCommands(commands);
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || belongsToControl(event.target, event.key)) return;
    const name = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const action = actions[event.shiftKey && name.startsWith("Arrow") ? `Shift+${name}` : name];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  });
}
