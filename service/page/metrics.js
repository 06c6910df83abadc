// From the text of /metrics to points of the charts. Pure: no document, no clock of its own.

export const BACKENDS = ["fp32", "int8"];

const WINDOW_MS = 10_000; // each point tells of the seconds before it
export const SPAN_MS = 5 * 60_000;
const LINE = /^q8bert_request_duration_seconds_(sum|count)\{([^}]*)\} (\S+)/gm;
const BACKEND = /(?:^|,)backend="([^"]*)"/;

/** Sum the counters of answered requests over all tasks: `{fp32: {count, sum}, int8: {count, sum}}`. */
export function readCounters(text) {
  const found = {};
  for (const backend of BACKENDS) found[backend] = { count: 0, sum: 0 };
  for (const [, kind, labels, value] of text.matchAll(LINE)) {
    const backend = BACKEND.exec(labels)?.[1];
    if (backend in found) found[backend][kind] += Number(value);
  }
  return found;
}

/** The last minutes of counters, and what their differences say. */
export class History {
  #samples = [];
  #points = [];

  /** Add counters read at `time` (ms); counters that fell belong to a restarted service, and the past is dropped. */
  add(time, counters) {
    const last = this.#samples.at(-1);
    if (last && BACKENDS.some((b) => counters[b].count < last.counters[b].count)) this.#samples = [];
    const from = this.#samples.findLast((sample) => sample.time <= time - WINDOW_MS) ?? this.#samples[0];
    this.#samples.push({ time, counters });
    this.#samples = this.#samples.filter((sample) => sample.time >= time - 2 * WINDOW_MS);
    this.#points = this.#points.filter((point) => point.time >= time - SPAN_MS);
    if (from && time > from.time) this.#points.push({ time, ...difference(from, { time, counters }) });
  }

  /** Leave a gap: the service did not answer, or nobody looked. */
  interrupt(time) {
    this.#samples = [];
    this.#points.push({ time, rate: {}, latency: {} });
  }

  /** Points in order: `{time, rate: {backend: per second}, latency: {backend: ms}}`; a missing value is a gap. */
  get points() {
    return this.#points;
  }

  /** Whether any of them saw an answer. */
  get hasTraffic() {
    return this.#points.some((point) => BACKENDS.some((b) => point.rate[b] > 0));
  }
}

function difference(from, to) {
  const rate = {};
  const latency = {};
  for (const backend of BACKENDS) {
    const answers = to.counters[backend].count - from.counters[backend].count;
    const seconds = to.counters[backend].sum - from.counters[backend].sum;
    rate[backend] = answers / ((to.time - from.time) / 1000);
    if (answers > 0) latency[backend] = (1000 * seconds) / answers;
  }
  return { rate, latency };
}
