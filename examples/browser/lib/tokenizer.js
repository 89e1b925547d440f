// BERT WordPiece with the ids of OpenBLIP's tokenizer, from the same `tokenizer.json`.

import { isAccent, isChinese, isPunctuation, isRemoved } from "./characters.js";
import { ExportError, InputError } from "./errors.js";

const CONTINUATION = "##";
const WHITE_SPACE = /[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]/u;
// The gaps that splitting into words leaves in English, closed in this order.
const GAPS = [
  [" .", "."],
  [" ?", "?"],
  [" !", "!"],
  [" ,", ","],
  [" ' ", "'"],
  [" n't", "n't"],
  [" 'm", "'m"],
  [" 's", "'s"],
  [" 've", "'ve"],
  [" 're", "'re"],
];

/** A tokenizer. It is immutable. */
export class Tokenizer {
  /**
   * @param {any} description Content of `tokenizer.json`.
   * @param {import("../openblip.js").SpecialIds} specialIds Ids of the special tokens.
   * @throws {ExportError} It describes another kind of tokenizer.
   */
  constructor(description, specialIds) {
    const { model, normalizer, pre_tokenizer: splitter, added_tokens: added } = description;
    const kinds = [model?.type, normalizer?.type, splitter?.type];
    if (kinds.join() !== "WordPiece,BertNormalizer,BertPreTokenizer") {
      throw new ExportError(`the tokenizer must be BERT's WordPiece, got ${kinds.join(", ")}`);
    }
    this.ids = new Map(Object.entries(model.vocab));
    this.pieces = [];
    for (const [piece, id] of this.ids) this.pieces[id] = piece;
    this.normalizer = { ...normalizer, strip_accents: normalizer.strip_accents ?? normalizer.lowercase };
    this.maxCharacters = model.max_input_chars_per_word;
    this.unknown = this.ids.get(model.unk_token);
    this.special = specialIds;
    this.specialIds = new Set([
      ...added.filter((token) => token.special).map((token) => token.id),
      specialIds.dec,
      specialIds.enc,
    ]);
    const names = added.map((token) => token.content).sort((a, b) => b.length - a.length);
    this.addedPattern = names.length ? new RegExp(names.map(escapePattern).join("|"), "g") : null;
  }

  /**
   * Return the ids of the word pieces of a text, without special tokens.
   *
   * @param {string} text
   * @returns {number[]}
   */
  spell(text) {
    if (typeof text !== "string") throw new InputError(`a text must be a string, got ${typeof text}`);
    const ids = [];
    let start = 0;
    for (const match of this.addedPattern ? text.matchAll(this.addedPattern) : []) {
      this.#spellPlain(text.slice(start, match.index), ids);
      ids.push(this.ids.get(match[0]));
      start = match.index + match[0].length;
    }
    this.#spellPlain(text.slice(start), ids);
    return ids;
  }

  /**
   * Return the first token, the word pieces of a text, and [SEP].
   *
   * @param {string} text
   * @param {"cls" | "enc" | "dec"} firstToken
   * @param {number | null} maxLength Most tokens, the first token and [SEP] included; `null` for no limit.
   * @returns {number[]}
   */
  encode(text, firstToken, maxLength = null) {
    const pieces = this.spell(text);
    const kept = maxLength === null ? pieces : pieces.slice(0, maxLength - 2);
    return [this.special[firstToken], ...kept, this.special.sep];
  }

  /**
   * Join word pieces to readable text, without special tokens.
   *
   * @param {number[]} ids
   * @returns {string}
   */
  decode(ids) {
    const pieces = this.#knownPieces(ids);
    const text = joinPieces(pieces);
    return closeGaps(pieces[0]?.startsWith(CONTINUATION) ? text.slice(CONTINUATION.length) : text);
  }

  /**
   * Return a prompt as it was typed, continued by new tokens.
   *
   * @param {string} prompt
   * @param {number[]} ids
   * @returns {string}
   */
  decodeAfter(prompt, ids) {
    const pieces = this.#knownPieces(ids);
    prompt = prompt.trim();
    if (!prompt || !pieces.length) return prompt || this.decode(ids);
    const text = joinPieces(pieces);
    return prompt + closeGaps(pieces[0].startsWith(CONTINUATION) ? text.slice(CONTINUATION.length) : ` ${text}`);
  }

  #knownPieces(ids) {
    return ids.filter((id) => this.pieces[id] !== undefined && !this.specialIds.has(id)).map((id) => this.pieces[id]);
  }

  #spellPlain(text, ids) {
    for (const word of splitWords(this.#normalize(text))) this.#spellWord(word, ids);
  }

  #normalize(text) {
    const { clean_text: clean, handle_chinese_chars: chinese, strip_accents: strip, lowercase } = this.normalizer;
    let characters = Array.from(text).filter((character) => !isLoneSurrogate(character));
    if (clean) {
      characters = characters
        .filter((character) => !isRemoved(character.codePointAt(0)))
        .map((character) => (WHITE_SPACE.test(character) ? " " : character));
    }
    if (chinese)
      characters = characters.map((character) => (isChinese(character.codePointAt(0)) ? ` ${character} ` : character));
    if (strip) {
      characters = Array.from(characters.join("").normalize("NFD")).filter(
        (character) => !isAccent(character.codePointAt(0)),
      );
    }
    if (lowercase) characters = characters.map((character) => character.toLowerCase());
    return characters.join("");
  }

  /** Append the longest word pieces that spell a word, from its start, or [UNK] if there are none. */
  #spellWord(word, ids) {
    const characters = Array.from(word);
    const spelled = [];
    for (let start = 0; start < characters.length;) {
      let end = characters.length > this.maxCharacters ? start : characters.length;
      let id;
      for (; end > start; end--) {
        id = this.ids.get((start ? CONTINUATION : "") + characters.slice(start, end).join(""));
        if (id !== undefined) break;
      }
      if (id === undefined) {
        ids.push(this.unknown);
        return;
      }
      spelled.push(id);
      start = end;
    }
    ids.push(...spelled);
  }
}

/** Split at white space, and around each punctuation mark. */
function splitWords(text) {
  const words = [];
  let word = "";
  for (const character of text) {
    const isSpace = WHITE_SPACE.test(character);
    if (!isSpace && !isPunctuation(character.codePointAt(0))) {
      word += character;
      continue;
    }
    if (word) words.push(word);
    if (!isSpace) words.push(character);
    word = "";
  }
  if (word) words.push(word);
  return words;
}

function joinPieces(pieces) {
  return pieces
    .map((piece, i) => {
      if (i === 0) return closeGaps(piece);
      return closeGaps(piece.startsWith(CONTINUATION) ? piece.slice(CONTINUATION.length) : ` ${piece}`);
    })
    .join("");
}

function closeGaps(text) {
  return GAPS.reduce((closed, [gap, replacement]) => closed.replaceAll(gap, replacement), text);
}

function isLoneSurrogate(character) {
  return character.length === 1 && character >= "\ud800" && character <= "\udfff";
}

function escapePattern(text) {
  return text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
}
