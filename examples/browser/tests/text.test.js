import assert from "node:assert/strict";
import { test } from "node:test";

import { ExportError, InputError } from "../lib/errors.js";
import { cleanText } from "../lib/text.js";
import { Tokenizer } from "../lib/tokenizer.js";
import { readFixture } from "./fixtures.js";

const description = await readFixture("tokenizer");
const recorded = await readFixture("text");
const tokenizer = new Tokenizer(description, recorded.special_ids);

test(`texts have the ids of tokenizers ${recorded.tokenizers}`, () => {
  for (const { text, ids } of recorded.texts) assert.deepEqual(tokenizer.spell(text), ids, JSON.stringify(text));
});

test("texts are cleaned as in training", () => {
  for (const { text, caption, question } of recorded.texts) {
    assert.equal(cleanText(text, "caption", 30), caption, JSON.stringify(text));
    assert.equal(cleanText(text, "question", 50), question, JSON.stringify(text));
    assert.equal(cleanText(text, "none", null), text);
  }
});

test("ids become the same text", () => {
  for (const { ids, text, after } of recorded.sequences) {
    assert.equal(tokenizer.decode(ids), text, ids.join());
    recorded.prompts.forEach((prompt, i) => assert.equal(tokenizer.decodeAfter(prompt, ids), after[i], ids.join()));
  }
});

test("encoded texts have a first token and [SEP], and are truncated", () => {
  const { cls, enc, sep } = recorded.special_ids;
  const pieces = tokenizer.spell("a dog runs");
  assert.deepEqual(tokenizer.encode("a dog runs", "cls"), [cls, ...pieces, sep]);
  assert.deepEqual(tokenizer.encode("a dog runs", "enc", 3), [enc, pieces[0], sep]);
});

test("other tokenizers and other types are refused", () => {
  const bpe = { ...description, model: { type: "BPE" } };
  assert.throws(() => new Tokenizer(bpe, recorded.special_ids), ExportError);
  assert.throws(() => tokenizer.spell(5), InputError);
});
