// The files of an exported model: downloaded once, with progress, and checked.

import { ExportError } from "./errors.js";
import { checkManifest } from "./manifest.js";

const MAX_MANIFEST = 2 ** 24; // bytes

/** A folder with an exported model, behind an address or a function. */
export class ModelFiles {
  /**
   * @param {string | URL | ((name: string) => Promise<Uint8Array | ArrayBuffer>)} source
   */
  constructor(source) {
    this.read = typeof source === "function" ? readThrough(source) : readFrom(source);
    this.manifest = null;
  }

  /** Read `manifest.json`. */
  async open() {
    this.manifest = checkManifest(parseJson("manifest.json", await this.read("manifest.json", () => {}, MAX_MANIFEST)));
  }

  /**
   * Read a file and check its size and hash.
   *
   * @param {string} name
   * @param {(bytes: number) => void} onBytes Called with the size of each part.
   * @returns {Promise<Uint8Array>}
   * @throws {ExportError} The file is missing or differs from the manifest.
   */
  async readChecked(name, onBytes = () => {}) {
    const expected = this.manifest.files[name];
    const bytes = await this.read(name, onBytes, expected.bytes);
    if (bytes.length !== expected.bytes) {
      throw new ExportError(`${name} must have ${expected.bytes} bytes, got ${bytes.length}; export the model again`);
    }
    // Browsers hash only on pages from https or from this machine.
    if (globalThis.crypto?.subtle && (await hash(bytes)) !== expected.sha256) {
      throw new ExportError(`${name} differs from the file that was exported; export the model again`);
    }
    return bytes;
  }

  /** Read a JSON file; see `readChecked`. */
  async readJson(name) {
    return parseJson(name, await this.readChecked(name));
  }
}

function readThrough(read) {
  return async (name, onBytes) => {
    const bytes = new Uint8Array(await read(name));
    onBytes(bytes.length);
    return bytes;
  };
}

function readFrom(address) {
  const base = new URL(`${String(address).replace(/\/*$/, "")}/`, globalThis.location?.href);
  return async (name, onBytes, maxBytes) => {
    try {
      return await download(new URL(name, base), onBytes, maxBytes);
    } catch (error) {
      const hint = name === "manifest.json" ? "; the folder must be one that openblip export wrote" : "";
      throw new ExportError(`cannot fetch ${name}: ${error.message}${hint}`, { cause: error });
    }
  };
}

/** Download a file; one that is longer than expected is left where that shows. */
async function download(address, onBytes, maxBytes) {
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  const parts = [];
  let total = 0;
  for (let reader = response.body.getReader(), part = await reader.read(); !part.done; part = await reader.read()) {
    total += part.value.length;
    if (total > maxBytes) {
      await reader.cancel();
      throw new Error(`it must have at most ${maxBytes} bytes, and has more`);
    }
    parts.push(part.value);
    onBytes(part.value.length);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

function parseJson(name, bytes) {
  try {
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch (error) {
    throw new ExportError(`${name} is not JSON: ${error.message}`, { cause: error });
  }
}

async function hash(bytes) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
