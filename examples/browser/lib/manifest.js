// The list of the files of an exported model, and the settings of its tasks.

import { ExportError } from "./errors.js";

const FORMAT = "openblip-export";
const VERSION = 1;
const MAX_BYTES = 2 ** 31; // of a file
const MAX_SIDE = 4096; // pixels
const MAX_SHAPE = 2 ** 20;
// The graphs that each task of this module runs.
const ROLES = {
  caption: ["image_encoder", "image_memory", "decoder_step"],
  vqa: ["image_encoder", "image_memory", "question_encoder", "decoder_step"],
  retrieval: ["image_encoder", "image_memory", "match", "image_embedding", "text_embedding"],
};
const PLAIN_NAME = /^[A-Za-z0-9][\w.-]*$/;

/**
 * Check `manifest.json`.
 *
 * @param {any} manifest Its content.
 * @returns {any} The same content.
 * @throws {ExportError} The export is of another kind or version, or the manifest lacks something.
 */
export function checkManifest(manifest) {
  if (manifest?.format !== FORMAT)
    throw new ExportError(`the format of the model must be ${FORMAT}, got ${manifest?.format}`);
  if (manifest.format_version !== VERSION) {
    throw new ExportError(
      `the version of the export must be ${VERSION}, got ${manifest.format_version}; export it again`,
    );
  }
  if (manifest.runtime !== "onnx") {
    throw new ExportError(`the model must be exported --to onnx, got ${manifest.runtime}`);
  }
  if (!isObject(manifest.files) || !isObject(manifest.tasks)) {
    throw new ExportError("manifest.json lacks the files or the tasks; export the model again");
  }
  for (const [name, entry] of Object.entries(manifest.files)) {
    if (!PLAIN_NAME.test(name)) throw new ExportError(`names of files must be plain, got ${JSON.stringify(name)}`);
    if (!isSize(entry?.bytes, 0, MAX_BYTES) || typeof entry.sha256 !== "string") {
      throw new ExportError(`manifest.json must state the bytes and the hash of ${name}; export the model again`);
    }
  }
  for (const [task, settings] of Object.entries(manifest.tasks)) checkTask(task, settings, manifest.files);
  return manifest;
}

function checkTask(task, settings, files) {
  const { graphs, image, shapes, special_ids: ids } = settings ?? {};
  if (![graphs, image, shapes, ids].every(isObject)) {
    throw new ExportError(`the settings of ${task} are incomplete; export the model again`);
  }
  for (const role of Object.hasOwn(ROLES, task) ? ROLES[task] : []) {
    if (!Object.hasOwn(graphs, role)) throw new ExportError(`${task} lacks the graph ${role}; export the model again`);
  }
  for (const name of [settings.tokenizer, ...Object.values(graphs)]) {
    if (typeof name !== "string" || !Object.hasOwn(files, name)) {
      throw new ExportError(`the export lacks ${name}, which ${task} needs`);
    }
  }
  // Sizes that no export has would take all memory.
  if (!isSize(image.size, 1, MAX_SIDE)) {
    throw new ExportError(`the image size of ${task} must be from 1 to ${MAX_SIDE}, got ${image.size}`);
  }
  for (const name of ["layers", "heads", "head_width", "max_positions", "vocab_size"]) {
    if (!isSize(shapes[name], 1, MAX_SHAPE)) {
      throw new ExportError(`${name} of ${task} must be from 1 to ${MAX_SHAPE}, got ${shapes[name]}`);
    }
  }
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function isSize(value, minimum, maximum) {
  return Number.isInteger(value) && value >= minimum && value <= maximum;
}
