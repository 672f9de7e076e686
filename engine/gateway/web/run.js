// One run: what it did as a tree on a time line, what models were asked and said, and doing it again.
import { events, fill, get, h, show } from "./base.js";
import { again } from "./again.js";
import { changing, data, facts, many, money, named, quiet, runLink, seconds, text, took, when } from "./values.js";

const KINDS = { letter: "dead letter", source: "event" };

export function run({ id, query }) {
  const top = h("div"), doing = h("div"), tree = h("div", { class: "tree" }), opened = new Set(), results = h("div");
  show(h("p", {}, h("a", { href: "#/runs" }, "← Runs")), top, doing, tree, results);
  let buttons = null, told = false;  // why it failed is open from the begin
  const update = changing((found) => {
    const used = found.usage;
    fill(top, h("h2", {}, "Run ", h("code", {}, found.id)), facts({
      status: h("span", { class: found.status }, found.status), topology: found.topology, started: when(found.started), took: took(found),
      calls: many(found.calls), tokens: `${many(used.input_tokens)} in, ${many(used.output_tokens)} out`, cost: money(used.cost),
      "dead letters": found.dead_letters ? many(found.dead_letters) : "", "fork of": found.parent ? runLink(found.parent) : "" }));
    for (const one of flat(found.tree)) one.one.attempts.forEach((step) => { step.prompt = prompt(found.prompts, step); });
    const all = flat(found.tree), scale = scaled(all.map(({ one }) => one));
    const failure = all.findLast(({ one }) => one.error || one.attempts.some((step) => step.error));
    if (failure && !told) opened.add(keyOf(failure.one));
    told ||= Boolean(failure);
    fill(tree, all.map(({ one, depth }) => happening(one, depth, scale, opened)));
    fill(results, found.outputs.length ? [h("h2", {}, "Outputs"), found.outputs.map((one) => [h("h3", {}, one.subject), data(one.data)])]
      : found.status === "running" ? quiet(found.asked.length ? ["it waits for somebody to decide, at ", found.asked.map((one) => one.node).join(", "), ": ",
        h("a", { href: "#/approvals" }, "Approvals")] : "nothing has come out of it yet") : null);
    if (buttons === null || buttons.over !== (found.status !== "running")) {
      buttons = again(found, all.map(({ one }) => one), query.get("with"));
      fill(doing, buttons.element);
    }
  });
  const look = async () => {
    const found = await get(`runs/${encodeURIComponent(id)}?tree=true&outputs=true`);
    found.asked = found.status === "running" ? (await get("approvals")).approvals.filter((one) => one.run === found.id) : [];
    update(found);
    return found;
  };
  return async (signal) => {
    const found = await look();
    await named();
    if (found.status !== "running") return false;
    for await (const { event } of events(`runs/${encodeURIComponent(found.id)}/events`)) {
      if (signal.aborted || event !== "step") break;
      await look();
    }
    return true;
  };
}
const keyOf = (one) => `${one.kind}/${one.id}/${one.label}`;
const prompt = (prompts, step) => prompts.find((one) => one.step === step.id && one.attempt === step.attempt)?.messages;
const time = (stamp) => new Date(stamp).getTime();
const end = (step) => time(step.started) + step.elapsed * 1000;
const flat = (one, depth = 0) => [{ one, depth }, ...one.below.flatMap((below) => flat(below, depth + 1))];

// Where a time is, in per cent. Nothing happens in most of a run that waits for a person: such a pause is drawn short.
const PAUSE = 6;  // per cent that a pause takes
export function scaled(all) {
  const spans = all.flatMap((one) => (one.attempts.length ? one.attempts.map((step) => [time(step.started), end(step)]) : [[time(one.time), time(one.time)]]))
    .sort((a, b) => a[0] - b[0]);
  const busy = [];
  for (const [from, to] of spans) {
    if (busy.length && from <= busy.at(-1)[1]) busy.at(-1)[1] = Math.max(busy.at(-1)[1], to);
    else busy.push([from, to]);
  }
  const worked = busy.reduce((sum, [from, to]) => sum + to - from, 0), pauses = [], knots = [[busy[0][0], 0]];
  const long = (gap) => gap > Math.max(1000, worked);
  const gaps = busy.slice(1).map(([from], at) => [busy[at][1], from]);
  const short = gaps.filter(([a, b]) => long(b - a)).length;
  const each = Math.min(PAUSE, 40 / Math.max(1, short)), rest = 100 - each * short;
  const whole = worked + gaps.filter(([a, b]) => !long(b - a)).reduce((sum, [a, b]) => sum + b - a, 0) || 1;
  let at = 0;
  busy.forEach(([from, to], index) => {
    at += (rest * (to - from)) / whole;
    knots.push([to, at]);
    if (!gaps[index]) return;
    const [a, b] = gaps[index];
    if (long(b - a)) pauses.push({ at: at + each / 2, seconds: (b - a) / 1000 });
    at += long(b - a) ? each : (rest * (b - a)) / whole;
    knots.push([b, at]);
  });
  const place = (moment) => {
    const next = knots.findIndex(([t]) => t >= moment);
    if (next <= 0) return next === 0 ? 0 : at;
    const [[t0, x0], [t1, x1]] = [knots[next - 1], knots[next]];
    return t1 === t0 ? x1 : x0 + ((x1 - x0) * (moment - t0)) / (t1 - t0);
  };
  return { place, pauses };
}

function bar(from, to, scale, kind) {
  const made = h("span", { class: `bar ${kind}` }), left = Math.min(99, scale.place(from));
  made.style.left = `${left}%`;
  if (to > from) made.style.width = `${Math.max(0.3, scale.place(to) - left)}%`;
  return made;
}

function pause({ at, seconds: long }) {
  const made = h("span", { class: "pause", title: `${seconds(long)} in which nothing happens` });
  made.style.left = `${at}%`;
  return made;
}

function happening(one, depth, scale, opened) {
  const failed = one.error || one.attempts.some((step) => step.error);
  const bars = one.attempts.length ? one.attempts.map((step) => bar(time(step.started), end(step), scale, step.error ? "failed" : ""))
    : [bar(time(one.time), 0, scale, failed ? "point failed" : "point")];
  const name = h("span", { class: "name" }, h("span", { class: "kind" }, KINDS[one.kind] || one.kind), h("span", { class: failed && "failed" }, one.label || one.node));
  name.style.paddingLeft = `${depth * 14}px`;
  const whole = one.attempts.reduce((sum, step) => sum + step.elapsed, 0);
  const inside = h("div", { class: "inside" });
  const key = keyOf(one);
  const fold = h("details", { open: opened.has(key), ontoggle: () => {
    if (fold.open) opened.add(key);
    else opened.delete(key);
    if (fold.open && !inside.firstChild) inside.append(...within(one).flat(9).filter(Boolean));
  } }, h("summary", { "data-row": key }, name, h("span", { class: "quiet number" }, one.attempts.length ? seconds(whole) : ""),
    h("span", { class: "lane" }, scale.pauses.map(pause), bars)), inside);
  return fold;
}

function within(one) {
  return [
    one.note && h("p", {}, one.note), h("h3", {}, one.kind === "call" ? "Inputs" : "Data"), data(one.data),
    one.error && [h("h3", { class: "bad" }, "Error"), problem(one.error)],
    (one.gives || []).map((given) => [h("h3", {}, "Gives"), data(given.data)]), one.attempts.map((step, at) => attempt(step, one.attempts.length > 1 || at > 0))];
}

const problem = (error) => [h("p", {}, h("strong", { class: "bad" }, error.type || "error"), error.code ? h("span", { class: "quiet" }, ` ${error.code}`) : null,
  ` ${error.message || ""}`), error.fix ? h("p", { class: "quiet" }, error.fix) : null];

function attempt(step, several) {
  return [several && h("h3", {}, `Attempt ${step.attempt}`),
    step.outputs !== null && [h("h3", {}, "Outputs"), data(step.outputs)],
    step.error && [h("h3", { class: "bad" }, "Error"), problem(step.error)],
    facts({ took: seconds(step.elapsed), model: step.lm || "", cost: money(step.usage.cost),
      tokens: step.usage.input_tokens ? `${many(step.usage.input_tokens)} in, ${many(step.usage.output_tokens)} out` : "",
      route: step.route || "", program: step.program || "", state: step.state || "", worker: step.worker || "" }),
    step.exchanges.map((one, at) => exchange(at === 0 && one.kind !== "tool" && !one.asked ? { ...one, asked: { messages: step.prompt } } : one))];
}

function exchange(one) {
  const messages = Array.isArray(one.asked?.messages) ? one.asked.messages : null;
  return [h("h3", {}, `${one.kind === "tool" ? "Tool" : "Model"} ${one.name}`, one.seconds ? `, ${seconds(one.seconds)}` : ""),
    messages ? messages.map((turn) => h("div", { class: "turn" }, h("span", { class: "kind" }, text(turn.role)), h("pre", {}, text(turn.content))))
      : one.asked ? data(one.asked) : null,
    one.said ? h("div", { class: "turn answer" }, h("span", { class: "kind" }, "answer"), h("pre", {}, text(one.said))) : null];
}
