// A comparison asked for several times, because the times of a single one say little: a browser on the same machine, a
// neighbour or a sleeping CPU is easily as slow as the slower backend. The answers are the same each time.

const TIMES = 5;
const ENOUGH_MS = 1500;

/**
 * Call `ask` up to five times, but not again once it took long; `ask` resolves to a comparison, or to null when it is
 * refused. Resolves to the comparison with the medians of its times, or to null if the first one was refused.
 */
export async function compareRepeatedly(ask) {
  const began = performance.now();
  const all = [];
  do {
    const found = await ask(all.length === 0);
    if (found === null) break;
    all.push(found);
  } while (all.length < TIMES && performance.now() - began < ENOUGH_MS);
  return all.length === 0 ? null : withMedianTimes(all);
}

/** The first comparison with the medians of all times, and `comparisons`, their number. */
export function withMedianTimes(all) {
  const [first] = all;
  const results = {};
  for (const [variant, result] of Object.entries(first.results)) {
    const middle = (name) => median(all.map((found) => found.results[variant][name]));
    results[variant] = { ...result, queue_ms: middle("queue_ms"), inference_ms: middle("inference_ms") };
  }
  const [one, other] = Object.values(results);
  const speedup = one.inference_ms / other.inference_ms;
  return { ...first, results, speedup, comparisons: all.length };
}

function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
