import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { test } from "node:test";

import { Blip, ExportError, ImageError, InputError } from "../openblip.js";
import { readFixture } from "./fixtures.js";

// A model of toy size, whose graphs are names: its stem counts, its decoder writes "a dog runs".

const SIZE = 4;
const PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "runs", "cat", "##s", "[DEC]", "[ENC]"];
const SPECIAL = { pad: 0, unk: 1, cls: 2, sep: 3, dec: 9, enc: 10 };
const SHAPES = { layers: 1, heads: 1, head_width: 1, vocab_size: PIECES.length, max_positions: 12 };
const GENERATION = {
  num_beams: 2,
  max_new_tokens: 6,
  min_new_tokens: 1,
  length_penalty: 1,
  repetition_penalty: 1,
  no_repeat_ngram_size: 0,
  score_rule: "total",
  early_stopping: false,
};
const IMAGE = { size: SIZE, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] };
const PHOTO = { data: new Uint8Array(3 * 6 * 5).fill(200), width: 6, height: 5 };

const description = {
  model: {
    type: "WordPiece",
    unk_token: "[UNK]",
    max_input_chars_per_word: 100,
    vocab: Object.fromEntries(PIECES.map((piece, i) => [piece, i])),
  },
  normalizer: {
    type: "BertNormalizer",
    clean_text: true,
    handle_chinese_chars: true,
    strip_accents: null,
    lowercase: true,
  },
  pre_tokenizer: { type: "BertPreTokenizer" },
  added_tokens: [0, 1, 2, 3, 9, 10].map((id) => ({ id, content: PIECES[id], special: true })),
};

class Tensor {
  constructor(type, data, dims) {
    assert.equal(
      data.length,
      dims.reduce((product, size) => product * size, 1),
    );
    Object.assign(this, { type, data, dims });
  }

  reshape(dims) {
    return new Tensor(this.type, this.data, dims);
  }
}

const floats = (dims, fill) =>
  new Tensor("float32", Float32Array.from({ length: dims.reduce((a, b) => a * b) }, fill), dims);

const graphs = {
  stem: ({ pixel_values: pixels }) => {
    assert.deepEqual(pixels.dims.slice(0, 2), [1, 3]);
    return { feature_map: floats([1, 2, 1, 1], () => pixels.data[0]) };
  },
  image_encoder: ({ feature_map: features, pixel_values: pixels }) => ({
    image_states: floats([1, 3, 2], () => (features ?? pixels).data[0]),
  }),
  image_memory: () => ({ memory_key_0: floats([1, 1, 3, 1], () => 1), memory_value_0: floats([1, 1, 3, 1], () => 2) }),
  decoder_step: (feeds) => {
    const { input_ids: ids, past_keys: past } = feeds;
    const [, width, tokens] = ids.dims;
    assert.deepEqual(past.dims.slice(0, 3), [1, 1, width]);
    assert.ok(feeds.memory_key_0 && feeds.memory_value_0);
    const length = past.dims[4] + tokens;
    // The caches hold the ids, so the next token shows that they follow their beams.
    const rows = Array.from({ length: width }, (_, row) => [
      ...past.data.slice(row * past.dims[4], (row + 1) * past.dims[4]),
      ...Array.from(ids.data.slice(row * tokens, (row + 1) * tokens), Number),
    ]);
    const keys = new Tensor("float32", Float32Array.from(rows.flat()), [1, 1, width, 1, length, 1]);
    const next = { 4: 5, 5: 6, 6: 3, 9: 4, 7: 3 };
    return {
      logits: floats([1, width, PIECES.length], (_, i) => {
        const row = rows[Math.floor(i / PIECES.length)];
        return i % PIECES.length === next[row.at(-1)] ? 5 : i % PIECES.length === 7 ? 3 : 0;
      }),
      keys,
      values: keys,
    };
  },
  question_encoder: ({ input_ids: ids, attention_mask: mask }) => {
    assert.deepEqual(ids.dims, mask.dims);
    const dims = [1, 1, 1, ids.dims[2], 1];
    return { answer_key_0: floats(dims, () => 1), answer_value_0: floats(dims, () => 1) };
  },
  match: ({ input_ids: ids, attention_mask: mask }) => ({
    // The logit of a match is the number of tokens without padding.
    logits: floats([1, ids.dims[1], 2], (_, i) => {
      const row = Math.floor(i / 2) * ids.dims[2];
      return i % 2 ? mask.data.slice(row, row + ids.dims[2]).reduce((sum, bit) => sum + Number(bit), 0) : 0;
    }),
  }),
  image_embedding: () => ({ image_embeds: floats([1, 2], (_, i) => [0.6, 0.8][i]) }),
  text_embedding: ({ input_ids: ids }) => ({ text_embeds: floats([ids.dims[0], 2], (_, i) => i % 2) }),
};

/** Return a model and a list of the graphs that ran and the files that were read. */
async function loadToy({ change = () => {}, damage = {} } = {}) {
  const task = (roles, more = {}) => ({
    graphs: Object.fromEntries(roles.map((role) => [role, `${role}.onnx`])),
    tokenizer: "tokenizer.json",
    special_ids: SPECIAL,
    image: IMAGE,
    shapes: SHAPES,
    generation: GENERATION,
    prompt: "",
    prompt_ids: [SPECIAL.dec],
    confidence: null,
    text: { clean: "none", max_words: null, max_tokens: null },
    ...more,
  });
  const shared = ["stem", "image_encoder", "image_memory"];
  const tasks = {
    caption: task([...shared, "decoder_step"], { confidence: { slope: 1, intercept: 2 } }),
    vqa: task([...shared, "question_encoder", "decoder_step"], {
      text: { clean: "question", first_token: "enc", max_words: 50, max_tokens: 35 },
    }),
    retrieval: task([...shared, "match", "image_embedding", "text_embedding"], {
      embed_width: 2,
      text: { clean: "caption", max_words: 30, max_tokens: 35 },
    }),
  };
  const contents = { "tokenizer.json": JSON.stringify(description) };
  for (const role of Object.keys(graphs)) contents[`${role}.onnx`] = role;
  const files = {};
  for (const [name, content] of Object.entries(contents)) {
    files[name] = { bytes: content.length, sha256: createHash("sha256").update(content).digest("hex") };
  }
  const kind = { format: "openblip-export", format_version: 1, runtime: "onnx", source: "toy" };
  const manifest = structuredClone({ ...kind, files, tasks });
  change(manifest);
  Object.assign(contents, { "manifest.json": JSON.stringify(manifest) }, damage);
  const log = { read: [], run: [] };
  const ort = {
    env: { wasm: {} },
    Tensor,
    InferenceSession: {
      create: async (bytes) => {
        const role = new TextDecoder().decode(bytes);
        let isBusy = false;
        return {
          run: async (feeds) => {
            assert.ok(!isBusy, "a session runs once at a time");
            isBusy = true;
            await null;
            log.run.push(role);
            isBusy = false;
            return graphs[role](feeds);
          },
          release: async () => log.run.push(`release ${role}`),
        };
      },
    },
  };
  const read = async (name) => {
    log.read.push(name);
    if (contents[name] === undefined) throw new ExportError(`no file ${name}`);
    return new TextEncoder().encode(contents[name]);
  };
  return { blip: await Blip.load(read, { ort }), log };
}

const count = (list, name) => list.filter((each) => each === name).length;

test("an image is described, asked about and matched, and passes the stem once", async () => {
  const { blip, log } = await loadToy();
  assert.deepEqual(log.read, ["manifest.json"]);
  assert.deepEqual([blip.source, blip.tasks], ["toy", ["caption", "vqa", "retrieval"]]);
  const image = await blip.encode(PHOTO);
  assert.deepEqual([image.width, image.height], [6, 5]);
  const caption = await blip.caption(image, { n: 2 });
  assert.equal(caption.text, "a dog runs");
  assert.deepEqual(caption.ids, [4, 5, 6, 3]);
  assert.equal(caption.finished, true);
  assert.equal(caption.score, caption.logprob / 4);
  assert.ok(Math.abs(caption.confidence - 1 / (1 + Math.exp(-(caption.score + 2)))) < 1e-9);
  assert.equal(caption.alternatives.length, 1);
  assert.ok(!log.read.includes("question_encoder.onnx"), "other tasks are loaded on demand");
  const answers = await blip.ask(image, ["a dog?", "cats"]);
  assert.deepEqual(
    answers.map(({ text }) => text),
    ["a dog runs", "a dog runs"],
  );
  assert.ok(answers[0].probability > 0 && answers[0].probability < 1);
  const [short, long] = await blip.match(image, ["dog", "a dog runs"]);
  assert.ok(Math.abs(short.probability - 1 / (1 + Math.exp(-3))) < 1e-6);
  assert.ok(Math.abs(long.probability - 1 / (1 + Math.exp(-5))) < 1e-6);
  assert.ok(Math.abs(short.similarity - 0.8) < 1e-6);
  assert.deepEqual(await blip.match(image, "dog"), short);
  for (const role of ["stem", "image_encoder", "image_memory", "image_embedding"])
    assert.equal(count(log.run, role), 1, role);
  assert.deepEqual(log.read.length, new Set(log.read).size, "every file is read once");
  await blip.close();
  assert.ok(log.run.includes("release stem"));
});

test("a prompt is the start of the caption, and greedy decoding agrees with beams", async () => {
  const { blip } = await loadToy();
  assert.equal((await blip.caption(PHOTO, { prompt: "a dog" })).text, "a dog runs");
  assert.equal((await blip.caption(PHOTO, { numBeams: 1 })).text, "a dog runs");
  const cut = await blip.caption(PHOTO, { maxNewTokens: 2 });
  assert.deepEqual([cut.text, cut.finished], ["a dog", false]);
});

test("captions repeat no n-gram that the model forbids, unless an option allows it", async () => {
  const change = ({ tasks }) => (tasks.caption.generation.no_repeat_ngram_size = 2);
  const { blip } = await loadToy({ change });
  const prompt = "a dog runs a";
  assert.equal((await blip.caption(PHOTO, { prompt })).text, "a dog runs a cat");
  assert.equal((await blip.caption(PHOTO, { prompt, noRepeatNgramSize: 0 })).text, "a dog runs a dog runs");
});

test("calls at the same time share their work", async () => {
  const { blip, log } = await loadToy();
  const image = await blip.encode(PHOTO);
  const [first, second] = await Promise.all([blip.caption(image), blip.caption(image), blip.ask(image, "a cat?")]);
  assert.deepEqual(first, second);
  assert.equal(count(log.run, "stem"), 1);
  assert.equal(count(log.read, "stem.onnx"), 1);
});

test("a model without a stem encodes the pixels", async () => {
  const change = ({ tasks }) => Object.values(tasks).forEach((task) => delete task.graphs.stem);
  const { blip, log } = await loadToy({ change });
  const image = await blip.encode(PHOTO);
  assert.equal((await blip.caption(image)).text, "a dog runs");
  await blip.match(image, "a dog");
  assert.deepEqual([count(log.run, "stem"), count(log.run, "image_encoder")], [0, 1]);
});

test("models with images of several sizes encode each", async () => {
  const small = { ...IMAGE, size: 2 };
  const { blip, log } = await loadToy({ change: ({ tasks }) => (tasks.vqa.image = small) });
  const image = await blip.encode(PHOTO);
  await blip.caption(image);
  await blip.ask(image, "a dog?");
  assert.deepEqual([...image.pixels.keys()], [SIZE, 2]);
  assert.equal(count(log.run, "stem"), 2);
});

test("many texts are matched in several runs", async () => {
  const { blip, log } = await loadToy();
  const matches = await blip.match(PHOTO, new Array(130).fill("a dog"));
  assert.equal(matches.length, 130);
  assert.equal(count(log.run, "match"), 3);
  assert.equal((await blip.embedTexts(["a", "dog"])).length, 2);
});

test("a download reports its progress", async () => {
  const { blip } = await loadToy();
  const reports = [];
  await blip.prepare("caption", { onProgress: (progress) => reports.push(progress) });
  const total = "stem".length + "image_encoder".length + "image_memory".length + "decoder_step".length;
  assert.deepEqual(reports[0], { loaded: 0, total });
  assert.deepEqual(reports.at(-1), { loaded: total, total });
  const again = [];
  await blip.prepare("caption", { onProgress: (progress) => again.push(progress) });
  assert.deepEqual(again, [{ loaded: 0, total: 0 }]);
});

test("exports that are incomplete, damaged or of another version are refused", async () => {
  const refuse = async (options, message) => assert.rejects(loadToy(options), { name: "ExportError", message });
  await refuse(
    { change: (manifest) => (manifest.format = "other") },
    /format of the model must be openblip-export, got other/,
  );
  await refuse({ change: (manifest) => (manifest.format_version = 2) }, /version of the export must be 1, got 2/);
  await refuse({ change: (manifest) => (manifest.runtime = "openvino") }, /exported --to onnx, got openvino/);
  await refuse(
    { change: (manifest) => delete manifest.files["match.onnx"] },
    /lacks match\.onnx, which retrieval needs/,
  );
  for (const name of ["../secret", "a/b", "a\\b", "..", ".hidden", ""]) {
    await refuse({ change: (manifest) => (manifest.files[name] = {}) }, /names of files must be plain/);
  }
  const changes = [
    [(manifest) => delete manifest.tasks, /lacks the files or the tasks/],
    [(manifest) => (manifest.files = []), /lacks the files or the tasks/],
    [(manifest) => (manifest.files["stem.onnx"].bytes = 1e15), /must state the bytes and the hash of stem\.onnx/],
    [(manifest) => (manifest.files["stem.onnx"] = null), /must state the bytes and the hash of stem\.onnx/],
    [(manifest) => (manifest.tasks.vqa = null), /settings of vqa are incomplete/],
    [(manifest) => delete manifest.tasks.caption.graphs.decoder_step, /caption lacks the graph decoder_step/],
    [(manifest) => (manifest.tasks.caption.tokenizer = null), /lacks null, which caption needs/],
    [(manifest) => (manifest.tasks.caption.image.size = 1e9), /image size of caption must be from 1 to 4096/],
    [(manifest) => (manifest.tasks.caption.shapes.layers = 1e12), /layers of caption must be from 1 to/],
  ];
  for (const [change, message] of changes) await refuse({ change: (manifest) => change(manifest) }, message);
  await refuse({ damage: { "manifest.json": "{" } }, /manifest\.json is not JSON/);
  await refuse({ damage: { "manifest.json": undefined } }, /no file manifest\.json/);
  for (const [content, message] of [
    ["stam", /differs from the file that was exported/],
    ["st", /must have 4 bytes, got 2/],
  ]) {
    const { blip } = await loadToy({ damage: { "stem.onnx": content } });
    await assert.rejects(blip.caption(PHOTO), { name: "ExportError", message });
  }
});

test("wrong arguments are refused", async () => {
  const { blip } = await loadToy({ change: (manifest) => delete manifest.tasks.vqa });
  await assert.rejects(blip.ask(PHOTO, "a dog?"), {
    name: "InputError",
    message: /exported for vqa; it has caption, retrieval/,
  });
  await assert.rejects(blip.caption(PHOTO, { beams: 3 }), { name: "InputError", message: /got beams/ });
  await assert.rejects(blip.caption(PHOTO, { maxNewTokens: 13 }), {
    name: "InputError",
    message: /at most 12 tokens, got 13/,
  });
  await assert.rejects(blip.match(PHOTO, [5]), InputError);
  await assert.rejects(blip.caption(Uint8Array.of(1, 2, 3)), ImageError);
  const other = await loadToy();
  await assert.rejects(blip.caption(await other.blip.encode(PHOTO)), {
    name: "InputError",
    message: /encoded by this model/,
  });
});

test("a folder that cannot be fetched is refused", async () => {
  const load = Blip.load("http://127.0.0.1:9/model", { ort: { env: { wasm: {} } } });
  await assert.rejects(load, { name: "ExportError", message: /cannot fetch manifest\.json: .*openblip export wrote/ });
});

test("a file that never ends is not downloaded to the end", async () => {
  const { createServer } = await import("node:http");
  let sent = 0;
  const server = createServer((_, response) => {
    const block = Buffer.alloc(1 << 20, " ");
    const send = () => {
      while (!response.destroyed && (sent += block.length) && response.write(block));
    };
    response.on("drain", send);
    send();
  }).listen(0, "127.0.0.1");
  await new Promise((resolve) => server.on("listening", resolve));
  try {
    const load = Blip.load(`http://127.0.0.1:${server.address().port}/`, { ort: { env: { wasm: {} } } });
    await assert.rejects(load, { name: "ExportError", message: /manifest\.json: it must have at most 16777216 bytes/ });
    assert.ok(sent < 64 << 20, `${sent} bytes`);
  } finally {
    server.closeAllConnections();
    server.close();
  }
});

test("the module and its types export the same names", async () => {
  const { readFile } = await import("node:fs/promises");
  const types = await readFile(new URL("../openblip.d.ts", import.meta.url), "utf8");
  const declared = [...types.matchAll(/^export (?:class|function) (\w+)/gm)].map((match) => match[1]).sort();
  assert.deepEqual(Object.keys(await import("../openblip.js")).sort(), declared);
  assert.ok((await readFixture("png")).pillow.startsWith("13."), "the types name the version of Pillow");
});
