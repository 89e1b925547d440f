// The model, away from the thread that draws the page. A request is {id, method, args}; a reply is {id, result} or
// {id, error}, and {id, progress} before it.

import { Blip } from "./openblip.js";

let blip;
let image;

const methods = {
  async load(address) {
    blip = await Blip.load(address);
    return { source: blip.source, threads: blip.threads };
  },
  prepare: (task, onProgress) => blip.prepare(task, { onProgress }),
  async open(file) {
    image = await blip.encode(file);
    return { width: image.width, height: image.height };
  },
  caption: () => blip.caption(image),
  ask: (question) => blip.ask(image, question, { n: 3 }),
  match: (texts) => blip.match(image, texts),
};

self.onmessage = async ({ data: { id, method, args } }) => {
  const onProgress = (progress) => self.postMessage({ id, progress });
  try {
    self.postMessage({ id, result: await methods[method](...args, onProgress) });
  } catch (error) {
    self.postMessage({ id, error: { name: error.name, message: error.message } });
  }
};
