// Where the viewer stands in time: a position among the frames that are there, at rest, playing, or at the live edge.

/**
 * The state of the timeline. `onChange()` is called after every change.
 *
 * While `atEdge`, the position moves along with the newest frame; going anywhere else leaves the edge.
 */
export class Timeline {
  constructor(onChange = () => {}) {
    this.onChange = onChange;
    this.#empty();
  }

  /** Begin anew, without frames. */
  reset() {
    this.#empty();
    this.onChange();
  }

  /** One more frame is there. */
  append() {
    this.count++;
    if (this.atEdge) this.position = this.count - 1;
    this.onChange();
  }

  /** Go to a frame, the nearest there is. The last one is the live edge. */
  seek(position) {
    if (!this.count) return;
    this.position = Math.min(Math.max(Math.round(position), 0), this.count - 1);
    this.atEdge = this.position === this.count - 1;
    this.onChange();
  }

  /** Go some frames on or back, and stop playing. */
  step(frames) {
    this.isPlaying = false;
    this.seek(this.position + frames);
  }

  /** Stop playing and stay with the newest frame. */
  toEdge() {
    this.isPlaying = false;
    this.seek(this.count - 1);
  }

  /** Play from here, or from the start when at the end. */
  play() {
    if (this.count < 2) return;
    this.isPlaying = true;
    if (this.atEdge) this.seek(0);
    else this.onChange();
  }

  pause() {
    this.isPlaying = false;
    this.onChange();
  }

  /** The next frame while playing; reaching the newest one ends the playing. */
  advance() {
    if (!this.isPlaying) return;
    if (this.position + 1 >= this.count - 1) this.isPlaying = false;
    this.seek(this.position + 1);
  }

  #empty() {
    this.count = 0;
    this.position = -1;
    this.atEdge = true;
    this.isPlaying = false;
  }
}
