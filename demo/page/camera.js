// Runs once, with `element`, `props` and `watch` from Gradio: shows the camera and sends its frames to a run.
const WIDTH = 640;
const QUALITY = 0.8;
const PAUSE_MS = 100;
const root = (window.gradio_config?.root ?? "").replace(/\/$/, "");
const video = element.querySelector("video");
const note = element.querySelector("p");
const canvas = document.createElement("canvas");
let stream = null;
let sendingTo = "";

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function turnOff(message) {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  video.srcObject = null;
  element.querySelector(".camera").classList.remove("on");
  note.textContent = message;
}

/** Ask for the camera; called by the button before anything is started on the server. */
async function turnOn() {
  if (stream) return;
  if (!navigator.mediaDevices?.getUserMedia) throw new Error("this browser gives no camera to a page without https");
  stream = await navigator.mediaDevices.getUserMedia({
    video: { facingMode: "environment", width: { ideal: 1280 } },
    audio: false,
  });
  video.srcObject = stream;
  await video.play();
  element.querySelector(".camera").classList.add("on");
}

function frame() {
  const scale = Math.min(1, WIDTH / video.videoWidth);
  canvas.width = Math.round(video.videoWidth * scale);
  canvas.height = Math.round(video.videoHeight * scale);
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", QUALITY));
}

/** Send frames one after the other until the run or the camera ends. */
async function send(run) {
  sendingTo = run;
  let sent = 0;
  let shown = false;
  while (sendingTo === run && stream) {
    const current = window.streamvggtPage.current();
    shown ||= current === run;
    if (shown && current !== run) {
      turnOff("Another scene is shown; the camera is off.");
      fetch(`${root}/runs/${run}/stop`, { method: "POST" }).catch(() => {}); // Without frames it would end soon.
      return;
    }
    const [jpeg] = await Promise.all([frame(), sleep(PAUSE_MS)]);
    try {
      const answer = await fetch(`${root}/runs/${run}/frames`, { method: "POST", body: jpeg });
      if (answer.status === 404 || answer.status === 409) {
        if (sendingTo === run) turnOff("The run has ended; the camera is off.");
        return;
      }
      const { dropped = 0 } = await answer.json();
      sent += answer.ok;
      note.textContent = `${sent} frames sent, ${dropped} skipped because newer ones had come.`;
    } catch {
      await sleep(1000); // Without a connection; the next try tells.
    }
  }
}

window.streamvggtCamera = {
  /** Whether the camera is on now; if not, the page says why. */
  async ready() {
    try {
      await turnOn();
      return true;
    } catch (error) {
      turnOff(`There is no camera: ${error.message}.`);
      return false;
    }
  },
};

watch("value", () => {
  if (props.value) send(props.value);
});
