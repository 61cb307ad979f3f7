import assert from "node:assert/strict";
import { test } from "node:test";
import { backOff, Follower } from "../src/follower.js";

const answer = (status, body) => ({
  ok: status < 300,
  status,
  json: async () => body,
  arrayBuffer: async () => body,
});

/** A server of one run whose answers the test gives; `log` holds the addresses that were asked for. */
function stage(respond) {
  const seen = { log: [], manifests: [], chunks: [], connection: [], gone: [], waits: [] };
  let finish;
  seen.finished = new Promise((resolve) => (finish = resolve));
  const fetch = async (address, options) => {
    seen.log.push(address);
    const given = await respond(address, seen.log.filter((entry) => entry === address).length, options);
    if (given instanceof Error) throw given;
    return given;
  };
  const follower = new Follower(
    {
      onManifest: (manifest) => seen.manifests.push(manifest),
      onChunk: (index, buffer) => {
        seen.chunks.push([index, buffer]);
        if (seen.chunks.length === seen.expected) finish();
      },
      onConnection: (isUp) => seen.connection.push(isUp),
      onGone: (message) => {
        seen.gone.push(message);
        finish();
      },
    },
    { root: "/page/", fetch, sleep: async (ms) => seen.waits.push(ms) },
  );
  return { follower, seen };
}

test("chunks are handed on in order, however they arrive", async () => {
  const { follower, seen } = stage(async (address) => {
    if (address.includes("manifest")) return answer(200, { version: 1, status: "done", count: 9 });
    const index = Number(address.match(/(\d+)\.glb/)[1]);
    // Of every four, the first comes last.
    await new Promise((resolve) => setTimeout(resolve, 4 * (4 - (index % 4))));
    return answer(200, index);
  });
  seen.expected = 9;
  follower.open("a b");
  await seen.finished;
  assert.deepEqual(seen.chunks, [...Array(9).keys()].map((i) => [i, i]));
  assert.equal(seen.log[0], "/page/runs/a%20b/manifest?version=0");
  assert.equal(seen.log[1], "/page/runs/a%20b/chunks/0.glb");
});

test("at most four chunks are under way", async () => {
  let underWay = 0;
  let most = 0;
  const { follower, seen } = stage(async (address) => {
    if (address.includes("manifest")) return answer(200, { version: 1, status: "done", count: 20 });
    most = Math.max(most, ++underWay);
    await new Promise((resolve) => setTimeout(resolve, 1));
    underWay--;
    return answer(200, null);
  });
  seen.expected = 20;
  follower.open("run");
  await seen.finished;
  assert.equal(most, 4);
});

test("each poll names the version it knows, and a finished run is not polled again", async () => {
  const versions = [1, 1, 5];
  const { follower, seen } = stage((address) => {
    if (address.includes("chunks")) return answer(200, "chunk");
    const version = versions.shift();
    return answer(200, { version, status: version === 5 ? "stopped" : "running", count: version === 5 ? 1 : 0 });
  });
  seen.expected = 1;
  follower.open("run");
  await seen.finished;
  const polls = seen.log.filter((address) => address.includes("manifest")).map((address) => address.split("=")[1]);
  assert.deepEqual(polls, ["0", "1", "1"]);
  assert.deepEqual(seen.manifests.map((manifest) => manifest.version), [1, 5]);
  // The second answer came at once and brought nothing.
  assert.deepEqual(seen.waits, [500]);
});

test("a cut connection is told once, tried again with growing pauses, and told when it is back", async () => {
  const { follower, seen } = stage((address, time) => {
    if (address.includes("chunks")) return answer(200, "chunk");
    return time <= 3 ? new TypeError("network") : answer(200, { version: 2, status: "done", count: 1 });
  });
  seen.expected = 1;
  follower.open("run");
  await seen.finished;
  assert.deepEqual(seen.connection, [false, true]);
  assert.deepEqual(seen.waits, [300, 600, 1200]);
});

test("an error of the server is not the end, an unknown run is", async () => {
  const { follower, seen } = stage((address, time) => (time === 1 ? answer(500, null) : answer(404, { error: "expired" })));
  follower.open("run");
  await seen.finished;
  assert.deepEqual(seen.gone, ["expired"]);
  assert.equal(seen.log.length, 2);
});

test("a chunk that fails is tried again; one that cannot be had is left out and the rest comes", async () => {
  const { follower, seen } = stage((address, time) => {
    if (address.includes("manifest")) return answer(200, { version: 1, status: "done", count: 3 });
    if (address.includes("/0.glb")) return answer(time < 3 ? 503 : 200, "zero");
    return address.includes("/1.glb") ? new TypeError("network") : answer(200, "two");
  });
  seen.expected = 3;
  follower.open("run");
  await seen.finished;
  assert.deepEqual(seen.chunks, [[0, "zero"], [1, null], [2, "two"]]);
  assert.equal(seen.log.filter((address) => address.includes("/1.glb")).length, 6);
});

test("after another run was opened, late answers of the one before are dropped", async () => {
  const late = [];
  const { follower, seen } = stage((address, _, { signal }) => {
    if (address.includes("manifest")) return answer(200, { version: 1, status: "done", count: 1, run: address.split("/")[3] });
    if (address.includes("old")) return new Promise((resolve) => late.push([() => resolve(answer(200, "old")), signal]));
    return answer(200, "new");
  });
  seen.expected = 1;
  follower.open("old");
  while (!late.length) await new Promise(setImmediate);
  follower.open("new");
  late[0][0]();
  await seen.finished;
  await new Promise(setImmediate);
  assert.deepEqual(seen.chunks, [[0, "new"]]);
  assert.equal(late[0][1].aborted, true);
});

test("pauses grow to eight seconds and no longer", () => {
  assert.deepEqual([0, 1, 4, 5, 50].map(backOff), [300, 600, 4800, 8000, 8000]);
});

test("stopping asks the server and reports a refusal", async () => {
  const { follower, seen } = stage((address) => {
    if (address.endsWith("stop")) return answer(seen.log.length > 2 ? 500 : 200, {});
    return new Promise(() => {});
  });
  follower.open("run");
  await follower.stop();
  assert.equal(seen.log.at(-1), "/page/runs/run/stop");
  await assert.rejects(follower.stop(), /500/);
});

test("chunks that the server wrote anew come again from the first one, by another address", async () => {
  const manifests = [
    { version: 3, status: "running", count: 2, edition: 0 },
    { version: 4, status: "done", count: 2, edition: 1 },
  ];
  let polls = 0;
  const { follower, seen } = stage(async (address) => {
    if (!address.includes("manifest")) return answer(200, address.endsWith("edition=1") ? "new" : "old");
    if (polls === 1) await new Promise((resolve) => setTimeout(resolve, 5)); // The old ones come first.
    return answer(200, manifests[Math.min(polls++, 1)]);
  });
  let renewed = 0;
  follower.callbacks.onRenewed = () => renewed++;
  seen.expected = 4;
  follower.open("run");
  await seen.finished;
  assert.equal(renewed, 1);
  assert.deepEqual(seen.chunks, [[0, "old"], [1, "old"], [0, "new"], [1, "new"]]);
});

test("whoever comes later takes the chunks of the newest edition at once", async () => {
  const { follower, seen } = stage((address) => {
    if (address.includes("manifest")) return answer(200, { version: 4, status: "done", count: 1, edition: 2 });
    return answer(200, "chunk");
  });
  seen.expected = 1;
  follower.open("run");
  await seen.finished;
  assert.ok(seen.log[1].endsWith("/chunks/0.glb?edition=2"));
});
