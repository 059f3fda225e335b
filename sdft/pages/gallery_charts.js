"use strict";
// Curves as SVG: one panel per metric, one colour per line, or per run in comparisons.
const NS = "http://www.w3.org/2000/svg", EDGE = { left: 52, right: 10, top: 8, bottom: 24 };
const svgElement = (name, attributes, ...inside) => {
  const node = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...inside);
  return node;
};
const formatShort = (value) => {
  const size = Math.abs(value);
  if (value === 0) return "0";
  return size >= 1e5 || size < 1e-4 ? value.toExponential(1).replace("e+", "e") : String(+value.toPrecision(4));
};

function chooseTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((n) => n * power).find((n) => n >= raw);
  const ticks = [];
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + step * 1e-9; n++) ticks.push(+(n * step).toPrecision(10));
  return ticks;
}

function valueRange(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
  if (low === high) { const room = Math.abs(low) * 0.1 || 1; return [low - room, high + room]; }
  return [low, high];
}

function drawPanel(figure, panel) {
  const width = figure.clientWidth, HEIGHT = panel.score ? 120 : 190;
  const lines = panel.lines.filter((line) => line.points.length);
  if (!width || !lines.length) return;
  const [x0, x1] = valueRange(lines.flatMap((line) => line.points.map(([x]) => x)));
  let [y0, y1] = valueRange(lines.flatMap((line) => line.points.map(([, y]) => y)));
  if (y0 > 0 && y0 < 0.4 * y1) y0 = 0;
  const room = (y1 - y0) * 0.05;
  [y0, y1] = [y0 === 0 ? 0 : y0 - room, y1 + room];
  const left = (x) => EDGE.left + ((x - x0) / (x1 - x0)) * (width - EDGE.left - EDGE.right);
  const top = (y) => HEIGHT - EDGE.bottom - ((y - y0) / (y1 - y0)) * (HEIGHT - EDGE.top - EDGE.bottom);
  const svg = svgElement("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, height: HEIGHT, role: "img", "aria-label": panel.title });
  for (const y of chooseTicks(y0, y1, panel.score ? 3 : 5)) {
    svg.append(svgElement("line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: top(y), y2: top(y) }));
    svg.append(svgElement("text", { class: "axis", x: EDGE.left - 8, y: top(y) + 4, "text-anchor": "end" }, formatShort(y)));
  }
  for (const x of chooseTicks(x0, x1, Math.max(2, Math.round(width / 110)))) {
    if (Number.isInteger(x) && x >= 0) svg.append(svgElement("text", { class: "axis", x: left(x), y: HEIGHT - 6, "text-anchor": "middle" }, String(x)));
  }
  for (const line of lines) {
    const path = line.points.map(([x, y], n) => `${n ? "L" : "M"}${left(x).toFixed(1)} ${top(y).toFixed(1)}`).join("");
    svg.append(svgElement("path", { class: `line s${line.colour}${line.faint ? " faint" : ""}`, d: path }));
    if (line.points.length < 25 && !line.faint) for (const [x, y] of line.points) svg.append(svgElement("circle", { class: `mark s${line.colour}`, cx: left(x), cy: top(y), r: 2.5 }));
  }
  const cursor = svgElement("line", { class: "cursor", y1: EDGE.top, y2: HEIGHT - EDGE.bottom, visibility: "hidden" });
  svg.append(cursor);
  const point = (event) => {
    const box = svg.getBoundingClientRect();
    const x = x0 + ((event.clientX - box.left - EDGE.left) / (width - EDGE.left - EDGE.right)) * (x1 - x0);
    const nearest = (line) => line.points.reduce((best, at) => (Math.abs(at[0] - x) < Math.abs(best[0] - x) ? at : best));
    const step = nearest(lines.at(-1))[0];
    cursor.setAttribute("x1", left(step)); cursor.setAttribute("x2", left(step)); cursor.setAttribute("visibility", "visible");
    updateLegend(figure, panel, step, lines.map(nearest));
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); updateLegend(figure, panel); });
  figure.querySelector("svg")?.remove();
  figure.append(svg);
  updateLegend(figure, panel);
}

// Legend, with values while the pointer is over the panel.
function updateLegend(figure, panel, step, at) {
  const lines = panel.lines.filter((line) => line.points.length), legend = figure.querySelector(".key");
  legend.replaceChildren(...(step === undefined ? [] : [element("span", `step ${step}`)]), ...lines.flatMap((line, n) => {
    if (lines.length === 1 && step === undefined) return [];
    const mark = element("i");
    mark.className = `s${line.colour}${line.faint ? " faint" : ""}`;
    return [element("span", mark, line.name + (step === undefined ? "" : ` ${formatShort(at[n][1])}`))];
  }));
  const bad = panel.lines.reduce((sum, line) => sum + (line.bad ?? 0), 0);
  if (bad && step === undefined) legend.append(element("span", `${bad} NaN/Inf ${bad === 1 ? "value" : "values"}`));
}

// One run: all lines. Two runs: the main line of each.
function buildPanels(data) {
  if (data.length === 1) return data[0].map((panel) => ({ ...panel, lines: panel.lines.map((line, n) => ({ ...line, colour: panel.lines[0].faint ? 0 : n % 4 })) }));
  const titles = [...new Set(data.flatMap((run) => run.map((panel) => panel.title)))];
  return titles.map((title) => {
    const both = data.map((run) => run.find((panel) => panel.title === title));
    const lines = both.flatMap((panel, n) => (panel?.lines ?? []).filter((line) => line.main).map((line) => ({ ...line, name: "AB"[n], colour: n })));
    return { ...both.find(Boolean), title, lines };
  });
}

const curves = document.querySelector("#curves");
if (curves) {
  const [first, small, more] = curves.querySelectorAll(".charts"), folded = curves.querySelector("details");
  let drawnPanels = [];
  const redraw = () => drawnPanels.forEach(([figure, panel]) => drawPanel(figure, panel));
  curves.load = async () => {
    const answers = await Promise.all(curves.dataset.curves.split(" ").map((address) => fetch(address)));
    if (!answers.every((answer) => answer.ok)) return;
    const panels = buildPanels(await Promise.all(answers.map((answer) => answer.json()))).filter((panel) => panel.lines.some((line) => line.points.length || line.bad));
    if (drawnPanels.map(([, panel]) => panel.title).join() !== panels.map((panel) => panel.title).join()) {
      drawnPanels = panels.map((panel) => {
        const names = Object.assign(element("div"), { className: "key" });
        return [Object.assign(element("figure", element("b", panel.title), names), { className: "chart" }), panel];
      });
      first.replaceChildren(...drawnPanels.filter(([, panel]) => !panel.more && !panel.score).map(([figure]) => figure));
      small.replaceChildren(...drawnPanels.filter(([, panel]) => panel.score).map(([figure]) => figure));
      more.replaceChildren(...drawnPanels.filter(([, panel]) => panel.more).map(([figure]) => figure));
      folded.hidden = !more.childElementCount;
      if (!drawnPanels.length) first.replaceChildren(element("p", "No metrics yet."));
    }
    drawnPanels = drawnPanels.map(([figure], n) => [figure, panels[n]]);
    redraw();
  };
  folded.addEventListener("toggle", redraw);
  let width = 0;
  new ResizeObserver(() => { if (curves.clientWidth !== width) { width = curves.clientWidth; redraw(); } }).observe(curves);
  curves.load();
}
