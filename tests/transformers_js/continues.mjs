// Has transformers.js load an artifact from its folder, as an application does, and continue a question about an image.
//
// node continues.mjs INSTALLED ARTIFACT   INSTALLED: the folder that `npm install` filled
//
// Takes {image, question, count} as JSON from stdin; gives what the model was fed, what it said, and the logits before
// every token of that, as JSON.

import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { basename, dirname, resolve } from "node:path";

const [installed, artifact] = process.argv.slice(2, 4).map((path) => resolve(path));
const { AutoModelForImageTextToText, AutoProcessor, LogitsProcessor, LogitsProcessorList, RawImage, env } =
  createRequire(`${installed}/`)("@huggingface/transformers");
env.allowRemoteModels = false;
env.useFSCache = false;
env.localModelPath = dirname(artifact);

class Witness extends LogitsProcessor {
  seen = [];
  _call(tokens, logits) {
    this.seen.push(Array.from(logits.data));
    return logits;
  }
}

const { image, question, count } = JSON.parse(readFileSync(0, "utf8"));
const processor = await AutoProcessor.from_pretrained(basename(artifact));
// No type is asked for: config.json says which file is of which.
const model = await AutoModelForImageTextToText.from_pretrained(basename(artifact), {
  device: "cpu",
  session_options: { intraOpNumThreads: 1 },
});
const content = `<|vision_start|><|image_pad|><|vision_end|>${question}`;
const prompt = processor.apply_chat_template([{ role: "user", content }], { add_generation_prompt: true });
const inputs = await processor(prompt, [await RawImage.read(image)]);
const [witness, processors] = [new Witness(), new LogitsProcessorList()];
processors.push(witness);
const said = await model.generate({
  ...inputs,
  max_new_tokens: count,
  do_sample: false,
  logits_processor: processors,
});

const numbers = (tensor) => Array.from(tensor.data, Number);
const tokens = numbers(inputs.input_ids);
const answer = {
  model: model.constructor.name,
  tokens,
  pixels: numbers(inputs.pixel_values),
  grid: numbers(inputs.image_grid_thw),
  said: numbers(said).slice(tokens.length),
  logits: witness.seen,
};
process.stdout.write(JSON.stringify(answer));
