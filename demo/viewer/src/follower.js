// Follows a run on the server: waits for news of its manifest, fetches its chunks, hands both on in order.

const PARALLEL_FETCHES = 4;
const CHUNK_TRIES = 6;
// A server that answers a poll at once although nothing is new is not asked again at once.
const SHORTEST_POLL_MS = 500;
const FIRST_DELAY_MS = 300;
const LONGEST_DELAY_MS = 8000;
const FINISHED = new Set(["done", "stopped", "failed"]);

/** Whether a run with this status will not change any more. */
export const isFinished = (status) => FINISHED.has(status);

/** How long to wait before try number `tries` (from 0), milliseconds. */
export const backOff = (tries) => Math.min(FIRST_DELAY_MS * 2 ** tries, LONGEST_DELAY_MS);

/** Wait, but no longer than until the network is back. */
function sleep(ms) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      globalThis.removeEventListener?.("online", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    globalThis.addEventListener?.("online", done);
  });
}

/**
 * Follow one run at a time. Opening another drops every late answer of the one before.
 *
 * Callbacks: `onManifest(manifest)`; `onChunk(index, buffer)` in order, `buffer` null where a chunk could not be had;
 * `onConnection(isUp)`; `onGone(message)` when the server does not know the run; `onRenewed()` when the server has
 * written all chunks anew: they come again from the first one.
 */
export class Follower {
  /**
   * @param {object} callbacks
   * @param {{root?: string, fetch?: typeof fetch, sleep?: (ms: number) => Promise<void>}} environment
   *   `root`: the address of the page without a slash at its end.
   */
  constructor(callbacks, { root = "", fetch = (...args) => globalThis.fetch(...args), sleep: wait = sleep } = {}) {
    this.callbacks = callbacks;
    this.root = root.replace(/\/$/, "");
    this.fetch = fetch;
    this.sleep = wait;
    this.generation = 0;
    this.abort = null;
  }

  /** Follow `run`; null follows none. `edition` counts how often the server has written its chunks anew. */
  open(run, edition = 0) {
    this.generation++;
    this.abort?.abort();
    this.abort = new AbortController();
    this.run = run;
    this.edition = edition;
    this.announced = 0;
    this.nextToFetch = 0;
    this.nextToHandOn = 0;
    this.arrived = new Map();
    this.fetching = 0;
    if (run !== null) this.#watch(this.generation);
  }

  /** Ask the server to stop the work on the run; what is there stays. */
  async stop() {
    const answer = await this.fetch(this.address("stop"), { method: "POST" });
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
  }

  /** The address of something that belongs to the run. */
  address(path) {
    return `${this.root}/runs/${encodeURIComponent(this.run)}/${path}`;
  }

  async #watch(generation) {
    const { signal } = this.abort;
    let version = 0;
    let failures = 0;
    while (generation === this.generation) {
      const start = performance.now();
      try {
        const answer = await this.fetch(this.address(`manifest?version=${version}`), { signal, cache: "no-store" });
        const content = await answer.json().catch(() => null);
        if (generation !== this.generation) return;
        if (answer.status === 404) {
          this.callbacks.onGone(content?.error ?? "");
          return;
        }
        if (!answer.ok || content === null) throw new Error(`the server answered ${answer.status}`);
        if (failures) this.callbacks.onConnection(true);
        failures = 0;
        const isNews = content.version !== version;
        if (isNews && (content.edition ?? 0) !== this.edition) {
          this.edition = content.edition;
          if (this.nextToFetch) {
            this.callbacks.onRenewed();
            this.open(this.run, content.edition);
            return;
          }
        }
        if (isNews) {
          version = content.version;
          this.announced = Math.max(this.announced, Number(content.count) || 0);
          this.callbacks.onManifest(content);
          this.#fetchMore();
        }
        if (isFinished(content.status)) return;
        if (!isNews && performance.now() - start < SHORTEST_POLL_MS) await this.sleep(SHORTEST_POLL_MS);
      } catch {
        if (generation !== this.generation) return;
        if (!failures) this.callbacks.onConnection(false);
        await this.sleep(backOff(failures++));
      }
    }
  }

  #fetchMore() {
    while (this.fetching < PARALLEL_FETCHES && this.nextToFetch < this.announced) {
      this.fetching++;
      const index = this.nextToFetch++;
      const { generation } = this;
      this.#fetchChunk(index, generation).then((buffer) => {
        if (generation !== this.generation) return;
        this.fetching--;
        this.arrived.set(index, buffer);
        this.#handOn();
        this.#fetchMore();
      });
    }
  }

  async #fetchChunk(index, generation) {
    const { signal } = this.abort;
    const address = this.address(`chunks/${index}.glb${this.edition ? `?edition=${this.edition}` : ""}`);
    for (let tries = 0; tries < CHUNK_TRIES && generation === this.generation; tries++) {
      if (tries) await this.sleep(backOff(tries - 1));
      try {
        const answer = await this.fetch(address, { signal });
        if (answer.ok) return await answer.arrayBuffer();
      } catch {
        // The next try, or the caller's null, answers it.
      }
    }
    return null;
  }

  #handOn() {
    while (this.arrived.has(this.nextToHandOn)) {
      const index = this.nextToHandOn++;
      const buffer = this.arrived.get(index);
      this.arrived.delete(index);
      this.callbacks.onChunk(index, buffer);
    }
  }
}
