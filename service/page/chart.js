// Lines over the last minutes, as SVG.

import { makeSvg } from "./dom.js";
import { BACKENDS, SPAN_MS } from "./metrics.js";

const LEFT = 44;
const RIGHT = 16;
const TOP = 8;
const BOTTOM = 22;

/** Draw one value of the history's points into `box`; `empty` is said where there is none. */
export function drawChart(box, points, read, now, { label, empty }) {
  const width = box.clientWidth || 400;
  const height = box.clientHeight || 170;
  const lines = BACKENDS.map((backend) => ({ backend, runs: runsOf(points, (point) => read(point, backend)) }));
  const values = lines.flatMap(({ runs }) => runs.flat().map(([, value]) => value));
  const drawn = values.some((value) => value > 0);
  const top = niceCeiling(Math.max(0, ...values));
  const x = (time) => LEFT + (width - LEFT - RIGHT) * (1 - (now - time) / SPAN_MS);
  const y = (value) => TOP + (height - TOP - BOTTOM) * (1 - value / top);

  const svg = makeSvg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  for (const part of [0, 0.5, 1]) {
    const level = TOP + (height - TOP - BOTTOM) * (1 - part);
    svg.append(makeSvg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: level, y2: level }));
    if (!drawn) continue;
    svg.append(makeSvg("text", { x: LEFT - 7, y: level + 4, "text-anchor": "end" }, shortNumber(top * part)));
  }
  for (const minutes of [5, 4, 3, 2, 1, 0]) {
    if (minutes % 2 === 1 && width < 360) continue;
    const name = minutes === 0 ? "now" : `−${minutes} min`;
    svg.append(makeSvg("text", { x: x(now - minutes * 60_000), y: height - 5, "text-anchor": "middle" }, name));
  }
  if (drawn) for (const { backend, runs } of lines) svg.append(...runs.map((run) => drawRun(run, backend, x, y)));
  else {
    const middle = { x: LEFT + (width - LEFT - RIGHT) / 2, y: (height - BOTTOM + TOP) / 2 - 12 };
    svg.append(makeSvg("text", { class: "empty", ...middle, "text-anchor": "middle" }, empty));
  }
  box.replaceChildren(svg);
}

/** Cut at gaps: a list of runs, each a list of [time, value]. */
function runsOf(points, read) {
  const runs = [];
  let open = null;
  for (const point of points) {
    const value = read(point);
    if (value === undefined) {
      open = null;
      continue;
    }
    if (open === null) runs.push((open = []));
    open.push([point.time, value]);
  }
  return runs;
}

function drawRun(run, backend, x, y) {
  const at = run.map(([time, value]) => [x(time).toFixed(1), y(value).toFixed(1)]);
  if (at.length === 1) return makeSvg("circle", { class: `dot ${backend}`, cx: at[0][0], cy: at[0][1], r: 3 });
  return makeSvg("path", { class: `line ${backend}`, d: `M${at.map((place) => place.join(",")).join("L")}` });
}

/** The next of 1, 2, 5 times a power of ten. */
export function niceCeiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value) ?? 10 * power;
}

/** Up to three digits: 0.25, 4.2, 38, 1200. */
export function shortNumber(value) {
  if (value >= 100) return String(Math.round(value));
  return String(Number(value.toPrecision(value >= 10 ? 3 : 2)));
}
