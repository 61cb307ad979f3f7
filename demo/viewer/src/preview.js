// The pictures beside the scene: the frame in work and its depth map.

/** Draws JPEG files into a canvas; when they come faster than they decode, only the newest counts. */
export class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.wanted = 0;
  }

  /** Show a JPEG file, or nothing where `file` is null. */
  async show(file, label) {
    const ticket = ++this.wanted;
    this.canvas.setAttribute("aria-label", label);
    if (!file) {
      this.canvas.getContext("2d").clearRect(0, 0, this.canvas.width, this.canvas.height);
      return;
    }
    try {
      const bitmap = await createImageBitmap(new Blob([file], { type: "image/jpeg" }));
      if (ticket !== this.wanted) return;
      if (this.canvas.width !== bitmap.width || this.canvas.height !== bitmap.height) {
        this.canvas.width = bitmap.width;
        this.canvas.height = bitmap.height;
        this.canvas.style.aspectRatio = `${bitmap.width} / ${bitmap.height}`;
      }
      this.canvas.getContext("2d").drawImage(bitmap, 0, 0);
      bitmap.close();
    } catch {
      if (ticket === this.wanted) this.canvas.setAttribute("aria-label", `${label}: the picture is broken`);
    }
  }
}
