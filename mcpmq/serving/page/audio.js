// Audio of a message: WAV files unchanged, other files and recordings decoded by the browser to mono at 16 kHz.

const RATE = 16_000;

export function isAudio(file) {
  return file.type.startsWith("audio/") || /\.(wav|flac)$/i.test(file.name);
}

// The part of a message with the audio of a file: { part, nbytes, name, note, seconds, preview }.
export async function readAudio(file, maxSeconds, maxNbytes) {
  const content = new Uint8Array(await file.arrayBuffer());
  const wav = isWav(content) ? content : encodeWav(await decode(content.buffer));
  const seconds = wavSeconds(new DataView(wav.buffer));
  if (seconds > maxSeconds) throw new Error(`the audio is longer than ${Math.max(0, maxSeconds).toFixed(0)} s`);
  const data = base64(wav);
  if (data.length > maxNbytes) throw new Error("the file is too large");
  const preview = URL.createObjectURL(new Blob([wav], { type: "audio/wav" }));
  const part = { type: "input_audio", input_audio: { data, format: "wav" } };
  return { part, nbytes: data.length, name: file.name, note: `${seconds.toFixed(1)} s`, seconds, preview };
}

// Record the microphone until the returned function is called, or for `maxSeconds`; `done` gets the file.
export async function startRecording(maxSeconds, done) {
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const recorder = new MediaRecorder(stream);
  const parts = [];
  recorder.ondataavailable = (event) => parts.push(event.data);
  recorder.onstop = () => {
    clearTimeout(timer);
    stream.getTracks().forEach((track) => track.stop());
    done(new File(parts, "recording", { type: recorder.mimeType || "audio/webm" }));
  };
  recorder.start();
  const stop = () => recorder.state === "recording" && recorder.stop();
  const timer = setTimeout(stop, 1000 * maxSeconds);
  return stop;
}

// Samples of all channels mixed, at 16 kHz.
async function decode(content) {
  const context = new OfflineAudioContext(1, 1, RATE);
  const buffer = await context.decodeAudioData(content).catch(() => null);
  if (!buffer) throw new Error("the browser cannot decode this audio");
  const samples = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel += 1) {
    buffer.getChannelData(channel).forEach((value, index) => { samples[index] += value / buffer.numberOfChannels; });
  }
  return samples;
}

function isWav(content) {
  const text = String.fromCharCode(...content.subarray(0, 12));
  return text.startsWith("RIFF") && text.endsWith("WAVE");
}

// The duration by the chunks of a WAV file: bytes of `data` by bytes per second of `fmt `.
function wavSeconds(view) {
  let rate = 0;
  for (let place = 12; place + 8 <= view.byteLength;) {
    const name = String.fromCharCode(...[0, 1, 2, 3].map((index) => view.getUint8(place + index)));
    const nbytes = view.getUint32(place + 4, true);
    if (name === "fmt ") rate = view.getUint32(place + 16, true);
    if (name === "data") return Math.min(nbytes, view.byteLength - place - 8) / (rate || Infinity);
    place += 8 + nbytes + (nbytes % 2);
  }
  throw new Error("the file is damaged");
}

// A WAV file with 16 bits.
function encodeWav(samples) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (place, value) => [...value].forEach((letter, index) => view.setUint8(place + index, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  [[20, 1], [22, 1], [32, 2], [34, 16]].forEach(([place, value]) => view.setUint16(place, value, true));
  [[24, RATE], [28, 2 * RATE]].forEach(([place, value]) => view.setUint32(place, value, true));
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  samples.forEach((value, index) => view.setInt16(44 + 2 * index, Math.max(-1, Math.min(1, value)) * 32767, true));
  return new Uint8Array(view.buffer);
}

function base64(bytes) {
  let text = "";
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}
