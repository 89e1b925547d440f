// What `compare_runtimes.py` compares, in Node.js and in the browser.

/** Return the token ids of captions and answers, and the matches of an image. */
export async function describe(blip, source, question, texts) {
  const image = await blip.encode(source);
  const greedy = await blip.caption(image, { numBeams: 1 });
  const beams = await blip.caption(image, { numBeams: 3, n: 3 });
  const answer = await blip.ask(image, question);
  return {
    greedy: greedy.ids,
    beams: [beams, ...beams.alternatives].map(({ ids }) => ids),
    answer: answer.ids,
    matches: (await blip.match(image, texts)).map(({ probability, similarity }) => [probability, similarity]),
  };
}
