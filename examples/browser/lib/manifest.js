// The list of the files of an exported model, and the settings of its tasks.

import { ExportError } from "./errors.js";

const FORMAT = "openblip-export";
const VERSION = 1;
const PLAIN_NAME = /^[A-Za-z0-9][\w.-]*$/;

/**
 * Check `manifest.json`.
 *
 * @param {any} manifest Its content.
 * @returns {any} The same content.
 * @throws {ExportError} The export is of another kind or version, or a graph is missing.
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
  for (const name of Object.keys(manifest.files ?? {})) {
    if (!PLAIN_NAME.test(name)) throw new ExportError(`names of files must be plain, got ${JSON.stringify(name)}`);
  }
  for (const [task, settings] of Object.entries(manifest.tasks ?? {})) {
    for (const name of [settings.tokenizer, ...Object.values(settings.graphs ?? {})]) {
      if (!Object.hasOwn(manifest.files ?? {}, name))
        throw new ExportError(`the export lacks ${name}, which ${task} needs`);
    }
  }
  return manifest;
}
