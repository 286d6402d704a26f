// Load an artifact from its folder with transformers.js, as an application does, and generate text for an image.
//
// node generate.mjs INSTALLED ARTIFACT   INSTALLED: the folder that `npm install` filled
//
// Reads {image, content, count} as JSON from stdin; writes the model inputs, the generated tokens and the logits
// before each of them as JSON to stdout.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";

const [installed, artifact] = process.argv.slice(2, 4).map((path) => resolve(path));
const { AutoModelForImageTextToText, AutoProcessor, LogitsProcessor, LogitsProcessorList, RawImage, env } =
  createRequire(`${installed}/`)("@huggingface/transformers");
env.allowRemoteModels = false;
env.useFSCache = false;
env.localModelPath = dirname(artifact);

class LogitsRecorder extends LogitsProcessor {
  recorded = [];
  _call(tokens, logits) {
    this.recorded.push(Array.from(logits.data));
    return logits;
  }
}

const { image, content, count } = JSON.parse(readFileSync(0, "utf8"));
const processor = await AutoProcessor.from_pretrained(basename(artifact));
// Without a dtype argument, transformers.js reads the dtype of every file from config.json.
const model = await AutoModelForImageTextToText.from_pretrained(basename(artifact), {
  device: "cpu",
  session_options: { intraOpNumThreads: 1 },
});
const prompt = processor.apply_chat_template([{ role: "user", content }], { add_generation_prompt: true });
const inputs = await processor(prompt, [await RawImage.read(image)]);
const [recorder, processors] = [new LogitsRecorder(), new LogitsProcessorList()];
processors.push(recorder);
const output = await model.generate({
  ...inputs,
  max_new_tokens: count,
  do_sample: false,
  logits_processor: processors,
});

const numbers = (tensor) => Array.from(tensor.data, Number);
const tokens = numbers(inputs.input_ids);
const result = {
  model: model.constructor.name,
  tokens,
  pixels: numbers(inputs.pixel_values),
  grid: inputs.image_grid_thw ? numbers(inputs.image_grid_thw) : inputs.pixel_values.dims,
  generated: numbers(output).slice(tokens.length),
  logits: recorder.recorded,
};
process.stdout.write(JSON.stringify(result));
