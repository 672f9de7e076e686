// The list of runs: by status, topology and time, with filters that are kept; it changes as runs do.
import { events, fill, get, go, h, live, show } from "./base.js";
import { applied, choice, money, opening, quiet, short, table, tokens, took, when } from "./values.js";

const SAVED = "dspex.filters";  // in this browser: [{name, query}]
const PAGE = 100;
const COLUMNS = ["run", "status", "topology", ">started", ">took", "~>calls", "~>tokens", "~>cost"];

const row = (run) => opening([h("code", { title: run.id }, short(run.id)), h("span", { class: run.status }, run.status),
  run.parent ? [run.topology, h("span", { class: "quiet", title: run.parent }, " fork")] : run.topology,
  when(run.started), took(run), run.calls, tokens(run.usage), money(run.usage.cost)], run.id, () => go("runs", run.id));

// The list that came with the page is shown until the one that is asked for is here; once another view is opened it is too old.
let came = JSON.parse(document.getElementById("first").textContent);
window.addEventListener("hashchange", () => { came = null; }, { once: true });

export function runs({ query }) {
  const said = Object.fromEntries(query);
  const ask = () => events(`runs/events?${new URLSearchParams({ limit: PAGE, ...said })}`);
  let asked = ask();  // before anything is drawn
  const filter = (more) => go("runs", "", { ...said, ...more });
  const body = h("div", {}, quiet("…")), byId = new Map();
  let order = [], earlier = [], last = false;
  const find = h("input", { "data-find": "", type: "search", placeholder: "id or topology", "aria-label": "Find a run",
    oninput: () => draw(), onkeydown: (event) => { if (event.key === "Enter" && find.value.trim()) go("runs", find.value.trim()); } });
  const more = h("button", { onclick: async () => {
    more.disabled = true;
    const after = [...order, ...earlier].at(-1);
    const found = (await get(`runs?${new URLSearchParams({ ...said, limit: PAGE, before: after })}`)).runs;
    for (const run of found) byId.set(run.id, run);
    earlier = [...earlier, ...found.map((run) => run.id)];
    last = found.length < PAGE;
    draw();
    more.disabled = false;
  } }, "Earlier runs");
  const draw = () => {
    const wanted = find.value.trim(), ids = [...new Set([...order, ...earlier])];
    const found = ids.map((id) => byId.get(id)).filter((run) => `${run.id} ${run.topology}`.includes(wanted));
    const nothing = query.size ? "no run is like that" : "there is no run yet";
    fill(body, found.length ? table(COLUMNS, found.map(row)) : quiet(nothing), !last && order.length >= PAGE ? h("p", {}, more) : null);
  };
  const topologies = choice("Topology", [["", "every topology"]], "", (topology) => filter({ topology }));
  show(h("div", { class: "filters" }, find,
    choice("Status", ["", "running", "done", "failed", "cancelled"].map((one) => [one, one || "every status"]), said.status || "",
      (one) => filter({ status: one })),
    topologies,
    choice("Time", [["", "any time"], ["15m", "15 minutes"], ["1h", "an hour"], ["1d", "a day"], ["7d", "a week"]], said.since || "",
      (since) => filter({ since })), kept(query)), body);
  const around = async () => {  // after the runs, which people wait for
    topologies.append(...(await applied()).map(({ name }) => h("option", { value: name, selected: name === said.topology }, name)));
  };
  let drawn = false;
  const take = (list) => {  // what is told twice, as the list that came with the page is, is drawn once
    const other = list.runs.filter((run) => JSON.stringify(run) !== JSON.stringify(byId.get(run.id)));
    const same = drawn && !other.length && list.order.join() === order.join();
    for (const run of other) byId.set(run.id, run);
    order = list.order;
    drawn = true;
    if (!same) draw();
  };
  if (came && !query.size) take(came);
  came = null;
  let known = false;
  return async (signal) => {
    const now = asked ?? ask();
    asked = null;
    for await (const { event, data } of now) {
      if (signal.aborted) return false;
      if (event !== "runs") continue;
      take(data);
      live(data.current ? "live" : "…");
      if (!known && data.current) {
        known = true;
        await around();
      }
    }
    return true;
  };
}

// -- filters that are kept, by name
const saved = () => JSON.parse(localStorage.getItem(SAVED) || "[]");
const keep = (list) => localStorage.setItem(SAVED, JSON.stringify(list));

function kept(query) {
  const here = query.toString(), list = saved();
  const chips = list.map(({ name, query: one }) => h("span", { class: "chip" },
    h("a", { href: `#/runs?${one}`, "aria-current": one === here ? "true" : null }, name),
    h("button", { "aria-label": `Forget ${name}`, title: "Forget it", onclick: (event) => {
      keep(saved().filter((other) => other.query !== one));
      event.target.closest(".chip").remove();
    } }, "×")));
  if (!here || list.some((one) => one.query === here)) return chips;
  const name = h("input", { placeholder: "name", "aria-label": "Name of this filter", size: 10, hidden: true });
  const done = () => {
    if (!name.value.trim()) return;
    keep([...saved(), { name: name.value.trim(), query: here }]);
    box.replaceWith(...[kept(query)].flat());
  };
  name.onkeydown = (event) => { if (event.key === "Enter") done(); };
  const box = h("span", { class: "chip" }, name, h("button", { onclick: () => {
    if (name.hidden) { name.hidden = false; name.focus(); } else done();
  } }, "Save filter"));
  return [...chips, box];
}

