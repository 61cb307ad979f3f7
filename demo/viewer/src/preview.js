// The pictures beside the scene: the frame in work and its depth map.

/** Draws JPEG files into a canvas; when they come faster than they decode, those in between are left out. */
export class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    // Small pictures that change often: drawn by the processor, they do not queue behind the scene.
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.isDrawing = false;
  }

  /** Show a JPEG file, or nothing where `file` is null. */
  async show(file, label) {
    this.canvas.setAttribute("aria-label", label);
    this.wanted = { file, label };
    if (this.isDrawing) return;
    this.isDrawing = true;
    while (this.wanted) {
      const { wanted } = this;
      this.wanted = null;
      await this.#draw(wanted);
    }
    this.isDrawing = false;
  }

  async #draw({ file, label }) {
    const { canvas, context } = this;
    if (!file) {
      context.clearRect(0, 0, canvas.width, canvas.height);
      return;
    }
    try {
      const bitmap = await createImageBitmap(new Blob([file], { type: "image/jpeg" }));
      if (canvas.width !== bitmap.width || canvas.height !== bitmap.height) {
        canvas.width = bitmap.width;
        canvas.height = bitmap.height;
        canvas.style.aspectRatio = `${bitmap.width} / ${bitmap.height}`;
      }
      context.drawImage(bitmap, 0, 0);
      bitmap.close();
    } catch {
      canvas.setAttribute("aria-label", `${label}: the picture is broken`);
    }
  }
}
