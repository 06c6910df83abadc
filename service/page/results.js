// A comparison, drawn: the sentence on top, then one card for each of the two variants, by default a model's backends.

import { shortNumber } from "./chart.js";
import { make } from "./dom.js";

const SHOWN_LABELS = 6;
const MIB = 2 ** 20;

/** Draw the answer of /compare; `context` is the one that was sent, `reading` tells of the encoding. */
export function drawComparison(found, context, reading) {
  const summary = document.getElementById("summary");
  summary.className = isNumber(found) ? "" : found.agree ? "agree" : "differ";
  summary.textContent = sentence(found);
  document.getElementById("reading").textContent = readingWords(found.task, reading);
  document.getElementById("repeats").textContent = repeatsWords(found.comparisons);
  const facts = document.getElementById("facts");
  facts.replaceChildren(...factsOf(found));
  const pair = document.getElementById("pair");
  pair.replaceChildren(...namesOf(found).map((name) => drawVariant(name, found, context)));
  for (const element of [summary, facts, pair, document.getElementById("fine-print")]) element.hidden = false;
  for (const mark of pair.querySelectorAll("mark")) showInside(mark, mark.closest(".passage"));
}

/** What both say, in a sentence. */
export function sentence(found) {
  const [one, other] = namesOf(found);
  const [ones, others] = [one, other].map((name) => quote(headlineOf(found, found.results[name].answer)));
  if (isNumber(found)) return `${one} says ${ones}, ${other} ${others}.`;
  if (found.agree) return `Both say ${ones}.`;
  return `They differ: ${one} says ${ones}, ${other} ${others}.`;
}

/** The names of the two variants, in the order of the request. */
function namesOf(found) {
  return Object.keys(found.results);
}

/** The colours of a variant: its backend's, as in the charts; the other backend's for the second of two on one backend. */
export function colourOf(name, names) {
  const backends = names.map((each) => each.slice(each.lastIndexOf("@") + 1));
  const place = names.indexOf(name);
  return backends[0] === backends[1] ? ["fp32", "int8"][place] : backends[place];
}

/** `1.9 times faster`, `1.2 times slower`, `as fast`: how the second variant stands to the first. */
export function ratioWords(ratio, more, less, same) {
  if (ratio > 0.95 && ratio < 1.05) return same;
  return ratio > 1 ? `${shortNumber(ratio)}× ${more}` : `${shortNumber(1 / ratio)}× ${less}`;
}

/** Cut by code points, in which the service counts: `[before, inside, after]`. */
export function cutByCodePoints(text, start, end) {
  const points = Array.from(text);
  return [points.slice(0, start), points.slice(start, end), points.slice(end)].map((part) => part.join(""));
}

/** In quotation marks, and isolated, so that a right-to-left text leaves the sentence in order. */
function quote(text) {
  return `“\u2068${text}\u2069”`;
}

/** Whether the model predicts a number: two of them are more or less apart, and nothing else. */
function isNumber(found) {
  return found.agree === null;
}

function headlineOf(found, answer) {
  if (found.task === "qa") return answer.answer || "no answer";
  const [[best]] = answer;
  return isNumber(found) ? plainNumber(best.score) : best.label;
}

/** At most five digits, without a unit. */
export function plainNumber(value) {
  return String(Number(value.toPrecision(5)));
}

/** What was read: `13 tokens.`, and what was not. */
export function readingWords(task, { tokens, truncated, windows }) {
  const words = `${tokens} ${tokens === 1 ? "token" : "tokens"}${windows > 1 ? ` in ${windows} windows` : ""}.`;
  if (!truncated) return words;
  return `${words} ${task === "qa" ? "The question" : "The text"} is longer than the model reads: its end was cut off.`;
}

/** How the times came about. */
export function repeatsWords(comparisons) {
  if (comparisons > 1) return `Times are medians of ${comparisons} comparisons.`;
  return "One comparison is a noisy measurement: compare again, or look at the charts.";
}

function factsOf(found) {
  const { speedup, results } = found;
  const [one, other] = namesOf(found);
  const size = weightsOf(results[one]) / weightsOf(results[other]);
  const facts = [
    [ratioWords(speedup, "faster", "slower", "as fast"), `${other}’s inference`],
    [ratioWords(size, "smaller", "larger", "as large"), `${other}’s weights`],
    apartWords(found),
  ];
  return facts.map(([value, meaning]) => make("li", {}, make("strong", {}, value), " ", meaning));
}

/** How far the answers are apart, and what that is. */
export function apartWords(found) {
  const { task, delta } = found;
  if (task === "qa") return [delta.span_f1.toFixed(2), "F1 of the two answers’ words"];
  if (isNumber(found)) return [plainNumber(delta.abs_diff), "difference of the two numbers"];
  return [points(delta.max_abs_prob), "largest difference of a score"];
}

function drawVariant(name, found, context) {
  const { results } = found;
  const colour = colourOf(name, namesOf(found));
  const card = make("article", { class: `card answer ${colour}`, "aria-label": `Answer of ${name}` });
  card.append(
    make("div", { class: "answer-head" }, make("h3", {}, name), make("span", {}, engineWords(results[name]))),
    ...drawAnswer(name, found, context),
    drawCosts(name, results),
  );
  return card;
}

/** On what a variant runs. */
export function engineWords({ bits, kernel }) {
  return `${bits} bits, kernel ${kernel}`;
}

function drawAnswer(name, found, context) {
  const { answer } = found.results[name];
  if (found.task === "qa") return drawSpan(name, answer, context);
  if (isNumber(found)) return [make("p", { class: "headline" }, headlineOf(found, answer))];
  return drawLabels(answer[0], found.results[namesOf(found)[0]].answer[0]);
}

/** Bars in the first variant's order, so that both cards can be read across. */
function drawLabels(scores, order) {
  const best = scores[0];
  const headline = make("p", { class: "headline", dir: "auto" }, best.label);
  const byLabel = new Map(scores.map(({ label, score }) => [label, score]));
  const rows = order
    .slice(0, SHOWN_LABELS)
    .map(({ label }) => drawRow(label, percent(byLabel.get(label)), byLabel.get(label)));
  const parts = [headline, make("div", { class: "rows" }, ...rows)];
  const rest = order.length - SHOWN_LABELS;
  if (rest > 0) parts.push(make("p", { class: "hint" }, `and ${rest} more ${rest === 1 ? "label" : "labels"}`));
  return parts;
}

function drawSpan(variant, { answer, score, start, end }, context) {
  const headline = make("p", { class: "headline", dir: "auto" }, answer || "no answer");
  headline.append(make("small", { dir: "ltr" }, `score ${percent(score)}`));
  const [before, inside, after] = cutByCodePoints(context, start, end);
  // focusable, because it scrolls when the context is long
  const name = `Context with the answer of ${variant}`;
  const passage = make("div", { class: "passage", dir: "auto", tabindex: "0", role: "region", "aria-label": name });
  passage.append(before, ...(inside ? [make("mark", {}, inside)] : []), after);
  return [headline, passage];
}

function drawCosts(name, results) {
  const most = (read) => Math.max(...Object.values(results).map(read));
  const result = results[name];
  const time = drawRow("Inference", `${result.inference_ms.toFixed(1)} ms`, result.inference_ms / most((r) => r.inference_ms));
  const size = drawRow("Weights in memory", `${(weightsOf(result) / MIB).toFixed(1)} MiB`, weightsOf(result) / most(weightsOf));
  const queue = drawRow("Waited in the queue", `${result.queue_ms.toFixed(1)} ms`);
  return make("div", { class: "rows costs" }, time, size, queue);
}

function drawRow(name, value, share) {
  const row = make("div", { class: "row" });
  row.append(make("span", { dir: "auto" }, name), make("span", { class: "value" }, value));
  if (share !== undefined) {
    const filled = make("i");
    filled.style.width = `${(100 * Math.min(1, Math.max(0, share))).toFixed(2)}%`;
    row.append(make("span", { class: "bar", "aria-hidden": "true" }, filled));
  }
  return row;
}

function weightsOf(result) {
  return result.memory_bytes.weights + result.memory_bytes.scales;
}

function percent(score) {
  return `${(100 * score).toFixed(1)} %`;
}

function points(difference) {
  const value = 100 * difference;
  return value < 0.01 ? "< 0.01 points" : `${value.toFixed(2)} points`;
}

/** Scroll the box, and only the box. */
function showInside(mark, box) {
  box.scrollTop += mark.getBoundingClientRect().top - box.getBoundingClientRect().top - box.clientHeight / 3;
}
