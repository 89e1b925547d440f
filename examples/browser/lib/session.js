// Decoding of one text with `decoder_step`: the caches of its rows.

/** A session, as `generate` uses it. It starts with one row. */
export class DecoderSession {
  /**
   * @param {import("./runtime.js").Runtime} runtime
   * @param {string} graph Name of the graph's file.
   * @param {{layers: number, heads: number, head_width: number}} shapes
   * @param {Record<string, any>} memory Tensors that do not change: keys and values of the cross-attention.
   */
  constructor(runtime, graph, shapes, memory) {
    this.runtime = runtime;
    this.graph = graph;
    this.shapes = shapes;
    this.memory = memory;
    this.width = 1;
    this.past = 0;
    this.keys = new Float32Array(0); // (layers, 1, width, heads, past, head width)
    this.values = new Float32Array(0);
  }

  /** Append tokens to all rows; return the logits (rows * vocabulary) of the token after them. */
  async step(ids) {
    const { layers, heads, head_width: headWidth } = this.shapes;
    const dims = [layers, 1, this.width, heads, this.past, headWidth];
    const tokens = ids[0].length;
    const output = await this.runtime.run(this.graph, {
      input_ids: this.runtime.integers(ids.flat(), [1, this.width, tokens]),
      past_keys: this.runtime.floats(this.keys, dims),
      past_values: this.runtime.floats(this.values, dims),
      ...this.memory,
    });
    this.keys = output.keys.data;
    this.values = output.values.data;
    this.past += tokens;
    return output.logits.data;
  }

  /** Replace the row by copies. */
  widen(width) {
    this.reorder(new Array(width).fill(0));
  }

  /** Replace each row by another one. */
  reorder(rows) {
    this.keys = this.#gather(this.keys, rows);
    this.values = this.#gather(this.values, rows);
    this.width = rows.length;
  }

  #gather(cache, rows) {
    const { layers, heads, head_width: headWidth } = this.shapes;
    const size = heads * this.past * headWidth;
    const gathered = new Float32Array(layers * rows.length * size);
    for (let layer = 0; layer < layers; layer++) {
      rows.forEach((row, i) => {
        const start = (layer * this.width + row) * size;
        gathered.set(cache.subarray(start, start + size), (layer * rows.length + i) * size);
      });
    }
    return gathered;
  }
}
