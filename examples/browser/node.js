// Describe PNG files in Node.js: node node.js FOLDER IMAGE.png ...
//
// FOLDER is an exported model with the task caption.

import { readFile } from "node:fs/promises";

import { Blip } from "./openblip.js";

const [folder, ...images] = process.argv.slice(2);
if (!images.length) {
  console.error("usage: node node.js FOLDER IMAGE.png ...");
  process.exit(2);
}
const blip = await Blip.load((name) => readFile(`${folder}/${name}`));
for (const image of images) console.log(`${image}: ${(await blip.caption(await readFile(image))).text}`);
