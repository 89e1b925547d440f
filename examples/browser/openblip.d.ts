/** Decoded pixels: RGB bytes (height, width, 3). */
export interface Pixels {
  data: Uint8Array;
  width: number;
  height: number;
}

/**
 * An image: a file, its bytes, or decoded pixels with 3 or 4 bytes each, such as `ImageData`.
 *
 * Outside a browser, only PNG files and decoded pixels can be read.
 */
export type ImageSource =
  Blob | ArrayBuffer | Uint8Array | { data: Uint8Array | Uint8ClampedArray; width: number; height: number };

/** The address of a folder with an exported model, or a function that reads a file of it. */
export type ModelSource = string | URL | ((name: string) => Promise<Uint8Array | ArrayBuffer>);

export type Task = "caption" | "vqa" | "retrieval";

export interface LoadOptions {
  /** The module `onnxruntime-web`. By default it is imported from `node_modules` next to this module. */
  ort?: unknown;
  /** Number of threads. By default up to 4, or 1 if the page may not share memory between threads. */
  threads?: number;
}

/** Downloaded bytes, before compression. */
export interface Progress {
  loaded: number;
  total: number;
}

/** Options of the search. Their defaults are in the exported model. */
export interface SearchOptions {
  /** Beams of the search; 1 is greedy decoding. */
  numBeams?: number;
  /** Number of results; at most `numBeams`. The best one has the others as `alternatives`. */
  n?: number;
  /** Most tokens, [SEP] included. */
  maxNewTokens?: number;
  /** Fewest tokens before [SEP]. */
  minNewTokens?: number;
  /** Exponent of the length that divides the score of a beam; above 0 prefers long texts. */
  lengthPenalty?: number;
  /** Divides the scores of tokens that occurred; above 1 avoids repetitions. */
  repetitionPenalty?: number;
  /** Size of the n-grams that must not occur twice; 0 allows all. */
  noRepeatNgramSize?: number;
  /** Whether the search ends once `numBeams` texts are complete. */
  earlyStopping?: boolean;
}

export interface CaptionOptions extends SearchOptions {
  /** Text to start the caption with. */
  prompt?: string;
}

/** A description of an image. */
export interface Caption {
  text: string;
  /** Ids of the generated tokens, with the final [SEP] if there is one. */
  ids: number[];
  /** Summed natural-log probability of the tokens. */
  logprob: number;
  /** Mean natural-log probability per token. */
  score: number;
  /** Whether the caption ended by itself; false if `maxNewTokens` cut it off. */
  finished: boolean;
  /** Probability that the caption names the subject of the image; `null` if the model has no calibration. */
  confidence: number | null;
  alternatives: Omit<Caption, "alternatives">[];
}

/** An answer to a question about an image. */
export interface Answer {
  text: string;
  /** Ids of the generated tokens, with the final [SEP] if there is one. */
  ids: number[];
  /** Probability of the whole answer. */
  probability: number;
  /** Mean natural-log probability per token. */
  score: number;
  alternatives: Omit<Answer, "alternatives">[];
}

/** How well a text fits an image. */
export interface Match {
  /** Probability of a match by the image-text matching head (ITM). */
  probability: number;
  /** Cosine of the embeddings of image and text (ITC), -1 to 1. */
  similarity: number;
}

/** An image that a model has read: each task computes its share once. Create it with `Blip.encode`. */
export class EncodedImage {
  private constructor();
  /** Width in pixels, upright. */
  readonly width: number;
  /** Height in pixels, upright. */
  readonly height: number;
}

/** An exported model. */
export class Blip {
  private constructor();

  /**
   * Read the manifest of an exported model. Its graphs are downloaded when they are needed.
   *
   * @throws {ExportError} The export is incomplete, or of another version.
   */
  static load(source: ModelSource, options?: LoadOptions): Promise<Blip>;

  /** Name of the model that was exported. */
  readonly source: string;
  /** Tasks of the model. */
  readonly tasks: string[];
  /** Number of threads. */
  readonly threads: number;

  /**
   * Download all that a task needs, so that it works without a network.
   *
   * @throws {ExportError} A file is missing or damaged.
   * @throws {InputError} The model was not exported for the task.
   */
  prepare(task: Task, options?: { onProgress?: (progress: Progress) => void }): Promise<void>;

  /**
   * Decode and resize an image, so that several calls share the work of the image encoder.
   *
   * @throws {ImageError} The image cannot be read.
   */
  encode(image: ImageSource): Promise<EncodedImage>;

  /** Describe an image. */
  caption(image: ImageSource | EncodedImage, options?: CaptionOptions): Promise<Caption>;

  /** Answer a question about an image. */
  ask(image: ImageSource | EncodedImage, question: string, options?: SearchOptions): Promise<Answer>;
  /** Answer questions about an image. */
  ask(image: ImageSource | EncodedImage, questions: readonly string[], options?: SearchOptions): Promise<Answer[]>;

  /** Score how well a text fits an image. */
  match(image: ImageSource | EncodedImage, text: string): Promise<Match>;
  /** Score how well texts fit an image. */
  match(image: ImageSource | EncodedImage, texts: readonly string[]): Promise<Match[]>;

  /** Return the normalized embedding of an image, for a search with `embedTexts`. */
  embedImage(image: ImageSource | EncodedImage): Promise<Float32Array>;
  /** Return the normalized embeddings of texts. */
  embedTexts(texts: readonly string[]): Promise<Float32Array[]>;

  /** Free the memory of the model. */
  close(): Promise<void>;
}

/**
 * Decode an image, apply its orientation, and convert it to RGB; transparent pixels become white.
 *
 * @throws {ImageError} The image cannot be read.
 */
export function decodeImage(source: ImageSource): Promise<Pixels>;

/** Resize an RGB image to a square as Pillow 13 does: bicubic, without keeping the aspect ratio. */
export function resize(image: Pixels, size: number): Uint8Array;

/** Ids of the special tokens. */
export interface SpecialIds {
  pad: number;
  unk: number;
  cls: number;
  sep: number;
  dec: number;
  enc: number;
}

/** BERT WordPiece. */
export class Tokenizer {
  /** @param description Content of `tokenizer.json`. */
  constructor(description: object, specialIds: SpecialIds);
  /** Return the ids of the word pieces of a text, without special tokens. */
  spell(text: string): number[];
  /** Return the first token, the word pieces and [SEP]; at most `maxLength` tokens. */
  encode(text: string, firstToken: "cls" | "enc" | "dec", maxLength?: number | null): number[];
  /** Join word pieces to readable text. */
  decode(ids: readonly number[]): string;
  /** Return a prompt as it was typed, continued by new tokens. */
  decodeAfter(prompt: string, ids: readonly number[]): string;
}

/** A decoder, for `generate`. It starts with one row. */
export interface Session {
  /** Append tokens to all rows; return the logits (rows * vocabulary) of the token after them. */
  step(ids: number[][]): Promise<Float32Array>;
  /** Replace the row by copies. */
  widen(width: number): void;
  /** Replace each row by another one. */
  reorder(rows: number[]): void;
}

/** All options of a search. */
export interface Decoding extends Required<SearchOptions> {
  /** Id of [SEP]. */
  eosId: number;
}

/** A decoded text. */
export interface Hypothesis {
  ids: number[];
  logprob: number;
  score: number;
  finished: boolean;
}

/** Continue a prompt: greedy decoding, or a beam search with the rule of the original BLIP. */
export function generate(session: Session, prompt: readonly number[], options: Decoding): Promise<Hypothesis[]>;

/** The base class of the errors of this module. */
export class OpenBlipError extends Error {}
/** An image cannot be read. */
export class ImageError extends OpenBlipError {}
/** An argument has a wrong type or value. */
export class InputError extends OpenBlipError {}
/** The exported model is incomplete, damaged or of another version. */
export class ExportError extends OpenBlipError {}
