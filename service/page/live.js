// The charts: asks /metrics every two seconds while somebody looks.

import { drawChart, shortNumber } from "./chart.js";
import { withKey } from "./key.js";
import { BACKENDS, History, readCounters } from "./metrics.js";

const EVERY_MS = 2000;
const EMPTY = "No answers since this page was opened.";

/** Begin to poll and draw. */
export function startCharts() {
  const history = new History();
  const state = document.getElementById("live-state");
  const rate = document.getElementById("rate-chart");
  const latency = document.getElementById("latency-chart");
  let timer = 0;

  function draw() {
    const now = Date.now();
    const { points } = history;
    const name = (what) => `${what} of fp32 and int8 over the last five minutes`;
    drawChart(rate, points, (point, b) => point.rate[b], now, { label: name("Answers per second"), empty: EMPTY });
    drawChart(latency, points, (point, b) => point.latency[b], now, { label: name("Mean latency"), empty: EMPTY });
    sayNow("rate-now", history.hasTraffic ? points.at(-1).rate : {}, "/s");
    sayNow("latency-now", points.at(-1)?.latency, " ms");
  }

  async function poll() {
    try {
      const answer = await fetch("metrics", { cache: "no-store", headers: withKey({ accept: "text/plain" }) });
      if (!answer.ok) throw new Error(`status ${answer.status}`);
      history.add(Date.now(), readCounters(await answer.text()));
      say(history.hasTraffic ? "Every 2 seconds." : "No traffic yet.");
    } catch {
      history.interrupt(Date.now());
      say("The service does not answer; still trying.");
    }
    draw();
    if (!document.hidden) timer = setTimeout(poll, EVERY_MS);
  }

  function say(words) {
    if (state.textContent !== words) state.textContent = words;
  }

  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (document.hidden) history.interrupt(Date.now());
    else poll();
  });
  new ResizeObserver(draw).observe(rate);
  poll();
}

function sayNow(id, values = {}, unit) {
  const parts = BACKENDS.filter((b) => values[b] !== undefined).map((b) => `${b} ${shortNumber(values[b])}${unit}`);
  document.getElementById(id).textContent = parts.join(" · ");
}
