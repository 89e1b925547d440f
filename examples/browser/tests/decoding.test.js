import assert from "node:assert/strict";
import { test } from "node:test";

import { generate } from "../lib/decoding.js";
import { readFixture } from "./fixtures.js";

const recorded = await readFixture("decoding");
const DEFAULTS = {
  num_beams: 3,
  max_new_tokens: 16,
  min_new_tokens: 1,
  n: 1,
  length_penalty: 1,
  repetition_penalty: 1,
  no_repeat_ngram_size: 0,
  early_stopping: false,
};

/** A session whose logits depend on the final two tokens: entries of a table, in steps of 2 ** -14. */
class TableSession {
  constructor(table, vocabSize) {
    this.table = table;
    this.vocabSize = vocabSize;
    this.rows = [[]];
  }

  async step(ids) {
    this.rows = this.rows.map((row, i) => [...row, ...ids[i]]);
    const size = this.vocabSize;
    return Float32Array.from({ length: this.rows.length * size }, (_, index) => {
      const row = this.rows[Math.floor(index / size)];
      const token = index % size;
      return (this.table[row.at(-1) * size + token] + this.table[(size + (row.at(-2) ?? 0)) * size + token]) / 2 ** 14;
    });
  }

  widen(width) {
    this.rows = Array.from({ length: width }, () => [...this.rows[0]]);
  }

  reorder(rows) {
    this.rows = rows.map((row) => [...this.rows[row]]);
  }
}

function toCamelCase(options) {
  const rename = (name) => name.replace(/_(.)/g, (_, letter) => letter.toUpperCase());
  return Object.fromEntries(Object.entries(options).map(([name, value]) => [rename(name), value]));
}

function decode({ table, prompt, options }) {
  const session = new TableSession(recorded.tables[table], recorded.vocab_size);
  return generate(session, prompt, { ...toCamelCase({ ...DEFAULTS, ...options }), eosId: recorded.eos_id });
}

test(`${recorded.cases.length} searches find the hypotheses of OpenBLIP (torch ${recorded.torch})`, async () => {
  for (const example of recorded.cases) {
    const label = JSON.stringify({ ...example, results: undefined });
    const results = await decode(example);
    assert.deepEqual(
      results.map(({ ids }) => ids),
      example.results.map(({ ids }) => ids),
      label,
    );
    results.forEach((result, i) => {
      const expected = example.results[i];
      assert.equal(result.finished, expected.finished, label);
      assert.ok(Math.abs(result.logprob - expected.logprob) < 1e-4, label);
      assert.ok(Math.abs(result.score - expected.score) < 1e-4, label);
    });
  }
});

test("options out of range are refused", async () => {
  const refuse = async (options, message) => {
    await assert.rejects(decode({ table: 0, prompt: [1], options }), { name: "InputError", message });
  };
  await refuse({ num_beams: 0 }, /numBeams must be an integer of at least 1, got 0/);
  await refuse({ max_new_tokens: 1.5 }, /maxNewTokens must be an integer/);
  await refuse({ n: 4 }, /n must be at most numBeams=3, got 4/);
  await refuse({ repetition_penalty: 0 }, /repetitionPenalty must be above 0/);
  await refuse({ length_penalty: NaN }, /lengthPenalty must be finite/);
  await assert.rejects(decode({ table: 0, prompt: [], options: {} }), /at least one token/);
});
