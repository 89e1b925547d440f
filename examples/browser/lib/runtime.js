// onnxruntime-web: one session per file, one run at a time.

import { ExportError } from "./errors.js";

const LOCAL = "../node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
const MAX_THREADS = 4;

/** The graphs of a model. Each is downloaded when it first runs, or before. */
export class Runtime {
  /**
   * @param {import("./files.js").ModelFiles} files
   * @param {any} ort The module `onnxruntime-web`.
   * @param {number | undefined} threads Number of threads; by default up to 4 where the page may use threads.
   */
  constructor(files, ort, threads) {
    this.files = files;
    this.ort = ort;
    ort.env.wasm.numThreads = threads ?? defaultThreads();
    this.threads = ort.env.wasm.numThreads;
    this.sessions = new Map();
    this.running = Promise.resolve();
  }

  /** Import `onnxruntime-web` from the folder of this module. */
  static async importLocal() {
    return import(/* @vite-ignore */ /* webpackIgnore: true */ new URL(LOCAL, import.meta.url).href);
  }

  /** Download graphs that are not loaded yet. */
  async load(names, onBytes) {
    await Promise.all(names.map((name) => this.#open(name, onBytes)));
  }

  /** Return whether a graph is loaded, or on its way. */
  has(name) {
    return this.sessions.has(name);
  }

  /**
   * Run a graph.
   *
   * @param {string} name Name of its file.
   * @param {Record<string, any>} feeds Tensors by name.
   * @returns {Promise<Record<string, any>>} Tensors by name.
   */
  async run(name, feeds) {
    const session = await this.#open(name);
    const result = this.running.then(() => session.run(feeds));
    this.running = result.catch(() => {});
    return result;
  }

  /** Return a tensor of 32-bit numbers. */
  floats(data, dims) {
    return new this.ort.Tensor("float32", data, dims);
  }

  /** Return a tensor of integers. */
  integers(values, dims) {
    return new this.ort.Tensor("int64", BigInt64Array.from(values, BigInt), dims);
  }

  /** Free the memory of all graphs. */
  async close() {
    await this.running;
    for (const session of this.sessions.values()) await (await session).release();
    this.sessions.clear();
  }

  #open(name, onBytes) {
    if (!this.sessions.has(name)) {
      const session = this.#create(name, onBytes);
      this.sessions.set(name, session);
      session.catch(() => this.sessions.delete(name)); // so that the next call tries again
    }
    return this.sessions.get(name);
  }

  async #create(name, onBytes) {
    const bytes = await this.files.readChecked(name, onBytes);
    try {
      return await this.ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
    } catch (error) {
      throw new ExportError(`onnxruntime-web cannot load ${name}: ${error.message ?? error}`, { cause: error });
    }
  }
}

function defaultThreads() {
  // Threads share memory, which browsers allow only to pages with the headers that serve.py sends.
  const { crossOriginIsolated, navigator } = globalThis;
  if (crossOriginIsolated === false || /iPhone|iPad|iPod/.test(navigator?.userAgent)) return 1; // iOS: little memory
  return Math.min(MAX_THREADS, navigator?.hardwareConcurrency ?? 1);
}
