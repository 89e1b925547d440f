// Describe PNG files in Node.js: node describe_in_node.js < request.json

import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";

import { Blip } from "../openblip.js";
import { describe } from "./describe.js";

const { model, images, question, texts } = JSON.parse(await text(process.stdin));
const blip = await Blip.load((name) => readFile(`${model}/${name}`));
const results = [];
for (const image of images) results.push(await describe(blip, await readFile(image), question, texts));
console.log(JSON.stringify(results));
