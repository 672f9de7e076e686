// Values as people read them, and tables of them.
import { fill, get, h, trouble } from "./base.js";

export function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value && value < 0.001) return `${Math.round(value * 1e6)} µs`;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 120) return `${value.toFixed(1)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : value < 172800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} d`;
}

// Of today the time alone; the whole is in the title. Not as the browser would write it: the first time that it does takes it 30 ms.
export function when(text) {
  if (!text) return "";
  const at = new Date(text), two = (...parts) => parts.map((part) => String(part).padStart(2, "0"));
  const day = two(at.getFullYear(), at.getMonth() + 1, at.getDate()).join("-"), time = two(at.getHours(), at.getMinutes(), at.getSeconds()).join(":");
  const today = at.toDateString() === new Date().toDateString();
  return h("time", { datetime: text, title: `${day} ${time} (${text})` }, today ? time : `${day} ${time.slice(0, 5)}`);
}

export const money = (value) => (value === null || value === undefined ? "" : `$${value.toFixed(!value ? 0 : value < 0.01 ? 6 : value < 1 ? 4 : 2)}`);
export const many = (value) => (typeof value !== "number" ? "" : Number.isInteger(value) && value < 1000 ? String(value) : value.toLocaleString());
export const text = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "");
export const short = (id) => id.slice(-8);
export const quiet = (said) => h("p", { class: "quiet" }, said);
export const runLink = (id) => h("a", { href: `#/runs/${encodeURIComponent(id)}` }, short(id));
export const tokens = (usage) => (usage.input_tokens || 0) + (usage.output_tokens || 0);
export const took = (run) => (run.finished ? seconds((new Date(run.finished) - new Date(run.started)) / 1000) : "");

// Fields one under the other; anything else as it is, or as JSON.
export function data(value) {
  const flat = value && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length
    && Object.values(value).every((one) => one === null || typeof one !== "object");
  if (!flat) return h("pre", {}, text(value));
  return h("dl", { class: "fields" }, Object.entries(value).map(([name, one]) => h("div", {}, h("dt", {}, name), h("dd", {}, String(one)))));
}

// heads: ">took" stands right, as numbers do; "~cost" is left out where the window is narrow. Cells: texts, elements, numbers.
// A column of which no row has anything is left out.
export function table(heads, rows) {
  if (!rows.length) return quiet("none");
  const of = heads.map((head) => [/^~?>/.test(head) && "number", head.includes("~") && "extra"].filter(Boolean).join(" ") || null);
  const said = heads.map((_, at) => rows.some((row) => (row[at] ?? "") !== ""));
  const cells = (tag, values) => values.map((value, at) => said[at] && h(tag, { class: of[at] }, typeof value === "number" ? many(value) : value ?? ""));
  return h("div", { class: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, cells("th", heads.map((head) => head.replace(/^[~>]+/, ""))))),
    h("tbody", {}, rows.map((row) => h("tr", row.open ? { "data-row": row.key, tabindex: 0, onclick: row.open, "aria-current": row.here } : {}, cells("td", row))))));
}
export const opening = (row, key, open, here = false) => Object.assign(row, { key, open, here });

export const facts = (pairs) => h("dl", { class: "facts" }, Object.entries(pairs).filter(([, value]) => value !== "" && value !== null && value !== undefined)
  .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

// The topologies that are applied; with them comes the name of the application, which stands in the head.
export async function applied() {
  const found = await get("topologies");
  document.getElementById("app").textContent = found.app;
  document.title = `dspex ${found.app}`;
  return found.topologies;
}
export const named = async () => document.getElementById("app").textContent || applied();

// What is drawn again only where something is another than before.
export function changing(draw) {
  let last = "";
  return (found) => {
    const now = JSON.stringify(found);
    if (now !== last) draw(found);
    last = now;
  };
}

export function choice(label, options, value, chosen = () => {}) {
  const made = h("select", { "aria-label": label, onchange: () => chosen(made.value) },
    options.map(([given, name]) => h("option", { value: given, selected: given === value }, name)));
  return made;
}

// A button that does something: while it does it cannot be pressed again, and what goes wrong stands in `wrong`.
export function button(label, does, wrong, attributes = {}) {
  const made = h("button", { ...attributes, onclick: async () => {
    made.disabled = true;
    made.setAttribute("aria-busy", "true");
    if (wrong) fill(wrong);
    try { await does(); } catch (error) { wrongly(wrong, error); }
    made.disabled = false;
    made.removeAttribute("aria-busy");
  } }, label);
  return made;
}
const wrongly = (wrong, error) => { if (error.name !== "AbortError") fill(wrong, trouble(error)); };
