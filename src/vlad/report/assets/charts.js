// Histograms and curves, as SVG.
const NS = "http://www.w3.org/2000/svg";
function svg(tag, attributes, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
const COLORS = { "0": "var(--normal)", "1": "var(--anomalous)", "-1": "#5b6875" };
const NAMES = { "0": "normal", "1": "anomalous", "-1": "unknown" };

function ticks(low, high, most) {
  const raw = (high - low) / most;
  const size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * size).find((one) => one >= raw);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) found.push(at);
  return found;
}

function drawHistogram() {
  const [W, H, L, B, T] = [640, 250, 40, 34, 10];
  const [low, high] = range();
  const list = chosen();
  const turned = state.group < 0 && scale !== "score"; // shares of normal images: the anomalous end on the right
  const value = (i) => (state.group < 0 ? position[i] : R.score[i]);
  const x = (v) => L + ((turned ? high - v : v - low) / (high - low)) * (W - L - 8);
  const bins = 50;
  const kinds = ["0", "1", "-1"].filter((kind) => list.some((i) => R.label[i] === Number(kind)));
  const counts = Object.fromEntries(kinds.map((kind) => [kind, new Array(bins).fill(0)]));
  for (const i of list) {
    const bin = Math.min(bins - 1, Math.max(0, Math.floor(((value(i) - low) / (high - low)) * bins)));
    counts[R.label[i]][bin] += 1;
  }
  const most = Math.max(1, ...kinds.flatMap((kind) => counts[kind]));
  const y = (n) => H - B - (n / most) * (H - B - T);
  const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": "Histogram of image scores" });
  for (const n of ticks(0, most, 4).filter(Number.isInteger)) {
    root.append(svg("line", { x1: L, x2: W - 8, y1: y(n), y2: y(n), stroke: "#e3e8ed" }));
    const label = svg("text", { x: L - 6, y: y(n) + 4, "text-anchor": "end" });
    label.textContent = n;
    root.append(label);
  }
  for (const at of ticks(low, high, 8)) {
    const label = svg("text", { x: x(at), y: H - B + 15, "text-anchor": "middle" });
    label.textContent = short(at);
    root.append(svg("line", { x1: x(at), x2: x(at), y1: H - B, y2: H - B + 4, stroke: "#8a97a3" }), label);
  }
  const width = (W - L - 8) / bins / kinds.length;
  kinds.forEach((kind, k) => counts[kind].forEach((n, bin) => {
    if (!n) return;
    const left = Math.min(x(low + (bin / bins) * (high - low)), x(low + ((bin + 1) / bins) * (high - low)));
    root.append(svg("rect", { x: left + k * width, width: Math.max(1, width - 0.6), y: y(n), height: H - B - y(n), fill: COLORS[kind] }));
  }));
  root.append(svg("line", { x1: L, x2: W - 8, y1: H - B, y2: H - B, stroke: "#8a97a3" }));
  const t = Math.min(high, Math.max(low, currentValue()));
  root.append(svg("line", { id: "line", x1: x(t), x2: x(t), y1: T, y2: H - B, stroke: "#b3261e", "stroke-width": 2 }));
  const name = svg("text", { x: (W + L) / 2, y: H - 3, "text-anchor": "middle" });
  name.textContent = turned
    ? scale === "p" ? "p-value" : "share of the category's normal images that score at least as high" : "image score";
  root.append(name);
  const legend = make("figcaption", { class: "legend" });
  kinds.forEach((kind) => legend.append(make("span", { style: `--c:${COLORS[kind]}`, text: NAMES[kind] })));
  $("histogram").replaceChildren(root, legend);
}

function imageCurves(list) {
  // ROC and precision-recall of image scores, with a point per score.
  const total = list.filter((i) => R.label[i] === 1).length;
  const normal = list.filter((i) => R.label[i] === 0).length;
  if (!total || !normal) return null;
  const roc = [[0], [0]];
  const pr = [[], []];
  let [hits, alarms] = [0, 0];
  list.forEach((i, place) => {
    hits += R.label[i] === 1;
    alarms += R.label[i] === 0;
    if (place + 1 < list.length && R.score[list[place + 1]] === R.score[i]) return;
    roc[0].push(alarms / normal);
    roc[1].push(hits / total);
    if (hits + alarms) {
      pr[0].push(hits / total);
      pr[1].push(hits / (hits + alarms));
    }
  });
  return { roc, pr };
}
const perGroup = members.map(imageCurves);

function drawCurve(title, names, lines, point, most = 1) {
  const [W, H, L, B, T] = [220, 216, 32, 32, 8];
  const x = (v) => L + (v / most) * (W - L - 8);
  const y = (v) => H - B - v * (H - B - T);
  const root = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  for (const at of [0, 0.5, 1]) {
    root.append(svg("line", { x1: L, x2: W - 8, y1: y(at), y2: y(at), stroke: "#e3e8ed" }));
    const left = svg("text", { x: L - 5, y: y(at) + 4, "text-anchor": "end" });
    left.textContent = at;
    const below = svg("text", { x: x(at * most), y: H - B + 14, "text-anchor": "middle" });
    below.textContent = short(at * most);
    root.append(svg("line", { x1: x(at * most), x2: x(at * most), y1: T, y2: H - B, stroke: "#e3e8ed" }), left, below);
  }
  for (const { name, xs, ys, strong } of lines) {
    const path = xs.map((v, k) => `${k ? "L" : "M"}${x(v).toFixed(1)} ${y(ys[k]).toFixed(1)}`).join("");
    const line = svg("path", { d: path, fill: "none", stroke: strong ? "var(--accent)" : "#7d95ad", "stroke-width": strong ? 1.8 : 1 });
    const tip = svg("title", {});
    tip.textContent = name;
    line.append(tip);
    root.append(line);
  }
  if (point) root.append(svg("circle", { cx: x(point[0]), cy: y(point[1]), r: 4.5, fill: "#b3261e", class: "point" }));
  const label = svg("text", { x: (W + L) / 2, y: H - 3, "text-anchor": "middle" });
  label.textContent = names[0];
  root.append(label);
  return make("figure", { class: "chart" }, make("figcaption", { text: title }), root);
}

function drawCurves() {
  const groups = state.group < 0 ? G.map((_, g) => g) : [state.group];
  const strong = groups.length === 1;
  const charts = [];
  const counts = strong ? count(members[groups[0]]) : null;
  const recall = counts && counts.tp / (counts.tp + counts.fn);
  const points = counts && {
    roc: [counts.fp / (counts.fp + counts.tn), recall],
    pr: counts.tp + counts.fp ? [recall, counts.tp / (counts.tp + counts.fp)] : null,
  };
  const image = groups.filter((g) => perGroup[g]);
  for (const [kind, title, names] of [
    ["roc", "ROC, images", ["false-positive rate", "recall"]],
    ["pr", "Precision over recall, images", ["recall", "precision"]],
  ]) {
    const lines = image.map((g) => ({ name: G[g].name, xs: perGroup[g][kind][0], ys: perGroup[g][kind][1], strong }));
    if (lines.length) charts.push(drawCurve(title, names, lines, points && points[kind]));
  }
  for (const [kind, title, names, most] of [
    ["roc", "ROC, pixels", ["false-positive rate"], 1],
    ["pr", "Precision over recall, pixels", ["recall"], 1],
    ["pro", "Per-region overlap up to FPR 0.3", ["false-positive rate of pixels"], 0.3],
  ]) {
    const lines = groups.filter((g) => G[g].curves[kind]).map((g) => ({
      name: G[g].name, xs: G[g].curves[kind][0], ys: G[g].curves[kind][1], strong,
    }));
    if (lines.length) charts.push(drawCurve(title, names, lines, null, most));
  }
  $("curves").hidden = !charts.length;
  $("charts").replaceChildren(...charts);
}
