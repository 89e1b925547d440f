// OpenBLIP in the browser: captions, answers and image-text matches from an exported model.
//
//     const blip = await Blip.load("model/");
//     const image = await blip.encode(file);
//     (await blip.caption(image)).text;
//     (await blip.ask(image, "what color is the cat?")).text;
//     (await blip.match(image, "a cat on a sofa")).probability;

import { generate, logSumExp } from "./lib/decoding.js";
import { InputError, OpenBlipError } from "./lib/errors.js";
import { ModelFiles } from "./lib/files.js";
import { decodeImage } from "./lib/image.js";
import { normalize } from "./lib/pixels.js";
import { resize } from "./lib/resize.js";
import { Runtime } from "./lib/runtime.js";
import { DecoderSession } from "./lib/session.js";
import { cleanText } from "./lib/text.js";
import { Tokenizer } from "./lib/tokenizer.js";

export { ExportError, ImageError, InputError, OpenBlipError } from "./lib/errors.js";
export { decodeImage, generate, resize, Tokenizer };

const TEXT_ROWS = 64; // most texts in one run
const OPTIONS = {
  numBeams: "num_beams",
  maxNewTokens: "max_new_tokens",
  minNewTokens: "min_new_tokens",
  lengthPenalty: "length_penalty",
  repetitionPenalty: "repetition_penalty",
  noRepeatNgramSize: "no_repeat_ngram_size",
  earlyStopping: "early_stopping",
};

/** An image that a model has read: each task computes its share once. */
export class EncodedImage {
  constructor(owner, { width, height }, pixels) {
    this.width = width;
    this.height = height;
    this.owner = owner;
    this.pixels = pixels; // by side of the square
    this.cache = new Map();
  }

  /** Return what was computed under a name, or compute it. */
  compute(name, computation) {
    if (!this.cache.has(name)) {
      const result = computation();
      this.cache.set(name, result);
      result.catch(() => this.cache.delete(name));
    }
    return this.cache.get(name);
  }
}

/** An exported model. Create it with `Blip.load`. */
export class Blip {
  #files;
  #runtime;
  #tokenizers = new Map();

  constructor(files, runtime) {
    this.#files = files;
    this.#runtime = runtime;
    this.source = files.manifest.source;
    this.threads = runtime.threads;
    this.tasks = Object.keys(files.manifest.tasks);
  }

  /** Read the manifest of an exported model. Its graphs are downloaded when they are needed. */
  static async load(source, { ort, threads } = {}) {
    const files = new ModelFiles(source);
    await files.open();
    return new Blip(files, new Runtime(files, ort ?? (await Runtime.importLocal()), threads));
  }

  /** Download all that a task needs. */
  async prepare(task, { onProgress = () => {} } = {}) {
    const { graphs } = this.#settings(task);
    const names = Object.values(graphs).filter((name) => !this.#runtime.has(name));
    const total = names.reduce((sum, name) => sum + this.#files.manifest.files[name].bytes, 0);
    let loaded = 0;
    onProgress({ loaded, total });
    const count = (bytes) => onProgress({ loaded: (loaded += bytes), total });
    await Promise.all([this.#runtime.load(names, count), this.#tokenizer(task)]);
    await this.#runtime.load(Object.values(graphs), count); // those that another call was downloading
  }

  /** Decode and resize an image. */
  async encode(source) {
    const image = await decodeImage(source);
    const sizes = new Set(this.tasks.map((task) => this.#settings(task).image.size));
    return new EncodedImage(this, image, new Map(Array.from(sizes, (size) => [size, resize(image, size)])));
  }

  /** Describe an image. */
  async caption(image, { prompt, ...options } = {}) {
    const settings = this.#settings("caption");
    const tokenizer = await this.#tokenizer("caption");
    const decoding = this.#decoding("caption", options);
    const promptIds =
      prompt === undefined ? settings.prompt_ids : [settings.special_ids.dec, ...tokenizer.spell(prompt)];
    checkLength(promptIds.length + decoding.maxNewTokens - 1, settings);
    const encoded = await this.#encoded(image);
    const memory = await this.#memory("caption", encoded);
    const session = new DecoderSession(this.#runtime, settings.graphs.decoder_step, settings.shapes, memory);
    const hypotheses = await generate(session, promptIds, decoding);
    const captions = hypotheses.map(({ ids, logprob, finished }) => {
      const score = logprob / ids.length;
      const text = prompt ? tokenizer.decodeAfter(prompt, ids) : tokenizer.decode(ids);
      return { text, ids, logprob, score, finished, confidence: calibrate(score, settings.confidence) };
    });
    const rating = ({ logprob, ids }) => logprob / ids.length ** decoding.lengthPenalty;
    return withAlternatives(captions.sort((a, b) => rating(b) - rating(a)));
  }

  /** Answer a question about an image, or several. */
  async ask(image, questions, options = {}) {
    if (typeof questions !== "string") return mapInTurn(questions, (question) => this.ask(image, question, options));
    const settings = this.#settings("vqa");
    const decoding = this.#decoding("vqa", options);
    const ids = await this.#tokenize("vqa", questions, settings.text.first_token);
    const encoded = await this.#encoded(image);
    const dims = [1, 1, ids.length];
    const mask = new Array(ids.length).fill(1);
    const output = await this.#runtime.run(settings.graphs.question_encoder, {
      input_ids: this.#runtime.integers(ids, dims),
      attention_mask: this.#runtime.integers(mask, dims),
      ...(await this.#memory("vqa", encoded)),
    });
    const memory = { memory_mask: this.#runtime.integers(mask, [1, ids.length]) };
    for (const [name, tensor] of Object.entries(output)) {
      const [, , heads, tokens, width] = tensor.dims; // one image, one question
      memory[name.replace("answer_", "memory_")] = tensor.reshape([1, heads, tokens, width]);
    }
    const session = new DecoderSession(this.#runtime, settings.graphs.decoder_step, settings.shapes, memory);
    const tokenizer = await this.#tokenizer("vqa");
    const hypotheses = await generate(session, settings.prompt_ids, decoding);
    const answers = hypotheses.map(({ ids: answerIds, logprob }) => ({
      text: tokenizer.decode(answerIds),
      ids: answerIds,
      probability: Math.exp(logprob),
      score: logprob / answerIds.length,
    }));
    return withAlternatives(answers.sort((a, b) => b.probability - a.probability));
  }

  /** Score how well a text fits an image, or several texts. */
  async match(image, texts) {
    if (typeof texts === "string") return (await this.match(image, [texts]))[0];
    const { graphs, special_ids: special } = this.#settings("retrieval");
    const rows = await mapInTurn(texts, (text) => this.#tokenize("retrieval", text, "cls"));
    const encoded = await this.#encoded(image);
    const memory = await this.#memory("retrieval", encoded);
    const imageEmbedding = await this.embedImage(encoded);
    const matches = [];
    for (let start = 0; start < rows.length; start += TEXT_ROWS) {
      const chunk = rows.slice(start, start + TEXT_ROWS);
      const embeddings = await this.#embedRows(chunk);
      const { ids, mask, tokens } = pad(
        chunk.map((row) => [special.enc, ...row.slice(1)]),
        special.pad,
      );
      const dims = [1, chunk.length, tokens];
      const { logits } = await this.#runtime.run(graphs.match, {
        input_ids: this.#runtime.integers(ids, dims),
        attention_mask: this.#runtime.integers(mask, dims),
        ...memory,
      });
      embeddings.forEach((embedding, i) => {
        const pair = logits.data.subarray(2 * i, 2 * i + 2);
        const similarity = embedding.reduce((sum, value, at) => sum + value * imageEmbedding[at], 0);
        matches.push({ probability: Math.exp(pair[1] - logSumExp(pair)), similarity });
      });
    }
    return matches;
  }

  /** Return the normalized embedding of an image. */
  async embedImage(image) {
    const encoded = await this.#encoded(image);
    const settings = this.#settings("retrieval");
    return encoded.compute(makeKey(settings, ["stem", "image_encoder", "image_embedding"]), async () => {
      const feeds = { image_states: await this.#states("retrieval", encoded) };
      return (await this.#runtime.run(settings.graphs.image_embedding, feeds)).image_embeds.data;
    });
  }

  /** Return the normalized embeddings of texts. */
  async embedTexts(texts) {
    return this.#embedRows(await mapInTurn(texts, (text) => this.#tokenize("retrieval", text, "cls")));
  }

  /** Free the memory of the model. */
  async close() {
    await this.#runtime.close();
  }

  #settings(task) {
    const settings = this.#files.manifest.tasks[task];
    if (settings === undefined) {
      throw new InputError(`the model must be exported for ${task}; it has ${this.tasks.join(", ")}`);
    }
    return settings;
  }

  async #tokenizer(task) {
    const { tokenizer: name, special_ids: specialIds } = this.#settings(task);
    if (!this.#tokenizers.has(name)) {
      const tokenizer = this.#files.readJson(name).then((description) => new Tokenizer(description, specialIds));
      this.#tokenizers.set(name, tokenizer);
      tokenizer.catch(() => this.#tokenizers.delete(name));
    }
    return this.#tokenizers.get(name);
  }

  async #tokenize(task, text, firstToken) {
    if (typeof text !== "string") throw new InputError(`a text must be a string, got ${typeof text}`);
    const { clean, max_words: maxWords, max_tokens: maxTokens } = this.#settings(task).text;
    return (await this.#tokenizer(task)).encode(cleanText(text, clean, maxWords), firstToken, maxTokens);
  }

  #decoding(task, { n = 1, ...options }) {
    const { generation, special_ids: special } = this.#settings(task);
    if (generation.score_rule !== "total") {
      throw new InputError(`score_rule must be "total", got ${JSON.stringify(generation.score_rule)}`);
    }
    const unknown = Object.keys(options).find((name) => !Object.hasOwn(OPTIONS, name));
    if (unknown) throw new InputError(`options are ${Object.keys(OPTIONS).join(", ")} and n, got ${unknown}`);
    const decoding = { n, eosId: special.sep };
    for (const [name, key] of Object.entries(OPTIONS)) decoding[name] = options[name] ?? generation[key];
    return decoding;
  }

  async #encoded(image) {
    if (!(image instanceof EncodedImage)) return this.encode(image);
    if (image.owner !== this) throw new InputError("the image must be encoded by this model: call encode again");
    return image;
  }

  /** Return the states of an image. Tasks with the same graph and the same stem share them. */
  #states(task, encoded) {
    const settings = this.#settings(task);
    const { graphs, image } = settings;
    const { size, mean, std } = image;
    const pixels = () => this.#runtime.floats(normalize(encoded.pixels.get(size), mean, std), [1, 3, size, size]);
    const readFeatures = () =>
      encoded.compute(makeKey(settings, ["stem"]), async () => {
        return (await this.#runtime.run(graphs.stem, { pixel_values: pixels() })).feature_map;
      });
    return encoded.compute(makeKey(settings, ["stem", "image_encoder"]), async () => {
      const feeds = graphs.stem ? { feature_map: await readFeatures() } : { pixel_values: pixels() };
      return (await this.#runtime.run(graphs.image_encoder, feeds)).image_states;
    });
  }

  #memory(task, encoded) {
    const settings = this.#settings(task);
    return encoded.compute(makeKey(settings, ["stem", "image_encoder", "image_memory"]), async () => {
      return this.#runtime.run(settings.graphs.image_memory, { image_states: await this.#states(task, encoded) });
    });
  }

  async #embedRows(rows) {
    const { graphs, special_ids: special, embed_width: width } = this.#settings("retrieval");
    const embeddings = [];
    for (let start = 0; start < rows.length; start += TEXT_ROWS) {
      const chunk = rows.slice(start, start + TEXT_ROWS);
      const { ids, mask, tokens } = pad(chunk, special.pad);
      const output = await this.#runtime.run(graphs.text_embedding, {
        input_ids: this.#runtime.integers(ids, [chunk.length, tokens]),
        attention_mask: this.#runtime.integers(mask, [chunk.length, tokens]),
      });
      const { data } = output.text_embeds;
      chunk.forEach((_, i) => embeddings.push(data.slice(i * width, (i + 1) * width)));
    }
    return embeddings;
  }
}

/** Return the name of what graphs compute, in this order, from an image with the settings of a task. */
function makeKey({ graphs, image }, roles) {
  return JSON.stringify([image, ...roles.map((role) => graphs[role] ?? null)]);
}

/** Pad rows of ids on the right: ids and mask as flat lists, and the number of tokens of a row. */
function pad(rows, padId) {
  const tokens = Math.max(...rows.map((row) => row.length));
  const fill = (row, value) => [...row, ...new Array(tokens - row.length).fill(value)];
  return {
    ids: rows.flatMap((row) => fill(row, padId)),
    mask: rows.flatMap((row) =>
      fill(
        row.map(() => 1),
        0,
      ),
    ),
    tokens,
  };
}

function checkLength(length, { shapes }) {
  if (length > shapes.max_positions) {
    throw new InputError(`prompt and caption must have at most ${shapes.max_positions} tokens, got ${length}`);
  }
}

function calibrate(score, confidence) {
  return confidence === null || confidence === undefined
    ? null
    : 1 / (1 + Math.exp(-(confidence.slope * score + confidence.intercept)));
}

function withAlternatives([best, ...alternatives]) {
  if (best === undefined) throw new OpenBlipError("the search found no text");
  return { ...best, alternatives };
}

async function mapInTurn(items, map) {
  const results = [];
  for (const item of items) results.push(await map(item));
  return results;
}
