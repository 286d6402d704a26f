// The page of `mcpmq serve`: a conversation about images, videos and audio, with the streamed answers of /v1/chat/completions.

import { isAudio, readAudio, startRecording } from "/audio.js";

const element = (id) => document.getElementById(id);
const KEY = "mcpmq-api-key"; // of the session storage
const MAX_SCALED_PIXELS = 4_000_000; // of an image that exceeds a limit of the server
const JPEG_QUALITY = 0.92;
const MAX_REST = 200; // CSS pixels below the visible part, for a page that is read at its end

// Until the server has sent its own.
let limits = { images: 8, pixels: 24_000_000, videos: 2, audios: 8, audio_seconds: 120, body_nbytes: 20 << 20 };
let history = []; // messages of the conversation, as the server receives them
// Images, videos and audio of the next message: { part, nbytes, name, note, preview } and width and height, isVideo, or
// seconds.
let images = [];
const UNUSED = { images: 0, pixels: 0, videos: 0, audios: 0, seconds: 0, nbytes: 0 };
let used = { ...UNUSED }; // by those of the conversation
let hasAudio = false; // of the model
let hasVideo = false;
let recording = null; // the function that ends it
let answering = null; // the AbortController of the current answer

function create(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function showError(message) {
  element("error").textContent = message;
  element("error").hidden = !message;
}

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

// The error message of a response, and the field for the key if that is missing or wrong.
async function failure(response) {
  if (response.status === 401) {
    element("key-field").hidden = false;
    element("key").focus();
  }
  const body = await response.json().catch(() => ({}));
  return new Error(body.error?.message ?? `the server replied with status ${response.status}`);
}

// --- The served model

async function loadModel() {
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (!response.ok) throw await failure(response);
    showModel((await response.json()).data[0]);
    element("key-field").hidden = true;
    showError("");
  } catch (error) {
    showError(error.message);
  }
}

function showModel({ id, meta }) {
  limits = meta.limits;
  document.title = `${id} – mcpmq`;
  element("model").textContent = id;
  const size = `${(meta.nbytes / 1e6).toLocaleString("en", { maximumFractionDigits: 1 })} MB`;
  element("facts").textContent =
    `${meta.original}, ${meta.recipe ? `recipe ${meta.recipe}` : "not quantized"}, ${size}, ${meta.engine}, ${meta.context_tokens.toLocaleString("en")} tokens of context`;
  element("drop").hidden = !meta.vision;
  hasVideo = meta.video;
  element("choose").textContent = hasVideo ? "Choose image or video" : "Choose image";
  element("file").accept = hasVideo ? "image/*,video/*" : "image/*";
  hasAudio = meta.audio;
  element("listen").hidden = !hasAudio;
  if (!meta.vision) element("prompt").value = "";
  showQuality(meta.quality, meta.notes);
}

function showQuality(quality, notes) {
  element("quality").hidden = false;
  element("quality-source").textContent = quality
    ? `Measured on ${quality.samples} samples of ${quality.eval_set}, against the original.`
    : "The artifact has no report beside it; `mcpmq evaluate` measures its quality.";
  document.querySelector("#quality .scroll").hidden = !quality;
  element("quality-rows").replaceChildren(...(quality?.groups ?? []).map(qualityRow));
  element("notes").replaceChildren(...notes.map((note) => create("li", { textContent: note })));
}

function qualityRow(group) {
  const percent = (value) => `${(100 * value).toFixed(1)} %`;
  const cells = [
    group.perplexity.toFixed(3), group.original_perplexity.toFixed(3), group.mean_kl_divergence.toFixed(4),
    percent(group.top_1_agreement), percent(group.exact_match),
  ];
  const name = create("th", { scope: "row", textContent: group.group });
  return create("tr", {}, name, ...cells.map((text) => create("td", { textContent: text })));
}

// --- Images and audio of the next message

async function addFiles(files) {
  showError("");
  for (const file of files) {
    try {
      const read = isAudio(file) ? addedAudio : file.type.startsWith("video/") ? readVideo : readImage;
      images.push(await read(file));
    } catch (error) {
      showError(`${file.name}: ${error.message}`);
    }
  }
  showPreviews();
  follow();
}

async function addedAudio(file) {
  if (!hasAudio) throw new Error("the model has no audio encoder");
  const count = images.filter((one) => one.seconds).length;
  if (used.audios + count >= limits.audios) {
    throw new Error(`a conversation has at most ${limits.audios} audios; start a new one`);
  }
  const seconds = images.reduce((sum, one) => sum + (one.seconds ?? 0), used.seconds);
  return readAudio(file, limits.audio_seconds - seconds, remaining().nbytes);
}

async function record() {
  if (recording) return recording();
  try {
    showError("");
    recording = await startRecording(limits.audio_seconds, async (file) => {
      recording = null;
      showRecording();
      await addFiles([file]);
    });
  } catch (error) {
    showError(`the microphone cannot be used: ${error.message}`);
  }
  showRecording();
}

function showRecording() {
  element("record").textContent = recording ? "Stop recording" : "Record audio";
  element("record").setAttribute("aria-pressed", String(Boolean(recording)));
}

// The file of a video as a data URL, unchanged; the server samples its frames.
async function readVideo(file) {
  if (!hasVideo) throw new Error("videos are not supported for this model");
  if (used.videos + images.filter((one) => one.isVideo).length >= limits.videos) {
    throw new Error(`a conversation has at most ${limits.videos} videos; start a new one`);
  }
  const url = (await dataUrl(file)).replace(/^data:[^,]*/, "data:video/file;base64");
  if (url.length > remaining().nbytes) throw new Error("the file is too large");
  const part = { type: "video_url", video_url: { url } };
  return { part, nbytes: url.length, name: file.name, note: "", isVideo: true, preview: URL.createObjectURL(file) };
}

// The image as a data URL: the file unchanged, or scaled if it exceeds the limits of the server.
async function readImage(file) {
  if (used.images + images.filter((one) => !one.seconds && !one.isVideo).length >= limits.images) {
    throw new Error(`a conversation has at most ${limits.images} images; start a new one`);
  }
  const bitmap = await createImageBitmap(file).catch(() => null); // null: only the server may know the format
  const url = (await dataUrl(file)).replace(/^data:(?!image\/)[^;,]*/, "data:image/file");
  const rest = remaining();
  const { width = 0, height = 0 } = bitmap ?? {};
  if (url.length <= rest.nbytes && width * height <= rest.pixels) {
    const note = bitmap ? `${width}×${height}` : "";
    return { ...imagePart(url), name: file.name, note, width, height, preview: bitmap && url };
  }
  if (!bitmap) throw new Error("the file is too large");
  return scaled(file, bitmap, Math.min(MAX_SCALED_PIXELS, rest.pixels));
}

function imagePart(url) {
  return { part: { type: "image_url", image_url: { url } }, nbytes: url.length };
}

function remaining() {
  const pixels = images.reduce((sum, image) => sum + (image.width * image.height || 0), used.pixels);
  const nbytes = images.reduce((sum, image) => sum + image.nbytes, used.nbytes);
  return { pixels: limits.pixels - pixels, nbytes: 0.9 * limits.body_nbytes - nbytes };
}

function scaled(file, bitmap, pixels) {
  const factor = Math.min(1, Math.sqrt(pixels / (bitmap.width * bitmap.height)));
  const canvas = create("canvas", {
    width: Math.floor(bitmap.width * factor), height: Math.floor(bitmap.height * factor),
  });
  if (canvas.width < 1 || canvas.height < 1) throw new Error("the conversation has too many pixels; start a new one");
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const url = canvas.toDataURL("image/jpeg", JPEG_QUALITY);
  const note = `scaled from ${bitmap.width}×${bitmap.height} to ${canvas.width}×${canvas.height}`;
  return { ...imagePart(url), name: file.name, note, width: canvas.width, height: canvas.height, preview: url };
}

function dataUrl(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("the file cannot be read"));
    reader.readAsDataURL(file);
  });
}

function showPreviews() {
  element("previews").replaceChildren(
    ...images.map((image, index) => {
      const remove = create("button", { type: "button", textContent: "Remove" });
      remove.setAttribute("aria-label", `Remove ${image.name}`);
      remove.onclick = () => {
        images.splice(index, 1);
        showPreviews();
        element("choose").focus();
      };
      return create("li", {}, thumbnail(image), create("span", { textContent: `${image.name} ${image.note}` }), remove);
    }),
  );
}

function thumbnail(image) {
  if (image.isVideo) return create("video", { controls: true, muted: true, src: image.preview, title: image.name });
  if (image.seconds) return create("audio", { controls: true, src: image.preview, title: image.name });
  return image.preview ? create("img", { src: image.preview, alt: image.name }) : create("span", { textContent: "▨ " });
}

// --- The camera: a dialog, or the camera program of a phone

async function photograph() {
  if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices) {
    element("capture").click();
    return;
  }
  try {
    element("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    await element("video").play();
    element("camera").showModal();
  } catch (error) {
    closeCamera();
    showError(`the camera cannot be used: ${error.message}`);
  }
}

function closeCamera() {
  element("video").srcObject?.getTracks().forEach((track) => track.stop());
  element("video").srcObject = null;
  element("camera").close();
}

async function shoot() {
  const { videoWidth: width, videoHeight: height } = element("video");
  const canvas = create("canvas", { width, height });
  canvas.getContext("2d").drawImage(element("video"), 0, 0);
  closeCamera();
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  await addFiles([new File([blob], "photo.png", { type: "image/png" })]);
}

// --- The conversation

function showTurn(role, text, shown = []) {
  const content = create("div", { className: "text", textContent: text });
  const turn = create("article", { className: `turn ${role}` }, create("h2", { textContent: role === "user" ? "You" : "Answer" }));
  if (shown.length) turn.append(create("div", { className: "images" }, ...shown.map(thumbnail)));
  turn.append(content);
  element("log").append(turn);
  follow(true);
  return { turn, content };
}

// Keep the end of the page in view, unless the user has scrolled up.
function follow(always = false) {
  const rest = document.body.scrollHeight - window.scrollY - window.innerHeight;
  if (always || rest < MAX_REST) window.scrollTo(0, document.body.scrollHeight);
}

async function ask() {
  const text = element("prompt").value.trim();
  if (answering || (!text && !images.length)) return;
  showError("");
  const sent = images;
  const parts = sent.map((image) => image.part);
  const question = { role: "user", content: [...parts, ...(text ? [{ type: "text", text }] : [])] };
  const sentTurn = showTurn("user", text, sent);
  const answer = showTurn("assistant", "");
  images = [];
  showPreviews();
  element("prompt").value = "";
  setAnswering(new AbortController());
  const result = await stream([...history, question], answer.content);
  setAnswering(null);
  if (result.text || result.complete) {
    history.push(question, { role: "assistant", content: result.text });
    for (const image of sent) count(image);
    answer.turn.append(create("p", { className: "quiet", textContent: result.summary }));
  } else { // nothing was answered: the message can be sent again
    sentTurn.turn.remove();
    answer.turn.remove();
    images = sent;
    showPreviews();
    element("prompt").value = text;
  }
  element("status").textContent = result.summary;
  if (result.error) showError(result.error);
  element("new").disabled = !history.length;
  element("prompt").focus({ preventScroll: true });
  follow();
}

function count(image) {
  used.images += image.seconds || image.isVideo ? 0 : 1;
  used.videos += image.isVideo ? 1 : 0;
  used.audios += image.seconds ? 1 : 0;
  used.pixels += image.width * image.height || 0;
  used.seconds += image.seconds ?? 0;
  used.nbytes += image.nbytes;
}

function setAnswering(controller) {
  answering = controller;
  element("ask").disabled = Boolean(controller);
  element("stop").disabled = !controller;
  element("log").setAttribute("aria-busy", String(Boolean(controller))); // the whole answer is announced, not its parts
  if (controller) element("status").textContent = "Answering …";
}

async function stream(messages, content) {
  const start = performance.now();
  let first = null, timings = null, usage = null, error = "", stopped = false;
  try {
    const body = JSON.stringify({ messages, stream: true, stream_options: { include_usage: true } });
    const options = { method: "POST", body, signal: answering.signal, headers: { ...headers(), "Content-Type": "application/json" } };
    const response = await fetch("/v1/chat/completions", options);
    if (!response.ok) throw await failure(response);
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      const part = event.choices[0]?.delta?.content ?? "";
      if (part) first ??= performance.now();
      content.textContent += part;
      follow();
      usage = event.usage ?? usage;
      timings = event.timings ?? timings;
    }
  } catch (reason) {
    stopped = reason.name === "AbortError";
    error = stopped ? "" : reason.message;
  }
  const summary = summarize({ start, first, timings, usage, stopped });
  return { text: content.textContent, error, complete: !error && !stopped, summary: error ? "" : summary };
}

async function* events(body) {
  let rest = "";
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    const blocks = (rest + part.value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      if (block.startsWith("data: ") && block !== "data: [DONE]") yield JSON.parse(block.slice(6));
    }
  }
}

function summarize({ start, first, timings, usage, stopped }) {
  const seconds = (milliseconds) => `${(milliseconds / 1000).toFixed(milliseconds < 10_000 ? 2 : 1)} s`;
  const parts = [stopped ? `stopped after ${seconds(performance.now() - start)}` : seconds(performance.now() - start)];
  if (first) parts.push(`first token after ${seconds(first - start)}`);
  if (usage) parts.push(`${usage.completion_tokens} tokens`);
  if (timings) parts.push(`${timings.predicted_per_second.toFixed(timings.predicted_per_second < 100 ? 1 : 0)} tokens/s`);
  return parts.join(" · ");
}

function startConversation() {
  answering?.abort();
  if (history.length) element("log").append(create("hr"));
  history = [];
  used = { ...UNUSED };
  element("new").disabled = true;
  element("status").textContent = "New conversation";
  element("prompt").focus();
}

// --- Controls

element("form").onsubmit = (event) => { event.preventDefault(); ask(); };
element("stop").onclick = () => answering?.abort();
element("new").onclick = startConversation;
element("choose").onclick = () => element("file").click();
element("choose-audio").onclick = () => element("audio-file").click();
element("record").onclick = record;
element("photograph").onclick = photograph;
element("shutter").onclick = shoot;
element("cancel").onclick = closeCamera;
element("camera").oncancel = closeCamera;
for (const id of ["file", "capture", "audio-file"]) {
  element(id).onchange = async (event) => {
    await addFiles([...event.target.files]);
    event.target.value = ""; // the same file can be chosen again
  };
}
element("key").onchange = (event) => { sessionStorage.setItem(KEY, event.target.value); loadModel(); };
element("prompt").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); ask(); }
};
document.onkeydown = (event) => { if (event.key === "Escape") answering?.abort(); };
document.onpaste = (event) => {
  const files = [...event.clipboardData.files].filter((file) => /^(image|video)\//.test(file.type) || isAudio(file));
  if (files.length) { event.preventDefault(); addFiles(files); }
};
document.ondragover = (event) => { event.preventDefault(); element("drop").classList.add("over"); };
document.ondragleave = () => element("drop").classList.remove("over");
document.ondrop = (event) => {
  event.preventDefault();
  element("drop").classList.remove("over");
  addFiles([...event.dataTransfer.files]);
};

loadModel();
