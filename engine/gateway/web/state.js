// How the application is: topologies as graphs, windows and what holds them, pools and limits.
import { fill, get, h, show } from "./base.js";
import { line, remember, share } from "./charts.js";
import { drawing } from "./graph.js";
import { applied, changing, data, many, money, named, quiet, seconds, short, table, when } from "./values.js";

const narrow = matchMedia("(max-width: 700px)");
const rate = (value) => (value === null || value === undefined ? "" : `${value && value < 10 ? value.toFixed(1) : Math.round(value)}/s`);

// -- topologies
export function topology() {
  const body = h("div", {}, quiet("…"));
  show(body);
  const update = changing(({ topologies, status: now }) => fill(body, topologies.length ? topologies.map((one) => {
    const rows = now.stages.filter((row) => row.topology === one.name);
    return [h("h2", {}, one.name, h("span", { class: "quiet" }, ` version ${one.version}`)),
      h("div", { class: "wide" }, drawing(boxes(one, now), edges(one, now), narrow.matches)), h("h3", {}, "Stages"),
      table(["source", ">rate", ">lag", ">oldest", "~>open calls", "~>put off", "~>dead letters", "state"], rows.map((row) => [row.source,
        h("span", { class: "chip" }, line(remember(`rate/${one.name}/${row.source}`, row.rate), "events a second, of late"), rate(row.rate)), row.lag, seconds(row.oldest), row.open_calls, row.put_off,
        row.dead_letters, row.stopped ? h("span", { class: "bad" }, row.stopped) : row.paused ? h("span", { class: "running" }, "paused")
          : row.unowned ? h("span", { class: "bad" }, "no owner") : row.gate ? h("span", { class: "running", title: JSON.stringify(row.gate) }, "waits") : "runs"]))];
  }) : quiet("nothing is applied")));
  return async () => {
    const [topologies, now] = await Promise.all([applied(), get("status")]);
    update({ topologies, status: now, narrow: narrow.matches });
    return true;
  };
}

function boxes(one, now) {
  const found = {};
  for (const [name, node] of Object.entries(one.nodes)) {
    const row = now.operators.find((of) => of.topology === one.name && of.node === name);
    const letters = now.letters.filter((of) => of.topology === one.name && of.node === name).reduce((sum, of) => sum + of.count, 0);
    const lines = row && (row.calls || row.events) ? [[`${row.calls ? "calls" : "events"} ${many(row.calls || row.events)}`, seconds(row.p50)].filter(Boolean).join(", ")] : [];
    if (row?.handled) lines.push(`${seconds(row.seconds / row.handled)} each`); // where the engine measures what operators take
    found[name] = { op: letters ? `${node.op}, ${many(letters)} dead` : node.op, from: node.from, lines, calls: Boolean(row?.calls), failing: letters > 0 };
  }
  return found;
}

// What stands on the way into an operator: of a stage, behind its source; of a call, what it has cost.
function edges(one, now) {
  const found = {};
  const say = (name, ...words) => { found[name] = [...(found[name] ?? []), ...words.filter(Boolean)]; };
  for (const row of now.stages.filter((of) => of.topology === one.name)) {
    say(row.source, rate(row.rate), row.lag ? `lag ${many(row.lag)}` : "", row.oldest ? `oldest ${seconds(row.oldest)}` : "");
  }
  const cost = {};
  for (const row of now.operators.filter((of) => of.topology === one.name && of.cost)) cost[row.node] = money(row.cost);
  return { behind: found, into: cost };
}

// -- windows
export function windows() {
  const held = h("div", {}, quiet("…")), open = h("div", {}, quiet("…"));
  show(h("h2", {}, "Watermarks"), held, h("h2", {}, "Open windows"), open);
  const who = changing((stages) => fill(held, table(["~topology", "source", "held back by", ">for", "waits for"], stages.flatMap((row) => {
    const holds = Object.entries(row.holds), waits = Object.entries(row.gate?.sources ?? {}).map(([name, why]) => `${name} (${why})`).join(", ");
    const rows = holds.map(([name, behind]) => [row.topology, row.source, h("strong", { class: "running" }, name), seconds(behind), waits]);
    return rows.length ? rows : [[row.topology, row.source, h("span", { class: "quiet" }, "nobody"), "", waits]];
  }))));
  const which = changing(({ windows: found, count }) => fill(open, table(["~topology", "operator", "key", ">from", "~>to", ">so far"], found.map((one) => [
    one.topology, one.node, one.key, when(one.start), when(one.end), typeof one.value === "object" ? data(one.value) : String(one.value)])),
  count > found.length ? quiet(`and ${many(count - found.length)} more`) : null));
  return async () => {
    which(await get("windows"));
    who((await get("status")).stages.filter((row) => !row.dropped && row.topology !== "_submit"));
    await named();
    return true;
  };
}

// -- pools and limits
export function pools() {
  const body = h("div", {}, quiet("…"));
  show(body);
  const health = (row) => h("span", { class: row.alive ? "done" : "bad" }, row.alive ? row.health ?? "ok" : "gone");
  const update = changing((now) => fill(body,
    h("h2", {}, "Engines"), table(["engine", "~host", "topologies", "health", "~>reported"], now.engines.map((row) => [row.engine, row.host,
      row.topologies.filter((name) => name !== "_submit").join(", "), health(row), `${seconds(row.age)} ago`])),
    h("h2", {}, "Pools"), table(["pool", "~process", "~host", ">workers", ">slots", "busy", ">waiting", "~>restarts"], now.pools.map((row) => [
      row.pool, row.id ? h("code", {}, short(row.id)) : h("span", { class: "bad" }, "none runs"), row.host, `${row.ready} of ${row.size}`, row.slots,
      h("span", { class: "chip" }, many(row.busy), share(row.busy, 0, row.slots, `${row.busy} of ${row.slots} slots are busy`),
        row.id ? line(remember(`busy/${row.id}`, row.busy), "busy slots, of late") : ""),
      row.waiting ?? 0, row.restarts])),
    h("h2", {}, "Models"), table(["model", "breaker", ">calls", ">errors", ">p50", "~>p95"], now.lms.map((row) => [row.lm ?? row.program,
      h("span", { class: row.breaker === "closed" ? "done" : "bad" }, row.breaker), row.calls, row.errors, seconds(row.p50), seconds(row.p95)])),
    h("h2", {}, "Limits and budgets"), table(["of", "what", ">used", "~>reserved", ">most", "~>window ends in"], now.limits.map((row) => [
      [row.budget ?? row.lm, row.tenant, row.run].filter(Boolean).join(" "), row.what,
      h("span", { class: "chip" }, share(row.used, row.reserved, row.most, `${much(row, "used")} of ${much(row, "most")}, ${much(row, "reserved")} reserved`),
        much(row, "used")), much(row, "reserved"), much(row, "most") || "no limit", seconds(row.ends)])),
    h("h2", {}, "Ways of calls"), table(["operator", "route", "~model", "reason", ">calls"], now.routes.map((row) => [
      row.topology ? `${row.topology}/${row.node}` : h("span", { class: "quiet" }, "of no topology"), row.route, row.lm, row.reason, row.calls]))));
  return async () => {
    update(await get("status"));
    await named();
    return true;
  };
}
const much = (row, name) => (row.what === "cost" ? money(row[name]) : many(row[name]));
