// Cleaning of texts as in training; the rules are those of `openblip.preprocess.text`.

// Python's white space, which differs from that of JavaScript.
const SPACE_RUN = /[\t-\r\x1c-\x20\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]{2,}/gu;
const REMOVED = /[.!"()*#:;~]/g;

/**
 * Clean a text.
 *
 * @param {string} text
 * @param {"none" | "caption" | "question"} rule
 * @param {number | null} maxWords Number of words to keep; `null` keeps all.
 * @returns {string}
 */
export function cleanText(text, rule, maxWords) {
  if (rule === "caption")
    text = text
      .toLowerCase()
      .replace(REMOVED, " ")
      .replace(SPACE_RUN, " ")
      .replace(/\n+$/, "")
      .replace(/^ +| +$/g, "");
  if (rule === "question") text = text.toLowerCase().replace(REMOVED, "").replace(/ +$/, "");
  return maxWords === null ? text : text.split(" ").slice(0, maxWords).join(" ");
}
