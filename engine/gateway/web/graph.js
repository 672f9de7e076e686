// A topology as a drawing: operators in columns, each right of all that it reads; or in rows, each below, where there is no room.
const SVG = "http://www.w3.org/2000/svg";
const WIDE = 150, HIGH = 58, GAP = 92, FALL = 40, BESIDE = 40, BETWEEN = 24, EDGE = 12;

export function s(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// nodes: name → {op, from: [names], lines: [texts], calls, failing}. ways: what is written on edges, {behind: of what leaves a
// node, into: of what goes into one}.
export function drawing(nodes, ways, down = false) {
  const column = new Map();
  const depth = (name, above = new Set()) => {
    if (column.has(name)) return column.get(name);
    if (above.has(name)) return 0;  // a loop: it is drawn once
    const from = nodes[name].from.filter((one) => one in nodes);
    const found = from.length ? 1 + Math.max(...from.map((one) => depth(one, new Set([...above, name])))) : 0;
    column.set(name, found);
    return found;
  };
  const columns = [];
  for (const name of Object.keys(nodes)) (columns[depth(name)] ??= []).push(name);
  const at = {};
  const along = columns.length, across = Math.max(...columns.map((names) => names.length));
  const right = WIDE + (down ? BETWEEN : GAP), below = HIGH + (down ? FALL : BETWEEN);
  columns.forEach((names, x) => names.forEach((name, y) => {
    at[name] = { x: EDGE + (down ? y : x) * right, y: EDGE + (down ? x : y) * below };
  }));
  const width = EDGE + (down ? across : along) * right - (right - WIDE) + (down ? BESIDE : 0) + EDGE;
  const height = EDGE + (down ? along : across) * below - (below - HIGH) + EDGE;
  const made = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "graph", role: "img", "aria-label": "The topology" });
  for (const [name, node] of Object.entries(nodes)) {
    for (const from of node.from.filter((one) => one in at)) {
      const [a, b] = [at[from], at[name]];
      const [x1, y1, x2, y2] = down ? [a.x + WIDE / 2, a.y + HIGH, b.x + WIDE / 2, b.y] : [a.x + WIDE, a.y + HIGH / 2, b.x, b.y + HIGH / 2];
      const [dx, dy] = down ? [0, FALL / 2] : [GAP / 2, 0];
      made.append(s("path", { d: `M${x1} ${y1} C${x1 + dx} ${y1 + dy} ${x2 - dx} ${y2 - dy} ${x2} ${y2}` }));
      const said = [...(ways.behind[from] ?? []), ways.into[name]].filter(Boolean), rows = said.length > 1 ? Math.ceil(said.length / 2) : 1;
      const words = (x, y, text, kind) => made.append(s("text", { x, y, class: kind }, text));
      if (down) [said.slice(0, 2), said.slice(2)].forEach((some, row) => words((x1 + x2) / 2 + 6, (y1 + y2) / 2 + 4 + 13 * row - (said.length > 2 ? 6 : 0),
        some.join(", "), "way beside"));
      else said.forEach((text, row) => words((x1 + x2) / 2, (y1 + y2) / 2 - 5 + 13 * (row - rows + 1) + (row >= rows ? 4 : 0), text, "way"));
    }
  }
  for (const [name, node] of Object.entries(nodes)) {
    const { x, y } = at[name];
    const line = (text, row, kind) => s("text", { x: x + 10, y: y + 18 + row * 15, class: kind }, cut(text));
    const box = s("rect", { x, y, width: WIDE, height: HIGH, rx: 7, class: node.failing ? "failing" : node.calls ? "calls" : "" });
    const lines = [`${node.op}`, ...node.lines].slice(0, 2).map((text, row) => line(text, row + 1, "quiet"));
    made.append(s("g", {}, s("title", {}, [name, node.op, ...node.lines].join("\n")), box, line(name, 0, ""), ...lines));
  }
  return made;
}

const cut = (text) => (text.length > 22 ? `${text.slice(0, 21)}…` : text);
