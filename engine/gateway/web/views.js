// The views. Each is a function of the place (id and query of the address) that gives what is done at every look; that gives
// whether to look again. A view makes its frame once, so that what somebody types or has opened stays.
import { events, fill, get, go, h, post, show, trouble } from "./base.js";
import { drawing } from "./graph.js";

// -- values as people read them
const seconds = (value) => {
  if (value === null || value === undefined) return "";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 120) return `${value.toFixed(1)} s`;
  return value < 7200 ? `${Math.round(value / 60)} min` : value < 172800 ? `${Math.round(value / 3600)} h` : `${Math.round(value / 86400)} d`;
};
const when = (text) => (text ? h("time", { datetime: text, title: text }, new Date(text).toLocaleString()) : "");
const money = (value) => (value === null || value === undefined ? "" : `$${value.toFixed(value < 0.01 ? 6 : 4)}`);
const many = (value) => (typeof value === "number" ? value.toLocaleString() : "");
const text = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2) ?? "");
const short = (id) => id.slice(-8);
const data = (value) => h("pre", {}, text(value));
const quiet = (said) => h("p", { class: "quiet" }, said);

// What is in a table: cells are texts, elements, or numbers, which stand right.
function table(heads, rows) {
  if (!rows.length) return quiet("none");
  const numeric = heads.map((_, at) => rows.some((row) => typeof row[at] === "number"));
  const cell = (tag, value, at) => h(tag, { class: numeric[at] && "number" }, typeof value === "number" ? many(value) : value ?? "");
  return h("div", { class: "wide" }, h("table", {}, h("thead", {}, h("tr", {}, heads.map((head, at) => cell("th", head, at)))),
    h("tbody", {}, rows.map((row) => h("tr", row.open ? { "data-row": row.key, tabindex: 0, onclick: row.open } : {},
      row.map((value, at) => cell("td", value, at)))))));
}
const opening = (row, key, open) => Object.assign(row, { key, open });
const facts = (pairs) => h("dl", { class: "facts" }, Object.entries(pairs).filter(([, value]) => value !== "" && value !== null)
  .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));

async function status() {
  const found = await get("status");
  document.getElementById("app").textContent = found.server.app;
  return found;
}

// What is drawn again only where something is another than before.
function changing(draw) {
  let last = "";
  return (found) => {
    const now = JSON.stringify(found);
    if (now !== last) draw(found);
    last = now;
  };
}

function choice(label, options, value, chosen) {
  const made = h("select", { "aria-label": label, onchange: () => chosen(made.value) },
    options.map(([given, name]) => h("option", { value: given, selected: given === value }, name)));
  return made;
}

// -- runs
function runs({ query }) {
  const said = Object.fromEntries(query);
  const filter = (more) => go("runs", "", { ...said, ...more });
  const body = h("div", {}, quiet("…"));
  let found = [];
  const find = h("input", { "data-find": "", type: "search", placeholder: "id or topology", "aria-label": "Find a run", value: "",
    oninput: () => draw(), onkeydown: (event) => { if (event.key === "Enter" && find.value.trim()) go("runs", find.value.trim()); } });
  const draw = () => fill(body, table(["run", "status", "topology", "started", "took", "calls", "tokens", "cost"],
    found.filter((run) => `${run.id} ${run.topology}`.includes(find.value.trim())).map((run) => opening([
      h("code", { title: run.id }, short(run.id)), h("span", { class: run.status }, run.status), run.topology, when(run.started),
      run.finished ? seconds((new Date(run.finished) - new Date(run.started)) / 1000) : "", run.calls,
      (run.usage.input_tokens || 0) + (run.usage.output_tokens || 0), money(run.usage.cost)], run.id, () => go("runs", run.id)))));
  const update = changing((answer) => { found = answer; draw(); });
  const topologies = choice("Topology", [["", "every topology"]], "", (topology) => filter({ topology }));
  show(h("div", { class: "filters" }, find,
    choice("Status", ["", "running", "done", "failed", "cancelled"].map((one) => [one, one || "every status"]), said.status || "",
      (status) => filter({ status })),
    topologies,
    choice("Time", [["", "any time"], ["15m", "15 minutes"], ["1h", "an hour"], ["1d", "a day"], ["7d", "a week"]], said.since || "",
      (since) => filter({ since }))), body);
  let known = false;
  return async () => {
    update((await get(`runs?${new URLSearchParams({ limit: 100, ...said })}`)).runs);
    if (!known) {
      known = true;
      topologies.append(...(await get("topologies")).topologies.map(({ name }) => h("option", { value: name, selected: name === said.topology }, name)));
    }
    return true;
  };
}

// -- one run
function run({ id }) {
  const top = h("div"), tree = h("div", { class: "tree" }), opened = new Set(), results = h("div");
  show(h("p", {}, h("a", { href: "#/runs" }, "← Runs")), top, tree, results);
  const update = changing((found) => {
    const asked = found.usage;
    fill(top, h("h2", {}, "Run ", h("code", {}, found.id)), facts({
      status: h("span", { class: found.status }, found.status), topology: found.topology, started: when(found.started),
      took: found.finished ? seconds((new Date(found.finished) - new Date(found.started)) / 1000) : "", calls: many(found.calls),
      tokens: `${many(asked.input_tokens)} in, ${many(asked.output_tokens)} out`, cost: money(asked.cost),
      "dead letters": found.dead_letters ? many(found.dead_letters) : "" }));
    const all = flat(found.tree), ends = all.flatMap(({ one }) => [time(one.time), ...one.attempts.map(end)]);
    const span = { from: Math.min(...ends, ...all.flatMap(({ one }) => one.attempts.map((step) => time(step.started)))), to: Math.max(...ends) };
    fill(tree, all.map(({ one, depth }) => happening(one, depth, span, opened)));
    fill(results, found.outputs.length ? [h("h2", {}, "Outputs"), found.outputs.map((one) => [h("h3", {}, one.subject), data(one.data)])] : []);
  });
  const look = async () => {
    const found = await get(`runs/${encodeURIComponent(id)}?tree=true&outputs=true`);
    update(found);
    return found;
  };
  return async (signal) => {
    const found = await look();
    if (found.status !== "running") return false;
    for await (const { event } of events(`runs/${encodeURIComponent(found.id)}/events`)) {
      if (signal.aborted || event !== "step") break;
      await look();
    }
    return true;
  };
}
const time = (stamp) => new Date(stamp).getTime();
const end = (step) => time(step.started) + step.elapsed * 1000;
const flat = (one, depth = 0) => [{ one, depth }, ...one.below.flatMap((below) => flat(below, depth + 1))];

function bar(from, to, span, kind) {
  const made = h("span", { class: `bar ${kind}` }), whole = span.to - span.from || 1;
  made.style.left = `${Math.min(99, (100 * (from - span.from)) / whole)}%`;
  if (to > from) made.style.width = `${(100 * (to - from)) / whole}%`;
  return made;
}

function happening(one, depth, span, opened) {
  const failed = one.error || one.attempts.some((step) => step.error);
  const bars = one.attempts.length ? one.attempts.map((step) => bar(time(step.started), end(step), span, step.error ? "failed" : ""))
    : [bar(time(one.time), 0, span, "point")];
  const name = h("span", { class: "name" }, h("span", { class: "kind" }, one.kind), h("span", { class: failed && "failed" }, one.label || one.node));
  name.style.paddingLeft = `${depth * 14}px`;
  const took = one.attempts.reduce((sum, step) => sum + step.elapsed, 0);
  const inside = h("div", { class: "inside" });
  const key = `${one.kind}/${one.id}/${one.label}`;
  const fold = h("details", { open: opened.has(key), ontoggle: () => {
    if (fold.open) opened.add(key);
    else opened.delete(key);
    if (fold.open && !inside.firstChild) inside.append(...within(one).flat(9).filter(Boolean));
  } }, h("summary", { "data-row": key }, name, h("span", { class: "quiet" }, one.attempts.length ? seconds(took) : ""),
    h("span", { class: "lane" }, bars)), inside);
  return fold;
}

function within(one) {
  return [
    one.note && h("p", {}, one.note), h("h3", {}, one.kind === "call" ? "Inputs" : "Data"), data(one.data),
    one.error && [h("h3", {}, "Error"), data(one.error)],
    (one.gives || []).map((given) => [h("h3", {}, "Gives"), data(given.data)]), one.attempts.map(attempt)];
}

function attempt(step) {
  return [h("h3", {}, `Attempt ${step.attempt}`), facts({ took: seconds(step.elapsed), route: step.route || "", model: step.lm || "",
    program: step.program || "", state: step.state || "", worker: step.worker || "", cost: money(step.usage.cost),
    tokens: step.usage.input_tokens ? `${many(step.usage.input_tokens)} in, ${many(step.usage.output_tokens)} out` : "" }),
  step.error && [h("h3", { class: "bad" }, "Error"), data(step.error)],
  step.outputs !== null && [h("h3", {}, "Outputs"), data(step.outputs)], step.exchanges.map(exchange)];
}

function exchange(one) {
  const messages = Array.isArray(one.asked?.messages) ? one.asked.messages : null;
  return [h("h3", {}, `${one.kind === "tool" ? "Tool" : "Model"} ${one.name}`, one.seconds ? `, ${seconds(one.seconds)}` : ""),
    messages ? messages.map((turn) => h("div", { class: "turn" }, h("span", { class: "kind" }, text(turn.role)), data(turn.content)))
      : one.asked ? data(one.asked) : null,
    one.said ? h("div", { class: "turn answer" }, h("span", { class: "kind" }, "answer"), data(one.said)) : null];
}

// -- dead letters, the largest group first
function letters({ query }) {
  const body = h("div", {}, quiet("…")), inside = h("div");
  const said = Object.fromEntries(query);
  show(h("h2", {}, "Dead letters"), body, inside);
  const update = changing((groups) => fill(body, table(["letters", "reason", "operator", "topology", "oldest"],
    groups.map((group) => opening([group.count, h("span", { class: "bad" }, group.reason ?? "various"), group.node ?? "", group.topology ?? "",
      group.oldest === null ? "" : seconds(group.oldest)], `${group.topology}/${group.node}/${group.reason}`,
    () => go("letters", "", { topology: group.topology, node: group.node, reason: group.reason }))))));
  const list = changing((found) => fill(inside, h("h2", {}, Object.values(said).join(" · ")), found.map((one) => h("div", { class: "card" },
    h("p", {}, h("strong", { class: "bad" }, one.reason), ` ${one.message}`), one.fix ? h("p", { class: "quiet" }, one.fix) : null,
    facts({ number: many(one.sequence), operator: `${one.topology}/${one.node}`, at: when(one.time), attempts: many(one.attempts),
      run: one.run ? h("a", { href: `#/runs/${encodeURIComponent(one.run)}` }, short(one.run)) : "" }),
    h("details", {}, h("summary", {}, "event"), data(one.event)),
    one.traceback ? h("details", {}, h("summary", {}, "traceback"), data(one.traceback)) : null))));
  return async () => {
    const groups = (await status()).letters;
    groups.sort((a, b) => b.count - a.count);
    update(groups);
    if (query.size) list((await get(`letters?${query}`)).letters);
    return true;
  };
}

// -- approvals
function approvals() {
  const body = h("div", {}, quiet("…"));
  const cards = new Map();  // by id: what somebody writes in one stays
  show(h("h2", {}, "Approvals"), body);
  return async () => {
    const found = (await get("approvals")).approvals;
    for (const one of found) if (!cards.has(one.id)) cards.set(one.id, approval(one));
    for (const id of cards.keys()) {
      if (found.some((one) => one.id === id)) continue;
      cards.get(id).remove();
      cards.delete(id);
    }
    if (!found.length) fill(body, quiet("nothing waits for a decision"));
    else {
      body.querySelector(":scope > p")?.remove();
      for (const one of found) if (!cards.get(one.id).isConnected) body.append(cards.get(one.id));
    }
    return true;
  };
}

function approval(one) {
  const note = h("input", { placeholder: "note", "aria-label": "Note" });
  const fields = h("textarea", { "aria-label": "Fields to change, as JSON", spellcheck: "false" });
  const editor = h("div", { hidden: true }, h("h3", {}, "Fields to change, as JSON"), fields);
  const wrong = h("div");
  const decide = async (decision) => {
    fill(wrong);
    try {
      const edit = editor.hidden ? null : JSON.parse(fields.value);
      await post(`approvals/${encodeURIComponent(one.id)}`, { decision, edit: decision === "accept" ? edit : null, note: note.value });
      fill(card, h("p", { class: "quiet" }, `${decision}ed`));
    } catch (error) { fill(wrong, trouble(error)); }
  };
  fields.value = text(one.shown);
  const card = h("div", { class: "card", "data-row": one.id, tabindex: 0 },
    facts({ operator: `${one.topology}/${one.node}`, since: when(one.since), due: when(one.due),
      run: h("a", { href: `#/runs/${encodeURIComponent(one.run)}` }, short(one.run)), key: one.key ?? "" }),
    data(one.shown), editor, wrong, h("div", { class: "buttons" }, note,
      h("button", { class: "first", onclick: () => decide("accept") }, "Accept"),
      h("button", { onclick: () => decide("reject") }, "Reject"),
      h("button", { onclick: () => { editor.hidden = !editor.hidden; } }, "Edit")));
  return card;
}

// -- topologies
function topology() {
  const body = h("div", {}, quiet("…"));
  show(body);
  const update = changing(({ topologies, status }) => fill(body, topologies.length ? topologies.map((one) => [
    h("h2", {}, one.name, h("span", { class: "quiet" }, ` version ${one.version}`)),
    h("div", { class: "wide" }, drawing(boxes(one, status))), h("h3", {}, "Stages"),
    table(["source", "rate", "lag", "oldest", "open calls", "put off", "dead letters", "state"],
      status.stages.filter((row) => row.topology === one.name).map((row) => [row.source, row.rate === null ? "" : `${row.rate.toFixed(1)}/s`,
        row.lag, seconds(row.oldest), row.open_calls, row.put_off, row.dead_letters, row.stopped || (row.paused ? "paused" : row.unowned ? "no owner" : "runs")]))])
    : quiet("nothing is applied")));
  return async () => {
    const [{ topologies }, now] = await Promise.all([get("topologies"), status()]);
    update({ topologies, status: now });
    return true;
  };
}

function boxes(one, status) {
  const found = {};
  for (const [name, node] of Object.entries(one.nodes)) {
    const row = status.operators.find((of) => of.topology === one.name && of.node === name);
    const stage = status.stages.find((of) => of.topology === one.name && of.source === name);
    const lines = [];
    if (row) lines.push([`${row.calls ? "calls" : "events"} ${many(row.calls || row.events)}`, seconds(row.p50), money(row.cost)].filter(Boolean).join(", "));
    if (stage) lines.push([stage.lag === null ? "" : `lag ${many(stage.lag)}`, `open calls ${many(stage.open_calls)}`].filter(Boolean).join(", "));
    found[name] = { op: node.op, from: node.from, lines, calls: Boolean(row?.calls), failing: Boolean(row?.errors) };
  }
  return found;
}

// -- pools and limits
function pools() {
  const body = h("div", {}, quiet("…"));
  show(body);
  const update = changing((status) => {
    fill(body,
      h("h2", {}, "Engines"), table(["engine", "host", "topologies", "health", "reported"], status.engines.map((row) => [row.engine, row.host,
        row.topologies.join(", "), h("span", { class: row.alive ? "done" : "bad" }, row.alive ? row.health ?? "ok" : "gone"), `${seconds(row.age)} ago`])),
      h("h2", {}, "Pools"), table(["pool", "process", "host", "workers", "ready", "slots", "busy", "waiting", "restarts"], status.pools.map((row) => [
        row.pool, row.id ? short(row.id) : h("span", { class: "bad" }, "none runs"), row.host, row.size, row.ready, row.slots, row.busy, row.waiting ?? 0, row.restarts])),
      h("h2", {}, "Models"), table(["model", "breaker", "calls", "errors", "p50", "p95"], status.lms.map((row) => [row.lm ?? row.program,
        h("span", { class: row.breaker === "closed" ? "done" : "bad" }, row.breaker), row.calls, row.errors, seconds(row.p50), seconds(row.p95)])),
      h("h2", {}, "Limits and budgets"), table(["of", "what", "used", "reserved", "most", "left", "window ends"], status.limits.map((row) => [
        [row.budget ?? row.lm, row.tenant, row.run].filter(Boolean).join(" "), row.what, row.used, row.reserved, row.most, row.left, seconds(row.ends)])),
      h("h2", {}, "Ways of calls"), table(["operator", "route", "model", "reason", "calls"], status.routes.map((row) => [
        row.topology ? `${row.topology}/${row.node}` : "", row.route, row.lm, row.reason, row.calls])));
  });
  return async () => {
    update(await status());
    return true;
  };
}

export const VIEWS = { runs: (at) => (at.id ? run(at) : runs(at)), letters, approvals, topology, pools };
