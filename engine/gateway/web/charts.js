// Small drawings of numbers: how they went since the page was opened, and how much of something is used.
import { h } from "./base.js";
import { s } from "./graph.js";

const KEPT = 60;  // looks
const series = new Map();

// The last values of something that is looked at again and again. Kept while the page is open, in whatever view.
export function remember(name, value) {
  const found = series.get(name) ?? [];
  found.push(value ?? 0);
  series.set(name, found.slice(-KEPT));
  return series.get(name);
}

export function line(values, label, width = 120, height = 18) {
  const most = Math.max(...values, 0) || 1, step = width / (KEPT - 1), from = KEPT - values.length;
  const points = values.map((value, at) => `${((from + at) * step).toFixed(1)},${(height - 2 - ((height - 4) * value) / most).toFixed(1)}`);
  const made = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "line", role: "img", "aria-label": label });
  made.append(s("title", {}, label), s("path", { d: `M0 ${height - 2} H${width}`, class: "base" }), s("polyline", { points: points.length > 1 ? points.join(" ") : `${points[0]} ${width},${points[0].split(",")[1]}` }));
  return made;
}

// How much of something is used, and how much more is held for what runs.
export function share(used, held, most, label) {
  if (!most) return "";
  const made = h("span", { class: "share", role: "img", "aria-label": label, title: label });
  for (const [kind, value] of [[used / most > 0.9 ? "used much" : "used", used], ["held", held]]) {
    const part = h("span", { class: kind });
    part.style.width = `${Math.min(100, (100 * value) / most)}%`;
    made.append(part);
  }
  return made;
}
