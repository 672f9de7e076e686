// Doing a run again: replay, fork with one change, and two runs side by side.
import { fill, get, h, post, trouble } from "./base.js";
import { button, choice, many, money, quiet, runLink, text } from "./values.js";

const path = (id, what) => `runs/${encodeURIComponent(id)}/${what}`;

// run: as it was found. all: what it did. other: a run that it is to be compared with at once.
export function again(run, all, other) {
  const over = run.status !== "running", wrong = h("div"), shown = h("div", { class: "again" });
  if (!over) return { over, element: quiet("once it is over it can be replayed, forked and compared") };
  const tell = (...said) => fill(shown, ...said);
  const replay = button("Replay", async () => {
    tell(quiet("the code of today does it again, with what was answered then …"));
    try { tell(replayed(await post(path(run.id, "replay"), {}))); } catch (error) { tell(); throw error; }
  }, wrong, { class: "first", title: "Do it again with every call answered by its record: no tokens, and nothing is written" });
  const form = forking(run, all, wrong, tell);
  const fork = h("button", { "aria-expanded": "false", onclick: () => {
    form.hidden = !form.hidden;
    fork.setAttribute("aria-expanded", String(!form.hidden));
    if (!form.hidden) form.querySelector("select").focus();
  }, title: "Do it again with one change, as a run of its own" }, "Fork…");
  const beside = h("input", { placeholder: "another run", "aria-label": "Run to compare with", size: 14, value: other ?? run.parent ?? "" });
  const compare = async () => {
    if (!beside.value.trim()) { beside.focus(); return; }
    const found = await get(`${path(run.id, "diff")}?${new URLSearchParams({ with: beside.value.trim() })}`);
    tell(compared(found, ["this run", "that run"]));
  };
  const diff = button("Compare", async () => {
    await compare();
    if (beside.value.trim()) history.replaceState(null, "", `#/runs/${encodeURIComponent(run.id)}?with=${encodeURIComponent(beside.value.trim())}`);
  }, wrong, { title: "What the other run did otherwise" });
  beside.onkeydown = (event) => { if (event.key === "Enter") diff.click(); };
  if (other) compare().catch((error) => fill(wrong, trouble(error)));
  return { over, element: h("div", {}, h("div", { class: "buttons" }, replay, fork, h("span", { class: "chip" }, beside, diff)), form, wrong, shown) };
}

function replayed(found) {
  const said = `${many(found.served)} answers were read back, ${many(found.live)} calls made`;
  if (found.same) return h("p", { class: "card", role: "status" }, h("strong", { class: "done" }, "same"), ` ${said}`);
  return h("div", { role: "status" }, h("p", {}, h("strong", { class: "bad" }, "differs"), ` ${said}`, found.without ? h("span", { class: "quiet" }, ` ${found.without}`) : null),
    compared(found.diff, ["then", "now"]));
}

// -- two runs side by side
export function compared(diff, [a, b]) {
  const head = (name, at) => h("th", {}, name, diff.runs[at] ? [" ", runLink(diff.runs[at].id), h("span", { class: "quiet" },
    ` ${diff.runs[at].status}, ${many(diff.tokens[at])} tokens, ${money(diff.cost[at])}`)] : null);
  if (diff.same) return h("p", { class: "card", role: "status" }, h("strong", { class: "done" }, "same"), ` ${many(diff.equal.length)} steps`);
  let before = "";
  const rows = diff.steps.map((one) => {
    const step = one.step === before ? "" : one.step;
    before = one.step;
    return sides(h("strong", {}, step), one, [a, b]);
  });
  return [rows.length ? beside([h("th", {}, "step"), h("th", {}, "field"), head(a, 0), head(b, 1)], rows) : null,
    diff.equal.length ? h("p", { class: "quiet" }, `the same: ${diff.equal.join(", ")}`) : null, later(diff.later)];
}
const beside = (heads, rows) => h("div", { class: "wide" }, h("table", { class: "diff" }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows)));

function sides(what, one, [a, b]) {
  const [x, y] = words(value(one.a), value(one.b)).map((said, at) => ([one.a, one.b][at] ?? null) === null ? quiet("none") : said);
  return h("tr", {}, h("td", {}, what), h("td", {}, one.field ?? "all of it"), h("td", { "data-side": a }, x), h("td", { "data-side": b }, y));
}

// What a fork leads to in other runs: where windows close later, and where later events find another state.
const MOST = 100;  // differences that are drawn
function later(found) {
  if (!found || !(found.diffs.length + found.open.length)) return null;
  const was = ["as it was", "with the change"];
  const rows = found.diffs.slice(0, MOST).map((one) => sides([runLink(one.run), " ", h("strong", {}, one.step)], one, was));
  return h("section", {}, h("h3", {}, "Later, in other runs"), rows.length ? beside(["run", "field", ...was].map((name) => h("th", {}, name)), rows) : null,
    found.diffs.length > MOST ? quiet(`and ${many(found.diffs.length - MOST)} more`) : null, found.open.map(quiet));
}
const value = (one) => (one === null || one === undefined ? "" : text(one));

// Two texts, with what differs marked: what is between the words at the begin and at the end that are the same.
function words(a, b) {
  const x = a.split(/(?<=\s)/), y = b.split(/(?<=\s)/);
  let from = 0, end = 0;
  while (from < Math.min(x.length, y.length) && x[from] === y[from]) from += 1;
  while (end < Math.min(x.length, y.length) - from && x.at(-1 - end) === y.at(-1 - end)) end += 1;
  return [x, y].map((all) => h("pre", {}, all.slice(0, from).join(""), all.slice(from, all.length - end).join("") ? h("mark", {}, all.slice(from, all.length - end).join("")) : null,
    all.slice(all.length - end).join("")));
}

// -- a fork
const MODES = [["hybrid", "those that are asked something else"], ["strict", "none"], ["live", "all of the run"]];
const WAYS = [["outputs", "what it gives"], ["inputs", "what goes in"], ["lm", "the model (profile)"], ["program", "the saved state"]];

function forking(run, all, wrong, tell) {
  const steps = all.filter((one) => one.kind === "call" || one.kind === "source" || one.kind === "native");
  const places = steps.map((one) => [one.kind === "call" ? one.label : one.node, one.label || one.node]);
  const unique = [...new Map(places).entries()];
  const field = h("textarea", { "aria-label": "Fields to change, as JSON", spellcheck: "false" });
  const name = h("input", { "aria-label": "Name", placeholder: "name", hidden: true });
  const deliver = h("input", { type: "checkbox", id: "deliver" });
  const fresh = () => {
    const one = steps.find((step) => [step.label, step.node].includes(at.value)), named = ["lm", "program"].includes(way.value);
    name.hidden = !named;
    field.hidden = named;
    const last = one.attempts.findLast((step) => step.outputs !== null);
    field.value = text(way.value === "outputs" && one.kind === "call" ? last?.outputs ?? {} : one.data);
    name.value = (named && one.attempts.at(-1)?.[way.value === "lm" ? "lm" : "state"]) || "";
  };
  const at = choice("Where", unique, (unique.find(([one]) => one.includes("#")) || unique[0])[0], fresh);
  const way = choice("What is changed", WAYS, "outputs", fresh);
  const mode = choice("Calls that are made", MODES, "hybrid");
  const make = button("Make the fork", async () => {
    const change = ["lm", "program"].includes(way.value) ? name.value.trim() : changed(JSON.parse(field.value), at.value, way.value);
    const made = await post(path(run.id, "fork"), { at: at.value, [way.value]: change, mode: mode.value, deliver: deliver.checked });
    form.hidden = true;
    tell(h("p", { role: "status" }, "fork ", runLink(made.run), deliver.checked ? ", its outputs were published" : ""), compared(made.diff, ["this run", "the fork"]));
  }, wrong, { class: "first" });
  // Of fields only those that are another than they were: to give them all would say that all were changed.
  const changed = (fields, place, what) => {
    const one = steps.find((step) => [step.label, step.node].includes(place));
    const was = what === "outputs" && one.kind === "call" ? one.attempts.findLast((step) => step.outputs !== null)?.outputs ?? {} : one.data ?? {};
    return Object.fromEntries(Object.entries(fields).filter(([key, now]) => JSON.stringify(now) !== JSON.stringify(was[key])));
  };
  const form = h("div", { class: "card", hidden: true }, h("div", { class: "filters" }, at, way, name), field,
    h("div", { class: "buttons" }, make, h("label", { for: "deliver" }, deliver, " publish its outputs to the sinks"),
      h("label", {}, "calls that are made, and cost tokens: ", mode)));
  fresh();
  return form;
}
