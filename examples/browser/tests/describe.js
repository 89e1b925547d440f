// What `compare_runtimes.py` compares, in Node.js and in the browser.

/**
 * Return the token ids of captions and answers (greedy, and 3 beams with all their texts), the matches of an image, and
 * the seconds from its file to the caption.
 */
export async function describe(blip, source, question, texts) {
  const start = performance.now();
  const image = await blip.encode(source);
  await blip.caption(image);
  const seconds = (performance.now() - start) / 1000;
  const searches = [];
  for (const describeImage of [(options) => blip.caption(image, options), (options) => blip.ask(image, question, options)]) {
    for (const numBeams of [1, 3]) {
      const best = await describeImage({ numBeams, n: numBeams });
      searches.push([best, ...best.alternatives].map(({ ids }) => ids));
    }
  }
  const matches = await blip.match(image, texts);
  return {
    texts: searches,
    matches: matches.map(({ probability, similarity }) => [probability, similarity]),
    seconds,
  };
}
