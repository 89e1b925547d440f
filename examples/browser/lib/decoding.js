// Greedy decoding and beam search, with the tokens of `openblip.decoding` for one item.
//
// The beam search is that of the original BLIP (rule "total" of `openblip.decoding.options`): the best 2 * beams
// continuations survive a step, [SEP] ends a hypothesis only in the better half of them, and sums of log-probabilities
// are divided by a power of the length. Sums are rounded to 32 bits, as in PyTorch.

import { InputError } from "./errors.js";

const EMPTY = -Infinity; // the score of a slot without a hypothesis

/**
 * Continue a prompt.
 *
 * @param {import("../openblip.js").Session} session A new session, with one row.
 * @param {number[]} prompt Token ids.
 * @param {import("../openblip.js").Decoding} options
 * @returns {Promise<import("../openblip.js").Hypothesis[]>} Up to `options.n` hypotheses, the best first.
 * @throws {InputError} An option is out of range.
 */
export async function generate(session, prompt, options) {
  checkOptions(prompt, options);
  return options.numBeams === 1
    ? [await decodeGreedily(session, prompt, options)]
    : searchBeams(session, prompt, options);
}

function checkOptions(prompt, options) {
  const minimums = { numBeams: 1, maxNewTokens: 1, minNewTokens: 0, n: 1, noRepeatNgramSize: 0 };
  for (const [name, minimum] of Object.entries(minimums)) {
    if (!Number.isInteger(options[name]) || options[name] < minimum) {
      throw new InputError(`${name} must be an integer of at least ${minimum}, got ${options[name]}`);
    }
  }
  if (!prompt.length) throw new InputError("the prompt must have at least one token");
  if (options.n > options.numBeams)
    throw new InputError(`n must be at most numBeams=${options.numBeams}, got ${options.n}`);
  if (!(options.repetitionPenalty > 0)) {
    throw new InputError(`repetitionPenalty must be above 0, got ${options.repetitionPenalty}`);
  }
  if (!Number.isFinite(options.lengthPenalty)) {
    throw new InputError(`lengthPenalty must be finite, got ${options.lengthPenalty}`);
  }
}

async function decodeGreedily(session, prompt, options) {
  const ids = [];
  let logprob = 0;
  let logits = await session.step([prompt]);
  for (;;) {
    const scores = applyPenalties(logits, [...prompt, ...ids], ids.length, options);
    const chosen = bestIndices(scores, 1)[0];
    logprob = Math.fround(logprob + Math.fround(logits[chosen] - logSumExp(logits)));
    ids.push(chosen);
    const finished = chosen === options.eosId;
    if (finished || ids.length === options.maxNewTokens) return { ids, logprob, score: logprob, finished };
    logits = await session.step([[chosen]]);
  }
}

async function searchBeams(session, prompt, options) {
  const { numBeams, maxNewTokens, lengthPenalty, eosId } = options;
  let running = [{ ids: [], score: 0, logprob: 0 }];
  let complete = Array.from({ length: numBeams }, () => ({ ids: [], score: EMPTY, logprob: 0 }));
  let logits = await session.step([prompt]); // (rows * vocabulary)
  for (let step = 1; ; step++) {
    const length = prompt.length + step;
    const candidates = findCandidates(logits, running, prompt, step, options);
    // The best candidates that do not end are the next beams; those that end may be complete hypotheses.
    const ends = candidates.map((candidate) => candidate.ids.at(-1) === eosId);
    const open = candidates.map((candidate, i) => (ends[i] ? { ...candidate, score: EMPTY } : candidate));
    running = rank(open, numBeams);
    const ended = candidates.slice(0, numBeams).filter((_, i) => ends[i]);
    complete = rank([...complete, ...ended.map((candidate) => rate(candidate, length - 1, lengthPenalty))], numBeams);

    // The best sum counts even if it belongs to a hypothesis that has just ended.
    const worst = complete[numBeams - 1].score;
    const settled = options.earlyStopping || worst >= candidates[0].score / (length - 1) ** lengthPenalty;
    const done = (worst > EMPTY && settled) || running[0].score === EMPTY;
    if (done) break;
    if (step === maxNewTokens) {
      complete = rank([...complete, ...running.map((beam) => rate(beam, length, lengthPenalty))], numBeams);
      break;
    }
    if (step === 1) session.widen(numBeams);
    else session.reorder(running.map((beam) => beam.parent));
    logits = await session.step(running.map((beam) => [beam.ids.at(-1)]));
  }
  return complete
    .slice(0, options.n)
    .filter(({ score }) => score > EMPTY)
    .map(({ ids, logprob, score }) => ({ ids, logprob, score, finished: ids.at(-1) === eosId }));
}

/** Return the best 2 * beams continuations of all beams, the best first. */
function findCandidates(logits, running, prompt, step, options) {
  const count = 2 * options.numBeams;
  const vocabSize = logits.length / running.length;
  const candidates = [];
  running.forEach((beam, row) => {
    const logprobs = logSoftmax(logits.subarray(row * vocabSize, (row + 1) * vocabSize));
    const scores = applyPenalties(logprobs, [...prompt, ...beam.ids], step - 1, options);
    for (const id of bestIndices(scores, count)) {
      candidates.push({
        ids: [...beam.ids, id],
        score: Math.fround(beam.score + scores[id]),
        logprob: Math.fround(beam.logprob + logprobs[id]),
        parent: row,
      });
    }
  });
  return rank(candidates, count);
}

/** Return a hypothesis whose score is its sum divided by a power of its length. */
function rate(hypothesis, length, lengthPenalty) {
  return { ...hypothesis, score: hypothesis.score / length ** lengthPenalty };
}

/** Return the hypotheses with the best scores, the first one first among equal scores. */
function rank(hypotheses, count) {
  return [...hypotheses].sort((a, b) => (a.score === b.score ? 0 : b.score - a.score)).slice(0, count);
}

/** Apply the repetition penalty and the bans to the scores of the next token; returns a copy if there are any. */
function applyPenalties(scores, history, newTokens, options) {
  const { noRepeatNgramSize, minNewTokens, eosId } = options;
  const penalty = Math.fround(options.repetitionPenalty);
  if (penalty === 1 && !noRepeatNgramSize && newTokens >= minNewTokens) return scores;
  scores = scores.slice();
  if (penalty !== 1) {
    for (const id of new Set(history)) scores[id] = scores[id] < 0 ? scores[id] * penalty : scores[id] / penalty;
  }
  for (const id of noRepeatNgramSize ? findRepeats(history, noRepeatNgramSize) : []) scores[id] = EMPTY;
  if (newTokens < minNewTokens) scores[eosId] = EMPTY;
  return scores;
}

/** Return the tokens that would complete an n-gram that occurs in the history. */
function findRepeats(history, size) {
  const ending = size > 1 ? history.slice(1 - size).join() : "";
  const repeats = [];
  for (let end = size - 1; end < history.length; end++) {
    if (history.slice(end - size + 1, end).join() === ending) repeats.push(history[end]);
  }
  return repeats;
}

/** Return the indices of the largest values, the first one first among equal values. */
function bestIndices(values, count) {
  const best = [];
  for (let i = 0; i < values.length; i++) {
    if (best.length === count && !(values[i] > values[best[count - 1]])) continue;
    let at = Math.min(best.length, count - 1);
    while (at > 0 && values[i] > values[best[at - 1]]) {
      best[at] = best[at - 1];
      at--;
    }
    best[at] = i;
  }
  return best;
}

function logSoftmax(logits) {
  const total = logSumExp(logits);
  return logits.map((logit) => logit - total);
}

/** Return the logarithm of the sum of exponentials. */
export function logSumExp(values) {
  let largest = -Infinity;
  for (const value of values) if (value > largest) largest = value;
  let sum = 0;
  for (const value of values) sum += Math.exp(value - largest);
  return largest + Math.log(sum);
}
