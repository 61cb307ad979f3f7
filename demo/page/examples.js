// Runs once, with `element` from Gradio: a click on a card shows its example.
const root = (window.gradio_config?.root ?? "").replace(/\/$/, "");
for (const image of element.querySelectorAll("img[data-src]")) image.src = `${root}/${image.dataset.src}`;
for (const card of element.querySelectorAll("button[data-run]")) {
  card.addEventListener("click", () => window.streamvggtPage?.open(card.dataset.run));
}
