// Light or dark, as the page around: Gradio's class, or what the system asks for.

/** Keep `host`'s `data-theme` right; calls `onChange(isDark)` at once and after every change. Returns how to stop. */
export function followTheme(host, onChange) {
  const system = globalThis.matchMedia("(prefers-color-scheme: dark)");
  let before = null;
  const update = () => {
    const isGradio = getComputedStyle(host).getPropertyValue("--body-text-color") !== "";
    const isDark = isGradio ? document.querySelector("html.dark, body.dark, gradio-app.dark") !== null : system.matches;
    if (isDark === before) return;
    before = isDark;
    host.dataset.theme = isDark ? "dark" : "light";
    onChange(isDark);
  };
  const observer = new MutationObserver(update);
  for (const node of [document.documentElement, document.body]) {
    observer.observe(node, { attributes: true, attributeFilter: ["class"] });
  }
  system.addEventListener("change", update);
  update();
  return () => {
    observer.disconnect();
    system.removeEventListener("change", update);
  };
}
